"""Which centroid is nearest, without compiling: for programs that ask about points and learn none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16
"""Differences held at a time."""
_DOWN, _UP = 2.0**-520, 2.0**520


def nearest(
    centroids: NDArray[np.float64], points: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Nearest centroid of each point, the first of those at equal distance.

    Parameters
    ----------
    centroids
        (k, d), k >= 1.
    points
        (n, d), finite.

    Returns
    -------
    index
        (n,) row of `centroids`.
    distance
        (n,) Euclidean; infinity where it is more than a double can hold.
    """
    n = len(points)
    index = np.empty(n, np.int64)
    distance = np.empty(n, np.float64)
    rows = max(1, BLOCK // centroids.size)
    for start in range(0, n, rows):
        block = slice(start, min(n, start + rows))
        index[block], distance[block] = _block(centroids, points[block])
    far = ~np.isfinite(distance)
    if far.any():
        # The squares did not fit. A power of two scales without rounding.
        index[far], scaled = _block(centroids * _DOWN, points[far] * _DOWN)
        with np.errstate(over="ignore"):
            distance[far] = scaled * _UP
    return index, distance


def scores(
    distance: NDArray[np.float64], index: NDArray[np.int64], spreads: NDArray[np.float64], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Distances in spreads of the cluster.

    Parameters
    ----------
    distance, index
        (n,): what `nearest` returned.
    spreads
        (k,): root mean squared distance of a cluster's points. One of zero has no spread of its own: that of all
        points together stands in.
    weights
        (k,): of the clusters.

    Returns
    -------
    NDArray
        (n,): zero at a centroid; infinity elsewhere if no cluster has a spread.
    """
    mass = float(weights.sum())
    overall = float(np.sqrt(weights @ spreads**2 / mass)) if mass > 0.0 else 0.0
    unit = np.where(spreads > 0.0, spreads, overall)[index]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0.0, 0.0, distance / unit)


def _block(centroids: NDArray[np.float64], points: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    with np.errstate(over="ignore"):
        difference = points[:, None, :] - centroids
        squared = np.einsum("nkd,nkd->nk", difference, difference)
    index = squared.argmin(axis=1)
    return index, np.sqrt(squared[np.arange(len(index)), index])
