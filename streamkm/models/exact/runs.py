"""All runs of a fit, of which the best is kept; a fit can be observed and resumed at every iteration."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamkm.errors import DataError, SettingsError
from streamkm.models.exact.lloyd import Iteration, Lloyd, LloydResult
from streamkm.models.exact.points import Points
from streamkm.models.exact.seeding import seed
from streamkm.models.exact.storage import release
from streamkm.models.exact.threads import ThreadTeam

INIT_METHODS = ("k-means++", "k-means||", "random")
"""Names of the initialization methods."""

_CHUNK_ROWS = 1 << 20
"""Rows of weights that are validated at a time, to limit memory."""


@dataclass(frozen=True, eq=False)
class FitParams:
    """Validated parameters of a fit.

    Parameters
    ----------
    k
        Number of clusters.
    init
        An initialization method of `seed`, or (k, d) centroids.
    n_init
        Number of runs, if a method is given.
    max_iter, tol
        As in `Lloyd.steps`.
    trace
        Whether to record every iteration.
    """

    k: int
    init: str | NDArray[np.float64]
    n_init: int
    max_iter: int
    tol: float
    trace: bool

    @classmethod
    def checked(
        cls, n_clusters: int, init: str | ArrayLike, n_init: int, max_iter: int, tol: float, *, trace: bool
    ) -> Self:
        """Validate parameters; `init` is a method, or (k, d) centroids.

        Raises
        ------
        SettingsError
            A parameter is out of its range.
        """
        for name, value in (("n_clusters", n_clusters), ("n_init", n_init), ("max_iter", max_iter)):
            if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
                raise SettingsError(f"{name} must be an integer of at least 1, not {value!r}")
        if not isinstance(tol, numbers.Real) or not tol >= 0:
            raise SettingsError(f"tol must be a number of at least 0, not {tol!r}")
        if isinstance(init, str) and init not in INIT_METHODS:
            raise SettingsError(f"init must be one of {', '.join(INIT_METHODS)} or an array, not {init!r}")
        start = init if isinstance(init, str) else _start(init)
        return cls(int(n_clusters), start, int(n_init), int(max_iter), float(tol), bool(trace))

    def check_points(self, shape: tuple[int, ...]) -> None:
        """Check that points of this shape can be fitted.

        Raises
        ------
        DataError
            There are fewer points than clusters.
        SettingsError
            The given centroids have the wrong shape.
        """
        n, d = shape
        if n < self.k:
            raise DataError(
                f"n_samples={n} should be >= n_clusters={self.k}", hint="Ask for fewer clusters, or give more points"
            )
        if not isinstance(self.init, str) and self.init.shape != (self.k, d):
            raise SettingsError(
                f"The shape of the initial centers {self.init.shape} does not match (n_clusters, n_features) = "
                f"{(self.k, d)}"
            )

    @property
    def n_runs(self) -> int:
        """Number of runs: 1 for given centroids."""
        return self.n_init if isinstance(self.init, str) else 1


def _start(init: ArrayLike) -> NDArray[np.float64]:
    """Convert and validate given centroids."""
    try:
        start = np.ascontiguousarray(init, np.float64)
    except (TypeError, ValueError) as e:
        raise SettingsError(f"init cannot be read as numbers ({e})") from e
    if not np.isfinite(start).all():
        raise SettingsError("init has values that are not finite")
    return start


def checked_weights(sample_weight: ArrayLike | None, n: int) -> NDArray[np.float64] | None:
    """Convert and validate (n,) weights; a scalar is the weight of all n points.

    Raises
    ------
    DataError
        The weights are invalid, or all zero.
    """
    if sample_weight is None:
        return None
    try:
        weights = np.asarray(sample_weight, np.float64)
    except (TypeError, ValueError) as e:
        raise DataError(f"sample_weight cannot be read as numbers ({e})") from e
    if weights.ndim == 0:
        weights = np.full(n, float(weights))
    if weights.shape != (n,):
        raise DataError(f"sample_weight.shape == {weights.shape}, expected {(n,)}")
    any_weight = False
    for start in range(0, n, _CHUNK_ROWS):
        some = weights[start : start + _CHUNK_ROWS]
        if not np.isfinite(some).all() or (some < 0).any():
            raise DataError("sample_weight must be finite and not negative")
        any_weight |= bool((some > 0).any())
        release(weights, start, min(n, start + _CHUNK_ROWS))
    if not any_weight:
        raise DataError("sample_weight is zero for all points")
    return weights


@dataclass(frozen=True, eq=False)
class FitCheckpoint:
    """State of a fit at an iteration, from which it can be resumed with the same result.

    Parameters
    ----------
    run
        Index of the run.
    n_iter
        Iteration of the run, from 1.
    centroids
        (k, d) centroids to which points are assigned in this iteration.
    moved
        Number of labels that this assignment changed.
    best
        Best result of earlier runs.
    trace
        Iterations of this run up to this one; empty if not recorded.
    rng
        State of the random generator after this run's initialization.
    """

    run: int
    n_iter: int
    centroids: NDArray[np.float64]
    moved: int
    best: LloydResult | None
    trace: tuple[Iteration, ...]
    rng: Any


OnStep = Callable[[FitCheckpoint, Lloyd], None]


def fit_all(
    points: Points,
    params: FitParams,
    rng: np.random.RandomState,
    team: ThreadTeam,
    *,
    on_step: OnStep | None = None,
    checkpoint: FitCheckpoint | None = None,
) -> tuple[LloydResult, NDArray[np.int32]]:
    """Run Lloyd's algorithm from all starts.

    Parameters
    ----------
    points
        The points.
    params
        Parameters of the fit.
    rng
        Random generator of the starts.
    team
        Threads to use.
    on_step
        Called in every iteration after points were assigned.
    checkpoint
        State to resume from.

    Returns
    -------
    tuple
        The run with the lowest inertia, the first of equal ones, and its (n,) labels in the order of the
        rows of `points`.
    """
    best: LloydResult | None = checkpoint.best if checkpoint else None
    labels: NDArray[np.int32] | None = None
    if checkpoint:
        rng.set_state(checkpoint.rng)
    for number in range(checkpoint.run if checkpoint else 0, params.n_runs):
        trace: list[Iteration] = []
        if checkpoint and number == checkpoint.run:
            run = Lloyd(points, checkpoint.centroids, team, n_iter=checkpoint.n_iter, moved=checkpoint.moved)
            trace += checkpoint.trace[:-1]
        else:
            start = seed(params.init, points, params.k, rng, team) if isinstance(params.init, str) else params.init
            run = Lloyd(points, start, team)
        for moved in run.steps(params.max_iter, params.tol):
            if params.trace:
                trace.append(run.record())
            if on_step is not None:
                here = FitCheckpoint(
                    number, run.n_iter, run.raw_centroids.copy(), moved, best, tuple(trace), rng.get_state()
                )
                on_step(here, run)
        fit = run.finish(tuple(trace))
        if best is None or fit.inertia < best.inertia:
            best, labels = fit, run.assigner.labels
        del run
    assert best is not None  # noqa: S101 -- there is at least one run
    if labels is None:  # the best run was made before the checkpoint
        labels = Lloyd(points, best.centroids, team).assigner.labels
    return best, labels
