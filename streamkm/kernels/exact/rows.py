"""Assignment pass over rows in any order, with one bound per row: for data in which blocks of neighbours do not help.

Hamerly (2010) keeps, for each row, an upper bound u of the distance to its centroid and a lower bound l of the distance
to any other. Only their difference matters, and both change by amounts that are the same for all rows of a cluster: so
one number per row, ``(l - u) + H[label]``, is enough, and the label is certain while ``H[label]``, which grows with the
moves of centroids, is below it. A second number, for moves of any two centroids, is compared without reading the label,
32 rows at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.relabel import relabel_rows
from streamkm.kernels.exact.simd import GROUP, LANES, below, lowest_bit
from streamkm.kernels.exact.sums import Real

CHUNK_ROWS = 1024
"""Rows that a thread processes at a time."""

UP = 1.0 + 3e-7
DOWN = 1.0 - 3e-7
"""Factors that compensate for the rounding of bounds to float32."""


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
    centroids32: NDArray[np.float32],
    slack: NDArray[np.float64],
    moved: NDArray[np.float64],
    force: bool,
    bounds: NDArray[np.float32],
    floors: NDArray[np.float32],
    labels: NDArray[np.int32],
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    counters: NDArray[np.int64],
) -> None:
    """Relabel the rows whose bounds no longer hold.

    Parameters
    ----------
    part, parts, first, last
        This call processes every parts-th chunk of the rows `first` to `last`, starting with chunk `part`.
    raw, rows, weights, origin, scale, raw_centroids, centroids32, slack, labels, sums, counts, counters
        As in `relabel_rows`.
    moved
        IN (k + 1,): for each label, the accumulated moves of its centroid and of the farthest-moving other one; last,
        those of any two centroids.
    force
        Whether to relabel all rows.
    bounds
        INOUT (n,): value of `moved` for its label from which on a row must be compared.
    floors
        INOUT (n + 32,): value of `moved` for any two centroids from which on a row must be compared.
    """
    d = rows.shape[1]
    k = raw_centroids.shape[0]
    candidates = np.empty(k + GROUP, np.int32)
    limits = np.empty(k + 1, np.float32)
    for j in range(k + 1):
        limits[j] = moved[j] * UP
    for j in range(k + GROUP):
        candidates[j] = min(j, k)
    block = np.zeros((d, LANES), np.float32)
    found = np.zeros((2, LANES), np.float32)
    winners = found[1].view(np.int32)
    row_indices = np.empty(CHUNK_ROWS + 64, np.uint32)
    for start in range(first + part * CHUNK_ROWS, last, parts * CHUNK_ROWS):
        stop = min(last, start + CHUNK_ROWS)
        m = 0
        if force:
            for r in range(start, stop):
                row_indices[m] = r
                m += 1
        else:
            for r in range(start, stop, 32):
                mask = below(floors, r, limits[k])
                while mask != 0:
                    i = r + lowest_bit(mask)
                    mask &= mask - 1
                    row_indices[m] = i
                    m += i < stop and bounds[i] < limits[labels[i]]
        for q in range(0, m, LANES):
            lanes = min(LANES, m - q)
            relabel_rows(
                raw, rows, weights, origin, scale, raw_centroids, centroids32, candidates, k, slack,
                row_indices, q, lanes, block, found, winners, labels, sums, counts, counters,
            )  # fmt: skip
            for p in range(lanes):
                i = row_indices[q + p]
                margin = found[0, p]
                bounds[i] = (margin + moved[labels[i]]) * DOWN if margin > 0 else -1.0
                floors[i] = (margin + moved[k]) * DOWN if margin > 0 else -1.0
