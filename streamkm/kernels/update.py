"""Moving centroids: one mini-batch with a learning rate per centroid, and Lloyd's algorithm on a small buffer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real, assign_accumulate, pack_centroids

WEIGHT, COST, IDLE = 0, 1, 2
"""Columns of the `stats` of `learn_batch`."""


@jit()
def learn_batch(
    X: Real,
    row_weights: NDArray[np.float64],
    decay: float,
    scale: float,
    origin: NDArray[np.float64],
    packed: Real,
    centroids: NDArray[np.float64],
    stats: NDArray[np.float64],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
) -> tuple[float, float]:
    """Learn one mini-batch: ``w_j <- decay * w_j + b_j``, then ``c_j += (b_j / w_j) * (mean_j - c_j)``.

    That is Sculley (2010, "Web-scale k-means clustering", algorithm 1) with the per-point updates of one batch taken
    together, plus decay. Labels and costs are those of the centroids before the batch.

    Parameters
    ----------
    X, labels, distances
        As in `assign`.
    row_weights
        IN (n,), or (0,) for ones.
    decay
        Factor in [0, 1] on what was learned before.
    scale
        As in `assign`.
    origin
        INOUT (d,): the origin of this batch; afterwards the weighted mean of the centroids, the next one's.
    packed
        TMP (ceil(k / 6), d, 6) float32 or float64; its type is the one in which points are compared.
    centroids
        INOUT (k, d), raw.
    stats
        INOUT (k, 3): decayed weight, decayed sum of weighted squared distances, weight of the points that other
        clusters got since this one got any.

    Returns
    -------
    cost
        Sum of weighted squared distances of the batch.
    points
        Sum of its weights.
    """
    k, d = centroids.shape
    pack_centroids(centroids, origin, scale, packed)
    totals = np.empty((k, d + 2))
    assign_accumulate(X, row_weights, origin, scale, packed, centroids, labels, distances, totals)
    cost = 0.0
    points = 0.0
    for j in range(k):
        points += totals[j, d]
        cost += totals[j, d + 1]
    mass = 0.0
    for j in range(k):
        gained = totals[j, d]
        stats[j, WEIGHT] = stats[j, WEIGHT] * decay + gained
        stats[j, COST] = stats[j, COST] * decay + totals[j, d + 1]
        stats[j, IDLE] = 0.0 if gained > 0.0 else stats[j, IDLE] + points
        mass += stats[j, WEIGHT]
        if gained > 0.0:
            rate = gained / stats[j, WEIGHT]
            for t in range(d):
                centroids[j, t] += rate * (totals[j, t] / gained - (centroids[j, t] - origin[t]))
    if mass > 0.0:
        for t in range(d):
            shift = 0.0
            for j in range(k):
                shift += stats[j, WEIGHT] / mass * (centroids[j, t] - origin[t])
            origin[t] += shift
    return cost, points


@jit()
def lloyd(
    rows: NDArray[np.float64],
    row_weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: float,
    packed: Real,
    centroids: NDArray[np.float64],
    max_iter: int,
    tol: float,
    totals: NDArray[np.float64],
) -> float:
    """Run Lloyd's algorithm on weighted rows (Lloyd 1982). A cluster without rows keeps its centroid.

    Parameters
    ----------
    rows
        IN (n, d).
    row_weights
        IN (n,), or (0,) for ones.
    origin, scale
        As in `assign`.
    packed
        TMP (ceil(k / 6), d, 6).
    centroids
        INOUT (k, d): the start; afterwards the means of the last assignment.
    max_iter
        Number of iterations at most, at least 1.
    tol
        Stop when an iteration lowers the cost by no more than this share of it.
    totals
        OUT (k, d + 2): as in `assign_accumulate`, of the last assignment.

    Returns
    -------
    float
        Sum of weighted squared distances of the last assignment, before its means were taken.
    """
    k, d = centroids.shape
    labels = np.empty(len(rows), np.int32)
    distances = np.empty(len(rows), np.float64)
    previous = np.inf
    cost = np.inf
    for _ in range(max_iter):
        pack_centroids(centroids, origin, scale, packed)
        assign_accumulate(rows, row_weights, origin, scale, packed, centroids, labels, distances, totals)
        cost = 0.0
        for j in range(k):
            cost += totals[j, d + 1]
            if totals[j, d] > 0.0:
                for t in range(d):
                    centroids[j, t] = origin[t] + totals[j, t] / totals[j, d]
        if previous - cost <= tol * cost:
            break
        previous = cost
    return cost


@jit()
def mean_square(stats: NDArray[np.float64]) -> float:
    """Decayed mean squared distance of all points to their centroids; 0 when nothing has weight.

    Parameters
    ----------
    stats
        IN (k, 3): as in `learn_batch`.
    """
    mass = 0.0
    cost = 0.0
    for j in range(len(stats)):
        mass += stats[j, WEIGHT]
        cost += stats[j, COST]
    return cost / mass if mass > 0.0 else 0.0


@jit()
def starved(stats: NDArray[np.float64], share: float, idle: float) -> int:
    """Find the first cluster that has forgotten its points and gets none.

    Parameters
    ----------
    stats
        IN (k, 3): as in `learn_batch`.
    share
        A cluster has forgotten its points when its weight is at most this share of the largest cluster's.
    idle
        It gets none when others got this weight of points since it got one.

    Returns
    -------
    int
        Its index, or -1.
    """
    heaviest = 0.0
    for j in range(len(stats)):
        heaviest = max(heaviest, stats[j, WEIGHT])
    for j in range(len(stats)):
        if stats[j, WEIGHT] <= share * heaviest and stats[j, IDLE] >= idle:
            return j
    return -1
