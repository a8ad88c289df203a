"""Nearest centroids by numpy, without compilation: for programs that predict but do not learn.

One coordinate at a time is subtracted, squared and added for a block of points and all centroids. So no array of all
differences is needed, blocks stay in the processor's cache, and every centroid undergoes the same operations in the
same order: equal centroids have exactly equal distances.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_SIZE = 1 << 15
"""Squared distances per block: with as many differences they fit into the L2 cache."""
_DOWN, _UP = 2.0**-520, 2.0**520
"""Powers of two that scale coordinates near the limit of float64, so that their squares do not overflow."""

Reals = NDArray[np.float64]


class NearestResult(NamedTuple):
    """Nearest centroids of n points.

    Attributes
    ----------
    first, distance
        (n,) each: index of the nearest centroid, the lowest of equally near ones, and the distance to it; infinity if
        it exceeds float64.
    second, second_distance
        (n,) each: index and distance of the second nearest, -1 and infinity if there is none; None if not requested.
    all_distances
        (n, k): distance to each centroid; None if not requested.
    """

    first: NDArray[np.int64]
    distance: Reals
    second: NDArray[np.int64] | None = None
    second_distance: Reals | None = None
    all_distances: Reals | None = None


def nearest(centroids: Reals, points: Reals) -> tuple[NDArray[np.int64], Reals]:
    """Find the nearest centroid of each point, the lowest index of equally near ones.

    Parameters
    ----------
    centroids
        (k, d), k >= 1.
    points
        (n, d), finite; fastest in column-major (Fortran) order.

    Returns
    -------
    index
        (n,) row of `centroids`.
    distance
        (n,) Euclidean; infinity if it exceeds float64.
    """
    found = find_nearest(centroids, points)
    return found.first, found.distance


def find_nearest(
    centroids: Reals, points: Reals, *, second: bool = False, all_distances: bool = False
) -> NearestResult:
    """Find the nearest centroid of each point and, if requested, the second nearest and the distances to all.

    Parameters
    ----------
    centroids, points
        As for `nearest`.
    second, all_distances
        Whether to compute the second nearest centroid, and the distances to all centroids.
    """
    n, k = len(points), len(centroids)
    index, distance = np.empty(n, np.int64), np.empty(n)
    other = np.full(n, -1, np.int64) if second else None
    other_distance = np.full(n, np.inf) if second else None
    all_ = np.empty((n, k)) if all_distances else None
    rows = max(1, BLOCK_SIZE // k)
    columns = np.ascontiguousarray(centroids.T)[:, :, None]
    squared_, scratch_ = np.empty((k, min(n, rows))), np.empty((k, min(n, rows)))
    with np.errstate(over="ignore"):
        for start in range(0, n, rows):
            at = slice(start, min(n, start + rows))
            width = at.stop - start
            squared, scratch = (squared_, scratch_) if width == rows else (squared_[:, :width], scratch_[:, :width])
            _squared(columns, points[at].T, squared, scratch)
            index[at] = first = squared.argmin(axis=0)
            places = np.arange(width)
            distance[at] = squared[first, places]
            if all_ is not None:
                np.sqrt(squared.T, out=all_[at])
            if other is not None and other_distance is not None and k > 1:
                squared[first, places] = np.inf
                # If all distances are infinite, the second must still differ from the first.
                following = squared.argmin(axis=0)
                following = np.where(following == first, (first == 0).astype(np.int64), following)
                other[at] = following
                other_distance[at] = squared[following, places]
        np.sqrt(distance, out=distance)
        if other_distance is not None:
            np.sqrt(other_distance, out=other_distance)
    found = NearestResult(index, distance, other, other_distance, all_)
    _far(centroids, points, found)
    return found


def scores(distance: Reals, index: NDArray[np.int64], spreads: Reals, weights: Reals) -> Reals:
    """Convert distances to multiples of the cluster's spread.

    Parameters
    ----------
    distance, index
        (n,): from `nearest`.
    spreads
        (k,): root mean squared distance of each cluster's points; where it is zero, that of all points is used.
    weights
        (k,): weights of the clusters.

    Returns
    -------
    NDArray
        (n,): zero at a centroid; elsewhere infinity if all spreads are zero.
    """
    mass = float(weights.sum())
    overall = float(np.sqrt(weights @ spreads**2 / mass)) if mass > 0.0 else 0.0
    unit = np.where(spreads > 0.0, spreads, overall)[index]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(distance == 0.0, 0.0, distance / unit)


def _squared(columns: Reals, points: Reals, squared: Reals, scratch: Reals) -> None:
    """Compute squared distances of points (d, m) to centroids (d, k, 1), into `squared`, (k, m)."""
    points = np.ascontiguousarray(points)
    np.subtract(points[0], columns[0], out=squared)
    np.multiply(squared, squared, out=squared)
    for column, values in zip(columns[1:], points[1:], strict=True):
        np.subtract(values, column, out=scratch)
        np.multiply(scratch, scratch, out=scratch)
        squared += scratch


def _far(centroids: Reals, points: Reals, found: NearestResult) -> None:
    """Recompute the distances whose squares overflowed.

    Scaling by a power of two is exact, but small distances would underflow, so the others are kept.
    """
    k, d = centroids.shape
    far = ~np.isfinite(found.distance)
    if found.second_distance is not None and k > 1:
        far |= ~np.isfinite(found.second_distance)
    if found.all_distances is not None:
        far |= ~np.isfinite(found.all_distances).all(axis=1)
    rows, step = np.flatnonzero(far), max(1, BLOCK_SIZE // (k * d))
    for start in range(0, len(rows), step):
        at = rows[start : start + step]
        scaled = points[at][:, None, :] * _DOWN - centroids * _DOWN
        squared = np.einsum("nkd,nkd->nk", scaled, scaled)
        with np.errstate(over="ignore"):
            true = np.sqrt(squared) * _UP
        _fill(found.first, found.distance, at, squared, true)
        if found.second is not None and found.second_distance is not None and k > 1:
            squared[np.arange(len(at)), found.first[at]] = np.inf
            _fill(found.second, found.second_distance, at, squared, true)
        if found.all_distances is not None:
            there = found.all_distances[at]
            found.all_distances[at] = np.where(np.isfinite(there), there, true)


def _fill(index: NDArray[np.int64], distance: Reals, at: NDArray[np.intp], squared: Reals, true: Reals) -> None:
    """Replace distances that are not finite by the smallest of each row of `true`, (m, k)."""
    least = squared.argmin(axis=1)
    lacking = ~np.isfinite(distance[at])
    index[at[lacking]] = least[lacking]
    distance[at[lacking]] = true[lacking, least[lacking]]
