"""The first centroids, from a buffer of rows."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.assign import extent
from streamkm.kernels.seed import kmeans_plus_plus
from streamkm.kernels.update import COST, WEIGHT, lloyd
from streamkm.models.live import packed_like, power_of_two
from streamkm.models.validate import frozen

LLOYD_ITERATIONS = 10
LLOYD_TOLERANCE = 1e-4


def first_centroids(
    rows: NDArray[np.float64], row_weights: NDArray[np.float64], k: int, rng: NDArray[np.uint64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Run greedy k-means++ and a few iterations of Lloyd from some starts, and take the cheapest.

    Few starts for many clusters: there the starts differ less, and cost more.

    Parameters
    ----------
    rows
        (n, d), n >= 1, finite.
    row_weights
        (n,); every row counts once with its weight.
    k
        Number of clusters; may exceed the number of distinct rows.
    rng
        State of the random generator, moved on.

    Returns
    -------
    centroids
        (k, d), raw: means of their rows.
    stats
        (k, 3) as in `learn_batch`; the weights sum to that of all rows. Clusters without rows have weight 0.
    """
    d = rows.shape[1]
    rows, row_weights = frozen(rows), frozen(row_weights)
    origin = np.asarray(rows.mean(axis=0))
    scale = power_of_two(extent(rows, origin))
    packed = packed_like(k, d, double=True)
    best = np.empty((k, d))
    best_totals = np.empty((k, d + 2))
    lowest = math.inf
    centroids = np.empty((k, d))
    totals = np.empty((k, d + 2))
    for _ in range(max(1, min(4, 256 // k))):
        kmeans_plus_plus(rows, row_weights, origin, scale, 2 + int(math.log(k)), rng, centroids)
        cost = lloyd(rows, row_weights, origin, scale, packed, centroids, LLOYD_ITERATIONS, LLOYD_TOLERANCE, totals)
        if cost < lowest * (1.0 - LLOYD_TOLERANCE):  # a tie, up to rounding, goes to the first
            lowest = cost
            best[:] = centroids
            best_totals[:] = totals
    stats = np.zeros((k, 3))
    stats[:, WEIGHT] = best_totals[:, d]
    stats[:, COST] = best_totals[:, d + 1]
    return best, stats
