"""A coreset: a few thousand weighted rows that represent the whole stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamkm.errors import DataError, NotReadyError, SettingsError, StateError
from streamkm.kernels.assign import Real, largest
from streamkm.kernels.coreset import CALIBRATED, SampleBuffer, calibrate, sample_rows
from streamkm.kernels.groups import plain
from streamkm.kernels.random import uniform
from streamkm.models import validation
from streamkm.models.centroids import BatchResult, LiveCentroids, checked_array, weighted_mean
from streamkm.models.decay import AgedWeights
from streamkm.models.metric import Metric
from streamkm.models.resolve import ResolveProblem, full_effort, solve, thin_rows
from streamkm.models.seeding import initial_centroids
from streamkm.models.validation import frozen
from streamkm.state import ModelState

VERSION = 1
"""Version of the state format that `Coreset.state` writes."""

DEFAULT_SIZE, DEFAULT_SIZE_PER_CLUSTER = 8000, 200
"""Default maximum number of rows: the larger of the two limits."""

THINNED_SHARE = 0.625
"""Thinning reduces a full coreset to this share of its maximum size."""

MIN_SCALE = 1e-60
"""Decay is kept as a single factor of all weights; below this value it is multiplied into them."""


class Coreset:
    """Weighted sample of a stream on which K-Means gives about the same centroids as on all rows.

    Rows are sampled with a probability proportional to their sensitivity (Feldman and Langberg 2011) with respect to
    guide centroids that follow the stream: far rows and rows of small clusters are more likely to be kept. The mass and
    the mean of each centroid's rows are recorded exactly, and the sample is calibrated to them.

    The number of rows never exceeds `size`. The result depends only on the rows, the batches and the seed.

    Parameters
    ----------
    n_clusters
        Number of centroids that sensitivities are computed with, at least 1: about the k that will be solved for.
    size
        Maximum number of rows, at least ``16 n_clusters``; None: 8000 or, if larger, 200 per cluster.
    seed
        Seed of the random choices, 0 to 2**64 - 1.

    Examples
    --------
    >>> import numpy as np
    >>> from streamkm import Coreset
    >>> X = np.random.default_rng(0).normal(size=(100_000, 2))
    >>> coreset = Coreset(n_clusters=4)
    >>> for batch in np.split(X, 25):
    ...     coreset.learn_many(batch)
    >>> len(coreset) <= 8000, round(coreset.weights_.sum())
    (True, 100000)
    >>> coreset.solve(4).shape
    (4, 2)
    """

    def __init__(self, n_clusters: int = 8, *, size: int | None = None, seed: int = 0) -> None:
        if not isinstance(n_clusters, int | np.integer) or n_clusters < 1:
            raise SettingsError(f"n_clusters must be an integer of at least 1, not {n_clusters!r}")
        if size is not None and (not isinstance(size, int | np.integer) or size < 16 * n_clusters):
            raise SettingsError(f"size must be at least 16 n_clusters = {16 * n_clusters}, not {size!r}")
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise SettingsError(f"seed must be an integer from 0 to 2**64 - 1, not {seed!r}")
        self.n_clusters = int(n_clusters)
        self.size = max(DEFAULT_SIZE, DEFAULT_SIZE_PER_CLUSTER * self.n_clusters) if size is None else int(size)
        self.seed = int(seed)
        self.n_features = 0
        """Number of dimensions d; 0 before the first row."""
        self._thinned_size = int(THINNED_SHARE * self.size)
        self.rng = np.array([self.seed], np.uint64)
        self._n_rows = self._first_uncalibrated = 0
        self._scale = 1.0
        self._guide: LiveCentroids | None = None

    # Stand-alone use

    def learn_many(self, X: Any, weights: ArrayLike | None = None) -> None:
        """Learn one batch.

        Parameters
        ----------
        X
            (n, d) array, or a data frame.
        weights
            (n,), not negative: a row of weight 3 counts as three equal rows.

        Raises
        ------
        DataError
            Wrong shape, NaN or infinity. Nothing was learned.
        """
        rows, names = validation.points(X, (), self.n_features)
        high = validation.finite(rows, names)
        row_weights = validation.row_weights(weights, len(rows))
        if not len(rows):
            return
        while self._guide is None:
            room = self.size - self._n_rows
            head = row_weights[:room] if len(row_weights) else np.ones(min(room, len(rows)))
            self.add_rows(rows[:room].astype(np.float64), head)
            rows, row_weights = frozen(rows[room:]), frozen(row_weights[room:])
            if self._n_rows == self.size:
                self._guide = self._new_guide()
            if not len(rows):
                return
        aged = AgedWeights(row_weights, row_weights)
        self.sample_batch(rows, aged, self._guide.learn(rows, aged, high), self._guide)

    def _new_guide(self) -> LiveCentroids:
        rows, weights = self.calibrated()
        metric = Metric.raw(rows.shape[1])
        return LiveCentroids.start(*initial_centroids(rows, weights, self.n_clusters, self.rng, metric), metric)

    def solve(self, n_clusters: int | None = None) -> NDArray[np.float64]:
        """(k, d) float64: centroids of all rows so far, for `n_clusters` or another k. Does not change the coreset.

        Raises
        ------
        NotReadyError
            There are no rows.
        """
        rows, weights = self.calibrated()
        if not len(rows):
            raise NotReadyError("the coreset has no rows yet")
        k = self.n_clusters if n_clusters is None else n_clusters
        origin = weighted_mean(rows, weights)
        problem = ResolveProblem(rows, weights, None, k, origin, Metric.raw(rows.shape[1]), 0.0, 0.0, self.seed)
        return solve(problem, full_effort(math.inf, k)).centroids

    @property
    def rows_(self) -> NDArray[np.float64]:
        """(m, d) float64: the calibrated rows, raw units, a copy."""
        return self.calibrated()[0]

    @property
    def weights_(self) -> NDArray[np.float64]:
        """(m,) float64: decayed number of stream rows that each row represents, a copy."""
        return self.calibrated()[1]

    def __len__(self) -> int:
        return self._n_rows

    @classmethod
    def merge(cls, coresets: Sequence[Coreset]) -> Coreset:
        """Merge the coresets of parts of a stream, with the settings of the first one and a single thinning.

        Raises
        ------
        DataError
            The list is empty, or the rows have different numbers of dimensions.
        """
        if not coresets:
            raise DataError("there are no coresets to merge")
        first = coresets[0]
        whole = cls(first.n_clusters, size=first.size, seed=first.seed)
        parts = [c.calibrated() for c in coresets if len(c)]
        if len({rows.shape[1] for rows, _ in parts}) > 1:
            raise DataError("the coresets have rows of different lengths")
        if not parts:
            return whole
        whole.rng[0] = np.bitwise_xor.reduce([c.rng[0] for c in coresets if len(c)])
        rows, weights = (np.concatenate(p) for p in zip(*parts, strict=True))
        whole.add_rows(rows, weights)
        if len(whole) > whole.size:
            whole._guide = whole._new_guide()
            whole._thin(whole._guide)
        return whole

    # Used by `Clusters`, whose live centroids are the guide

    def add_rows(
        self, rows: NDArray[np.float64], weights: NDArray[np.float64], guide: LiveCentroids | None = None
    ) -> None:
        """Add rows unsampled; with a guide they are thinned if there are too many.

        Parameters
        ----------
        rows, weights
            (n, d) and (n,); rows of weight zero are left out.
        """
        there = weights > 0.0
        if not there.all():
            rows, weights = rows[there], weights[there]
        if not self.n_features:
            self._allocate(rows.shape[1], len(rows))
        end = self._n_rows + len(rows)
        if end > len(self._buffer.weights):
            self._grow(end)
        self._buffer.rows[self._n_rows : end] = rows
        self._buffer.weights[self._n_rows : end] = weights / self._scale
        self._buffer.strata[self._n_rows : end] = CALIBRATED
        self._n_rows = self._first_uncalibrated = end
        if len(rows):
            self._origin = weighted_mean(self._buffer.rows[:end], self._buffer.weights[:end])
        if guide is not None and self._n_rows > self.size:
            self._thin(guide)

    def sample_batch(self, X: Real, aged: AgedWeights, learned: BatchResult, guide: LiveCentroids) -> None:
        """Sample a batch that the guide has just learned.

        Parameters
        ----------
        X, aged
            The batch, as passed to the guide.
        learned
            The guide's result of learning it.
        """
        if aged.half_lives:
            self.decay(aged.factor)
        self._n_rows = sample_rows(
            X,
            aged.decayed,
            learned.assignment,
            guide.stats,
            self._origin,
            float(self._thinned_size),
            1.0 / self._scale,
            self._n_rows,
            self._arrays,
            self.rng,
        )
        if self._n_rows > self.size:
            self.calibrate()
            self._thin(guide)

    def decay(self, factor: float) -> None:
        """Multiply all weights by a factor."""
        self._scale *= factor
        if self._scale < MIN_SCALE:
            self._buffer.weights[: self._n_rows] *= self._scale
            self._buffer.sums[...] *= self._scale
            self._scale = 1.0
            self.filter_rows(self._buffer.weights[: self._n_rows] > 0.0)

    def filter_rows(self, mask: NDArray[np.bool_]) -> None:
        """Drop the rows that are not in the (m,) mask."""
        if mask.all():
            return
        n, before = int(mask.sum()), int(mask[: self._first_uncalibrated].sum())
        for array in (self._buffer.rows, self._buffer.weights, self._buffer.strata):
            array[:n] = array[: self._n_rows][mask]
        self._n_rows, self._first_uncalibrated = n, before

    def calibrate(self) -> None:
        """Correct the rows sampled since the last call to the exact mass and mean of their strata."""
        self._n_rows = calibrate(
            self._first_uncalibrated, self._n_rows, *self._buffer[:3], self._origin, self._buffer.sums
        )
        self._first_uncalibrated = self._n_rows

    def calibrated(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Calibrated copies of the rows (m, d) and their decayed weights (m,). Does not change the coreset."""
        n, k = self._n_rows, self.n_clusters
        if not self.n_features:
            return np.empty((0, 0)), np.empty(0)
        rows, weights, strata = np.empty((n + k, self.n_features)), np.empty(n + k), np.empty(n + k, np.int32)
        rows[:n], weights[:n], strata[:n] = self._buffer.rows[:n], self._buffer.weights[:n], self._buffer.strata[:n]
        m = calibrate(self._first_uncalibrated, n, rows, weights, strata, self._origin, self._buffer.sums.copy())
        return rows[:m], weights[:m] * self._scale

    def draw_seed(self) -> int:
        """Draw a seed for a solve."""
        uniform(self.rng)
        return int(self.rng[0])

    def _thin(self, guide: LiveCentroids) -> None:
        rows, weights = frozen(self._buffer.rows[: self._n_rows]), frozen(self._buffer.weights[: self._n_rows])
        labels, squared = guide.nearest(rows, largest(rows.reshape(-1)))
        k, factors = len(guide.stats), guide.metric.factors
        kept, kept_weights = thin_rows(
            rows, weights, labels, squared, factors, k, self._thinned_size, self._origin, self.rng
        )
        n = self._n_rows = self._first_uncalibrated = len(kept)
        self._buffer.rows[:n], self._buffer.weights[:n], self._buffer.strata[:n] = kept, kept_weights, CALIBRATED

    def _allocate(self, d: int, at_least: int) -> None:
        self.n_features = d
        # A batch adds at most as many rows as are kept, one for its start, and calibration one per stratum.
        capacity = max(self.size, at_least) + self._thinned_size + self.n_clusters + 8
        self._use(
            SampleBuffer(
                np.empty((capacity, d)),
                np.empty(capacity),
                np.empty(capacity, np.int32),
                np.zeros((self.n_clusters, d + 1)),
            )
        )
        self._origin = np.zeros(d)

    def _use(self, buffer: SampleBuffer) -> None:
        self._buffer, self._arrays = buffer, plain(buffer)

    def _grow(self, at_least: int) -> None:
        n, before, origin = self._n_rows, self._buffer, self._origin
        self._allocate(self.n_features, at_least)
        b = self._buffer
        b.rows[:n], b.weights[:n], b.strata[:n] = before.rows[:n], before.weights[:n], before.strata[:n]
        self._use(b._replace(sums=before.sums))
        self._origin = origin

    # Saving

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays, by name: with `scalars`, everything but the guide."""
        n = self._n_rows
        if not self.n_features:
            return {"coreset_rng": self.rng.copy()}
        return {
            "coreset_rows": self._buffer.rows[:n].copy(),
            "coreset_weights": self._buffer.weights[:n].copy(),
            "coreset_strata": self._buffer.strata[self._first_uncalibrated : n].copy(),
            "coreset_sums": self._buffer.sums.copy(),
            "coreset_origin": self._origin.copy(),
            "coreset_rng": self.rng.copy(),
        }

    def scalars(self) -> dict[str, float]:
        """Return the scalars, by name."""
        return {"n_features": self.n_features, "scale": self._scale}

    def restore(self, arrays: Any, scalars: Any) -> None:
        """Restore the state from `arrays` and `scalars`, on a new coreset."""
        self.rng = checked_array(arrays, "coreset_rng", np.uint64, (1,))
        d = int(scalars["n_features"])
        if not d:
            return
        rows, strata = arrays["coreset_rows"], arrays["coreset_strata"]
        n = len(rows)
        self._allocate(d, n)
        self._n_rows, self._first_uncalibrated = n, n - len(strata)
        self._buffer.rows[:n] = checked_array(arrays, "coreset_rows", np.float64, (n, d))
        self._buffer.weights[:n] = checked_array(arrays, "coreset_weights", np.float64, (n,))
        self._buffer.strata[:n] = CALIBRATED
        self._buffer.strata[self._first_uncalibrated : n] = strata
        self._buffer.sums[:] = checked_array(arrays, "coreset_sums", np.float64, (self.n_clusters, d + 1))
        self._origin = checked_array(arrays, "coreset_origin", np.float64, (d,))
        self._scale = float(scalars["scale"])

    def state(self) -> ModelState:
        """Copy the complete state of the coreset."""
        arrays, guide = self.arrays(), self._guide
        if guide is not None:
            arrays |= guide.arrays()
        params = {
            "n_clusters": self.n_clusters,
            "size": self.size,
            "seed": self.seed,
            "next_id": 0 if guide is None else guide.next_id,
            **self.scalars(),
        }
        return ModelState("Coreset", VERSION, params, {name: frozen(a) for name, a in arrays.items()})

    @classmethod
    def from_state(cls, state: ModelState) -> Coreset:
        """Restore a coreset from its `state`.

        Raises
        ------
        StateError
            The state is of another kind or version, or is incomplete.
        """
        if state.kind != "Coreset" or state.version != VERSION:
            raise StateError(
                f"this is the state of a {state.kind}, version {state.version}, not of a Coreset, version 1"
            )
        p, a = state.params, state.arrays
        try:
            coreset = cls(p["n_clusters"], size=p["size"], seed=p["seed"])
            coreset.restore(a, p)
            if "centroids" in a:
                k, d = coreset.n_clusters, coreset.n_features
                coreset._guide = LiveCentroids.from_arrays(a, k, d, p["next_id"], spherical=False)
        except (KeyError, TypeError, ValueError) as e:
            raise StateError(f"the state is damaged: {e}") from e
        if not math.isfinite(coreset._scale):
            raise StateError("the state is damaged: its decay is not a number")
        return coreset
