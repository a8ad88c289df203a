"""Relabelling of a few rows at a time: by float32 distances, or float64 ones where float32 cannot decide.

The margin of a row is the difference of its distances to the second nearest and the nearest centroid, minus a bound of
the rounding errors. If it is positive, the label is the nearest centroid in exact arithmetic; otherwise the distances
are recomputed in float64 from the raw values, and the lowest index wins ties. So every pass gives the labels of a plain
float64 loop.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.simd import GROUP, LANES, changed_lanes, gather, lowest_bit, to_float32, two_nearest
from streamkm.kernels.exact.sums import Real, add_row

CHANGED, EVALUATED, RECHECKED = 0, 1, 2
"""Columns of a pass's counters: changed labels, rows compared with centroids, rows that needed float64."""


@jit()
def rounding(centroids: NDArray[np.float64], extent: float, slack: NDArray[np.float64]) -> None:
    """Compute bounds of the rounding errors of a pass.

    The error of the difference of two float32 distances is at most ``slack[0] * (sum of the distances) + slack[1]``:
    from d squares and their sum, the square root, and coordinates that were rounded to float32 before (of both
    centroids and, twice, of the row, whose norm is at most that of a centroid plus the distance). The last term covers
    squares below the range of float32.

    Parameters
    ----------
    centroids
        IN (k, d), in working coordinates.
    extent
        Largest norm of a row, in working coordinates.
    slack
        OUT (3,): the two coefficients above, and the error of a difference of two squared distances in float64.
    """
    k, d = centroids.shape
    reach = 0.0
    for j in range(k):
        norm = 0.0
        for t in range(d):
            norm += centroids[j, t] * centroids[j, t]
        reach = max(reach, norm)
    reach = np.sqrt(reach)
    slack[0] = (d / 2 + 8) * 2.0**-24
    slack[1] = 4.1 * 2.0**-24 * reach + 1e-18 * np.sqrt(d)
    slack[2] = 1e-13 * (8 + d / 8) * (reach + extent) ** 2


@jit()
def begin_pass(
    centroids: NDArray[np.float64],
    extent: float,
    slack: NDArray[np.float64],
    centroids32: NDArray[np.float32],
    counters: NDArray[np.int64],
) -> None:
    """Prepare the arrays that all threads of a pass share.

    Parameters
    ----------
    centroids, extent, slack
        As in `rounding`.
    centroids32
        OUT (k + 1, d): as in `to_float32`.
    counters
        OUT (parts, 3): zeros.
    """
    rounding(centroids, extent, slack)
    to_float32(centroids, centroids32)
    for part in range(counters.shape[0]):
        for q in range(counters.shape[1]):
            counters[part, q] = 0


@jit()
def exact_nearest(
    raw: Real,
    row: int,
    raw_centroids: NDArray[np.float64],
    scale: float,
    candidates: NDArray[np.int32],
    n_candidates: int,
) -> int:
    """Find the nearest of some centroids in float64; the lowest index wins ties.

    Parameters
    ----------
    raw
        IN (n, d).
    row
        Index of the row.
    raw_centroids
        IN (k, d).
    scale
        Power of two by which differences are multiplied, so that their squares neither overflow nor underflow.
    candidates
        IN: indices of centroids, ascending.
    n_candidates
        Number of these centroids.
    """
    best = np.inf
    winner = candidates[0]
    for q in range(n_candidates):
        j = candidates[q]
        squared = 0.0
        for t in range(raw.shape[1]):
            difference = (raw[row, t] - raw_centroids[j, t]) * scale
            squared += difference * difference
        if squared < best:
            best = squared
            winner = j
    return int(winner)


@jit(inline=True)
def relabel_rows(
    raw: Real,
    rows: NDArray[np.float32],
    weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: float,
    raw_centroids: NDArray[np.float64],
    centroids32: NDArray[np.float32],
    candidates: NDArray[np.int32],
    n_candidates: int,
    slack: NDArray[np.float64],
    row_indices: NDArray[np.uint32],
    first: int,
    count: int,
    block: NDArray[np.float32],
    found: NDArray[np.float32],
    winners: NDArray[np.int32],
    labels: NDArray[np.int32],
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    counters: NDArray[np.int64],
) -> None:
    """Relabel up to `LANES` rows, and move those that changed between the sums of clusters.

    Afterwards ``found[0]`` holds the margins.

    Parameters
    ----------
    raw
        IN (n, d): points in raw units, in kernel order.
    rows
        IN (n, d): the points in working coordinates.
    weights
        IN (n,): weights, at most 1; or (0,) for ones.
    origin, scale
        As in `add_row`.
    raw_centroids
        IN (k, d).
    centroids32
        IN (k + 1, d): from `to_float32`.
    candidates, n_candidates
        IN: indices of the centroids that can be nearest, ascending, padded with at least GROUP - 1 times k.
    slack
        IN (3,): from `rounding`.
    row_indices, first, count
        INOUT: the rows are ``row_indices[first:first + count]``; up to LANES more entries are overwritten.
    block, found, winners
        TMP (d, LANES), (2, LANES), and the bits of ``found[1]`` as integers.
    labels
        INOUT (n,): -1 if there is none yet.
    sums, counts
        INOUT (k, 2, d + 1), (k,): as in `move_centroids`; nothing is summed if `counts` is (0,).
    counters
        INOUT (3,).
    """
    d = rows.shape[1]
    for p in range(count, LANES):  # idle lanes repeat a row
        row_indices[first + p] = row_indices[first]
    gather(rows, row_indices, first, block, d)
    two_nearest(
        block,
        centroids32,
        candidates,
        found,
        (n_candidates + GROUP - 1) // GROUP,
        d,
        np.float32(slack[0]),
        np.float32(slack[1]),
    )
    weighted = len(weights) > 0
    lanes = changed_lanes(found, labels, row_indices, first) & ((1 << count) - 1)
    while lanes != 0:
        p = lowest_bit(lanes)
        lanes &= lanes - 1
        i = int(row_indices[first + p])
        if found[0, p] > 0.0:
            j = int(winners[p])
        else:
            j = exact_nearest(raw, i, raw_centroids, scale, candidates, n_candidates)
            counters[2] += 1
        before = int(labels[i])
        if j == before:
            continue
        labels[i] = j
        counters[0] += 1
        weight = weights[i] if weighted else 1.0
        if len(counts) > 0 and weight > 0.0:
            add_row(raw, i, origin, scale * weight, weight, sums, j)
            counts[j] += 1
            if before >= 0:
                add_row(raw, i, origin, -scale * weight, -weight, sums, before)
                counts[before] -= 1
    counters[1] += count
