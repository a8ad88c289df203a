"""Reductions over weighted rows, with sums in a fixed order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

ROWS_PER_VECTOR = 32
"""Rows that are processed as one vector: a single row is too short for SIMD."""


@jit()
def weighted_sum(rows: NDArray[np.float64], weights: NDArray[np.float64], total: NDArray[np.float64]) -> None:
    """Sum of weighted rows.

    Parameters
    ----------
    rows, weights
        IN (n, d) and (n,).
    total
        OUT (d,).
    """
    n, d = rows.shape
    total.fill(0.0)
    quads = n // 4
    for quad in range(quads):
        i = 4 * quad
        a, b, c, e = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for t in range(d):
            total[t] += (a * rows[i, t] + b * rows[i + 1, t]) + (c * rows[i + 2, t] + e * rows[i + 3, t])
    for i in range(4 * quads, n):
        for t in range(d):
            total[t] += weights[i] * rows[i, t]


@jit()
def weighted_total(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float:
    """Sum of weighted numbers.

    Parameters
    ----------
    values
        IN (n,).
    weights
        IN (n,), or (0,) for ones.
    """
    total = 0.0
    if len(weights) > 0:
        for i in range(len(values)):
            total += weights[i] * values[i]
    else:
        for i in range(len(values)):
            total += values[i]
    return total


@jit(allocates=True)
def differences(
    rows: NDArray[np.float64], origin: NDArray[np.float64], factors: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Compute ``(rows - origin) * factors``.

    Parameters
    ----------
    rows
        IN (n, d).
    origin, factors
        IN (d,) each.
    out
        OUT (n, d).
    """
    d = rows.shape[1]
    length = ROWS_PER_VECTOR * d
    low, factor = np.empty(length), np.empty(length)
    for q in range(length):
        low[q] = origin[q % d]
        factor[q] = factors[q % d]
    flat, to = rows.reshape(-1), out.reshape(-1)
    for start in range(0, len(flat), length):
        values, results = flat[start : start + length], to[start : start + length]
        for q in range(len(values)):
            results[q] = (values[q] - low[q]) * factor[q]


@jit()
def evenly_spaced_rows(weights: NDArray[np.float64], places: NDArray[np.int64]) -> None:
    """Find the rows at the middle of equal shares of the weight.

    Parameters
    ----------
    weights
        IN (n,), n >= 1, not all zero.
    places
        OUT (m,): indices of rows, ascending; a row with the weight of several shares is repeated.
    """
    mass = 0.0
    for i in range(len(weights)):
        mass += weights[i]
    share = mass / len(places)
    reached = 0.0
    row = -1
    for q in range(len(places)):
        while reached < (q + 0.5) * share and row + 1 < len(weights):
            row += 1
            reached += weights[row]
        places[q] = max(row, 0)
