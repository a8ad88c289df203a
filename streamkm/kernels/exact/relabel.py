"""Labels of a few rows at a time: float32 distances decide, and float64 ones where float32 cannot.

A margin is how much nearer a row is to its centroid than to any other, less everything that rounding may have done to
it. Where it is positive, the label is the nearest centroid in exact arithmetic; elsewhere the distances are computed
anew in float64 from the raw values, and the lowest index wins ties. So every pass gives the labels of a plain float64
loop.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.simd import GROUP, LANES, gather, lowest_bit, narrow, two_nearest, unsettled
from streamkm.kernels.exact.sums import Real, add_row

CHANGED, EVALUATED, RECHECKED = 0, 1, 2
"""Columns of a pass's report: labels that changed, rows compared with centroids, rows that needed float64."""


@jit()
def rounding(centroids: NDArray[np.float64], extent: float, slack: NDArray[np.float64]) -> None:
    """Bound the rounding errors of this pass.

    The error of a difference of two float32 distances is at most ``slack[0] * (sum of the distances) + slack[1]``: d
    squares and their sum, the root, and coordinates that were rounded to float32 before (of both centroids and, twice,
    of the row, whose norm is at most that of a centroid plus the distance). Squares below float32's range are covered
    by the last term.

    Parameters
    ----------
    centroids
        IN (k, d), in working coordinates.
    extent
        The largest norm of a row, in working coordinates.
    slack
        OUT (3,): the two above, and the error of a difference of two squared distances in float64.
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
    narrowed: NDArray[np.float32],
    report: NDArray[np.int64],
) -> None:
    """Prepare what all threads of a pass share.

    Parameters
    ----------
    centroids, extent, slack
        As in `rounding`.
    narrowed
        OUT (k + 1, d): as in `narrow`.
    report
        OUT (parts, 3): zeros.
    """
    rounding(centroids, extent, slack)
    narrow(centroids, narrowed)
    for part in range(report.shape[0]):
        for q in range(report.shape[1]):
            report[part, q] = 0


@jit()
def exact_nearest(
    raw: Real,
    row: int,
    raw_centroids: NDArray[np.float64],
    scale: float,
    chosen: NDArray[np.int32],
    n_chosen: int,
) -> int:
    """Find the nearest of some centroids in float64; the lowest index wins ties.

    Parameters
    ----------
    raw
        IN (n, d).
    row
        Which row.
    raw_centroids
        IN (k, d).
    scale
        Power of two by which differences are multiplied, so that their squares neither overflow nor vanish.
    chosen
        IN: indices of centroids, ascending.
    n_chosen
        How many of them.
    """
    best = np.inf
    winner = chosen[0]
    for q in range(n_chosen):
        j = chosen[q]
        squared = 0.0
        for t in range(raw.shape[1]):
            difference = (raw[row, t] - raw_centroids[j, t]) * scale
            squared += difference * difference
        if squared < best:
            best = squared
            winner = j
    return int(winner)


@jit(inline=True)
def settle(
    raw: Real,
    rows: NDArray[np.float32],
    weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: float,
    raw_centroids: NDArray[np.float64],
    narrowed: NDArray[np.float32],
    chosen: NDArray[np.int32],
    n_chosen: int,
    slack: NDArray[np.float64],
    picked: NDArray[np.uint32],
    first: int,
    count: int,
    block: NDArray[np.float32],
    found: NDArray[np.float32],
    winners: NDArray[np.int32],
    labels: NDArray[np.int32],
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    report: NDArray[np.int64],
) -> None:
    """Label up to `LANES` rows, and move those that changed from one cluster's sum to the other's.

    Afterwards ``found[0]`` holds the margins.

    Parameters
    ----------
    raw
        IN (n, d): points, in the layout's order.
    rows
        IN (n, d): the same in working coordinates.
    weights
        IN (n,): theirs, at most 1; or (0,) for ones.
    origin, scale
        As in `add_row`.
    raw_centroids
        IN (k, d).
    narrowed
        IN (k + 1, d): from `narrow`.
    chosen, n_chosen
        IN: the centroids that can be nearest, ascending, then at least GROUP - 1 times k.
    slack
        IN (3,): from `rounding`.
    picked, first, count
        INOUT: which of `rows`: ``picked[first:first + count]``; up to LANES more are written.
    block, found, winners
        TMP (d, LANES), (2, LANES), and the bits of ``found[1]`` as integers.
    labels
        INOUT (n,): -1 where there is none yet.
    sums, counts
        INOUT (k, 2, d + 1), (k,): as in `move_centroids`; nothing is summed if `counts` is (0,).
    report
        INOUT (3,).
    """
    d = rows.shape[1]
    for p in range(count, LANES):  # idle lanes repeat a row
        picked[first + p] = picked[first]
    gather(rows, picked, first, block, d)
    two_nearest(
        block, narrowed, chosen, found, (n_chosen + GROUP - 1) // GROUP, d, np.float32(slack[0]), np.float32(slack[1])
    )
    weighted = len(weights) > 0
    lanes = unsettled(found, labels, picked, first) & ((1 << count) - 1)
    while lanes != 0:
        p = lowest_bit(lanes)
        lanes &= lanes - 1
        i = int(picked[first + p])
        if found[0, p] > 0.0:
            j = int(winners[p])
        else:
            j = exact_nearest(raw, i, raw_centroids, scale, chosen, n_chosen)
            report[2] += 1
        before = int(labels[i])
        if j == before:
            continue
        labels[i] = j
        report[0] += 1
        weight = weights[i] if weighted else 1.0
        if len(counts) > 0 and weight > 0.0:
            add_row(raw, i, origin, scale * weight, weight, sums, j)
            counts[j] += 1
            if before >= 0:
                add_row(raw, i, origin, -scale * weight, -weight, sums, before)
                counts[before] -= 1
    report[1] += count
