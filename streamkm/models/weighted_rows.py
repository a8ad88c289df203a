"""Statistics of weighted rows and their labels: nearest centroids, masses, overlaps, spreads and separation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from streamkm.kernels.assign import Real, largest
from streamkm.kernels.representatives import pick_representatives as pick
from streamkm.models.centroids import nearest as nearest_centroids
from streamkm.models.centroids import weighted_mean
from streamkm.models.metric import Metric
from streamkm.models.validation import frozen

Reals = NDArray[np.float64]
Labels = NDArray[np.int32]


def nearest(rows: Real, centroids: Reals) -> tuple[Labels, Reals]:
    """(n,) index of the nearest of (k, d) centroids, the lowest of several, and (n,) squared distance to it."""
    labels, squared = np.zeros(len(rows), np.int32), np.zeros(len(rows))
    if not len(rows):
        return labels, squared
    rows, centroids = frozen(np.ascontiguousarray(rows)), np.ascontiguousarray(centroids)
    origin = np.asarray(centroids.mean(axis=0))
    return nearest_centroids(rows, largest(rows.reshape(-1)), centroids, origin, Metric.raw(rows.shape[1]), 0.0)


def masses(labels: NDArray[np.integer[Any]], weights: Reals, k: int) -> Reals:
    """(k,) sum of the weights of each label's rows."""
    return np.bincount(labels, weights, k).astype(np.float64)


def overlap(a: Labels, b: Labels, weights: Reals, shape: tuple[int, int]) -> Reals:
    """Sum of the weights, (n,), of the rows with each pair of labels, (n,) each; of the given shape."""
    pairs = a.astype(np.int64) * shape[1] + b
    return masses(pairs, weights, shape[0] * shape[1]).reshape(shape)


def moved_share(old: NDArray[np.int32], new: NDArray[np.int32], weights: NDArray[np.float64], k: int) -> float:
    """Share of the mass that changes its label, (n,) each, with the clusters matched for the greatest overlap."""
    overlaps = overlap(old, new, weights, (k, k))
    mass = overlaps.sum()
    return 1.0 - float(overlaps[linear_sum_assignment(-overlaps)].sum() / mass) if mass > 0.0 else 0.0


def spreads(labels: Labels, squared: Reals, weights: Reals, k: int) -> Reals:
    """(k,) root mean squared distance of each label's rows; 0 for a label without weight."""
    mass = masses(labels, weights, k)
    return np.sqrt(masses(labels, weights * squared, k) / np.where(mass > 0.0, mass, 1.0))


def deviations(rows: Reals, weights: Reals, labels: Labels, centroids: Reals) -> Reals:
    """(k, d) root mean squared difference of each label's rows to its centroid, by field; 0 for a label without weight.

    Multiplied by the metric's factors, the root of the sum of squares over the fields equals `spreads`.
    """
    mass = masses(labels, weights, len(centroids))
    squares = squared_deviations(rows, weights, labels, centroids)
    return np.sqrt(squares / np.where(mass > 0.0, mass, 1.0)[:, np.newaxis])


def squared_deviations(rows: Reals, weights: Reals, labels: Labels, centroids: Reals) -> Reals:
    """(k, d) sum of the weighted squared differences of each label's rows to its centroid, by field."""
    found = np.empty(centroids.shape)
    with np.errstate(over="ignore"):
        for t in range(centroids.shape[1]):
            found[:, t] = masses(labels, weights * np.square(rows[:, t] - centroids[labels, t]), len(centroids))
    return found


def separation(rows: Reals, weights: Reals, first: NDArray[np.bool_]) -> float:
    """Distance of two groups of rows on the line through their means, in standard deviations.

    The distance of the means divided by the sum of the two standard deviations along the line: 1.3 for the two halves
    of a normal distribution, 1.7 for those of a uniform one, 2 and more if there is a density valley between the
    groups.

    Parameters
    ----------
    rows, weights
        (n, d) and (n,).
    first
        (n,): True for one group, False for the other.

    Returns
    -------
    float
        0 if a group has no weight; infinity for two groups of a single point each.
    """
    ends = []
    for group in (first, ~first):
        mass = weights[group].sum()
        if not mass > 0.0:
            return 0.0
        ends.append((group, mass, weighted_mean(rows[group], weights[group])))
    axis = ends[0][2] - ends[1][2]
    length = float(np.linalg.norm(axis))
    if length == 0.0:
        return 0.0
    deviation = 0.0
    for group, mass, mean in ends:
        along = (rows[group] - mean) @ (axis / length)
        deviation += float(np.sqrt((weights[group] * along**2).sum() / mass))
    return length / deviation if deviation > 0.0 else np.inf


def pick_representatives(
    rows: Reals, weights: Reals, labels: Labels, squared: Reals, k: int, size: int
) -> tuple[Reals, Reals]:
    """Pick representatives of weighted rows: about equally many of each cluster, with far rows more likely.

    The mass of each cluster stays exact. The choice is deterministic: systematic sampling in the order of the rows.

    Parameters
    ----------
    rows, weights
        (n, d) and (n,).
    labels, squared
        (n,) each: the cluster of each row, one of k, and its squared distance to the centroid.
    k
        Number of clusters.
    size
        Approximate maximum number of representatives.

    Returns
    -------
    rows
        (m, d), copies.
    weights
        (m,).
    """
    kept, picked = np.empty(len(rows), np.int64), np.empty(len(rows))
    n = pick(frozen(weights), labels, squared, k, size / k, kept, picked)
    return rows[kept[:n]], picked[:n].copy()
