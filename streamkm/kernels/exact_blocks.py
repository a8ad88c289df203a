"""A pass over blocks of neighbouring rows, each with the short list of centroids that can be nearest within its box.

A centroid is left out if a bisecting plane has the whole box on the other side (Pelleg and Moore 1999; Kanungo et al. 2002,
there over the nodes of a tree; here over its leaves, 16 rows of SIMD lanes or more each). Rows keep one bound each, as in
`exact_rows`, but against the moves of the block's own centroids only; a block whose smallest bound holds is not read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact_rows import DOWN, UP
from streamkm.kernels.exact_settle import settle
from streamkm.kernels.exact_sums import Real
from streamkm.kernels.exact_tile import GROUP, LANES, NOWHERE, below, lowest_bit

MIXED = -1
"""In place of the one label of a block whose rows have several."""

STATE = 3
MOVED, LOWEST, VALID = 0, 1, 2
"""Columns of a block's state: how far its centroids have moved since its bounds were made, its lowest bound, and the moves of any
two centroids until which its list is known to be complete."""

RUN = 8
"""Blocks that a thread takes at a time."""

PATIENCE = 4.0
"""A list also has centroids that could come near within about so many more moves like the last."""


@jit(fast=True)
def _list_near(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    centre: NDArray[np.float32],
    radius: float,
    centroids: NDArray[np.float64],
    columns: NDArray[np.float32],
    fuzz: NDArray[np.float64],
    reserve: float,
    squares: NDArray[np.float32],
    near: NDArray[np.int32],
    gap: NDArray[np.float64],
) -> int:
    """List the centroids that may be nearest to some point of a box, or less than `reserve` farther than the nearest.

    Parameters
    ----------
    low, high, centre
        IN (d,): the box.
    radius
        The largest distance of one of its rows from `centre`.
    centroids, columns
        IN (k, d), (d, k): centroids, and in float32.
    fuzz
        IN (2,): rounding errors of a distance in float32 and of a squared one in float64.
    reserve
        Extra distance, not negative.
    squares
        TMP (k,).
    near
        OUT (k,): the centroids, ascending.
    gap
        OUT (1,): how much farther than the nearest all others are at least, for any point of the box.

    Returns
    -------
    int
        How many are near.
    """
    d, k = columns.shape
    for j in range(k):
        squares[j] = 0.0
    for t in range(d):
        x = centre[t]
        for j in range(k):
            difference = columns[t, j] - x
            squares[j] += difference * difference
    first = 0
    for j in range(k):
        if squares[j] < squares[first]:
            first = j
    nearest = np.sqrt(squares[first]) * (1 + 1e-5) + fuzz[0]
    reach = nearest + 2 * radius + reserve
    limit = np.float32(reach * reach * (1 + 1e-5))
    m = 0
    outside = np.float32(3e38)
    for j in range(k):
        inside = squares[j] <= limit
        near[m] = j
        m += inside
        outside = outside if inside or squares[j] > outside else squares[j]
    smallest = np.sqrt(outside) * (1 - 1e-5) - fuzz[0] - nearest - 2 * radius
    kept = 0
    for q in range(m):
        j = near[q]
        if j != first:
            lead = 0.0  # of the nearest centroid over this one, in squared distance, at the least favourable corner
            for t in range(d):
                a = centroids[first, t]
                c = centroids[j, t]
                corner = low[t] if a > c else high[t]
                lead += (a - c) * (2.0 * corner - a - c)
            lead -= fuzz[1]
            sides = nearest + np.sqrt(squares[j]) * (1 + 1e-5) + fuzz[0] + 2 * radius
            if lead > reserve * sides:
                smallest = min(smallest, lead / sides)
                continue
        near[kept] = j
        kept += 1
    gap[0] = smallest
    return kept


@jit()
def _local_move(mask: NDArray[np.uint64], only: int, drift: NDArray[np.float64]) -> float:
    """Bound how much the margins of a block's rows shrank: by the moves of its label and of one other, or of any two."""
    most = 0.0
    next_most = 0.0
    for word in range(len(mask)):
        bits = np.int64(mask[word])
        while bits != 0:
            j = word * 64 + lowest_bit(bits)
            bits &= bits - 1
            move = drift[j]
            if j == only:
                continue
            if move > most:
                next_most = most
                most = move
            elif move > next_most:
                next_most = move
    return most + (drift[only] if only >= 0 else next_most)


