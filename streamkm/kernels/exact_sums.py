"""Sums of points that are exact, and therefore the same in any order.

A coordinate, brought to [-1, 1] by the origin and a power of two, is split into two integers of 31 bits (62 bits below
the largest coordinate: finer than float64 unless a coordinate is 2**9 times smaller). Integers add without rounding,
so a sum depends on its set of points only: not on threads, chunks, the order of rows, or on what moved in and out
before.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

Real = NDArray[np.float32] | NDArray[np.float64]

LIMB = 2.0**31
ROUND = 1.5 * 2.0**52  # adding it leaves an integer in the low bits of the sum: a conversion that SIMD has
ROUND_BITS = np.int64(np.float64(ROUND).view(np.int64))


@jit()
def add_row(
    raw: Real,
    row: int,
    origin: NDArray[np.float64],
    factor: float,
    weight: float,
    sums: NDArray[np.int64],
    j: int,
) -> None:
    """Add one weighted row to the sum of a cluster.

    Parameters
    ----------
    raw
        IN (n, d).
    row
        Which row.
    origin
        IN (d,).
    factor
        Power of two times `weight`: a coordinate counts as ``(raw - origin) * factor``, at most 1 in size.
    weight
        At most 1; negative to take the row away.
    sums
        INOUT (k, 2, d + 1): the two limbs of the sums of coordinates and, last, of the weight.
    j
        Which cluster.
    """
    d = raw.shape[1]
    factor *= LIMB
    for t in range(d):
        value = (raw[row, t] - origin[t]) * factor
        shifted = value + ROUND
        rest = (value - (shifted - ROUND)) * LIMB + ROUND
        sums[j, 0, t] += np.float64(shifted).view(np.int64) - ROUND_BITS
        sums[j, 1, t] += np.float64(rest).view(np.int64) - ROUND_BITS
    weight *= LIMB
    shifted = weight + ROUND
    rest = (weight - (shifted - ROUND)) * LIMB + ROUND
    sums[j, 0, d] += np.float64(shifted).view(np.int64) - ROUND_BITS
    sums[j, 1, d] += np.float64(rest).view(np.int64) - ROUND_BITS


@jit()
def move_centroids(
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    origin: NDArray[np.float64],
    scale: float,
    unit: float,
    raw_centroids: NDArray[np.float64],
    centroids: NDArray[np.float64],
    drift: NDArray[np.float64],
    may_stay: bool,
) -> float:
    """Move each centroid to the mean of its points; one without points stays.

    Parameters
    ----------
    sums
        IN (parts, k, 2, d + 1): limbs of the sums of `add_row`.
    counts
        IN (parts, k): points of positive weight.
    origin, scale
        As the sums were made.
    unit
        Working coordinates are ``(raw - origin) * unit``.
    raw_centroids
        INOUT (k, d).
    centroids
        INOUT (k, d): the same in working coordinates.
    drift
        OUT (k,): upper bounds of how far each moved, in working coordinates.
    may_stay
        Go on although a centroid has no points.

    Returns
    -------
    float
        The largest move in raw coordinates; -1 if a centroid has no points and may not stay (then nothing moved).
    """
    parts, k = counts.shape
    d = centroids.shape[1]
    if not may_stay:
        for j in range(k):
            points = 0
            for part in range(parts):
                points += counts[part, j]
            if points == 0:
                return -1.0
    largest = 0.0
    reach = 0.0
    for j in range(k):
        norm = 0.0
        for t in range(d):
            norm += centroids[j, t] * centroids[j, t]
        reach = max(reach, norm)
    blur = 4e-16 * np.sqrt(reach)  # working centroids are rounded images of the raw ones
    for j in range(k):
        points = 0
        weight_high = np.int64(0)
        weight_low = np.int64(0)
        for part in range(parts):
            points += counts[part, j]
            weight_high += sums[part, j, 0, d]
            weight_low += sums[part, j, 1, d]
        weight = weight_high + weight_low / LIMB
        drift[j] = 0.0
        if points <= 0 or weight <= 0.0:
            continue
        squared = 0.0
        squared_raw = 0.0
        for t in range(d):
            high = np.int64(0)
            low = np.int64(0)
            for part in range(parts):
                high += sums[part, j, 0, t]
                low += sums[part, j, 1, t]
            mean = origin[t] + (high + low / LIMB) / weight / scale
            step = mean - raw_centroids[j, t]
            squared_raw += step * scale * (step * scale)
            raw_centroids[j, t] = mean
            image = (mean - origin[t]) * unit
            squared += (image - centroids[j, t]) ** 2
            centroids[j, t] = image
        if squared > 0.0 or squared_raw > 0.0:
            drift[j] = np.sqrt(squared) * (1.0 + 1e-12) + blur
        largest = max(largest, np.sqrt(squared_raw) / scale)
    return largest


@jit()
def add_moves(drift: NDArray[np.float64], moved: NDArray[np.float64]) -> None:
    """Add up how much margins can have shrunk.

    Parameters
    ----------
    drift
        IN (k,): how far each centroid just moved.
    moved
        INOUT (k + 1,): for each centroid, moves of it and of the farthest mover among the others; last, of any two.
    """
    k = len(drift)
    farthest = 0
    for j in range(k):
        if drift[j] > drift[farthest]:
            farthest = j
    most = drift[farthest]
    next_most = 0.0
    for j in range(k):
        if j != farthest:
            next_most = max(next_most, drift[j])
    for j in range(k):
        moved[j] += drift[j] + (next_most if j == farthest else most)
    moved[k] += (most + next_most) * (1 + 1e-12)
