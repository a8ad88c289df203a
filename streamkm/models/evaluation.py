"""Evaluation of clusters without labels: inertia and simplified silhouette."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.silhouette import simplified_silhouette
from streamkm.models.centroids import LiveCentroids, weighted_mean
from streamkm.models.coreset import Coreset
from streamkm.models.metric import Metric
from streamkm.models.seeding import run_lloyd
from streamkm.models.validation import frozen

MAX_ROWS = 20_000
"""Maximum rows for an evaluation, to limit its time; larger coresets are subsampled."""


@dataclass(frozen=True)
class Evaluation:
    """Quality of the live and the published centroids on the stream so far, estimated on the coreset.

    Attributes
    ----------
    inertia, published_inertia
        Decayed mean squared distance of a point to its centroid, in units of the scale; None: nothing was published.
    silhouette, published_silhouette
        Simplified silhouette (Hruschka et al. 2004), 0 to 1, higher is better; 0 for one cluster.
    """

    inertia: float
    silhouette: float
    published_inertia: float | None
    published_silhouette: float | None

    @property
    def staleness(self) -> float:
        """Relative excess of the published centroids' cost over the live ones'; 0 if nothing was published."""
        if self.published_inertia is None or not self.inertia > 0.0:
            return 0.0
        return self.published_inertia / self.inertia - 1.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "inertia": self.inertia,
            "silhouette": self.silhouette,
            "published_inertia": self.published_inertia,
            "published_silhouette": self.published_silhouette,
            "staleness": self.staleness,
        }


def evaluate(coreset: Coreset, live: LiveCentroids, published: LiveCentroids | None) -> Evaluation:
    """Evaluate live and published centroids on the same rows, with the live metric."""
    rows, weights = coreset.calibrated()
    there = weights > 0.0
    step = 1 + len(rows) // MAX_ROWS
    rows, weights = rows[there][::step], weights[there][::step]
    now = _score(rows, weights, live.centroids, live.metric)
    then = (None, None) if published is None else _score(rows, weights, published.centroids, live.metric)
    return Evaluation(*now, *then)


def _score(
    rows: NDArray[np.float64], weights: NDArray[np.float64], centroids: NDArray[np.float64], metric: Metric
) -> tuple[float, float]:
    """Return inertia and silhouette."""
    if not len(rows):
        return 0.0, 0.0
    origin = weighted_mean(rows, weights)
    *_, cost = run_lloyd(rows, weights, centroids.copy(), origin, metric)
    k = len(centroids)
    silhouette = 0.0
    if k > 1:
        scaled = frozen((rows - origin) * metric.factors)
        silhouette = simplified_silhouette(
            scaled, frozen(weights), (centroids - origin) * metric.factors, np.empty((k, 2))
        )
    return cost / float(weights.sum()), silhouette
