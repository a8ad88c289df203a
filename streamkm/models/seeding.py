"""Initial centroids, from a buffer of rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.assign import largest
from streamkm.kernels.groups import plain
from streamkm.kernels.random import uniform
from streamkm.kernels.update import COST, WEIGHT, AssignedRows, lloyd
from streamkm.models.centroids import distance_plan, weighted_mean
from streamkm.models.metric import Metric
from streamkm.models.resolve import LIGHT_EFFORT, ResolveProblem, solve
from streamkm.models.validation import frozen


def initial_centroids(
    rows: NDArray[np.float64], row_weights: NDArray[np.float64], k: int, rng: NDArray[np.uint64], metric: Metric
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute initial centroids by k-means++, local search and Lloyd.

    Parameters
    ----------
    rows
        (n, d), n >= 1, finite.
    row_weights
        (n,), not negative.
    k
        Number of clusters; may exceed the number of distinct rows.
    rng
        (1,) state of the random generator, advanced.
    metric
        Scale of each dimension, and whether distances are cosine.

    Returns
    -------
    centroids
        (k, d), raw units: means of their rows.
    stats
        (k, 3) as in `learn_batch`; the weights sum to that of all rows. Clusters without rows have weight 0.
    """
    uniform(rng)
    origin = weighted_mean(rows, row_weights)
    solution = solve(ResolveProblem(rows, row_weights, None, k, origin, metric, 0.0, 0.0, int(rng[0])), LIGHT_EFFORT)
    totals = run_lloyd(rows, row_weights, solution.centroids, origin, metric)[0]
    d = rows.shape[1]
    stats = np.zeros((k, 3))
    stats[:, WEIGHT] = totals[:, d]
    stats[:, COST] = totals[:, d + 1]
    return solution.centroids, stats


def run_lloyd(
    rows: NDArray[np.float64],
    row_weights: NDArray[np.float64],
    centroids: NDArray[np.float64],
    origin: NDArray[np.float64],
    metric: Metric,
    mean: float = 0.0,
    steps: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.int32], NDArray[np.float64], float]:
    """Run some steps of Lloyd, and sum up the rows of each centroid.

    Parameters
    ----------
    centroids
        (k, d) raw, moved in place by the steps.
    mean
        Expected mean squared distance; 0 to compare in float64.

    Returns
    -------
    totals
        (k, d + 2) as in `assign_accumulate`.
    labels
        (n,) int32: nearest centroid of each row.
    squared
        (n,): squared distance to it, in units of the metric.
    cost
        Sum of weighted squared distances.
    """
    rows, row_weights = frozen(rows), frozen(row_weights)
    k, d = centroids.shape
    high = largest(rows.reshape(-1))
    plan = distance_plan(rows, high, centroids, origin, metric, mean)
    labels, squared, totals = np.empty(len(rows), np.int32), np.empty(len(rows)), np.empty((k, d + 2))
    assignment = AssignedRows(labels, squared, totals, origin)
    cost = lloyd(rows, row_weights, plain(plan), metric.spherical, centroids, steps, 0.0, plain(assignment))
    return totals, labels, squared, cost
