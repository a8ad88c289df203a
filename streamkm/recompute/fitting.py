"""The exact algorithm over any number of points, in memory or out of core, resumable after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamkm.errors import DataError, SettingsError
from streamkm.models.compile_notice import log_compilation
from streamkm.models.exact.lloyd import Iteration, Lloyd, LloydResult, Stopped
from streamkm.models.exact.points import prepare
from streamkm.models.exact.predict import assigned_distances, nearest_labels
from streamkm.models.exact.runs import FitCheckpoint, FitParams, checked_weights, fit_all
from streamkm.models.exact.storage import Storage, release
from streamkm.models.exact.threads import ThreadTeam
from streamkm.models.validation import LIMIT
from streamkm.models.weighted_rows import squared_deviations
from streamkm.recompute import checkpoint as checkpoints
from streamkm.recompute.pointfile import PointFile, Real

_MIN_MEMORY_BYTES = 1 << 20
"""Minimum memory limit, bytes."""

_BLOCK_ROWS = 1 << 20
"""Rows processed at a time."""

CHECKPOINT_INTERVAL_SECONDS = 1.0
"""Minimum time between checkpoints, s."""


@dataclass(frozen=True)
class FitProgress:
    """Progress of a fit, reported after the assignment step of each iteration.

    Attributes
    ----------
    run
        Index of the current of `n_init` runs, from 0.
    iteration
        Iteration of the run, from 1.
    inertia
        Weighted sum of squared distances, to about ten digits; exact with a trace.
    moved
        Number of points whose label has changed.
    rows_read
        Number of points compared with centroids. Bounds exclude the others.
    """

    run: int
    iteration: int
    inertia: float
    moved: int
    rows_read: int


class FitResult:
    """Result of a fit. It keeps a reference to the points.

    Parameters
    ----------
    points
        (n, d) the points.
    weights
        (n,); None for ones.
    fit
        The best run.
    crew
        Threads for `assign`.
    factors
        (d,) factors that the points were multiplied by before the fit; None for no scaling. Centroids are in units
        before scaling, distances in units after it.
    """

    def __init__(
        self,
        points: Real,
        weights: NDArray[np.float64] | None,
        fit: LloydResult,
        team: ThreadTeam,
        factors: NDArray[np.float64] | None = None,
    ) -> None:
        self._points, self._weights, self._fit, self._team, self._factors = points, weights, fit, team, factors

    def with_factors(self, factors: NDArray[np.float64]) -> FitResult:
        """The same result with centroids in the units before scaling.

        Parameters
        ----------
        factors
            (d,) factors that the points were multiplied by.
        """
        if (factors == 1.0).all():
            return self
        return FitResult(self._points, self._weights, self._fit, self._team, factors)

    @property
    def centroids(self) -> NDArray[np.float64]:
        """(k, d) centroids."""
        return self._fit.centroids if self._factors is None else self._fit.centroids / self._factors

    @property
    def sizes(self) -> NDArray[np.float64]:
        """(k,) total weight of the points of each cluster."""
        return self._fit.sizes

    @property
    def spreads(self) -> NDArray[np.float64]:
        """(k,) root mean squared distance of a cluster's points to its centroid; 0 for a cluster without weight."""
        found: NDArray[np.float64] = np.sqrt(self._fit.costs / np.where(self.sizes > 0.0, self.sizes, 1.0))
        return found

    @property
    def inertia(self) -> float:
        """Weighted sum of squared distances to the nearest centroid."""
        return self._fit.inertia

    @property
    def n_iter(self) -> int:
        """Number of iterations of the best run, with the last one that changed nothing."""
        return self._fit.n_iter

    @property
    def stopped(self) -> Stopped:
        """Why that run stopped: no label changed, no centroid moved more than `tol`, or `max_iter` was reached."""
        return self._fit.stopped

    @property
    def trace(self) -> tuple[Iteration, ...]:
        """With ``trace=True`` all iterations of that run."""
        if self._factors is None:
            return self._fit.trace
        return tuple(replace(step, centroids=step.centroids / self._factors) for step in self._fit.trace)

    def assign(self, start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Nearest centroid of some points.

        Parameters
        ----------
        start, stop
            Slice of the points in their original order.

        Returns
        -------
        tuple
            (m,) labels, the lowest index of equally near centroids; (m,) distances.
        """
        start, stop, _ = slice(start, stop).indices(len(self._points))
        labels, distances = np.empty(max(0, stop - start), np.int32), np.empty(max(0, stop - start))
        with self._team as team:
            for a in range(start, stop, _BLOCK_ROWS):
                b = min(stop, a + _BLOCK_ROWS)
                rows = self._points[a:b]
                centroids = self._fit.centroids
                labels[a - start : b - start] = nearest_labels(rows, centroids, team)
                distances[a - start : b - start] = assigned_distances(
                    rows, labels[a - start : b - start], centroids, team
                )
                release(self._points, a, b)
        return labels, distances

    def deviations(self) -> NDArray[np.float64]:
        """(k, d) root mean squared difference of a cluster's points to its centroid, by column; reads all points."""
        centroids = self._fit.centroids
        squares = np.zeros(centroids.shape)
        for a in range(0, len(self._points), _BLOCK_ROWS):
            b = min(len(self._points), a + _BLOCK_ROWS)
            weights = np.ones(b - a) if self._weights is None else self._weights[a:b]
            squares += squared_deviations(self._points[a:b].astype(np.float64), weights, self.labels(a, b), centroids)
            release(self._points, a, b)
        found: NDArray[np.float64] = np.sqrt(squares / np.where(self.sizes > 0.0, self.sizes, 1.0)[:, np.newaxis])
        return found if self._factors is None else found / self._factors

    def labels(self, start: int, stop: int) -> NDArray[np.int32]:
        """(m,) labels of some points; `assign` returns labels and distances in the same time.

        Parameters
        ----------
        start, stop
            As in `assign`.
        """
        return self.assign(start, stop)[0]

    def distances(self, start: int, stop: int) -> NDArray[np.float64]:
        """(m,) distances of some points; `assign` returns labels and distances in the same time.

        Parameters
        ----------
        start, stop
            As in `assign`.
        """
        return self.assign(start, stop)[1]


def fit_points(
    points: PointFile | Real,
    *,
    n_clusters: int,
    init: str | ArrayLike = "k-means++",
    n_init: int = 1,
    max_iter: int = 300,
    tol: float = 0.0,
    seed: int = 0,
    weights: ArrayLike | None = None,
    memory: int | None = None,
    n_threads: int | None = None,
    trace: bool = False,
    on_progress: Callable[[FitProgress], None] | None = None,
    checkpoint: Path | None = None,
) -> FitResult:
    """Cluster points, with bitwise the same result as `ExactKMeans` in memory.

    Parameters
    ----------
    points
        (n, d) float32 or float64, finite.
    n_clusters, init, n_init, max_iter, tol, n_threads, trace
        As in `ExactKMeans`.
    seed
        Its `random_state`.
    weights
        (n,) non-negative; None for the weights of the file, or ones.
    memory
        Memory limit for points and their state, bytes, at least 1 MiB; None for no limit. Beyond it they are kept in
        unnamed files, beside the `PointFile` or in the temporary folder.
    on_progress
        Called in every iteration, in the caller's thread; an exception ends the fit.
    checkpoint
        File that is written after an iteration, at most once per second. If it exists, the fit continues from it. It is
        not deleted at the end.

    Raises
    ------
    DataError
        Points or weights are not valid.
    SettingsError
        A parameter is out of range, initial centroids have the wrong shape, or the disk is full.
    StateError
        The checkpoint is not valid, or belongs to other points or settings.
    """
    params = FitParams.checked(n_clusters, init, n_init, max_iter, tol, trace=trace)
    team = ThreadTeam.checked(n_threads)
    X, shares = _contents(points, weights)
    params.check_points(X.shape)
    storage = _storage(points, X, memory)
    if not 0 <= seed < 1 << 32:
        raise SettingsError(f"seed must be from 0 to 2**32 - 1, not {seed}")
    rng = np.random.RandomState(seed)
    with team, log_compilation():
        prepared = prepare(X, shares, params.k, team, storage=storage)
        identity = checkpoints.identify(prepared, params, seed) if checkpoint else ""
        resume = checkpoints.load(checkpoint, identity) if checkpoint else None
        reporter = _ProgressReporter(on_progress)
        saved = -CHECKPOINT_INTERVAL_SECONDS

        def on_step(here: FitCheckpoint, run: Lloyd) -> None:
            nonlocal saved
            if checkpoint and time.monotonic() >= saved + CHECKPOINT_INTERVAL_SECONDS:
                checkpoints.save(checkpoint, identity, here)
                saved = time.monotonic()
            reporter.report(here, run)

        watched = on_progress is not None or checkpoint is not None
        fit, _ = fit_all(prepared, params, rng, team, on_step=on_step if watched else None, checkpoint=resume)
    return FitResult(X, shares, fit, ThreadTeam(team.n_threads))


class _ProgressReporter:
    """Reports progress; the inertia is updated from sums, after one pass for that of all points at the origin."""

    def __init__(self, on_progress: Callable[[FitProgress], None] | None) -> None:
        self._on_progress = on_progress
        self._at_origin: float | None = None

    def report(self, state: FitCheckpoint, run: Lloyd) -> None:
        """Report an iteration."""
        if self._on_progress is None:
            return
        if state.trace:
            inertia = state.trace[-1].inertia
        else:
            if self._at_origin is None:
                self._at_origin = run.costs()[1] - run.relative_inertia()
            inertia = max(0.0, self._at_origin + run.relative_inertia())
        self._on_progress(FitProgress(state.run, state.n_iter, inertia, state.moved, run.rows_read))


def _contents(points: PointFile | Real, weights: ArrayLike | None) -> tuple[Real, NDArray[np.float64] | None]:
    """Validate points and weights."""
    if isinstance(points, PointFile):
        X, weights = points.points, points.weights if weights is None else weights
    else:
        contiguous: Any = np.ascontiguousarray(points)
        X = contiguous
        if X.dtype not in (np.float32, np.float64) or X.ndim != 2 or not X.shape[1]:
            raise DataError(f"points must be (n, d) float32 or float64, not {X.dtype} of shape {X.shape}")
        for start in range(0, len(X), _BLOCK_ROWS):
            if not np.isfinite(strip := X[start : start + _BLOCK_ROWS]).all():
                raise DataError("points have values that are not finite")
            if float(max(strip.max(initial=0.0), -strip.min(initial=0.0))) > LIMIT:
                raise DataError(f"points have values beyond the maximum of {LIMIT:g}")
    return X, checked_weights(weights, len(X))


def _storage(points: PointFile | Real, X: Real, memory: int | None) -> Storage:
    """Storage within the memory limit; in files if a fit needs more."""
    if memory is None:
        return Storage()
    if memory < _MIN_MEMORY_BYTES:
        raise SettingsError(f"memory must be at least {_MIN_MEMORY_BYTES} bytes, not {memory}", where="memory")
    n, d = X.shape
    needed = n * (d * (3 * X.itemsize + 8) + 40)
    if needed <= memory:
        return Storage()
    return Storage(memory, points.path.absolute().parent if isinstance(points, PointFile) else None)
