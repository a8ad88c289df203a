"""Half-lives: each row counts by its own age, so weights do not depend on how rows were cut into batches."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.decay import decay_by_place, decay_by_time, half_power, pieces
from streamkm.models.validation import ONES, frozen

Unit = Literal["points", "seconds"]

PIECE_HALF_LIVES = 0.5
"""A batch is learned in pieces of about this many half-lives: over longer ones clusters may have moved far."""

MIN_PIECE_ROWS = 16
"""Rows of a piece at least."""


class AgedWeights(NamedTuple):
    """The weights of a batch's rows once the whole batch is there."""

    weights: NDArray[np.float64]
    """(n,), or (0,) for ones: as they were given."""
    decayed: NDArray[np.float64]
    """(n,), or (0,) for ones: by the age that each row has when the batch ends."""
    half_lives: float = 0.0
    """How much older the batch made what was learned before."""

    @property
    def factor(self) -> float:
        """Factor on the weight of what was learned before."""
        return half_power(self.half_lives) if self.half_lives else 1.0

    def take(self, mask: NDArray[np.bool_]) -> AgedWeights:
        """Those of some rows, by a mask (n,)."""
        weights = frozen(self.weights[mask]) if len(self.weights) else self.weights
        decayed = weights if self.decayed is self.weights else frozen(self.decayed[mask])
        return AgedWeights(weights, decayed, self.half_lives)


class Decay:
    """Tells how old rows are.

    Parameters
    ----------
    half_life
        After this many points or seconds a point counts half; None: all count alike for ever.
    unit
        ``"points"``: a row's age is the weight of all rows after it. ``"seconds"``: it is how long its event time lies
        before the newest one.

    Attributes
    ----------
    clock
        Newest event time so far, seconds since 1970; None while none is known.
    """

    def __init__(self, half_life: float | None, unit: Unit) -> None:
        self.half_life = half_life
        self.unit: Unit = unit
        self.clock: float | None = None

    @property
    def by_time(self) -> bool:
        """Whether event times are needed."""
        return self.half_life is not None and self.unit == "seconds"

    def pieces(self, weights: NDArray[np.float64], times: NDArray[np.float64], n: int) -> list[int]:
        """Where to cut a batch so that its last rows meet centroids that have followed its first ones.

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
        """Let n rows come, and say how much each of them and all before them count now.

        Parameters
        ----------
        weights
            From `validate.row_weights`.
        times
            (n,): event times from `validate.event_times`; not looked at unless `by_time`.
        """
        if self.half_life is None:
            return AgedWeights(weights, weights)
        if not self.by_time and n == 1 and not len(weights):
            return AgedWeights(weights, weights, 1.0 / self.half_life)
        decayed = np.empty(n)
        if not self.by_time:
            return AgedWeights(
                weights, frozen(decayed), decay_by_place(weights, self.half_life, decayed) / self.half_life
            )
        before = math.nan if self.clock is None else self.clock
        newest = decay_by_time(weights, times, before, self.half_life, decayed)
        self.clock = None if math.isnan(newest) else newest
        elapsed = newest - before
        return AgedWeights(weights, frozen(decayed), elapsed / self.half_life if elapsed > 0.0 else 0.0)

    def cap_clock(self, limit: float) -> None:
        """Take back a clock that lies beyond a limit: no time before it would ever count as new."""
        if self.clock is not None and self.clock > limit:
            self.clock = limit
