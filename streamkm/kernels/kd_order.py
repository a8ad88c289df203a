"""Ordering of rows by a k-d tree, so that neighbours in space are near each other in the order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

MAX_LEAF_ROWS = 32
"""Nodes of at most this many rows are not split."""


@jit(allocates=True)
def _median(values: NDArray[np.float64], order: NDArray[np.int64]) -> float:
    """Approximate median of ``values[order]``: the median of three medians of three."""
    n = len(order)
    third = max(1, n // 9)
    medians = np.empty(3)
    for q in range(3):
        a = values[order[min(n - 1, (3 * q) * third)]]
        b = values[order[min(n - 1, (3 * q + 1) * third)]]
        c = values[order[min(n - 1, (3 * q + 2) * third)]]
        medians[q] = max(min(a, b), min(max(a, b), c))
    a, b, c = medians
    return max(min(a, b), min(max(a, b), c))


@jit()
def _partition(values: NDArray[np.float64], order: NDArray[np.int64], spare: NDArray[np.int64]) -> int:
    """Partition indices by an approximate median of their values; return where the large values begin.

    Parameters
    ----------
    values
        IN (n,).
    order
        INOUT (m,): indices into the values.
    spare
        TMP (at least m,).
    """
    pivot = _median(values, order)
    # No branch depends on a value, because the processor could not predict it.
    below = 0
    for r in range(len(order)):
        i = order[r]
        spare[r - below] = i
        order[below] = i
        below += values[i] < pivot
    if below == 0:  # the pivot is the minimum: all indices are in the spare array, and the first entry was overwritten
        for r in range(len(order)):
            i = spare[r]
            spare[r - below] = i
            order[below] = i
            below += values[i] <= pivot
    for r in range(below, len(order)):
        order[r] = spare[r - below]
    return below


@jit(allocates=True)
def order_by_kd_tree(columns: NDArray[np.float64], order: NDArray[np.int64]) -> None:
    """Reorder rows by the leaves of a k-d tree, from left to right, so that successive rows are near each other.

    Parameters
    ----------
    columns
        IN: the scaled rows, from `lay_columns`.
    order
        INOUT (m,): indices of rows.
    """
    spare = np.empty_like(order)
    stack = np.empty((64, 2), np.int64)  # the smaller part goes first, so that the stack stays short
    stack[0, 0], stack[0, 1] = 0, len(order)
    n = 1
    while n > 0:
        n -= 1
        start, stop = stack[n, 0], stack[n, 1]
        if stop - start <= MAX_LEAF_ROWS:
            continue
        some = order[start:stop]
        widest = 0.0
        dimension = -1
        step = max(1, len(some) // 8)  # a sample suffices to find the widest dimension
        for t in range(columns.shape[0]):
            values = columns[t]
            first = values[some[0]]
            total = 0.0
            squares = 0.0
            count = 0
            for r in range(0, len(some), step):
                difference = values[some[r]] - first
                total += difference
                squares += difference * difference
                count += 1
            spread = squares - total * total / count
            if spread > widest:
                widest = spread
                dimension = t
        if dimension < 0:
            continue
        middle = start + _partition(columns[dimension], some, spare)
        if middle == stop:
            continue
        if 2 * middle > start + stop:
            stack[n, 0], stack[n, 1] = start, middle
            stack[n + 1, 0], stack[n + 1, 1] = middle, stop
        else:
            stack[n, 0], stack[n, 1] = middle, stop
            stack[n + 1, 0], stack[n + 1, 1] = start, middle
        n += 2
