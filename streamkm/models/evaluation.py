"""How good clusters are, without labels."""

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
"""A coreset for hundreds of clusters is judged by a part of its rows, or one look would take seconds."""


@dataclass(frozen=True)
class Evaluation:
    """What live and published centroids are worth on the stream so far, by the coreset.

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
        """By which share the published centroids cost more than the live ones; 0 if nothing was published."""
        if self.published_inertia is None or not self.inertia > 0.0:
            return 0.0
        return self.published_inertia / self.inertia - 1.0

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "inertia": self.inertia,
            "silhouette": self.silhouette,
            "published_inertia": self.published_inertia,
            "published_silhouette": self.published_silhouette,
            "staleness": self.staleness,
        }


def evaluate(coreset: Coreset, live: LiveCentroids, published: LiveCentroids | None) -> Evaluation:
    """Judge live and published centroids by the same rows and the live metric; changes nothing."""
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
    """Inertia and silhouette."""
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
