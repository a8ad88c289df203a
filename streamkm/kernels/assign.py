"""Nearest centroids of many points, and the sums of each cluster's points.

Points are compared in float32 (or float64: the type of the packed centroids decides) after subtracting an origin and
multiplying each dimension by its scale, so that neither a large offset nor a large or tiny unit costs accuracy. A scale
is the metric's factor of that dimension times a power of two, the same for all dimensions, which brings values near
one. Distances are sums of squared differences, never ``|c|^2 - 2xc``, which suffers from cancellation. Distances that
are returned or summed are recomputed in float64 from the raw values.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.simd import GROUP, LANES32, LANES64, nearest_in_lanes

Real = NDArray[np.float32] | NDArray[np.float64]


@jit()
def largest(values: NDArray[np.float32] | NDArray[np.float64]) -> float:
    """Find the largest absolute value, in one SIMD pass that also detects NaN and infinity.

    The bits of absolute values are compared as integers, in whose order infinity and NaN follow all numbers.

    Parameters
    ----------
    values
        IN (n,).

    Returns
    -------
    float
        ``max |values|``; NaN or infinity if a value is; 0 if there are no values.
    """
    high = np.int64(0)
    for i in range(len(values)):
        bits = np.float64(abs(values[i])).view(np.int64)
        high = bits if bits > high else high  # noqa: FURB136 -- a select is what becomes SIMD
    return float(np.int64(high).view(np.float64))


@jit()
def extent(X: Real, origin: NDArray[np.float64], factors: NDArray[np.float64]) -> float:
    """Find the largest distance of a coordinate from the origin, in units of the metric.

    Parameters
    ----------
    X
        IN (n, d), finite.
    origin
        IN (d,).
    factors
        IN (d,): factors on the differences in each dimension.
    """
    high = 0.0
    for i in range(X.shape[0]):
        for t in range(X.shape[1]):
            high = max(high, abs((X[i, t] - origin[t]) * factors[t]))
    return high


@jit()
def pack_centroids(
    centroids: NDArray[np.float64], origin: NDArray[np.float64], scale: NDArray[np.float64], packed: Real
) -> None:
    """Pack centroids for `assign`: in groups of six, by dimension.

    Parameters
    ----------
    centroids
        IN (k, d).
    origin
        IN (d,).
    scale
        IN (d,): factors on the differences to the origin.
    packed
        OUT (ceil(k / 6), d, 6) float32 or float64; padded with infinity, which is never nearest.
    """
    packed.fill(np.inf)
    for j in range(centroids.shape[0]):
        for t in range(centroids.shape[1]):
            packed[j // GROUP, t, j % GROUP] = (centroids[j, t] - origin[t]) * scale[t]


@jit(fast=True)
def _label(
    rows: Real,
    origin: NDArray[np.float64],
    scale: NDArray[np.float64],
    packed: Real,
    block: Real,
    best: Real,
    nearest: NDArray[np.int32],
) -> None:
    """Find the nearest centroids of at most as many rows as there are lanes; block, best and nearest are TMP."""
    for p in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            block[t, p] = (rows[p, t] - origin[t]) * scale[t]
    nearest_in_lanes(block, packed, best, nearest)


@jit(fast=True, allocates=True)
def assign(
    X: Real,
    origin: NDArray[np.float64],
    scale: NDArray[np.float64],
    factors: NDArray[np.float64],
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
    factors
        IN (d,): the metric's factors, or (0,) for ones.
    packed
        IN: centroids from `pack_centroids`.
    centroids
        IN (k, d): the same centroids in raw units.
    labels
        OUT (n,): index of the nearest centroid.
    distances
        OUT (n,): squared distance to it with the metric's factors, in float64 from raw values.
    """
    n, d = X.shape
    lanes = LANES32 if packed.itemsize == 4 else LANES64
    plain = len(factors) == 0
    block = np.zeros((d, lanes), packed.dtype)
    best = np.zeros(lanes, packed.dtype)
    nearest = np.zeros(lanes, np.int32)
    # Views of rows and unsigned indices avoid checks for negative indices in the inner loops.
    for start in range(0, n, lanes):
        rows = X[start : start + lanes]
        _label(rows, origin, scale, packed, block, best, nearest)
        label, distance = labels[start : start + lanes], distances[start : start + lanes]
        for p in range(rows.shape[0]):
            j = np.uint32(nearest[p])
            x, c = rows[p], centroids[j]
            squared = 0.0
            if plain:
                for t in range(d):
                    difference = x[t] - c[t]
                    squared += difference * difference
            else:
                for t in range(d):
                    difference = (x[t] - c[t]) * factors[t]
                    squared += difference * difference
            label[p] = j
            distance[p] = squared


@jit(fast=True, allocates=True)
def assign_accumulate(
    X: Real,
    row_weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: NDArray[np.float64],
    factors: NDArray[np.float64],
    packed: Real,
    centroids: NDArray[np.float64],
    labels: NDArray[np.int32],
    distances: NDArray[np.float64],
    totals: NDArray[np.float64],
) -> None:
    """Assign rows as `assign` does, and sum them up by cluster in the same pass.

    Parameters
    ----------
    X, origin, scale, factors, packed, centroids, labels, distances
        As in `assign`.
    row_weights
        IN (n,), or (0,) for ones.
    totals
        OUT (k, d + 2): sums of ``weight * (row - origin)``, then the sum of weights, then the sum of
        ``weight * squared distance``.
    """
    n, d = X.shape
    lanes = LANES32 if packed.itemsize == 4 else LANES64
    plain = len(factors) == 0
    block = np.zeros((d, lanes), packed.dtype)
    best = np.zeros(lanes, packed.dtype)
    nearest = np.zeros(lanes, np.int32)
    weighted = len(row_weights) > 0
    totals.fill(0.0)
    for start in range(0, n, lanes):
        rows = X[start : start + lanes]
        _label(rows, origin, scale, packed, block, best, nearest)
        label, distance = labels[start : start + lanes], distances[start : start + lanes]
        for p in range(rows.shape[0]):
            j = np.uint32(nearest[p])
            x, c, total = rows[p], centroids[j], totals[j]
            weight = row_weights[start + p] if weighted else 1.0
            squared = 0.0
            if plain:
                for t in range(d):
                    difference = x[t] - c[t]
                    squared += difference * difference
                    total[t] += weight * (x[t] - origin[t])
            else:
                for t in range(d):
                    difference = (x[t] - c[t]) * factors[t]
                    squared += difference * difference
                    total[t] += weight * (x[t] - origin[t])
            total[d] += weight
            total[d + 1] += weight * squared
            label[p] = j
            distance[p] = squared
