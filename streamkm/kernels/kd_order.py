"""Putting rows that are near each other next to each other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

LEAF = 32
"""Neighbourhoods of so many rows are not divided."""


@jit(allocates=True)
def _median(values: NDArray[np.float64], order: NDArray[np.int64]) -> float:
    """About the median of ``values[order]``: that of three medians of three."""
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
def _part(values: NDArray[np.float64], order: NDArray[np.int64], spare: NDArray[np.int64]) -> int:
    """Bring indices of small values before those of large ones, about as many of each; where the large ones begin.

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
    # Without a branch that depends on a value, which the processor could not foresee.
    below = 0
    for r in range(len(order)):
        i = order[r]
        spare[r - below] = i
        order[below] = i
        below += values[i] < pivot
    if below == 0:  # the pivot is the lowest of many; all are in the spare array, and the first place was written over
        for r in range(len(order)):
            i = spare[r]
            spare[r - below] = i
            order[below] = i
            below += values[i] <= pivot
    for r in range(below, len(order)):
        order[r] = spare[r - below]
    return below


@jit(allocates=True)
def put_near_together(columns: NDArray[np.float64], order: NDArray[np.int64]) -> None:
    """Reorder rows so that those next to each other are near each other: the leaves of a k-d tree, left to right.

    Parameters
    ----------
    columns
        IN: the rows in units of the metric, from `lay_columns`.
    order
        INOUT (m,): indices of rows.
    """
    spare = np.empty_like(order)
    waiting = np.empty((64, 2), np.int64)  # the smaller part goes first, so that few wait
    waiting[0, 0], waiting[0, 1] = 0, len(order)
    n = 1
    while n > 0:
        n -= 1
        start, stop = waiting[n, 0], waiting[n, 1]
        if stop - start <= LEAF:
            continue
        some = order[start:stop]
        widest = 0.0
        dimension = -1
        step = max(1, len(some) // 8)  # some rows tell the widest dimension well enough
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
        middle = start + _part(columns[dimension], some, spare)
        if middle == stop:
            continue
        if 2 * middle > start + stop:
            waiting[n, 0], waiting[n, 1] = start, middle
            waiting[n + 1, 0], waiting[n + 1, 1] = middle, stop
        else:
            waiting[n, 0], waiting[n, 1] = middle, stop
            waiting[n + 1, 0], waiting[n + 1, 1] = start, middle
        n += 2
