"""Read-only half of `OnlineKMeans`: its properties, predictions and evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from river import base

from streamkm.errors import NotReadyError
from streamkm.models import validation
from streamkm.models.centroids import LiveCentroids
from streamkm.models.clusters import Clusters, View
from streamkm.models.coreset import Coreset
from streamkm.models.evaluation import Evaluation, evaluate
from streamkm.models.k_selection import KProfile, k_profile
from streamkm.models.outliers import GapRule
from streamkm.state import Distance, Publication


class ClusterInference(base.Clusterer):
    """Properties, predictions and evaluation of `OnlineKMeans`.

    Predictions use the published centroids if there are any, else the live ones; `view` selects one of them.
    """

    n_clusters: int | Literal["auto"]
    distance: Distance
    n_seen: int
    """Rows seen, including warm-up rows and outliers."""
    n_features: int
    """Number of dimensions d; 0 before the first row."""
    feature_names: tuple[str, ...]
    """Names of the dimensions in order, taken from the first dict or data frame; empty if unknown."""
    _clusters: Clusters | None
    _warmup_rows: int
    """Rows required before the first centroids."""

    @property
    def warmup_(self) -> tuple[int, int] | None:
        """(rows buffered, rows needed) during the warm-up, else None."""
        return None if self._clusters is not None else (self.n_seen, self._warmup_rows)

    @property
    def k_(self) -> int:
        """Number of clusters; 0 if not selected yet."""
        if self._clusters is not None:
            return self._clusters.coreset.n_clusters
        return 0 if self.n_clusters == "auto" else self.n_clusters

    @property
    def centers_(self) -> NDArray[np.float64]:
        """(k, d) float64: live centroids in raw units, a copy."""
        return self._ready().live.centroids.copy()

    @property
    def weights_(self) -> NDArray[np.float64]:
        """(k,) float64: decayed weight of each live cluster's points, a copy."""
        return self._ready().live.weights.copy()

    @property
    def ids_(self) -> NDArray[np.int64]:
        """(k,) int64: stable ids of live clusters, a copy. A restarted cluster gets an id that was never used."""
        return self._ready().live.ids.copy()

    @property
    def spreads_(self) -> NDArray[np.float64]:
        """(k,) float64: decayed root mean squared distance of each live cluster's points to its centroid.

        In units of `scale`. Each point is measured to the centroid that it was assigned to, as it was before the
        point's batch; points before the last re-solve, to the result of that. 0 for a cluster without weight.
        """
        return self._ready().live.spreads

    @property
    def coreset_(self) -> Coreset:
        """The coreset, a copy: weighted rows that represent the stream."""
        return copy.deepcopy(self._ready().coreset)

    @property
    def published_(self) -> Publication | None:
        """The last publication, or None."""
        return None if self._clusters is None else self._clusters.published

    @property
    def prepared_(self) -> bool:
        """Whether `publish` need not wait for work that `prepare` started; True if it started none."""
        return self._clusters is None or self._clusters.prepared

    @property
    def outliers_(self) -> NDArray[np.float64]:
        """(m, d) float64: the latest outliers, at most 256, raw units, oldest first, a copy."""
        rule = self._rule
        return np.empty((0, self.n_features)) if rule is None else rule.recent.copy()

    @property
    def n_outliers_(self) -> int:
        """Number of outliers: rows that were seen but not learned."""
        rule = self._rule
        return 0 if rule is None else rule.count

    @property
    def _rule(self) -> GapRule | None:
        return None if self._clusters is None else self._clusters.rule

    @property
    def centers(self) -> dict[int, dict[str, float]]:
        """Centroids in the form of river's metrics: id -> field -> coordinate; empty during the warm-up."""
        if self._clusters is None:
            return {}
        clusters = self._clusters.view(None)
        names = self.feature_names or tuple(str(t) for t in range(self.n_features))
        rows = zip(clusters.ids.tolist(), clusters.centroids.tolist(), strict=True)
        return {j: dict(zip(names, c, strict=True)) for j, c in rows}

    def predict_one(self, x: Mapping[Any, Any], *, view: View | None = None) -> int:
        """Id of the nearest cluster; -1 during the warm-up, because river predicts before it learns.

        Parameters
        ----------
        view
            As for `predict_many`.

        Raises
        ------
        DataError
            A field is missing, unknown, not a number or not finite.
        """
        if self._clusters is None:
            return -1
        clusters, labels, _ = self._nearest(validation.row(x, self.feature_names), view)
        return int(clusters.ids[labels[0]])

    def predict_many(self, X: Any, *, view: View | None = None) -> NDArray[np.int64]:
        """(n,) int64: id of each row's nearest cluster. Does not change the model.

        Parameters
        ----------
        view
            ``"published"`` or ``"live"`` centroids; None: the published ones if there are any.

        Raises
        ------
        NotReadyError
            There are no centroids yet, or none were published.
        DataError
            Wrong shape, NaN or infinity.
        """
        return self.assign(X, view=view)[0]

    def assign(self, X: Any, *, view: View | None = None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Nearest cluster of each row, and the distance to it. Does not change the model.

        Parameters
        ----------
        view
            As for `predict_many`.

        Returns
        -------
        ids
            (n,) int64.
        distances
            (n,) float64, Euclidean (of rows of length one for the cosine distance), in units of `scale`.

        Raises
        ------
        NotReadyError
            There are no centroids yet, or none were published.
        DataError
            Wrong shape, NaN or infinity.
        """
        clusters, labels, distances = self._nearest(X, view)
        return clusters.ids[labels], distances

    def outlier_score(self, X: Any, *, view: View | None = None) -> NDArray[np.float64]:
        """(n,) float64: distance of each row to its nearest centroid, in spreads of that cluster.

        Typical rows score about 1; for normally distributed clusters few rows score above 3. Does not change the model.

        Parameters
        ----------
        view
            As for `predict_many`.

        Raises
        ------
        NotReadyError
            There are no centroids yet, or none were published.
        DataError
            Wrong shape, NaN or infinity.
        """
        clusters, labels, distances = self._nearest(X, view)
        # A cluster of equal points has no spread: use the overall one.
        spreads = clusters.spreads
        spreads[spreads == 0.0] = math.sqrt(clusters.mean_square)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = distances / spreads[labels]
        scores[distances == 0.0] = 0.0
        return scores

    def evaluate(self) -> Evaluation:
        """Inertia and silhouette of the live and of the published centroids on the coreset.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        """
        clusters = self._ready()
        return evaluate(clusters.coreset, clusters.live, clusters.published_centroids)

    def k_profile(self, k_max: int = 20, k_min: int = 2) -> KProfile:
        """Cost and quality of clusterings with different numbers of clusters, computed from the coreset.

        Parameters
        ----------
        k_max, k_min
            Range of k, inclusive.

        Raises
        ------
        NotReadyError
            There are no centroids yet, or no learned row has weight.
        """
        return self.deferred_k_profile(k_max, k_min)()

    def deferred_k_profile(self, k_max: int = 20, k_min: int = 2) -> Callable[[], KProfile]:
        """`k_profile` of the current model as a function that any thread may call while learning continues.

        Raises
        ------
        NotReadyError
            There are no centroids yet, or no learned row has weight.
        """
        clusters = self._ready()
        rows, weights = clusters.coreset.calibrated()
        if not weights.sum() > 0.0:
            raise NotReadyError(
                "no learned point has a weight", hint="k can be evaluated once a point has a positive weight"
            )
        return partial(k_profile, rows * clusters.live.metric.factors, weights, k_max, k_min)

    def _nearest(self, X: Any, view: View | None) -> tuple[LiveCentroids, NDArray[np.int32], NDArray[np.float64]]:
        clusters = self._ready().view(view)
        rows, names = validation.points(X, self.feature_names, self.n_features)
        high = validation.finite(rows, names)
        if self.distance == "cosine":
            rows, high = validation.directions(rows, names), 1.0
        labels, squared = clusters.nearest(rows, high)
        return clusters, labels, np.sqrt(squared)

    def _ready(self) -> Clusters:
        if self._clusters is None:
            have, need = self.n_seen, self._warmup_rows
            raise NotReadyError(
                f"the model is warming up: {have} of {need} points seen",
                hint=f"{need - have} more points are needed for the first centroids",
            )
        return self._clusters
