"""Optimization of centroids on a few thousand weighted rows: Lloyd's algorithm, local search and removal of centroids.

Rows are stored by dimension here, so that a SIMD vector of rows is one load.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real, pack_centroids
from streamkm.kernels.random import DRAW_BLOCK_ROWS, draw_by_blocks, sum_blocks
from streamkm.kernels.simd import GROUP, LANES32, LANES64, nearest_in_lanes, nearest_two_in_lanes
from streamkm.kernels.update import to_unit_length

MAX_CANCELLATION = 1e-6
"""Sums that fell below this share of their maximum are recomputed: rounding errors of removed rows dominate them."""

COLUMN_BLOCK = 64
"""Columns are padded to a multiple of this, which is a multiple of every number of lanes."""


@jit()
def lay_columns(
    rows: NDArray[np.float64], origin: NDArray[np.float64], scale: NDArray[np.float64], columns: Real
) -> None:
    """Store rows by dimension.

    Parameters
    ----------
    rows
        IN (n, d).
    origin, scale
        IN (d,) each: columns hold ``(rows - origin) * scale``.
    columns
        OUT (d, n rounded up to whole blocks) float32 or float64; padded with zeros.
    """
    n, d = rows.shape
    for start in range(0, columns.shape[1], COLUMN_BLOCK):
        stop = min(n, start + COLUMN_BLOCK)
        for t in range(d):
            low, factor = origin[t], scale[t]
            for i in range(start, stop):
                columns[t, i] = (rows[i, t] - low) * factor
            for i in range(max(start, stop), start + COLUMN_BLOCK):
                columns[t, i] = 0.0


@jit(fast=True, allocates=True)
def squared_distances_to(columns: Real, centroid: NDArray[np.float64], squares: Real) -> None:
    """Compute the squared distance of each row to one centroid.

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
        OUT (columns.shape[1],): indices of the centroids. If there is only one, the second is 0 at infinity.
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
def lloyd_on_columns(
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    columns: Real,
    spherical: bool,
    centroids: NDArray[np.float64],
    max_iter: int,
    tol: float,
) -> float:
    """Run Lloyd's algorithm, as `lloyd` does, on rows that are stored by dimension, centred and scaled to about one.

    Several times as fast if few rows change their cluster; the cost has the precision of the columns.

    Parameters
    ----------
    rows, weights
        IN (n, d), (n,).
    columns
        IN: the rows, from `lay_columns`.
    spherical, max_iter, tol
        As in `lloyd`.
    centroids
        INOUT (k, d): initial centroids; afterwards the final ones.

    Returns
    -------
    float
        Sum of weighted squared distances to the final centroids.
    """
    n, d = rows.shape
    k, padded = len(centroids), columns.shape[1]
    lanes = LANES32 if columns.itemsize == 4 else LANES64
    packed = np.empty(((k + GROUP - 1) // GROUP, d, GROUP), columns.dtype)
    squares, nearest = np.empty(padded, columns.dtype), np.empty(padded, np.int32)
    labels = np.full(n, -1, np.int32)
    totals, max_mass = np.zeros((k, d + 1)), np.zeros(k)
    sums = np.empty((n + DRAW_BLOCK_ROWS - 1) // DRAW_BLOCK_ROWS)
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
            max_mass[j] = max(max_mass[j], totals[j, d])
            cancelled |= totals[j, d] < MAX_CANCELLATION * max_mass[j]
        if cancelled:
            labels.fill(-1)
            totals.fill(0.0)
            _move_rows(rows, weights, nearest, labels, totals)
            for j in range(k):
                max_mass[j] = totals[j, d]
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
    """Move rows in the totals from the cluster of their label, if not negative, to the nearest; update the labels."""
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
def _update_nearest_two(
    columns: Real,
    changed_rows: NDArray[np.int64],
    centroids: NDArray[np.float64],
    first: NDArray[np.int32],
    near: Real,
    second: NDArray[np.int32],
    next_near: Real,
) -> None:
    """Recompute the two nearest centroids of some rows."""
    d, m = columns.shape[0], len(changed_rows)
    padded = (m + COLUMN_BLOCK - 1) // COLUMN_BLOCK * COLUMN_BLOCK
    some = np.zeros((d, padded), columns.dtype)
    for t in range(d):
        for r in range(m):
            some[t, r] = columns[t, changed_rows[r]]
    first_m, second_m = np.empty(padded, np.int32), np.empty(padded, np.int32)
    near_m, next_m = np.empty(padded, columns.dtype), np.empty(padded, columns.dtype)
    nearest_two(some, centroids, first_m, near_m, second_m, next_m)
    for r in range(m):
        i = changed_rows[r]
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
    """Swap centroids for rows while that lowers the cost: LS++ of Lattanzi and Sohler (2019).

    Each step draws a row with probability proportional to weight times squared distance, and replaces the centroid with
    the lowest removal cost by it, if that reduces the cost by more than `least_gain` of it. The gain of every swap is
    exact: it follows from each row's nearest and second nearest centroid.

    Parameters
    ----------
    rows, weights
        IN (n, d), (n,).
    columns
        IN: the rows, from `lay_columns`.
    steps
        Number of rows drawn.
    least_gain
        Minimum gain of a swap, as a share of the cost.
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
    removal_costs, alone = np.empty(k), np.empty(k)
    changed_rows = np.empty(n, np.int64)
    sums = np.empty((n + DRAW_BLOCK_ROWS - 1) // DRAW_BLOCK_ROWS)
    cost = sum_blocks(weights, near, sums)
    _removal_costs(weights, first, near, next_near, alone)
    swaps = 0
    for _ in range(steps):
        drawn = draw_by_blocks(weights, near, sums, rng)
        if drawn < 0:
            break
        squared_distances_to(columns, rows[drawn], trial)
        # The gain of one more centroid, and the removal costs of the old ones with it, which change only for rows that
        # are nearer to the new one than to their second nearest.
        saved = 0.0
        for c in range(k):
            removal_costs[c] = alone[c]
        for i in range(n):
            if trial[i] < next_near[i]:
                gain = np.float64(near[i]) - np.float64(trial[i])
                saved += weights[i] * max(0.0, gain)
                removal_costs[first[i]] += weights[i] * (max(0.0, -gain) - _removal_cost(near[i], next_near[i]))
        j = int(np.argmin(removal_costs))
        if not cost - saved + removal_costs[j] < cost * (1.0 - least_gain):
            continue
        for t in range(rows.shape[1]):
            centroids[j, t] = rows[drawn, t]
        swaps += 1
        m = 0
        for i in range(n):
            if first[i] == j or second[i] == j:
                changed_rows[m] = i
                m += 1
            elif trial[i] < near[i]:
                next_near[i], second[i] = near[i], first[i]
                near[i], first[i] = trial[i], j
            elif trial[i] < next_near[i]:
                next_near[i], second[i] = trial[i], j
        _update_nearest_two(columns, changed_rows[:m], centroids, first, near, second, next_near)
        cost = sum_blocks(weights, near, sums)
        _removal_costs(weights, first, near, next_near, alone)
    return swaps


@jit()
def _removal_cost(near: float, next_near: float) -> float:
    """Difference of the squared distances to the second nearest and the nearest centroid; 0 if there is only one."""
    return np.float64(next_near) - np.float64(near) if next_near < np.inf else 0.0


@jit()
def _removal_costs(
    weights: NDArray[np.float64],
    first: NDArray[np.int32],
    near: Real,
    next_near: Real,
    removal_costs: NDArray[np.float64],
) -> None:
    """Compute the increase of the cost without each centroid, into removal_costs, (k,)."""
    removal_costs.fill(0.0)
    for i in range(len(weights)):
        removal_costs[first[i]] += weights[i] * _removal_cost(near[i], next_near[i])


@jit(allocates=True)
def remove_centroids(
    weights: NDArray[np.float64],
    columns: Real,
    centroids: NDArray[np.float64],
    prices: NDArray[np.float64],
    kept: NDArray[np.float64],
) -> None:
    """Remove the centroid with the lowest removal cost, repeatedly, until k are left.

    Parameters
    ----------
    weights
        IN (n,): weights of the rows.
    columns
        IN: the rows, from `lay_columns`.
    centroids
        IN (m, d).
    prices
        IN (m,): additional cost of removing each centroid.
    kept
        OUT (k, d), k < m: the remaining centroids, in their order.
    """
    n, m, k, padded = len(weights), len(centroids), len(kept), columns.shape[1]
    first, second = np.empty(padded, np.int32), np.empty(padded, np.int32)
    near, next_near = np.empty(padded, columns.dtype), np.empty(padded, columns.dtype)
    # A removed centroid is moved to infinity, so that the others keep their indices and no row is nearest to it.
    rest = centroids.copy()
    nearest_two(columns, rest, first, near, second, next_near)
    dropped = np.zeros(m, np.bool_)
    removal_costs = np.empty(m)
    _removal_costs(weights, first, near, next_near, removal_costs)
    changed_rows = np.empty(n, np.int64)
    for _ in range(m - k):
        j = -1
        for c in range(m):
            if not dropped[c] and (j < 0 or removal_costs[c] + prices[c] < removal_costs[j] + prices[j]):
                j = c
        dropped[j] = True
        for t in range(rest.shape[1]):
            rest[j, t] = np.inf
        count = 0
        for i in range(n):
            if first[i] == j or second[i] == j:
                changed_rows[count] = i
                count += 1
        for i in changed_rows[:count]:
            removal_costs[first[i]] -= weights[i] * _removal_cost(near[i], next_near[i])
        _update_nearest_two(columns, changed_rows[:count], rest, first, near, second, next_near)
        for i in changed_rows[:count]:
            removal_costs[first[i]] += weights[i] * _removal_cost(near[i], next_near[i])
    left = 0
    for c in range(m):
        if not dropped[c]:
            for t in range(rest.shape[1]):
                kept[left, t] = rest[c, t]
            left += 1
