"""Deterministic choice of a few weighted rows that represent all rows of each cluster."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit


@jit(allocates=True)
def pick_representatives(
    weights: NDArray[np.float64],
    labels: NDArray[np.int32],
    squared: NDArray[np.float64],
    k: int,
    share: float,
    kept: NDArray[np.int64],
    picked: NDArray[np.float64],
) -> int:
    """Pick about equally many rows of each cluster, with far rows more likely; the mass of each cluster stays exact.

    Systematic sampling: the rows of a cluster are visited in order, and one is picked whenever the sum of their
    probabilities passes another integer. Half of the probability is by weight, half by weight times squared distance.

    Parameters
    ----------
    weights
        IN (n,).
    labels, squared
        IN (n,): the cluster of each row, and its squared distance to the centroid.
    k
        Number of clusters.
    share
        Approximate number of rows per cluster.
    kept
        OUT (n,): indices of the picked rows, ascending, in the first entries.
    picked
        OUT (n,): weights of the picked rows, in the first entries.

    Returns
    -------
    int
        Number of picked rows.
    """
    mass, cost, total, reached = np.zeros(k), np.zeros(k), np.zeros(k), np.full(k, 0.5)
    for i in range(len(weights)):
        mass[labels[i]] += weights[i]
        cost[labels[i]] += weights[i] * squared[i]
    n = 0
    for i in range(len(weights)):
        j = labels[i]
        if not weights[i] > 0.0:
            continue
        near = 1.0 / mass[j]
        far = squared[i] / cost[j] if cost[j] > 0.0 else near
        chance = min(1.0, share * weights[i] * 0.5 * (far + near))
        before = math.floor(reached[j])
        reached[j] += chance
        if math.floor(reached[j]) > before:
            kept[n] = i
            picked[n] = weights[i] / chance
            total[j] += picked[n]
            n += 1
    for r in range(n):
        j = labels[kept[r]]
        picked[r] *= mass[j] / total[j]
    return n
