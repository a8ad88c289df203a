"""Relabelling of a few rows at a time: by float32 distances, or float64 ones where float32 cannot decide.

The margin of a row is the difference of its distances to the second nearest and the nearest centroid, minus a bound of
the rounding errors. If it is positive, the label is the nearest centroid in exact arithmetic; otherwise the distances
are recomputed in float64 from the raw values, and the lowest index wins ties. So every pass gives the labels of a plain
float64 loop.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.simd import GROUP, LANES, changed_lanes, gather, lowest_bit, to_float32, two_nearest
from streamkm.kernels.exact.sums import Frame, Real, add_row

CHANGED, EVALUATED, RECHECKED = 0, 1, 2
"""Columns of a pass's counters: changed labels, rows compared with centroids, rows that needed float64."""

Share = tuple[int, int, int, int]
"""The share of a call in a pass: (part, parts, first, last). The call processes every parts-th of the units (chunks of
rows, blocks or regions) in the range from `first` to `last`, starting with number `part` of them."""


class Rows(NamedTuple):
    """Points in the order in which a pass reads them.

    Attributes
    ----------
    raw
        (n, d) float32 or float64, in the unit of the points.
    working
        (n, d) float32, in working coordinates (see `Frame`).
    weights
        (n,) float64, at most 1, in the `weight_unit` of the frame; or (0,) for ones.
    """

    raw: Real
    working: NDArray[np.float32]
    weights: NDArray[np.float64]


class PassCentroids(NamedTuple):
    """The centroids that the rows are compared with in a pass.

    Attributes
    ----------
    raw
        (k, d) float64, in the unit of the points.
    working
        (k, d) float64, in working coordinates.
    padded
        (k + 1, d) float32: `working` from `to_float32`.
    slack
        (3,) float64: bounds of rounding errors, from `rounding`.
    """

    raw: NDArray[np.float64]
    working: NDArray[np.float64]
    padded: NDArray[np.float32]
    slack: NDArray[np.float64]


class Lanes(NamedTuple):
    """Rows that are compared at once, one per SIMD lane. All are temporary.

    Attributes
    ----------
    row_indices
        (m,) uint32: indices of the rows to compare, with room for LANES more.
    block
        (d, LANES) float32: working coordinates of the rows.
    found
        (2, LANES) float32: margins, and the bits of `winners`.
    winners
        (LANES,) int32: nearest centroids.
    """

    row_indices: NDArray[np.uint32]
    block: NDArray[np.float32]
    found: NDArray[np.float32]
    winners: NDArray[np.int32]


class Relabelled(NamedTuple):
    """What one thread updates in a pass.

    Attributes
    ----------
    labels
        (n,) int32: labels of all rows; -1 if there is none yet.
    limbs, counts
        (k, 2, d + 1) and (k,) int64: the thread's part of `Sums`; nothing is summed if `counts` is (0,).
    counters
        (3,) int64: columns CHANGED, EVALUATED and RECHECKED.
    """

    labels: NDArray[np.int32]
    limbs: NDArray[np.int64]
    counts: NDArray[np.int64]
    counters: NDArray[np.int64]


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
    rows: Rows,
    frame: Frame,
    centroids: PassCentroids,
    candidates: NDArray[np.int32],
    n_candidates: int,
    lanes: Lanes,
    first: int,
    count: int,
    target: Relabelled,
) -> None:
    """Relabel up to `LANES` rows, and move those that changed between the sums of clusters.

    Parameters
    ----------
    rows, frame, centroids
        IN.
    candidates, n_candidates
        IN (m,): indices of the centroids that can be nearest, ascending, padded with at least GROUP - 1 times k.
    lanes
        TMP, except (m,) `row_indices`: the rows are ``row_indices[first:first + count]``, and up to LANES more entries
        are overwritten. Afterwards ``found[0]`` holds the (LANES,) margins.
    first, count
        Range of the row indices.
    target
        INOUT.
    """
    raw, working, weights = rows
    raw_centroids, _, padded, slack = centroids
    row_indices, block, found, winners = lanes
    labels, limbs, counts, counters = target
    origin, scale = frame.origin, frame.scale
    d = working.shape[1]
    for p in range(count, LANES):  # idle lanes repeat a row
        row_indices[first + p] = row_indices[first]
    gather(working, row_indices, first, block, d)
    two_nearest(
        block,
        padded,
        candidates,
        found,
        (n_candidates + GROUP - 1) // GROUP,
        d,
        np.float32(slack[0]),
        np.float32(slack[1]),
    )
    weighted = len(weights) > 0
    changed = changed_lanes(found, labels, row_indices, first) & ((1 << count) - 1)
    while changed != 0:
        p = lowest_bit(changed)
        changed &= changed - 1
        i = int(row_indices[first + p])
        if found[0, p] > 0.0:
            j = int(winners[p])
        else:
            j = exact_nearest(raw, i, raw_centroids, scale, candidates, n_candidates)
            counters[RECHECKED] += 1
        before = int(labels[i])
        if j == before:
            continue
        labels[i] = j
        counters[CHANGED] += 1
        weight = weights[i] if weighted else 1.0
        if len(counts) > 0 and weight > 0.0:
            add_row(raw, i, origin, scale * weight, weight, limbs, j)
            counts[j] += 1
            if before >= 0:
                add_row(raw, i, origin, -scale * weight, -weight, limbs, before)
                counts[before] -= 1
    counters[EVALUATED] += count
