"""Updates of centroids: by a mini-batch with a learning rate per centroid, and by Lloyd's algorithm."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real, assign_accumulate, pack_centroids

WEIGHT, COST, IDLE = 0, 1, 2
"""Columns of the `stats` of `learn_batch`."""


class DistancePlan(NamedTuple):
    """How rows are compared with k centroids.

    Attributes
    ----------
    scale
        (d,) float64: factors on the differences to the origin, as given to `pack_centroids`.
    factors
        (d,) float64: the metric's factors, or (0,) for ones.
    packed
        (ceil(k / 6), d, 6) float32 or float64: room for the packed centroids. Its type is that in which rows are
        compared.
    """

    scale: NDArray[np.float64]
    factors: NDArray[np.float64]
    packed: Real


class AssignedRows(NamedTuple):
    """The nearest centroid of each row, and sums by cluster.

    Attributes
    ----------
    labels
        (n,) int32: index of the nearest centroid.
    squared
        (n,) float64: squared distance to it, with the metric's factors.
    totals
        (k, d + 2) float64: sums of the rows of each cluster, as in `assign_accumulate`.
    origin
        (d,) float64: origin of `totals`.
    """

    labels: NDArray[np.int32]
    squared: NDArray[np.float64]
    totals: NDArray[np.float64]
    origin: NDArray[np.float64]


@jit()
def to_unit_length(rows: NDArray[np.float64]) -> None:
    """Scale rows to length one; a row of zeros, which has no direction, is unchanged.

    Parameters
    ----------
    rows
        INOUT (k, d).
    """
    for j in range(rows.shape[0]):
        high = 0.0
        for t in range(rows.shape[1]):
            high = max(high, abs(rows[j, t]))
        if high > 0.0:
            squares = 0.0
            for t in range(rows.shape[1]):
                squares += (rows[j, t] / high) ** 2
            length = high * np.sqrt(squares)
            for t in range(rows.shape[1]):
                rows[j, t] /= length


@jit()
def learn_batch(
    X: Real,
    row_weights: NDArray[np.float64],
    batch_weight: float,
    decay: float,
    plan: DistancePlan,
    spherical: bool,
    origin: NDArray[np.float64],
    centroids: NDArray[np.float64],
    stats: NDArray[np.float64],
    assignment: AssignedRows,
) -> tuple[float, float, float, float, float]:
    """Learn one mini-batch: ``w_j <- decay * w_j + b_j``, then ``c_j += (b_j / w_j) * (mean_j - c_j)``.

    This is Sculley (2010, "Web-scale k-means clustering", algorithm 1) with the per-point updates of one batch
    combined, plus decay. Labels and costs refer to the centroids before the batch.

    Parameters
    ----------
    X
        IN (n, d).
    row_weights
        IN (n,), or (0,) for ones: weights decayed by the age of each row.
    batch_weight
        Weight of the batch without decay, by which the idle weight of clusters without new points grows.
    decay
        Factor in [0, 1] on the weights of everything learned before.
    plan
        IN; `packed` is temporary.
    spherical
        Whether to rescale centroids to length one (Zhong 2005, "Efficient online spherical k-means clustering").
    origin
        INOUT (d,): origin for this batch; afterwards the weighted mean of the centroids, the origin for the next batch.
    centroids
        INOUT (k, d), raw.
    stats
        INOUT (k, 3): decayed weight, decayed sum of weighted squared distances, and idle weight: weight of the points
        since the last one assigned to the cluster.
    assignment
        OUT: by the centroids before the batch; its origin is that of this batch.

    Returns
    -------
    cost
        Sum of weighted squared distances of the batch.
    points
        Sum of the batch's weights.
    total_cost, mass
        Sums of the costs and the weights in `stats`.
    idle
        Largest idle weight in `stats`.
    """
    scale, factors, packed = plan
    labels, squared, totals, batch_origin = assignment
    k, d = centroids.shape
    for t in range(d):
        batch_origin[t] = origin[t]
    pack_centroids(centroids, origin, scale, packed)
    assign_accumulate(X, row_weights, origin, scale, factors, packed, centroids, labels, squared, totals)
    cost = 0.0
    points = 0.0
    for j in range(k):
        points += totals[j, d]
        cost += totals[j, d + 1]
    mass = 0.0
    total_cost = 0.0
    idle = 0.0
    for j in range(k):
        gained = totals[j, d]
        stats[j, WEIGHT] = stats[j, WEIGHT] * decay + gained
        stats[j, COST] = stats[j, COST] * decay + totals[j, d + 1]
        stats[j, IDLE] = 0.0 if gained > 0.0 else stats[j, IDLE] + batch_weight
        mass += stats[j, WEIGHT]
        total_cost += stats[j, COST]
        idle = max(idle, stats[j, IDLE])
        if gained > 0.0:
            rate = gained / stats[j, WEIGHT]
            for t in range(d):
                centroids[j, t] += rate * (totals[j, t] / gained - (centroids[j, t] - origin[t]))
    if spherical:
        to_unit_length(centroids)
    if mass > 0.0:
        for t in range(d):
            shift = 0.0
            for j in range(k):
                shift += stats[j, WEIGHT] / mass * (centroids[j, t] - origin[t])
            origin[t] += shift
    return cost, points, total_cost, mass, idle


@jit()
def lloyd(
    rows: NDArray[np.float64],
    row_weights: NDArray[np.float64],
    plan: DistancePlan,
    spherical: bool,
    centroids: NDArray[np.float64],
    max_iter: int,
    tol: float,
    assignment: AssignedRows,
) -> float:
    """Run Lloyd's algorithm on weighted rows (Lloyd 1982). A cluster without rows keeps its centroid.

    Parameters
    ----------
    rows
        IN (n, d).
    row_weights
        IN (n,), or (0,) for ones.
    plan
        IN; `packed` is temporary.
    spherical
        Whether to rescale centroids to length one after each iteration.
    centroids
        INOUT (k, d): initial centroids; afterwards the final ones.
    max_iter
        Maximum number of iterations; 0 only evaluates the initial centroids.
    tol
        Stop when an iteration reduces the cost by at most this share of it.
    assignment
        OUT: by the final centroids; except its origin, which is IN, a point near the centroids.

    Returns
    -------
    float
        Sum of weighted squared distances to the final centroids.
    """
    scale, factors, packed = plan
    labels, squared, totals, origin = assignment
    k, d = centroids.shape
    previous = np.inf
    iteration = 0
    while True:
        pack_centroids(centroids, origin, scale, packed)
        assign_accumulate(rows, row_weights, origin, scale, factors, packed, centroids, labels, squared, totals)
        cost = 0.0
        for j in range(k):
            cost += totals[j, d + 1]
        if iteration >= max_iter or previous - cost <= tol * cost:
            return cost
        previous = cost
        iteration += 1
        for j in range(k):
            if totals[j, d] > 0.0:
                for t in range(d):
                    centroids[j, t] = origin[t] + totals[j, t] / totals[j, d]
        if spherical:
            to_unit_length(centroids)


@jit()
def mean_square(stats: NDArray[np.float64]) -> float:
    """Decayed mean squared distance of all points to their centroids; 0 if nothing has weight.

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
    """Find the first starved cluster.

    Parameters
    ----------
    stats
        IN (k, 3): as in `learn_batch`.
    share
        A starved cluster's weight is at most this share of the largest cluster's.
    idle
        A starved cluster's idle weight is at least this.

    Returns
    -------
    int
        Index of the cluster, or -1.
    """
    heaviest = 0.0
    for j in range(len(stats)):
        heaviest = max(heaviest, stats[j, WEIGHT])
    for j in range(len(stats)):
        if stats[j, WEIGHT] <= share * heaviest and stats[j, IDLE] >= idle:
            return j
    return -1
