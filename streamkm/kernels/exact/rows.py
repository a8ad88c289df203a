"""Assignment pass over rows in any order, with one bound per row: for data in which blocks of neighbours do not help.

Hamerly (2010) keeps, for each row, an upper bound u of the distance to its centroid and a lower bound l of the distance
to any other. Only their difference matters, and both change by amounts that are the same for all rows of a cluster: so
one number per row, ``(l - u) + H[label]``, is enough, and the label is certain while ``H[label]``, which grows with the
moves of centroids, is below it. A second number, for moves of any two centroids, is compared without reading the label,
32 rows at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.relabel import Lanes, PassCentroids, Relabelled, Rows, Share, relabel_rows
from streamkm.kernels.exact.simd import GROUP, LANES, below, lowest_bit
from streamkm.kernels.exact.sums import Frame, Sums

CHUNK_ROWS = 1024
"""Rows that a thread processes at a time."""

UP = 1.0 + 3e-7
DOWN = 1.0 - 3e-7
"""Factors that compensate for the rounding of bounds to float32."""


class RowBounds(NamedTuple):
    """Bounds that tell which rows to compare again.

    Attributes
    ----------
    moved
        (k + 1,) float64: for each label, the accumulated moves of its centroid and of the farthest-moving other one;
        last, those of any two centroids. In working coordinates, as all bounds.
    bounds
        (n,) float32: value of `moved` for the row's label from which on it must be compared.
    floors
        (n + 32,) float32: value of `moved` for any two centroids from which on a row must be compared.
    """

    moved: NDArray[np.float64]
    bounds: NDArray[np.float32]
    floors: NDArray[np.float32]


@jit(allocates=True)
def rows_pass(
    share: Share,
    rows: Rows,
    frame: Frame,
    centroids: PassCentroids,
    row_bounds: RowBounds,
    labels: NDArray[np.int32],
    sums: Sums,
    counters: NDArray[np.int64],
    force: bool,
) -> None:
    """Relabel the rows whose bounds no longer hold.

    Parameters
    ----------
    share
        Share of this call, in chunks of rows.
    rows, frame, centroids
        IN.
    row_bounds
        INOUT: `bounds` and `floors`.
    labels
        INOUT (n,): -1 if there is none yet.
    sums
        INOUT: the part of this call; nothing is summed if there are 0 clusters.
    counters
        INOUT (parts, 3): as in `Relabelled`.
    force
        Whether to relabel all rows.
    """
    part, parts, first, last = share
    rows, frame, centroids = Rows(*rows), Frame(*frame), PassCentroids(*centroids)
    moved, bounds, floors = row_bounds
    limbs, counts = sums
    d = rows.working.shape[1]
    k = centroids.raw.shape[0]
    candidates = np.empty(k + GROUP, np.int32)
    limits = np.empty(k + 1, np.float32)
    for j in range(k + 1):
        limits[j] = moved[j] * UP
    for j in range(k + GROUP):
        candidates[j] = min(j, k)
    found = np.zeros((2, LANES), np.float32)
    row_indices = np.empty(CHUNK_ROWS + 64, np.uint32)
    lanes = Lanes(row_indices, np.zeros((d, LANES), np.float32), found, found[1].view(np.int32))
    target = Relabelled(labels, limbs[part], counts[part], counters[part])
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
            count = min(LANES, m - q)
            relabel_rows(rows, frame, centroids, candidates, k, lanes, q, count, target)
            for p in range(count):
                i = row_indices[q + p]
                margin = found[0, p]
                bounds[i] = (margin + moved[labels[i]]) * DOWN if margin > 0 else -1.0
                floors[i] = (margin + moved[k]) * DOWN if margin > 0 else -1.0
