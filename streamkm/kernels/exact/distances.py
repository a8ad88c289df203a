"""Distances in float64, from raw values: for the cost, for relocating empty clusters, and for predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.relabel import Share
from streamkm.kernels.exact.sums import LIMB, ROUND, ROUND_BITS, Real, add_row

CHUNK_ROWS = 4096
"""Rows that a thread processes at a time."""


@jit()
def sum_rows(raw: Real, origin: NDArray[np.float64], scale: float, limbs: NDArray[np.int64]) -> None:
    """Sum all rows.

    Parameters
    ----------
    raw, origin
        As in `add_row`.
    scale
        Power of two.
    limbs
        INOUT (1, 2, d + 1): as in `add_row`.
    """
    for i in range(len(raw)):
        add_row(raw, i, origin, scale, 1.0, limbs, 0)


@jit()
def _add_cost(cost: float, costs: NDArray[np.int64], j: int) -> None:
    """Add a number of at most 1 to an exact sum of three limbs of 31 bits."""
    rest = cost * LIMB
    for limb in range(3):
        shifted = rest + ROUND
        costs[j, limb] += np.float64(shifted).view(np.int64) - ROUND_BITS
        rest = (rest - (shifted - ROUND)) * LIMB


@jit(fast=True)
def _square(raw: Real, i: int, raw_centroids: NDArray[np.float64], j: int, scale: float) -> float:
    """Squared distance of a row to a centroid, times ``scale**2``."""
    squared = 0.0
    for t in range(raw.shape[1]):
        difference = (raw[i, t] - raw_centroids[j, t]) * scale
        squared += difference * difference
    return squared


@jit()
def assigned_squares(
    share: Share,
    raw: Real,
    labels: NDArray[np.int32],
    raw_centroids: NDArray[np.float64],
    scale: float,
    weights: NDArray[np.float64],
    unit: float,
    squares: NDArray[np.float64],
    costs: NDArray[np.int64],
) -> None:
    """Compute squared distances of rows to their assigned centroids, and exact weighted sums of them by cluster.

    Parameters
    ----------
    share
        Share of this call, in chunks of rows.
    raw
        IN (n, d).
    labels
        IN (n,).
    raw_centroids
        IN (k, d).
    scale
        Power of two by which differences are multiplied.
    weights
        IN (n,), at most 1; or (0,) for ones.
    unit
        Power of two that scales squares below 1.
    squares
        OUT (last - first,), by the range of the share: squares, without `unit`; or (0,) if they are not needed.
    costs
        INOUT (k, 3): three limbs of each cluster's weighted sum, times `unit`.
    """
    part, parts, first, last = share
    for start in range(first + part * CHUNK_ROWS, last, parts * CHUNK_ROWS):
        for i in range(start, min(last, start + CHUNK_ROWS)):
            j = int(labels[i])
            squared = _square(raw, i, raw_centroids, j, scale)
            if len(squares) > 0:
                squares[i - first] = squared
            weight = weights[i] if len(weights) > 0 else 1.0
            _add_cost(squared * weight * unit, costs, j)


@jit(allocates=True)
def all_distances(
    part: int, parts: int, raw: Real, raw_centroids: NDArray[np.float64], scale: float, out: Real
) -> None:
    """Compute the distance of each row to each centroid.

    Parameters
    ----------
    part, parts
        This call processes every parts-th chunk, starting with chunk `part`.
    raw, raw_centroids
        IN (n, d), (k, d).
    scale
        Power of two by which differences are multiplied before they are squared.
    out
        OUT (n, k).
    """
    n, d = raw.shape
    k = len(raw_centroids)
    columns = raw_centroids.T.copy()
    squares = np.empty(k)
    for start in range(part * CHUNK_ROWS, n, parts * CHUNK_ROWS):
        for i in range(start, min(n, start + CHUNK_ROWS)):
            squares[:] = 0.0
            for t in range(d):
                x = raw[i, t]
                for j in range(k):
                    difference = (x - columns[t, j]) * scale
                    squares[j] += difference * difference
            for j in range(k):
                out[i, j] = np.sqrt(squares[j]) / scale


@jit()
def relocate(
    raw: Real,
    row: int,
    origin: NDArray[np.float64],
    scale: float,
    weight: float,
    limbs: NDArray[np.int64],
    counts: NDArray[np.int64],
    old: int,
    new: int,
) -> None:
    """Move a row between the sums of two clusters.

    Parameters
    ----------
    raw, row, origin, scale, weight
        As in `add_row`, but the scale does not include the weight.
    limbs, counts
        INOUT (k, 2, d + 1), (k,).
    old, new
        Labels of the clusters.
    """
    add_row(raw, row, origin, scale * weight, weight, limbs, new)
    add_row(raw, row, origin, -scale * weight, -weight, limbs, old)
    counts[new] += 1
    counts[old] -= 1
