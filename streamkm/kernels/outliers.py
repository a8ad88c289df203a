"""Detection of rows far from a central point."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real


@jit(fast=True)
def mask_within(
    X: Real, center: NDArray[np.float64], factors: NDArray[np.float64], limit: float, inside: NDArray[np.bool_]
) -> int:
    """Mark the rows whose squared distance from a point is at most `limit`.

    Parameters
    ----------
    X
        IN (n, d), finite.
    center, factors
        IN (d,) each: the distance is that of ``(row - middle) * factors`` from zero.
    limit
        Squared distance.
    inside
        OUT (n,).

    Returns
    -------
    int
        Number of these rows.
    """
    n, d = X.shape
    count = 0
    for i in range(n):
        squared = 0.0
        for t in range(d):
            difference = (X[i, t] - center[t]) * factors[t]
            squared += difference * difference
        inside[i] = squared <= limit
        count += squared <= limit
    return count


@jit(fast=True)
def squared_distances_from(
    rows: NDArray[np.float64], center: NDArray[np.float64], factors: NDArray[np.float64], squares: NDArray[np.float64]
) -> None:
    """Compute the squared distance of each row from a point.

    Parameters
    ----------
    rows
        IN (n, d).
    center, factors
        As in `mask_within`.
    squares
        OUT (n,).
    """
    for i in range(rows.shape[0]):
        squared = 0.0
        for t in range(rows.shape[1]):
            difference = (rows[i, t] - center[t]) * factors[t]
            squared += difference * difference
        squares[i] = squared


OCTAVES = 2200
"""Number of bins by powers of two: covers the range of float64."""


@jit(allocates=True)
def widest_gap(squares: NDArray[np.float64], weights: NDArray[np.float64], tail: float, least: float) -> float:
    """Find the widest gap that separates the outermost rows from all others.

    Rows at distance zero, which may be most rows, give no scale and are ignored. A gap is a ratio of successive values
    in ascending order. Only values in different octaves can differ by so much, so the smallest and the largest of each
    octave suffice, without sorting.

    Parameters
    ----------
    squares
        IN (n,): squared distances.
    weights
        IN (n,).
    tail
        Maximum share of the mass beyond a gap; mass at distance zero does not count.
    least
        Minimum ratio of a gap, at least 4.

    Returns
    -------
    float
        Geometric middle of the gap; infinity if there is none.
    """
    smallest = np.full(OCTAVES, np.inf)
    largest = np.zeros(OCTAVES)
    masses = np.zeros(OCTAVES)
    mass = 0.0
    for i in range(len(squares)):
        if squares[i] > 0.0:
            mass += weights[i]
            octave = math.frexp(squares[i])[1] + OCTAVES // 2
            smallest[octave] = min(smallest[octave], squares[i])
            largest[octave] = max(largest[octave], squares[i])
            masses[octave] += weights[i]
    beyond = 0.0
    outer = np.inf
    widest = 0.0
    limit = np.inf
    for octave in range(OCTAVES - 1, -1, -1):
        if masses[octave] > 0.0 or largest[octave] > 0.0:
            inner = largest[octave]
            if beyond > tail * mass:
                break
            if outer < np.inf and outer / least >= inner and outer / inner > widest:
                widest = outer / inner
                limit = math.sqrt(inner) * math.sqrt(outer)
            beyond += masses[octave]
            outer = smallest[octave]
    return limit
