"""Which centroid is nearest, and how far it is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.service.errors import Problem
from streamkm.state import Snapshot

BLOCK = 1 << 16
"""Differences held at a time."""
_DOWN, _UP = 2.0**-520, 2.0**520


class Assigned(NamedTuple):
    """What a snapshot says about n points; arrays (n,)."""

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]
    scores: NDArray[np.float64]
    """Distances in spreads of the cluster, as `OnlineKMeans.outlier_score`."""


def assign(s: Snapshot, points: NDArray[np.float64]) -> Assigned:
    """Find the cluster of each point, by the snapshot's way to measure distances.

    Parameters
    ----------
    points
        (n, d), finite.

    Raises
    ------
    Problem
        422: a point of zeros has no direction, which the cosine distance compares.
    """
    if s.distance == "cosine":
        length = np.linalg.norm(points, axis=1)
        if not length.all():
            where = f"points[{int(np.argmin(length))}]"
            raise Problem(422, "invalid", "all values are zero: no direction to compare", where=where)
        points = points / length[:, None]
    index, distances = nearest(s.centroids * s.factors, points * s.factors)
    mass = float(s.weights.sum())
    overall = float(np.sqrt(s.weights @ s.spreads**2 / mass)) if mass > 0.0 else 0.0
    # A cluster of equal points has no spread of its own.
    spreads = np.where(s.spreads > 0.0, s.spreads, overall)[index]
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(distances == 0.0, 0.0, distances / spreads)
    return Assigned(s.ids[index], distances, scores)


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


def _block(centroids: NDArray[np.float64], points: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    with np.errstate(over="ignore"):
        difference = points[:, None, :] - centroids
        squared = np.einsum("nkd,nkd->nk", difference, difference)
    index = squared.argmin(axis=1)
    return index, np.sqrt(squared[np.arange(len(index)), index])
