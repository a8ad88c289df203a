"""A pass over rows in any order, each with one bound: what pays where centroids cannot be told apart by regions.

Hamerly (2010) keeps an upper bound u and a lower bound l of each row's distance to its centroid and to any other. Only
their difference matters, and both change by amounts that are the same for all rows of a cluster: so one number a row,
``(l - u) + H[label]``, is enough, and a row is settled for as long as ``H[label]``, which grows with the moves of
centroids, stays below it. A second number, against moves of any centroids, is compared without looking at the label,
32 rows at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.relabel import settle
from streamkm.kernels.exact.simd import GROUP, LANES, below, lowest_bit
from streamkm.kernels.exact.sums import Real

STRIP = 1024
"""Rows that a thread takes at a time."""

UP = 1.0 + 3e-7
DOWN = 1.0 - 3e-7
"""Factors that make up for keeping bounds in float32."""


@jit(allocates=True)
def rows_pass(
    part: int,
    parts: int,
    first: int,
    last: int,
    raw: Real,
    rows: NDArray[np.float32],
    weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: float,
    raw_centroids: NDArray[np.float64],
    narrowed: NDArray[np.float32],
    slack: NDArray[np.float64],
    moved: NDArray[np.float64],
    force: bool,
    bounds: NDArray[np.float32],
    floors: NDArray[np.float32],
    labels: NDArray[np.int32],
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    report: NDArray[np.int64],
) -> None:
    """Label the rows whose bounds do not hold any more.

    Parameters
    ----------
    part, parts, first, last
        Of rows `first` to `last`, this call takes every parts-th strip, from `part` on.
    raw, rows, weights, origin, scale, raw_centroids, narrowed, slack, labels, sums, counts, report
        As in `settle`.
    moved
        IN (k + 1,): for each label, how far it and the farthest mover among the others have moved so far; last the
        same for any two centroids.
    force
        Label all rows.
    bounds
        INOUT (n,): `moved` of its label at which a row must be looked at.
    floors
        INOUT (n + 32,): `moved` of any two at which a row must be looked at.
    """
    d = rows.shape[1]
    k = raw_centroids.shape[0]
    chosen = np.empty(k + GROUP, np.int32)
    limits = np.empty(k + 1, np.float32)
    for j in range(k + 1):
        limits[j] = moved[j] * UP
    for j in range(k + GROUP):
        chosen[j] = min(j, k)
    block = np.zeros((d, LANES), np.float32)
    found = np.zeros((2, LANES), np.float32)
    winners = found[1].view(np.int32)
    picked = np.empty(STRIP + 64, np.uint32)
    for start in range(first + part * STRIP, last, parts * STRIP):
        stop = min(last, start + STRIP)
        m = 0
        if force:
            for r in range(start, stop):
                picked[m] = r
                m += 1
        else:
            for r in range(start, stop, 32):
                mask = below(floors, r, limits[k])
                while mask != 0:
                    i = r + lowest_bit(mask)
                    mask &= mask - 1
                    picked[m] = i
                    m += i < stop and bounds[i] < limits[labels[i]]
        for q in range(0, m, LANES):
            lanes = min(LANES, m - q)
            settle(
                raw, rows, weights, origin, scale, raw_centroids, narrowed, chosen, k, slack,
                picked, q, lanes, block, found, winners, labels, sums, counts, report,
            )  # fmt: skip
            for p in range(lanes):
                i = picked[q + p]
                margin = found[0, p]
                bounds[i] = (margin + moved[labels[i]]) * DOWN if margin > 0 else -1.0
                floors[i] = (margin + moved[k]) * DOWN if margin > 0 else -1.0
