"""Acceptance of a re-solve: its gain is compared with the points that would change cluster, and with sampling noise.

On a stationary stream, two solutions differ by sampling noise. A gain within the noise does not justify changing the id
of a point, and neither does a move of a centroid within its standard error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from streamkm.kernels.update import COST, WEIGHT, to_unit_length
from streamkm.models.centroids import LiveCentroids
from streamkm.models.metric import Metric
from streamkm.models.seeding import run_lloyd
from streamkm.models.weighted_rows import masses

MIN_GAIN = 0.002
"""A solution must be cheaper than the live centroids by at least this share."""

MAX_NOISE_SHARE = 0.05
"""Upper limit of the standard error of a gain: larger gains are accepted without being significant."""

HOLD_VARIANCES, HOLD_COST = 4.0, 0.001
"""A published centroid is held while the live one is within this many variances of a mean (more than one, because
borders move with centroids), and within this share of the mean squared distance, which bounds the cost of holding."""


MIN_OLD_SHARE = 0.01
"""A new cluster that got less than this share of its mass from an old one does not take over its id."""


class CoresetFit(NamedTuple):
    """Centroids evaluated on the coreset.

    Attributes
    ----------
    rows, weights
        (m, d) and (m,): the coreset.
    centroids
        (k, d), raw units.
    totals
        (k, d + 2), as in `assign_accumulate`.
    labels
        (m,): nearest centroid of each row.
    squared
        (m,): squared distance to it, in units of the metric.
    costs
        (m,): share of each row in `cost`, including its weight.
    cost
        Sum of weighted squared distances.
    """

    rows: NDArray[np.float64]
    weights: NDArray[np.float64]
    centroids: NDArray[np.float64]
    totals: NDArray[np.float64]
    labels: NDArray[np.int32]
    squared: NDArray[np.float64]
    costs: NDArray[np.float64]
    cost: float

    @classmethod
    def of(
        cls,
        rows: NDArray[np.float64],
        weights: NDArray[np.float64],
        centroids: NDArray[np.float64],
        live: LiveCentroids,
        metric: Metric,
        steps: int = 0,
    ) -> CoresetFit:
        """Evaluate centroids (k, d), optionally after some steps of Lloyd on a copy of them."""
        mean = live.mean_square if metric is live.metric else 0.0
        centroids = centroids.copy()
        totals, labels, squared, cost = run_lloyd(rows, weights, centroids, live.origin, metric, mean, steps)
        costs = weights * (squared / cost) if cost > 0.0 else squared
        return cls(rows, weights, centroids, totals, labels, squared, costs, cost)

    def take(self, order: NDArray[np.int64]) -> CoresetFit:
        """Return the same with its clusters in another order, a (k,) permutation."""
        places = np.empty(len(order), np.int32)
        places[order] = np.arange(len(order), dtype=np.int32)
        return self._replace(centroids=self.centroids[order], totals=self.totals[order], labels=places[self.labels])


def sampling_gain(new: CoresetFit, old: CoresetFit, weights: NDArray[np.float64]) -> float:
    """Share of the old cost by which a new solution seems cheaper although it is no better; weights are (m,).

    The first term is the gain from fitting k means to a sample: the sum over clusters of the variance of their mean,
    where a row of weight w > 1 represents w rows, of which one was drawn, and a row of weight 1 or less only itself.
    The second is one standard error of the gain, with each row an independent draw, at most `MAX_NOISE_SHARE`.
    """
    if not old.cost > 0.0:
        return 0.0
    ratio, k = new.cost / old.cost, len(new.centroids)
    drawn = np.maximum(0.0, 1.0 - 1.0 / np.maximum(weights, 1.0))
    mass = masses(new.labels, weights, k)
    fitted = masses(new.labels, drawn * weights * new.costs, k) @ (1.0 / np.where(mass > 0.0, mass, 1.0))
    return float(fitted) * ratio + min(MAX_NOISE_SHARE, float(np.sqrt(np.square(old.costs - new.costs * ratio).sum())))


def shrink_moves(published: LiveCentroids, live: LiveCentroids) -> NDArray[np.float64]:
    """(k, d): centroids to publish after earlier ones: continued clusters move only by more than their standard error.

    A centroid moves towards the live one by the part beyond the standard error of a mean, as in the estimator of James
    and Stein (1961): not at all within it, and nearly all of the way if far beyond.
    """
    centroids = live.centroids.copy()
    moves = (centroids - published.centroids) * live.metric.factors
    squared = np.square(moves).sum(axis=1)
    weights = live.stats[:, WEIGHT]
    variance = live.stats[:, COST] / np.square(np.where(weights > 0.0, weights, 1.0))
    same = (live.ids == published.ids) & (squared > 0.0)
    back = np.zeros(len(centroids))
    free = np.minimum(HOLD_VARIANCES * variance, HOLD_COST * live.mean_square)
    back[same] = np.minimum(1.0, free[same] / squared[same])
    centroids -= back[:, np.newaxis] * (centroids - published.centroids)
    if live.metric.spherical:
        to_unit_length(centroids)
    return centroids


def match_clusters(overlaps: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Match the clusters of a new solution with the old ones, by the rows that they share.

    Parameters
    ----------
    overlaps
        (k, k): mass of the rows in old cluster i and new cluster j.

    Returns
    -------
    order
        (k,): index of the new cluster that takes the place of each old one, a permutation.
    replaced
        Indices of the old clusters whose successor is another cluster: it shares less than half of the smaller of the
        two, or almost none of its own mass.
    """
    old, new = overlaps.sum(axis=1), overlaps.sum(axis=0)
    order = linear_sum_assignment(-overlaps)[1].astype(np.int64)
    places = np.arange(len(overlaps))
    common = overlaps[places, order]
    same = (common > 0.0) & (common >= np.maximum(0.5 * np.minimum(old, new[order]), MIN_OLD_SHARE * new[order]))
    # A cluster without points keeps its id.
    return order, np.flatnonzero(~same & (new[order] > 0.0))
