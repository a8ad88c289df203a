"""Simplified silhouette: separation of clusters from distances to centroids alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit


@jit(fast=True)
def simplified_silhouette(
    rows: NDArray[np.float64],
    row_weights: NDArray[np.float64],
    centroids: NDArray[np.float64],
    scatter: NDArray[np.float64],
) -> float:
    """Silhouette with distances to centroids in place of distances to all points (Hruschka et al. 2004).

    A row at distance a from its own centroid and b from the next has ``(b - a) / b``, and 0 where both are 0.

    Parameters
    ----------
    rows
        IN (n, d).
    row_weights
        IN (n,), or (0,) for ones.
    centroids
        IN (k, d), k >= 2.
    scatter
        OUT (k, 2): sums of weights and of ``weight * distance`` of each cluster.

    Returns
    -------
    float
        Weighted mean over the rows, from 0 to 1; 0 if nothing has weight.
    """
    n, d = rows.shape
    k = centroids.shape[0]
    weighted = len(row_weights) > 0
    scatter.fill(0.0)
    mass = 0.0
    total = 0.0
    for i in range(n):
        own = -1
        nearest = np.inf
        second = np.inf
        for j in range(k):
            squared = 0.0
            for t in range(d):
                difference = rows[i, t] - centroids[j, t]
                squared += difference * difference
            if squared < nearest:
                second = nearest
                nearest = squared
                own = j
            elif squared < second:
                second = squared
        weight = row_weights[i] if weighted else 1.0
        distance = np.sqrt(nearest)
        scatter[own, 0] += weight
        scatter[own, 1] += weight * distance
        mass += weight
        if second > 0.0:
            total += weight * (1.0 - distance / np.sqrt(second))
    return total / mass if mass > 0.0 else 0.0
