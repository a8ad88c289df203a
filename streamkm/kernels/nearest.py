"""Which centroid is nearest, without compiling: for programs that ask about points and learn none.

A coordinate at a time is subtracted, squared and added for a block of points and all centroids. So no array of all
differences is made, blocks stay in the processor's cache, and every centroid goes through the same operations in the
same order: equal centroids are at exactly equal distances.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 15
"""Squared distances held at a time: with as many differences they fit in a core's second cache."""
_DOWN, _UP = 2.0**-520, 2.0**520

Reals = NDArray[np.float64]


class Near(NamedTuple):
    """What is near n points.

    Attributes
    ----------
    first, distance
        (n,): row of the nearest centroid, the first of those at equal distance, and how far it is; infinity where that
        is more than a double can hold.
    second, second_distance
        (n,): the same of the nearest of the others, -1 and infinity if there is none; None if not asked for.
    every
        (n, k): distance to each centroid; None if not asked for.
    """

    first: NDArray[np.int64]
    distance: Reals
    second: NDArray[np.int64] | None = None
    second_distance: Reals | None = None
    every: Reals | None = None


def nearest(centroids: Reals, points: Reals) -> tuple[NDArray[np.int64], Reals]:
    """Nearest centroid of each point, the first of those at equal distance.

    Parameters
    ----------
    centroids
        (k, d), k >= 1.
    points
        (n, d), finite; fastest where a column's values lie side by side (order F).

    Returns
    -------
    index
        (n,) row of `centroids`.
    distance
        (n,) Euclidean; infinity where it is more than a double can hold.
    """
    found = look(centroids, points)
    return found.first, found.distance


def look(centroids: Reals, points: Reals, *, second: bool = False, every: bool = False) -> Near:
    """Nearest centroid of each point and, where asked for, the second nearest and the distances to all.

    Parameters
    ----------
    centroids, points
        As for `nearest`.
    second, every
        What is wanted besides.
    """
    n, k = len(points), len(centroids)
    index, distance = np.empty(n, np.int64), np.empty(n)
    other = np.full(n, -1, np.int64) if second else None
    other_distance = np.full(n, np.inf) if second else None
    all_ = np.empty((n, k)) if every else None
    rows = max(1, BLOCK // k)
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
                # Where all are infinitely far, the first is not its own second.
                following = squared.argmin(axis=0)
                following = np.where(following == first, (first == 0).astype(np.int64), following)
                other[at] = following
                other_distance[at] = squared[following, places]
        np.sqrt(distance, out=distance)
        if other_distance is not None:
            np.sqrt(other_distance, out=other_distance)
    found = Near(index, distance, other, other_distance, all_)
    _far(centroids, points, found)
    return found


def scores(distance: Reals, index: NDArray[np.int64], spreads: Reals, weights: Reals) -> Reals:
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


def _squared(columns: Reals, points: Reals, squared: Reals, scratch: Reals) -> None:
    """Squared distances of points (d, m) to centroids (d, k, 1), into (k, m)."""
    points = np.ascontiguousarray(points)
    np.subtract(points[0], columns[0], out=squared)
    np.multiply(squared, squared, out=squared)
    for column, values in zip(columns[1:], points[1:], strict=True):
        np.subtract(values, column, out=scratch)
        np.multiply(scratch, scratch, out=scratch)
        squared += scratch


def _far(centroids: Reals, points: Reals, found: Near) -> None:
    """Put right what is so far that its square did not fit, and only that.

    A power of two scales without rounding, but small distances would vanish: those that did fit stay.
    """
    k, d = centroids.shape
    far = ~np.isfinite(found.distance)
    if found.second_distance is not None and k > 1:
        far |= ~np.isfinite(found.second_distance)
    if found.every is not None:
        far |= ~np.isfinite(found.every).all(axis=1)
    rows, step = np.flatnonzero(far), max(1, BLOCK // (k * d))
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
        if found.every is not None:
            there = found.every[at]
            found.every[at] = np.where(np.isfinite(there), there, true)


def _fill(index: NDArray[np.int64], distance: Reals, at: NDArray[np.intp], squared: Reals, true: Reals) -> None:
    """Where a distance is not finite, the least of (m, k) scaled ones instead."""
    least = squared.argmin(axis=1)
    lacking = ~np.isfinite(distance[at])
    index[at[lacking]] = least[lacking]
    distance[at[lacking]] = true[lacking, least[lacking]]
