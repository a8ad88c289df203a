"""Nearest centroids of many points, and what each cluster gets from them.

Points are compared in float32 (or float64: the type of the packed centroids decides) after subtracting an origin and
multiplying by a power of two, so that neither a large offset nor a large or tiny unit costs accuracy. Distances are
direct differences, never ``|c|^2 - 2xc``, which cancels. What is returned or summed is computed anew in float64 from
the raw values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels._lanes import GROUP, LANES32, LANES64, nearest_in_lanes

Real = NDArray[np.float32] | NDArray[np.float64]


@jit()
def largest(values: NDArray[np.float32] | NDArray[np.float64]) -> float:
    """Find the largest absolute value, and whether all are finite, in one SIMD pass.

    Compares the bits of absolute values as integers, which orders them as numbers, then infinity, then NaN.

    Parameters
    ----------
    values
        IN (n,).

    Returns
    -------
    float
        ``max |values|``, NaN or infinity if anything is; 0 for none.
    """
    high = np.int64(0)
    for i in range(len(values)):
        bits = np.float64(abs(values[i])).view(np.int64)
        high = bits if bits > high else high  # noqa: FURB136 -- a select is what becomes SIMD
    return float(np.int64(high).view(np.float64))


@jit()
def extent(X: Real, origin: NDArray[np.float64]) -> float:
    """Find the largest distance of a coordinate from the origin.

    Parameters
    ----------
    X
        IN (n, d), finite.
    origin
        IN (d,).
    """
    high = 0.0
    for i in range(X.shape[0]):
        for t in range(X.shape[1]):
            high = max(high, abs(X[i, t] - origin[t]))
    return high


@jit()
def pack_centroids(centroids: NDArray[np.float64], origin: NDArray[np.float64], scale: float, packed: Real) -> None:
    """Lay centroids out for `assign`: groups of six, one dimension after the other.

    Parameters
    ----------
    centroids
        IN (k, d).
    origin
        IN (d,).
    scale
        Power of two by which differences to the origin are multiplied.
    packed
        OUT (ceil(k / 6), d, 6) float32 or float64; infinity where there is no centroid, so that none is nearest.
    """
    packed.fill(np.inf)
    for j in range(centroids.shape[0]):
        for t in range(centroids.shape[1]):
            packed[j // GROUP, t, j % GROUP] = (centroids[j, t] - origin[t]) * scale


@jit(fast=True)
def _label(
    X: Real,
    origin: NDArray[np.float64],
    scale: float,
    packed: Real,
    start: int,
    count: int,
    block: Real,
    best: Real,
    nearest: NDArray[np.int32],
) -> None:
    """Nearest centroids of `count` rows from `start` on into `nearest`; block, best and nearest are TMP."""
    for p in range(count):
        for t in range(X.shape[1]):
            block[t, p] = (X[start + p, t] - origin[t]) * scale
    nearest_in_lanes(block, packed, best, nearest)


@jit(fast=True)
def assign(
    X: Real,
    origin: NDArray[np.float64],
    scale: float,
    packed: Real,
    centroids: NDArray[np.float64],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
) -> None:
    """Find the nearest centroid of each row; the lowest index wins ties.

    Parameters
    ----------
    X
        IN (n, d), finite.
    origin, scale
        As given to `pack_centroids`.
    packed
        IN: packed centroids.
    centroids
        IN (k, d): the same, raw.
    labels
        OUT (n,): index of the nearest centroid.
    distances
        OUT (n,): squared distance to it, in float64 from raw values.
    """
    n, d = X.shape
    lanes = LANES32 if packed.itemsize == 4 else LANES64
    block = np.zeros((d, lanes), packed.dtype)
    best = np.zeros(lanes, packed.dtype)
    nearest = np.zeros(lanes, np.int32)
    for start in range(0, n, lanes):
        count = min(lanes, n - start)
        _label(X, origin, scale, packed, start, count, block, best, nearest)
        for p in range(count):
            j = nearest[p]
            squared = 0.0
            for t in range(d):
                difference = X[start + p, t] - centroids[j, t]
                squared += difference * difference
            labels[start + p] = j
            distances[start + p] = squared


@jit(fast=True)
def assign_accumulate(
    X: Real,
    row_weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: float,
    packed: Real,
    centroids: NDArray[np.float64],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
    totals: NDArray[np.float64],
) -> None:
    """Do what `assign` does and sum up, in the same pass, what each cluster gets.

    Parameters
    ----------
    X, origin, scale, packed, centroids, labels, distances
        As in `assign`.
    row_weights
        IN (n,), or (0,) for ones.
    totals
        OUT (k, d + 2): sums of ``weight * (row - origin)``, then the sum of weights, then the sum of
        ``weight * squared distance``.
    """
    n, d = X.shape
    lanes = LANES32 if packed.itemsize == 4 else LANES64
    block = np.zeros((d, lanes), packed.dtype)
    best = np.zeros(lanes, packed.dtype)
    nearest = np.zeros(lanes, np.int32)
    weighted = len(row_weights) > 0
    totals.fill(0.0)
    for start in range(0, n, lanes):
        count = min(lanes, n - start)
        _label(X, origin, scale, packed, start, count, block, best, nearest)
        for p in range(count):
            i = start + p
            j = nearest[p]
            weight = row_weights[i] if weighted else 1.0
            squared = 0.0
            for t in range(d):
                difference = X[i, t] - centroids[j, t]
                squared += difference * difference
                totals[j, t] += weight * (X[i, t] - origin[t])
            totals[j, d] += weight
            totals[j, d + 1] += weight * squared
            labels[i] = j
            distances[i] = squared
