"""Local search for better centroids on a few thousand weighted rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real
from streamkm.kernels.random import draw

BLOCK = 64
"""Rows whose distances are computed together; columns are padded to a multiple of it."""


@jit()
def lay_columns(rows: NDArray[np.float64], columns: Real) -> None:
    """Lay rows out one dimension after the other.

    Parameters
    ----------
    rows
        IN (n, d).
    columns
        OUT (d, n rounded up to whole blocks) float32 or float64; zeros where there is no row.
    """
    columns.fill(0.0)
    for i in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            columns[t, i] = rows[i, t]


@jit(fast=True)
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


@jit(fast=True)
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
        OUT (n,): their indices; n may be less than the number of columns. Without a second one, the first and infinity.
    first_squares, second_squares
        OUT (n,), type of the columns: squared distances.
    """
    d, padded = columns.shape
    n = len(first)
    c = centroids.astype(columns.dtype)
    block = np.empty((d, BLOCK), columns.dtype)
    total = np.empty(BLOCK, columns.dtype)
    low = np.empty(BLOCK, columns.dtype)
    low2 = np.empty(BLOCK, columns.dtype)
    at = np.empty(BLOCK, np.int32)
    at2 = np.empty(BLOCK, np.int32)
    for start in range(0, padded, BLOCK):
        for t in range(d):
            for p in range(BLOCK):
                block[t, p] = columns[t, start + p]
        low.fill(np.inf)
        low2.fill(np.inf)
        at.fill(0)
        at2.fill(0)
        for j in range(c.shape[0]):
            t = d % 4
            if t == 0:
                total.fill(0.0)
            else:
                a = c[j, 0]
                for p in range(BLOCK):
                    q = block[0, p] - a
                    total[p] = q * q
                for t in range(1, d % 4):
                    a = c[j, t]
                    for p in range(BLOCK):
                        q = block[t, p] - a
                        total[p] += q * q
            t = d % 4
            while t < d:  # four dimensions a pass: the sums stay in registers
                a, b, e, f = c[j, t], c[j, t + 1], c[j, t + 2], c[j, t + 3]
                for p in range(BLOCK):
                    q, r, s, u = block[t, p] - a, block[t + 1, p] - b, block[t + 2, p] - e, block[t + 3, p] - f
                    total[p] += (q * q + r * r) + (s * s + u * u)
                t += 4
            for p in range(BLOCK):
                z = total[p]
                nearer, near = z < low[p], z < low2[p]
                low2[p] = low[p] if nearer else (z if near else low2[p])
                at2[p] = at[p] if nearer else (j if near else at2[p])
                low[p] = z if nearer else low[p]
                at[p] = j if nearer else at[p]
        for p in range(min(BLOCK, n - start)):
            first[start + p] = at[p]
            first_squares[start + p] = low[p]
            second[start + p] = at2[p]
            second_squares[start + p] = low2[p]


@jit()
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
    some = np.zeros((d, (m + BLOCK - 1) // BLOCK * BLOCK), columns.dtype)
    for r in range(m):
        for t in range(d):
            some[t, r] = columns[t, touched[r]]
    first_m, second_m = np.empty(m, np.int32), np.empty(m, np.int32)
    near_m, next_m = np.empty(m, columns.dtype), np.empty(m, columns.dtype)
    nearest_two(some, centroids, first_m, near_m, second_m, next_m)
    for r in range(m):
        i = touched[r]
        first[i], near[i], second[i], next_near[i] = first_m[r], near_m[r], second_m[r], next_m[r]


@jit()
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
    n = len(rows)
    k = centroids.shape[0]
    first, second = np.empty(n, np.int32), np.empty(n, np.int32)
    near, next_near = np.empty(n, columns.dtype), np.empty(n, columns.dtype)
    nearest_two(columns, centroids, first, near, second, next_near)
    trial = np.empty(columns.shape[1], columns.dtype)
    missed = np.empty(k)
    touched = np.empty(n, np.int64)
    cost = 0.0
    for i in range(n):
        cost += weights[i] * near[i]
    swaps = 0
    for _ in range(steps):
        drawn = draw(weights, near, rng)
        if drawn < 0:
            break
        squares_to(columns, rows[drawn], trial)
        # What the rows would cost with one centroid more, and what each old one saves then.
        base = 0.0
        missed.fill(0.0)
        for i in range(n):
            least = min(trial[i], near[i])
            base += weights[i] * least
            missed[first[i]] += weights[i] * (min(trial[i], next_near[i]) - least)
        j = int(np.argmin(missed))
        if not base + missed[j] < cost * (1.0 - least_gain):
            continue
        centroids[j] = rows[drawn]
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
        cost = 0.0
        for i in range(n):
            cost += weights[i] * near[i]
    return swaps


@jit()
def prune(
    weights: NDArray[np.float64], columns: Real, centroids: NDArray[np.float64], kept: NDArray[np.float64]
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
    kept
        OUT (k, d), k < m: those that are left, in their order.
    """
    n, m, k = len(weights), len(centroids), len(kept)
    first, second = np.empty(n, np.int32), np.empty(n, np.int32)
    near, next_near = np.empty(n, columns.dtype), np.empty(n, columns.dtype)
    # A dropped centroid goes far away, so that the others keep their indices and it is nearest to nothing.
    rest = centroids.copy()
    nearest_two(columns, rest, first, near, second, next_near)
    dropped = np.zeros(m, np.bool_)
    missed = np.empty(m)
    touched = np.empty(n, np.int64)
    for _ in range(m - k):
        missed.fill(0.0)
        for i in range(n):
            missed[first[i]] += weights[i] * (next_near[i] - near[i])
        j = -1
        for c in range(m):
            if not dropped[c] and (j < 0 or missed[c] < missed[j]):
                j = c
        dropped[j] = True
        rest[j] = np.inf
        count = 0
        for i in range(n):
            if first[i] == j or second[i] == j:
                touched[count] = i
                count += 1
        _look_again(columns, touched[:count], rest, first, near, second, next_near)
    left = 0
    for c in range(m):
        if not dropped[c]:
            kept[left] = rest[c]
            left += 1
