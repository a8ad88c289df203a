"""Better centroids of a few thousand weighted rows: Lloyd's algorithm, swaps, and dropping those that are missed least.

Rows lie in columns here, one dimension after the other, so that a vector of rows is one load.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real, pack_centroids
from streamkm.kernels.random import BLOCK as DRAWN_BLOCK
from streamkm.kernels.random import draw_by_blocks, sum_blocks
from streamkm.kernels.simd import GROUP, LANES32, LANES64, nearest_in_lanes, nearest_two_in_lanes
from streamkm.kernels.update import to_unit_length

CANCELLED = 1e-6
"""A sum that is less than this share of what it was is made anew: its rounding was that of what has gone."""

BLOCK = 64
"""Columns are padded to a multiple of it, which is one of all numbers of lanes."""


@jit()
def lay_columns(
    rows: NDArray[np.float64], origin: NDArray[np.float64], scale: NDArray[np.float64], columns: Real
) -> None:
    """Lay rows out one dimension after the other.

    Parameters
    ----------
    rows
        IN (n, d).
    origin, scale
        IN (d,) each: columns hold ``(rows - origin) * scale``.
    columns
        OUT (d, n rounded up to whole blocks) float32 or float64; zeros where there is no row.
    """
    n, d = rows.shape
    for start in range(0, columns.shape[1], BLOCK):
        stop = min(n, start + BLOCK)
        for t in range(d):
            low, factor = origin[t], scale[t]
            for i in range(start, stop):
                columns[t, i] = (rows[i, t] - low) * factor
            for i in range(max(start, stop), start + BLOCK):
                columns[t, i] = 0.0


@jit(fast=True, allocates=True)
def squares_to(columns: Real, centroid: NDArray[np.float64], squares: Real) -> None:
    """Squared distance of each row to one centroid.

    Parameters
    ----------
    columns
        IN: from `lay_columns`.
    centroid
        IN (d,).
    squares
        OUT (columns.shape[1],), type of the columns.
    """
    d, n = columns.shape
    c = centroid.astype(columns.dtype)
    a = c[0]
    for i in range(n):
        difference = columns[0, i] - a
        squares[i] = difference * difference
    for t in range(1, d):
        a = c[t]
        for i in range(n):
            difference = columns[t, i] - a
            squares[i] += difference * difference


@jit(allocates=True)
def nearest_two(
    columns: Real,
    centroids: NDArray[np.float64],
    first: NDArray[np.int32],
    first_squares: Real,
    second: NDArray[np.int32],
    second_squares: Real,
) -> None:
    """Find the nearest and the second nearest centroid of each row; the lowest index wins ties.

    Parameters
    ----------
    columns
        IN: from `lay_columns`.
    centroids
        IN (k, d).
    first, second
        OUT (columns.shape[1],): their indices. Without a second one, 0 and infinity.
    first_squares, second_squares
        OUT (columns.shape[1],), type of the columns: squared distances.
    """
    k, d = centroids.shape
    lanes = LANES32 if columns.itemsize == 4 else LANES64
    packed = np.empty(((k + GROUP - 1) // GROUP, d, GROUP), columns.dtype)
    pack_centroids(centroids, np.zeros(d), np.ones(d), packed)
    for i in range(0, columns.shape[1], lanes):
        at = slice(i, i + lanes)
        nearest_two_in_lanes(columns[:, at], packed, first_squares[at], first[at], second_squares[at], second[at])


@jit(allocates=True)
def descend(
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    columns: Real,
    spherical: bool,
    centroids: NDArray[np.float64],
    max_iter: int,
    tol: float,
) -> float:
    """Run Lloyd's algorithm, as `lloyd` does, on rows that lie in columns and are near one around zero.

    Several times as fast where few rows change their cluster; the cost has the precision of the columns.

    Parameters
    ----------
    rows, weights
        IN (n, d), (n,).
    columns
        IN: the rows, from `lay_columns`.
    spherical, max_iter, tol
        As in `lloyd`.
    centroids
        INOUT (k, d): the start; afterwards where the last iteration moved them.

    Returns
    -------
    float
        Sum of weighted squared distances to the centroids given back.
    """
    n, d = rows.shape
    k, padded = len(centroids), columns.shape[1]
    lanes = LANES32 if columns.itemsize == 4 else LANES64
    packed = np.empty(((k + GROUP - 1) // GROUP, d, GROUP), columns.dtype)
    squares, nearest = np.empty(padded, columns.dtype), np.empty(padded, np.int32)
    labels = np.full(n, -1, np.int32)
    totals, held = np.zeros((k, d + 1)), np.zeros(k)
    sums = np.empty((n + DRAWN_BLOCK - 1) // DRAWN_BLOCK)
    previous = np.inf
    iteration = 0
    zeros, ones = np.zeros(d), np.ones(d)
    while True:
        pack_centroids(centroids, zeros, ones, packed)
        for i in range(0, padded, lanes):
            at = slice(i, i + lanes)
            nearest_in_lanes(columns[:, at], packed, squares[at], nearest[at])
        cost = sum_blocks(weights, squares, sums)
        if iteration >= max_iter or previous - cost <= tol * cost:
            return cost
        previous = cost
        iteration += 1
        _move_rows(rows, weights, nearest, labels, totals)
        cancelled = False
        for j in range(k):
            held[j] = max(held[j], totals[j, d])
            cancelled |= totals[j, d] < CANCELLED * held[j]
        if cancelled:
            labels.fill(-1)
            totals.fill(0.0)
            _move_rows(rows, weights, nearest, labels, totals)
            for j in range(k):
                held[j] = totals[j, d]
        for j in range(k):
            if totals[j, d] > 0.0:
                for t in range(d):
                    centroids[j, t] = totals[j, t] / totals[j, d]
        if spherical:
            to_unit_length(centroids)


@jit()
def _move_rows(
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    nearest: NDArray[np.int32],
    labels: NDArray[np.int32],
    totals: NDArray[np.float64],
) -> None:
    """Move what rows add to the totals from the clusters that labels tell, none where negative, to the nearest ones."""
    d = rows.shape[1]
    for i in range(len(rows)):
        j, old = nearest[i], labels[i]
        if j == old:
            continue
        w = weights[i]
        for t in range(d):
            totals[j, t] += w * rows[i, t]
        totals[j, d] += w
        if old >= 0:
            for t in range(d):
                totals[old, t] -= w * rows[i, t]
            totals[old, d] -= w
        labels[i] = j


@jit(allocates=True)
def _look_again(
    columns: Real,
    touched: NDArray[np.int64],
    centroids: NDArray[np.float64],
    first: NDArray[np.int32],
    near: Real,
    second: NDArray[np.int32],
    next_near: Real,
) -> None:
    """Find the nearest two centroids of some rows anew."""
    d, m = columns.shape[0], len(touched)
    padded = (m + BLOCK - 1) // BLOCK * BLOCK
    some = np.zeros((d, padded), columns.dtype)
    for t in range(d):
        for r in range(m):
            some[t, r] = columns[t, touched[r]]
    first_m, second_m = np.empty(padded, np.int32), np.empty(padded, np.int32)
    near_m, next_m = np.empty(padded, columns.dtype), np.empty(padded, columns.dtype)
    nearest_two(some, centroids, first_m, near_m, second_m, next_m)
    for r in range(m):
        i = touched[r]
        first[i], near[i], second[i], next_near[i] = first_m[r], near_m[r], second_m[r], next_m[r]


@jit(allocates=True)
def local_search(
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    columns: Real,
    steps: int,
    least_gain: float,
    centroids: NDArray[np.float64],
    rng: NDArray[np.uint64],
) -> int:
    """Swap centroids for rows where that lowers the cost: LS++ of Lattanzi and Sohler (2019).

    Each step draws a row with probability proportional to weight times squared distance, and puts it in the place of
    the centroid that is missed least, if that lowers the cost by more than `least_gain` of it. The gain of every swap
    is exact: it follows from each row's nearest and second nearest centroid.

    Parameters
    ----------
    rows, weights
        IN (n, d), (n,).
    columns
        IN: the rows, from `lay_columns`.
    steps
        Number of rows drawn.
    least_gain
        Share of the cost.
    centroids
        INOUT (k, d).
    rng
        INOUT (1,) uint64.

    Returns
    -------
    int
        Number of swaps.
    """
    n, padded = len(rows), columns.shape[1]
    k = centroids.shape[0]
    first, second = np.empty(padded, np.int32), np.empty(padded, np.int32)
    near, next_near = np.empty(padded, columns.dtype), np.empty(padded, columns.dtype)
    nearest_two(columns, centroids, first, near, second, next_near)
    trial = np.empty(padded, columns.dtype)
    missed, alone = np.empty(k), np.empty(k)
    touched = np.empty(n, np.int64)
    sums = np.empty((n + DRAWN_BLOCK - 1) // DRAWN_BLOCK)
    cost = sum_blocks(weights, near, sums)
    _misses(weights, first, near, next_near, alone)
    swaps = 0
    for _ in range(steps):
        drawn = draw_by_blocks(weights, near, sums, rng)
        if drawn < 0:
            break
        squares_to(columns, rows[drawn], trial)
        # What the rows would cost with one centroid more, and what each old one saves then: as before, but for the rows
        # that the new one is nearer to than their second nearest.
        saved = 0.0
        for c in range(k):
            missed[c] = alone[c]
        for i in range(n):
            if trial[i] < next_near[i]:
                gain = np.float64(near[i]) - np.float64(trial[i])
                saved += weights[i] * max(0.0, gain)
                missed[first[i]] += weights[i] * (max(0.0, -gain) - _miss(near[i], next_near[i]))
        j = int(np.argmin(missed))
        if not cost - saved + missed[j] < cost * (1.0 - least_gain):
            continue
        for t in range(rows.shape[1]):
            centroids[j, t] = rows[drawn, t]
        swaps += 1
        m = 0
        for i in range(n):
            if first[i] == j or second[i] == j:
                touched[m] = i
                m += 1
            elif trial[i] < near[i]:
                next_near[i], second[i] = near[i], first[i]
                near[i], first[i] = trial[i], j
            elif trial[i] < next_near[i]:
                next_near[i], second[i] = trial[i], j
        _look_again(columns, touched[:m], centroids, first, near, second, next_near)
        cost = sum_blocks(weights, near, sums)
        _misses(weights, first, near, next_near, alone)
    return swaps


@jit()
def _miss(near: float, next_near: float) -> float:
    """How much further it is to the second nearest centroid; 0 if there is none."""
    return np.float64(next_near) - np.float64(near) if next_near < np.inf else 0.0


@jit()
def _misses(
    weights: NDArray[np.float64],
    first: NDArray[np.int32],
    near: Real,
    next_near: Real,
    missed: NDArray[np.float64],
) -> None:
    """OUT (k,) missed: what rows would cost more without each centroid."""
    missed.fill(0.0)
    for i in range(len(weights)):
        missed[first[i]] += weights[i] * _miss(near[i], next_near[i])


@jit(allocates=True)
def prune(
    weights: NDArray[np.float64],
    columns: Real,
    centroids: NDArray[np.float64],
    prices: NDArray[np.float64],
    kept: NDArray[np.float64],
) -> None:
    """Drop the centroid that is missed least, again and again, until few enough are left.

    Parameters
    ----------
    weights
        IN (n,): of the rows.
    columns
        IN: the rows, from `lay_columns`.
    centroids
        IN (m, d).
    prices
        IN (m,): what it costs to drop each of them, besides what rows cost more.
    kept
        OUT (k, d), k < m: those that are left, in their order.
    """
    n, m, k, padded = len(weights), len(centroids), len(kept), columns.shape[1]
    first, second = np.empty(padded, np.int32), np.empty(padded, np.int32)
    near, next_near = np.empty(padded, columns.dtype), np.empty(padded, columns.dtype)
    # A dropped centroid goes far away, so that the others keep their indices and it is nearest to nothing.
    rest = centroids.copy()
    nearest_two(columns, rest, first, near, second, next_near)
    dropped = np.zeros(m, np.bool_)
    missed = np.empty(m)
    _misses(weights, first, near, next_near, missed)
    touched = np.empty(n, np.int64)
    for _ in range(m - k):
        j = -1
        for c in range(m):
            if not dropped[c] and (j < 0 or missed[c] + prices[c] < missed[j] + prices[j]):
                j = c
        dropped[j] = True
        for t in range(rest.shape[1]):
            rest[j, t] = np.inf
        count = 0
        for i in range(n):
            if first[i] == j or second[i] == j:
                touched[count] = i
                count += 1
        for i in touched[:count]:
            missed[first[i]] -= weights[i] * _miss(near[i], next_near[i])
        _look_again(columns, touched[:count], rest, first, near, second, next_near)
        for i in touched[:count]:
            missed[first[i]] += weights[i] * _miss(near[i], next_near[i])
    left = 0
    for c in range(m):
        if not dropped[c]:
            for t in range(rest.shape[1]):
                kept[left, t] = rest[c, t]
            left += 1
