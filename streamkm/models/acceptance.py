"""Whether a solution is worth it: its gain against the points that would change hands, and against chance.

On a stationary stream two solutions differ by what the sample happens to be. A gain that is no larger than chance makes
it is no reason to move a point from one id to another; neither is a move of a centroid within its standard error.
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
"""A solution must be cheaper than the live centroids by this share to take their place."""

MAX_NOISE_SHARE = 0.05
"""A gain beyond this share needs no proof that points to come will see it too."""

HOLD_VARIANCES, HOLD_COST = 4.0, 0.001
"""A published centroid stays while the live one is within so many variances of a mean (borders move with centroids, so
noise is larger than that of a mean), and within such a share of the mean squared distance: what staying may cost."""


MIN_OLD_SHARE = 0.01
"""A cluster of which less than this share was an old one's is another: what the old one forgot passes no id on."""


class CoresetFit(NamedTuple):
    """Centroids, seen through the coreset.

    Attributes
    ----------
    rows, weights
        (m, d) and (m,): the coreset.
    centroids
        (k, d), raw.
    totals
        (k, d + 2), as in `assign_accumulate`.
    labels
        (m,): nearest centroid of each row.
    squared
        (m,): squared distance to it, in units of the metric.
    costs
        (m,): what each row adds to the cost, its weight included, over `cost`.
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
        """Take some steps of Lloyd from centroids, of which a copy is moved, and see what they cost."""
        mean = live.mean_square if metric is live.metric else 0.0
        centroids = centroids.copy()
        totals, labels, squared, cost = run_lloyd(rows, weights, centroids, live.origin, metric, mean, steps)
        costs = weights * (squared / cost) if cost > 0.0 else squared
        return cls(rows, weights, centroids, totals, labels, squared, costs, cost)

    def take(self, order: NDArray[np.int64]) -> CoresetFit:
        """The same with its clusters in another order, a permutation."""
        places = np.empty(len(order), np.int32)
        places[order] = np.arange(len(order), dtype=np.int32)
        return self._replace(centroids=self.centroids[order], totals=self.totals[order], labels=places[self.labels])


def sampling_gain(new: CoresetFit, old: CoresetFit, weights: NDArray[np.float64]) -> float:
    """Share of the old cost that a new solution seems to save though it is no better than the old one on the stream.

    What fitting k means to a sample saves on that sample: the sum over clusters of the variance of their mean, where a
    row of weight w stands for w rows, one of which was drawn, and one of weight 1 or less only for itself. And one
    standard error of the saving, every row a draw for itself; that counts up to `MAX_NOISE_SHARE`.
    """
    if not old.cost > 0.0:
        return 0.0
    ratio, k = new.cost / old.cost, len(new.centroids)
    drawn = np.maximum(0.0, 1.0 - 1.0 / np.maximum(weights, 1.0))
    mass = masses(new.labels, weights, k)
    fitted = masses(new.labels, drawn * weights * new.costs, k) @ (1.0 / np.where(mass > 0.0, mass, 1.0))
    return float(fitted) * ratio + min(MAX_NOISE_SHARE, float(np.sqrt(np.square(old.costs - new.costs * ratio).sum())))


def shrink_moves(published: LiveCentroids, live: LiveCentroids) -> NDArray[np.float64]:
    """(k, d): centroids to publish after others were; where a cluster went on, it moves no more than is certain.

    A centroid moves towards the live one by what exceeds the standard error of a mean, as in the estimator of James and
    Stein (1961): not at all within it, nearly all the way when far beyond.
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
    """Which new cluster goes on from each old one.

    Parameters
    ----------
    overlaps
        (k, k): mass of the rows that were in old cluster i and are in new cluster j.

    Returns
    -------
    order
        (k,): the new cluster that takes the place of each old one, a permutation.
    replaced
        Places whose new cluster has less than half of the smaller one in common with the old, or nearly nothing that
        was the old one's: another cluster.
    """
    old, new = overlaps.sum(axis=1), overlaps.sum(axis=0)
    order = linear_sum_assignment(-overlaps)[1].astype(np.int64)
    places = np.arange(len(overlaps))
    common = overlaps[places, order]
    same = (common > 0.0) & (common >= np.maximum(0.5 * np.minimum(old, new[order]), MIN_OLD_SHARE * new[order]))
    # A cluster without points goes on as what it was.
    return order, np.flatnonzero(~same & (new[order] > 0.0))
