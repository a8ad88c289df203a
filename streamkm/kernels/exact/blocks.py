"""A pass over blocks of neighbouring rows, each with the short list of centroids that can be nearest within its box.

A centroid is left out if a bisecting plane has the whole box on the other side (Pelleg and Moore 1999; Kanungo et al.
2002, there over the nodes of a tree; here over its leaves, 16 rows of SIMD lanes or more each). Rows keep one bound
each, as in `rows`, but against the moves of the block's own centroids only; a block whose smallest bound holds
is not read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.relabel import CHANGED, settle
from streamkm.kernels.exact.rows import DOWN, UP
from streamkm.kernels.exact.simd import GROUP, LANES, below, lowest_bit
from streamkm.kernels.exact.sums import Real

MIXED = -1
"""In place of the one label of a block whose rows have several."""

STATE = 4
MOVED, LOWEST, VALID, RESERVE = 0, 1, 2, 3
"""Columns of the state of blocks and regions: how far its centroids have moved (a block's since its bounds were made),
its lowest bound, the `MOVED` of the region (a region's: of all) until which its list is known to be complete, and the
distance within which other centroids were listed too."""

REGION = 16
"""Neighbouring blocks that share a longer list, from which theirs are chosen; what a thread takes at a time."""

PATIENCE = 4.0
"""A list also has centroids that could come near within about so many more moves like the last."""

STALE = 40.0
"""A list whose extra distance is so many times the last move is made anew, shorter."""


@jit(fast=True)
def _list_near(
    boxes: NDArray[np.float32],
    b: int,
    radius: float,
    among: NDArray[np.int32],
    columns: NDArray[np.float32],
    n_among: int,
    centroids: NDArray[np.float64],
    drift: NDArray[np.float64],
    slack: NDArray[np.float64],
    reserve: float,
    squares: NDArray[np.float32],
    near: NDArray[np.int32],
    outcome: NDArray[np.float64],
) -> int:
    """List the centroids that may be nearest to some point of a box, and those less than about `reserve` farther.

    Parameters
    ----------
    boxes, b
        IN (blocks, 3, d), and which: lowest and highest coordinates and centre.
    radius
        The largest distance of one of the box's rows from its centre.
    among
        IN: indices of the centroids to choose from, ascending.
    columns
        IN (d, at least n_among): their coordinates.
    n_among
        How many they are.
    centroids, drift
        IN (k, d), (k,): all centroids, and how far each just moved.
    slack
        IN (3,): from `rounding`.
    reserve
        Extra distance, not negative.
    squares
        TMP (k,).
    near
        OUT (k + 1,): the centroids, ascending.
    outcome
        OUT (2,): how much farther than the nearest all others are at least, for any point of the box; the reserve to
        give next time.

    Returns
    -------
    int
        How many are near.
    """
    d = columns.shape[0]
    for q in range(n_among):
        squares[q] = 0.0
    for t in range(d):
        x = boxes[b, 2, t]
        for q in range(n_among):
            difference = columns[t, q] - x
            squares[q] += difference * difference
    lowest = squares[0]
    for q in range(n_among):
        lowest = min(lowest, squares[q])
    nearest = np.sqrt(lowest) * (1 + 1e-5) + slack[1]
    reach = nearest + 2 * radius + reserve
    limit = np.float32(reach * reach * (1 + 1e-5))
    m = 0
    outside = np.float32(3e38)
    first = 0
    for q in range(n_among):
        near[m] = q
        m += squares[q] <= limit
        first = q if squares[q] == lowest else first
        outside = squares[q] if limit < squares[q] < outside else outside
    smallest = np.sqrt(outside) * (1 - 1e-5) - slack[1] - nearest - 2 * radius
    first = among[first]
    most = 0.0
    next_most = 0.0
    kept = 0
    for i in range(m):
        q = near[i]
        j = among[q]
        ahead = 0.0
        if j != first:
            lead = 0.0  # of the first centroid over this one, in squared distance, at the least favourable corner
            for t in range(d):
                a = centroids[first, t]
                c = centroids[j, t]
                at_low = (a - c) * (2.0 * boxes[b, 0, t] - a - c)
                at_high = (a - c) * (2.0 * boxes[b, 1, t] - a - c)
                lead += min(at_high, at_low)
            ahead = (lead - slack[2]) / (nearest + np.sqrt(squares[q]) * (1 + 1e-5) + slack[1] + 2 * radius)
        if ahead > reserve:
            smallest = min(smallest, ahead)
            continue
        near[kept] = j
        kept += 1
        if ahead <= 0.0:
            move = drift[j]
            next_most = max(next_most, min(most, move))
            most = max(most, move)
    outcome[0] = smallest
    outcome[1] = PATIENCE * (most + next_most)
    return kept


@jit(inline=True)
def _take_list(near: NDArray[np.int32], n_near: int, masks: NDArray[np.uint64], b: int) -> bool:
    """Put a list into a mask of bits; tell whether it has centroids that the mask did not have."""
    grown = False
    q = 0
    for word in range(masks.shape[1]):
        bits = np.uint64(0)
        while q < n_near and near[q] >> 6 == word:
            bits |= np.uint64(1) << np.uint64(near[q] & 63)
            q += 1
        grown |= (bits & ~masks[b, word]) != np.uint64(0)
        masks[b, word] = bits
    return grown


@jit(inline=True)
def _read_list(masks: NDArray[np.uint64], b: int, near: NDArray[np.int32]) -> int:
    """Make a list of the bits of a mask; return how many they are."""
    n_near = 0
    for word in range(masks.shape[1]):
        bits = np.int64(masks[b, word])
        while bits != 0:
            near[n_near] = word * 64 + lowest_bit(bits)
            n_near += 1
            bits &= bits - 1
    return n_near


@jit(inline=True)
def _local_move(masks: NDArray[np.uint64], b: int, only: int, drift: NDArray[np.float64]) -> float:
    """Bound how much margins of a block's rows shrank: by the moves of its label and one other, or of any two."""
    most = 0.0
    next_most = 0.0
    for word in range(masks.shape[1]):
        bits = np.int64(masks[b, word])
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
def _lowest(bits: NDArray[np.int32], start: int, stop: int) -> float:
    """Find the lowest of some bounds by their bits: integers in the order of the floats, which SIMD can compare."""
    lowest = bits[start]
    for r in range(start, stop):
        lowest = min(lowest, bits[r])
    return float(np.int32(lowest).view(np.float32))


@jit()
def _common(labels: NDArray[np.int32], start: int, stop: int) -> int:
    """Find the label that some rows have in common, or `MIXED`."""
    differing = 0
    for r in range(start, stop):
        differing |= labels[r] ^ labels[start]
    return MIXED if differing else labels[start]


@jit(allocates=True)
def blocks_pass(
    part: int,
    parts: int,
    first: int,
    last: int,
    raw: Real,
    rows: NDArray[np.float32],
    weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: float,
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    radii: NDArray[np.float64],
    raw_centroids: NDArray[np.float64],
    centroids: NDArray[np.float64],
    narrowed: NDArray[np.float32],
    drift: NDArray[np.float64],
    slack: NDArray[np.float64],
    total_move: float,
    force: bool,
    state: NDArray[np.float64],
    masks: NDArray[np.uint64],
    only: NDArray[np.int64],
    bounds: NDArray[np.float32],
    labels: NDArray[np.int32],
    sums: NDArray[np.int64],
    counts: NDArray[np.int64],
    report: NDArray[np.int64],
) -> None:
    """Label the rows whose bounds do not hold any more.

    Parameters
    ----------
    part, parts, first, last
        Of regions `first` to `last`, this call takes every parts-th, from `part` on.
    raw, rows, weights, origin, scale, raw_centroids, narrowed, slack, labels, sums, counts, report
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
    columns = np.empty((d, k), np.float32)
    for j in range(k):
        for t in range(d):
            columns[t, j] = centroids[j, t]
    squares = np.empty(k, np.float32)
    near = np.empty(k + GROUP, np.int32)
    among = np.empty(k, np.int32)
    local = np.empty((d, k), np.float32)
    everyone = np.empty(k, np.int32)
    for j in range(k):
        everyone[j] = j
    outcome = np.empty(2)
    bits_of_bounds = bounds.view(np.int32)
    block = np.zeros((d, LANES), np.float32)
    found = np.zeros((2, LANES), np.float32)
    winners = found[1].view(np.int32)
    longest = 0
    for b in range(n_blocks):
        longest = max(longest, offsets[b + 1] - offsets[b])
    picked = np.empty(longest + 64, np.uint32)
    for g in range(first + part, last, parts):
        # Step 1. The region's list, which its blocks choose from.
        region = n_blocks + g
        move = _local_move(masks, region, MIXED, drift)
        state[region, MOVED] += move
        fresh = force
        n_among = 0
        if force or total_move > state[region, VALID] or state[region, RESERVE] > STALE * move:
            n_near = _list_near(
                boxes, region, radii[region], everyone, columns, k, centroids, drift, slack, state[region, RESERVE],
                squares, near, outcome,
            )  # fmt: skip
            state[region, VALID] = total_move + outcome[0] * (1 - 1e-9)
            state[region, RESERVE] = outcome[1]
            fresh |= _take_list(near, n_near, masks, region)
        for b in range(g * REGION, min(n_blocks, (g + 1) * REGION)):
            # Step 2. How far the block's own centroids moved, and its list, if moves of others may have made it
            # incomplete.
            move = _local_move(masks, b, only[b], drift)
            state[b, MOVED] += move
            everything = force
            n_near = -1
            if fresh or state[region, MOVED] > state[b, VALID] or state[b, RESERVE] > STALE * move:
                if n_among == 0:
                    n_among = _read_list(masks, region, among)
                    for q in range(n_among):
                        for t in range(d):
                            local[t, q] = centroids[among[q], t]
                n_near = _list_near(
                    boxes, b, radii[b], among, local, n_among, centroids, drift, slack, state[b, RESERVE],
                    squares, near, outcome,
                )  # fmt: skip
                state[b, VALID] = state[region, MOVED] + outcome[0] * (1 - 1e-9)
                state[b, RESERVE] = outcome[1]
                everything |= _take_list(near, n_near, masks, b)
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
                        m += r + lowest_bit(bits) < stop
                        bits &= bits - 1
            if n_near < 0:
                n_near = _read_list(masks, b, near)
            # Step 4. Label them.
            if n_near == 1 and only[b] == near[0]:
                state[b, LOWEST] = np.inf
                for r in range(start, stop):
                    bounds[r] = np.inf
                continue
            for q in range(n_near, n_near + GROUP):
                near[q] = k
            changed = report[CHANGED]
            for q in range(0, m, LANES):
                lanes = min(LANES, m - q)
                settle(
                    raw, rows, weights, origin, scale, raw_centroids, narrowed, near, n_near, slack,
                    picked, q, lanes, block, found, winners, labels, sums, counts, report,
                )  # fmt: skip
                for p in range(lanes):
                    margin = found[0, p]
                    bounds[picked[q + p]] = (margin + state[b, MOVED]) * DOWN if margin > 0 else -1.0
            state[b, LOWEST] = _lowest(bits_of_bounds, start, stop)
            if report[CHANGED] != changed:
                only[b] = _common(labels, start, stop)
