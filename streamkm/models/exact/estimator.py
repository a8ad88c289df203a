"""`ExactKMeans`: Lloyd's algorithm on stored points, as a scikit-learn estimator."""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (  # type: ignore[import-untyped]
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning  # type: ignore[import-untyped]
from sklearn.utils import check_random_state  # type: ignore[import-untyped]
from sklearn.utils.validation import check_is_fitted, validate_data  # type: ignore[import-untyped]

from streamkm.errors import DataError
from streamkm.kernels.exact.distances import all_distances
from streamkm.kernels.exact.sums import Real
from streamkm.models import validation
from streamkm.models.compile_notice import log_compilation
from streamkm.models.exact.lloyd import Iteration, Lloyd
from streamkm.models.exact.points import prepare
from streamkm.models.exact.predict import nearest_labels, scale_for
from streamkm.models.exact.runs import INIT_METHODS, FitParams, checked_weights, fit_all
from streamkm.models.exact.threads import ThreadTeam

__all__ = ["INIT_METHODS", "ExactKMeans"]

log = logging.getLogger(__name__)


class ExactKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """K-Means by Lloyd's algorithm, with the labels of a full computation but several times as fast.

    The result depends only on the points, their weights and the initialization: not on the order of rows, the number of
    threads or the bounds that are used to skip rows. Every label is the nearest of `cluster_centers_` by float64
    distances.

    Parameters
    ----------
    n_clusters
        Number of clusters, k.
    init
        ``"k-means++"`` (greedy, as scikit-learn's), ``"k-means||"``, ``"random"`` (k distinct points), or (k, d)
        centroids.
    n_init
        Number of runs with different starts, of which the one with the lowest `inertia_` is kept; 1 for given
        centroids.
    max_iter
        Maximum number of iterations of a run.
    tol
        A run stops when no centroid moved more than this, in the unit of the points, or when no label changed.
        (scikit-learn's `tol` is relative to the variance of the points.)
    random_state
        Seed of the initialization.
    trace
        Whether to record every iteration in `trace_`.
    n_threads
        Number of threads; None for all cores available to this process. Never changes the result.

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (k, d)
        Centroids, in float64.
    labels_ : ndarray of shape (n,)
        Index of the nearest centroid of each point; the lowest of several equally near ones.
    inertia_ : float
        Weighted sum of squared distances to the nearest centroid.
    n_iter_ : int
        Iterations of the kept run, including the last one, which changed nothing.
    trace_ : tuple of Iteration
        With ``trace=True``: centroids, sizes, inertia and changed labels of each iteration.

    See Also
    --------
    streamkm.OnlineKMeans : One pass over a stream.

    Notes
    -----
    Lloyd (1982), doi:10.1109/TIT.1982.1056489. Empty clusters get the farthest points. Rows are skipped by bounds like
    those of Hamerly (2010), doi:10.1137/1.9781611972801.12, with boxes of neighbouring rows as in Kanungo et al.
    (2002), doi:10.1109/TPAMI.2002.1017616.

    Examples
    --------
    >>> from streamkm import ExactKMeans
    >>> points = [[2], [4], [10], [12], [3], [20], [30], [11], [25]]
    >>> model = ExactKMeans(2, init=[[4], [10]], trace=True).fit(points)
    >>> for step in model.trace_:
    ...     print(step.centroids.ravel().tolist(), step.moved)
    [4.0, 10.0] 9
    [3.0, 18.0] 1
    [4.75, 19.6] 2
    [7.0, 25.0] 0
    >>> model.labels_.tolist()
    [0, 0, 0, 0, 0, 1, 1, 0, 1]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: str | ArrayLike = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
        tol: float = 0.0,
        random_state: int | np.random.RandomState | None = None,
        trace: bool = False,
        n_threads: int | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state
        self.trace = trace
        self.n_threads = n_threads

    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:  # noqa: ARG002
        """Cluster points.

        Parameters
        ----------
        X
            (n, d) array, or a pandas, polars or Arrow table: finite numbers, at most 1e140.
        y
            Not used.
        sample_weight
            (n,), not negative: a point of weight 2 counts as two equal points. None for ones.

        Raises
        ------
        DataError
            The points or weights are invalid.
        SettingsError
            A parameter is out of its range, or `init` has the wrong shape.

        Warns
        -----
        ConvergenceWarning
            The kept run ended at `max_iter`.
        """
        start_time = time.perf_counter()
        params = FitParams.checked(self.n_clusters, self.init, self.n_init, self.max_iter, self.tol, trace=self.trace)
        team = self._team()
        array = self._points(X, reset=True)
        weights = checked_weights(sample_weight, len(array))
        params.check_points(array.shape)
        rng = check_random_state(self.random_state)
        with team, log_compilation():
            points = prepare(array, weights, params.k, team)
            best, labels = fit_all(points, params, rng, team)
        self.cluster_centers_ = best.centroids
        self.labels_ = points.original_labels(labels)
        self.inertia_ = best.inertia
        self.n_iter_ = best.n_iter
        self._n_features_out = params.k
        if self.trace:
            self.trace_: tuple[Iteration, ...] = best.trace
        if best.stopped == "max_iter":
            warnings.warn(
                f"the fit had not converged after {best.n_iter} iterations: labels still changed; raise max_iter",
                ConvergenceWarning,
                stacklevel=2,
            )
        seconds = time.perf_counter() - start_time
        log.debug("fit of %d points in %.3f s, %d iterations", len(array), seconds, best.n_iter)
        return self

    def fit_predict(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> NDArray[np.int32]:
        """Cluster points and return their labels.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`.
        """
        return self.fit(X, y, sample_weight=sample_weight).labels_

    def predict(self, X: Any) -> NDArray[np.int32]:
        """Find the nearest centroid of each point, the lowest index of several equally near ones.

        Parameters
        ----------
        X
            (n, d), as in `fit`.
        """
        check_is_fitted(self)
        array = self._points(X, reset=False)
        with self._team() as team:
            return nearest_labels(array, self.cluster_centers_, team)

    def transform(self, X: Any) -> NDArray[Any]:
        """Compute the distance of each point to each centroid.

        Parameters
        ----------
        X
            (n, d), as in `fit`.

        Returns
        -------
        ndarray of shape (n, k)
            Distances, of the type of X.
        """
        check_is_fitted(self)
        array = self._points(X, reset=False)
        out = np.empty((len(array), len(self.cluster_centers_)), array.dtype)
        scale = scale_for(array, self.cluster_centers_)

        def work(part: int, parts: int) -> None:
            all_distances(part, parts, validation.frozen(array), self.cluster_centers_, scale, out)

        with self._team() as team:
            team.share(work, out.size * array.shape[1] * 0.5)
        return out

    def score(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> float:  # noqa: ARG002
        """Compute the negative cost of points: the weighted sum of squared distances to their nearest centroids.

        Parameters
        ----------
        X
            (n, d), as in `fit`.
        y
            Not used.
        sample_weight
            (n,), as in `fit`.
        """
        check_is_fitted(self)
        array = self._points(X, reset=False)
        points = prepare(array, checked_weights(sample_weight, len(array)), 1)
        with self._team() as team:
            return -Lloyd(points, self.cluster_centers_, team).costs()[1]

    def _team(self) -> ThreadTeam:
        return ThreadTeam.checked(self.n_threads)

    def _points(self, X: Any, *, reset: bool) -> Real:
        """Validate points, and convert them to the layout that kernels are compiled for."""
        if hasattr(X, "__arrow_c_stream__") and not hasattr(X, "to_numpy"):
            import polars as pl  # noqa: PLC0415 -- slow to import, and rarely needed here

            X = pl.DataFrame(X)  # an Arrow table: scikit-learn takes its array and names from a frame
        try:
            array = validate_data(
                self, X, reset=reset, dtype=[np.float64, np.float32], order="C", accept_large_sparse=False
            )
        except ValueError as e:
            raise DataError(str(e)) from e
        points: Real = np.ascontiguousarray(array)
        if float(max(points.max(), -points.min())) > validation.LIMIT:
            validation.finite(points, ())  # raises and names the value, whose square would overflow
        return points
