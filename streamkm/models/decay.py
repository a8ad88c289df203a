"""Exponential decay: each row is weighted by its own age, independent of batch boundaries."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.decay import decay_by_position, decay_by_time, half_power, pieces
from streamkm.models.validation import ONES, frozen

Unit = Literal["points", "seconds"]

PIECE_HALF_LIVES = 0.5
"""Half-lives of a piece in which a long batch is learned: within it, clusters must not move far."""

MIN_PIECE_ROWS = 16
"""Minimum rows of a piece."""


class AgedWeights(NamedTuple):
    """Row weights of a batch, given and decayed."""

    weights: NDArray[np.float64]
    """(n,), or (0,) for ones: the given weights."""
    decayed: NDArray[np.float64]
    """(n,), or (0,) for ones: the weights decayed by the age of each row at the end of the batch."""
    half_lives: float = 0.0
    """Half-lives by which the batch ages everything learned before."""

    @property
    def factor(self) -> float:
        """Factor on the weight of everything learned before."""
        return half_power(self.half_lives) if self.half_lives else 1.0

    def take(self, mask: NDArray[np.bool_]) -> AgedWeights:
        """Select some rows by a mask, (n,)."""
        weights = frozen(self.weights[mask]) if len(self.weights) else self.weights
        decayed = weights if self.decayed is self.weights else frozen(self.decayed[mask])
        return AgedWeights(weights, decayed, self.half_lives)


class Decay:
    """Computes the ages of rows.

    Parameters
    ----------
    half_life
        Points or seconds after which a point's weight is halved; None: no decay.
    unit
        ``"points"``: a row's age is the weight of all rows after it. ``"seconds"``: it is the difference of its event
        time to the newest one.

    Attributes
    ----------
    clock
        Newest event time so far, seconds since 1970; None if none is known.
    """

    def __init__(self, half_life: float | None, unit: Unit) -> None:
        self.half_life = half_life
        self.unit: Unit = unit
        self.clock: float | None = None

    @property
    def by_time(self) -> bool:
        """Whether event times are required."""
        return self.half_life is not None and self.unit == "seconds"

    def pieces(self, weights: NDArray[np.float64], times: NDArray[np.float64], n: int) -> list[int]:
        """Cut a batch into pieces, so that centroids can follow its first rows before its last ones are learned.

        Parameters
        ----------
        weights, times, n
            As for `age`.

        Returns
        -------
        list
            The end of each piece; the last one is n.
        """
        if self.half_life is None or n <= MIN_PIECE_ROWS:
            return [n]
        stops = np.empty(n, np.int64)
        times = times if self.by_time else ONES
        clock = math.nan if self.clock is None else self.clock
        count = pieces(weights, times, clock, self.half_life, PIECE_HALF_LIVES, MIN_PIECE_ROWS, stops)
        return cast("list[int]", stops[:count].tolist())

    def age(self, weights: NDArray[np.float64], times: NDArray[np.float64], n: int) -> AgedWeights:
        """Add n rows, and return their decayed weights and the decay of all rows before them.

        Parameters
        ----------
        weights
            From `validation.row_weights`.
        times
            (n,): event times from `validation.event_times`; ignored unless `by_time`.
        """
        if self.half_life is None:
            return AgedWeights(weights, weights)
        if not self.by_time and n == 1 and not len(weights):
            return AgedWeights(weights, weights, 1.0 / self.half_life)
        decayed = np.empty(n)
        if not self.by_time:
            return AgedWeights(
                weights, frozen(decayed), decay_by_position(weights, self.half_life, decayed) / self.half_life
            )
        before = math.nan if self.clock is None else self.clock
        newest = decay_by_time(weights, times, before, self.half_life, decayed)
        self.clock = None if math.isnan(newest) else newest
        elapsed = newest - before
        return AgedWeights(weights, frozen(decayed), elapsed / self.half_life if elapsed > 0.0 else 0.0)

    def cap_clock(self, limit: float) -> None:
        """Lower the clock to a limit, so that one event time far in the future does not make all later ones old."""
        if self.clock is not None and self.clock > limit:
            self.clock = limit