@jit()
def blocks_pass(
    part: int,
    parts: int,
    raw: Real,
    rows: NDArray[np.float32],
    order: NDArray[np.int32],
    weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: float,
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    radii: NDArray[np.float64],
    raw_centroids: NDArray[np.float64],
    centroids: NDArray[np.float64],
    drift: NDArray[np.float64],
    slack: NDArray[np.float64],
    fuzz: NDArray[np.float64],
    total_move: float,
    force: bool,
    state: NDArray[np.float64],
    masks: NDArray[np.uint64],
    only: NDArray[np.int32],
    bounds: NDArray[np.float32],
    labels: NDArray[np.int32],
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    report: NDArray[np.int64],
) -> None:
    """Label the rows whose bounds do not hold any more.

    Parameters
    ----------
    part, parts
        This call takes every parts-th run of blocks, from `part` on.
    raw, rows, order, weights, origin, scale, raw_centroids, slack, labels, sums, counts, report
        As in `settle`.
    offsets
        IN (blocks + 1,): where each block's rows start.
    boxes
        IN (blocks, 3, d): lowest and highest coordinates and centre.
    radii
        IN (blocks,): largest distance of a row from the centre.
    centroids
        IN (k, d): in working coordinates.
    drift
        IN (k,): how far each just moved.
    fuzz
        IN (2,): as in `_list_near`.
    total_move
        Sum over all passes of the moves of the two centroids that moved most.
    force
        List centroids anew and label all rows.
    state
        INOUT (blocks, STATE).
    masks
        INOUT (blocks, ceil(k / 64)): each block's list, one bit a centroid; all zero when it has none yet.
    only
        INOUT (blocks,): the label of all its rows, or `MIXED`.
    bounds
        INOUT (n + 32,): the block's `MOVED` at which a row must be looked at.
    """
    n_blocks = len(offsets) - 1
    k, d = centroids.shape
    words = masks.shape[1]
    columns = np.empty((d, k), np.float32)
    for j in range(k):
        for t in range(d):
            columns[t, j] = centroids[j, t]
    squares = np.empty(k, np.float32)
    near = np.empty(k + 1, np.int32)
    gap = np.empty(1)
    mask = np.empty(words, np.uint64)
    packed = np.empty((-(-k // GROUP), d, GROUP), np.float32)
    block = np.zeros((d, LANES), np.float32)
    found = np.zeros((3, LANES), np.float32)
    longest = 0
    for b in range(n_blocks):
        longest = max(longest, offsets[b + 1] - offsets[b])
    picked = np.empty(longest + 32, np.int64)
    for run in range(part * RUN, n_blocks, parts * RUN):
        for b in range(run, min(n_blocks, run + RUN)):
            # Step 1. How far the block's own centroids moved.
            move = _local_move(masks[b], only[b], drift)
            state[b, MOVED] += move
            # Step 2. Its list of centroids, if moves of others may have made it incomplete.
            everything = force
            n_near = -1
            if force or total_move > state[b, VALID]:
                n_near = _list_near(
                    boxes[b, 0], boxes[b, 1], boxes[b, 2], radii[b], centroids, columns, fuzz, PATIENCE * move,
                    squares, near, gap,
                )  # fmt: skip
                state[b, VALID] = total_move + gap[0] * (1 - 1e-9)
                mask[:] = np.uint64(0)
                for q in range(n_near):
                    mask[near[q] >> 6] |= np.uint64(1) << np.uint64(near[q] & 63)
                for word in range(words):
                    everything |= (mask[word] & ~masks[b, word]) != np.uint64(0)
                    masks[b, word] = mask[word]
            start = offsets[b]
            stop = offsets[b + 1]
            # Step 3. The rows to look at.
            m = 0
            if everything:
                state[b, MOVED] = 0.0
                for r in range(start, stop):
                    picked[m] = r
                    m += 1
            else:
                limit = np.float32(state[b, MOVED] * UP)
                if state[b, LOWEST] >= limit:
                    continue
                for r in range(start, stop, 32):
                    bits = below(bounds, r, limit)
                    while bits != 0:
                        picked[m] = r + lowest_bit(bits)
                        m += picked[m] < stop
                        bits &= bits - 1
            if n_near < 0:
                n_near = 0
                for word in range(words):
                    bits = np.int64(masks[b, word])
                    while bits != 0:
                        near[n_near] = word * 64 + lowest_bit(bits)
                        n_near += 1
                        bits &= bits - 1
            # Step 4. Label them.
            if n_near == 1 and only[b] == near[0]:
                state[b, LOWEST] = np.inf
                bounds[start:stop] = np.inf
                continue
            n_groups = -(-n_near // GROUP)
            for q in range(n_groups * GROUP):
                for t in range(d):
                    packed[q // GROUP, t, q % GROUP] = centroids[near[q], t] if q < n_near else NOWHERE
            for q in range(0, m, LANES):
                lanes = min(LANES, m - q)
                settle(
                    raw, rows, order, weights, origin, scale, raw_centroids, near, n_near, packed, n_groups, slack,
                    picked[q:], lanes, block, found, labels, sums, counts, report,
                )  # fmt: skip
                for p in range(lanes):
                    margin = found[1, p]
                    bounds[picked[q + p]] = (margin + state[b, MOVED]) * DOWN if margin > 0 else -1.0
            lowest = bounds[start]
            label = labels[start]
            for r in range(start, stop):
                lowest = min(lowest, bounds[r])
                label = label if labels[r] == label else MIXED
            state[b, LOWEST] = lowest
            only[b] = label
