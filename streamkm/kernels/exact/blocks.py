"""Assignment pass over blocks of neighbouring rows, each with a list of the centroids that can be nearest in its box.

A centroid is not a candidate if the whole box is on the other side of a bisecting plane (Pelleg and Moore 1999; Kanungo
et al. 2002, there over the nodes of a tree; here over its leaves, 16 rows of SIMD lanes or more each). Rows have one
bound each, as in `rows`, but only for the moves of the block's candidates; a block whose smallest bound holds is not
read.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.relabel import CHANGED, relabel_rows
from streamkm.kernels.exact.rows import DOWN, UP
from streamkm.kernels.exact.simd import GROUP, LANES, below, lowest_bit
from streamkm.kernels.exact.sums import Real

MIXED = -1
"""Stands for the label of a block whose rows have several labels."""

STATE = 4
"""Number of columns of the state of blocks and regions."""

MOVED, LOWEST, VALID, RESERVE = 0, 1, 2, 3
"""Columns of the state of blocks and regions: accumulated moves of its candidates (for a block, since its bounds were
computed); its lowest bound; the `MOVED` of the region (for a region, of all centroids) up to which its list is
complete; and the extra distance within which centroids were listed."""

REGION = 16
"""Neighbouring blocks that share a longer list, from which their lists are selected; a thread processes a region at a
time."""

RESERVE_MOVES = 4.0
"""Lists include centroids that could become candidates within about this many more moves like the last one."""

MAX_RESERVE_MOVES = 40.0
"""A list whose extra distance is more than this multiple of the last move is recomputed, to become shorter."""


@jit(fast=True)
def _list_candidates(
    boxes: NDArray[np.float32],
    b: int,
    radius: float,
    region_list: NDArray[np.int32],
    columns: NDArray[np.float32],
    n_region_list: int,
    centroids: NDArray[np.float64],
    drift: NDArray[np.float64],
    slack: NDArray[np.float64],
    reserve: float,
    squares: NDArray[np.float32],
    near: NDArray[np.int32],
    outcome: NDArray[np.float64],
) -> int:
    """List the centroids that may be nearest to some point of a box, and those at most about `reserve` farther.

    Parameters
    ----------
    boxes, b
        IN (blocks, 3, d): lowest and highest coordinates and centre of each box; and the index of the box.
    radius
        Largest distance of one of the box's rows from its centre.
    region_list
        IN: indices of the centroids to choose from, ascending.
    columns
        IN (d, at least n_region_list): coordinates of these centroids.
    n_region_list
        Number of these centroids.
    centroids, drift
        IN (k, d), (k,): all centroids, and the length of each one's last move.
    slack
        IN (3,): from `rounding`.
    reserve
        Extra distance, not negative.
    squares
        TMP (k,).
    near
        OUT (k + 1,): indices of the listed centroids, ascending.
    outcome
        OUT (2,): lower bound of how much farther than the nearest all unlisted centroids are, for any point of the box;
        and the reserve for the next call.

    Returns
    -------
    int
        Number of listed centroids.
    """
    d = columns.shape[0]
    for q in range(n_region_list):
        squares[q] = 0.0
    for t in range(d):
        x = boxes[b, 2, t]
        for q in range(n_region_list):
            difference = columns[t, q] - x
            squares[q] += difference * difference
    lowest = squares[0]
    for q in range(n_region_list):
        lowest = min(lowest, squares[q])
    nearest = np.sqrt(lowest) * (1 + 1e-5) + slack[1]
    reach = nearest + 2 * radius + reserve
    limit = np.float32(reach * reach * (1 + 1e-5))
    m = 0
    outside = np.float32(3e38)
    first = 0
    for q in range(n_region_list):
        near[m] = q
        m += squares[q] <= limit
        first = q if squares[q] == lowest else first
        outside = squares[q] if limit < squares[q] < outside else outside
    smallest = np.sqrt(outside) * (1 - 1e-5) - slack[1] - nearest - 2 * radius
    first = region_list[first]
    most = 0.0
    next_most = 0.0
    kept = 0
    for i in range(m):
        q = near[i]
        j = region_list[q]
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
    outcome[1] = RESERVE_MOVES * (most + next_most)
    return kept


@jit(inline=True)
def _write_list(near: NDArray[np.int32], n_near: int, masks: NDArray[np.uint64], b: int) -> bool:
    """Write a list into a bit mask; return whether it has centroids that the mask did not have."""
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
    """Read the list of a bit mask; return its length."""
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
    """Bound the decrease of the margins in a block: the moves of its label and one other centroid, or of any two."""
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
    """Find the lowest of some bounds by their bits, which are ordered like the floats and can be compared by SIMD."""
    lowest = bits[start]
    for r in range(start, stop):
        lowest = min(lowest, bits[r])
    return float(np.int32(lowest).view(np.float32))


@jit()
def _common(labels: NDArray[np.int32], start: int, stop: int) -> int:
    """Return the common label of some rows, or `MIXED`."""
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
    centroids32: NDArray[np.float32],
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
    counters: NDArray[np.int64],
) -> None:
    """Relabel the rows whose bounds no longer hold.

    Parameters
    ----------
    part, parts, first, last
        This call processes every parts-th of the regions `first` to `last`, starting with `part`.
    raw, rows, weights, origin, scale, raw_centroids, centroids32, slack, labels, sums, counts, counters
        As in `relabel_rows`.
    offsets
        IN (blocks + 1,): first row of each block, then n.
    boxes
        IN (blocks, 3, d): lowest and highest coordinates and centre.
    radii
        IN (blocks,): largest distance of a row from the centre.
    centroids
        IN (k, d): in working coordinates.
    drift
        IN (k,): length of each centroid's last move.
    total_move
        Sum over all passes of the two largest moves.
    force
        Whether to recompute all lists and relabel all rows.
    state
        INOUT (blocks, STATE).
    masks
        INOUT (blocks, ceil(k / 64)): list of each block, one bit per centroid; all zero if there is none yet.
    only
        INOUT (blocks,): common label of the block's rows, or `MIXED`.
    bounds
        INOUT (n + 32,): value of the block's `MOVED` from which on a row must be compared.
    """
    n_blocks = len(offsets) - 1
    k, d = centroids.shape
    columns = np.empty((d, k), np.float32)
    for j in range(k):
        for t in range(d):
            columns[t, j] = centroids[j, t]
    squares = np.empty(k, np.float32)
    near = np.empty(k + GROUP, np.int32)
    region_list = np.empty(k, np.int32)
    local = np.empty((d, k), np.float32)
    all_centroids = np.empty(k, np.int32)
    for j in range(k):
        all_centroids[j] = j
    outcome = np.empty(2)
    bits_of_bounds = bounds.view(np.int32)
    block = np.zeros((d, LANES), np.float32)
    found = np.zeros((2, LANES), np.float32)
    winners = found[1].view(np.int32)
    longest = 0
    for b in range(n_blocks):
        longest = max(longest, offsets[b + 1] - offsets[b])
    row_indices = np.empty(longest + 64, np.uint32)
    for g in range(first + part, last, parts):
        # Step 1. Update the region's list, from which its blocks select theirs.
        region = n_blocks + g
        move = _local_move(masks, region, MIXED, drift)
        state[region, MOVED] += move
        fresh = force
        n_region_list = 0
        if force or total_move > state[region, VALID] or state[region, RESERVE] > MAX_RESERVE_MOVES * move:
            n_near = _list_candidates(
                boxes, region, radii[region], all_centroids, columns, k, centroids, drift, slack,
                state[region, RESERVE], squares, near, outcome,
            )  # fmt: skip
            state[region, VALID] = total_move + outcome[0] * (1 - 1e-9)
            state[region, RESERVE] = outcome[1]
            fresh |= _write_list(near, n_near, masks, region)
        for b in range(g * REGION, min(n_blocks, (g + 1) * REGION)):
            # Step 2. Accumulate the moves of the block's candidates, and update its list if it may be incomplete.
            move = _local_move(masks, b, only[b], drift)
            state[b, MOVED] += move
            everything = force
            n_near = -1
            if fresh or state[region, MOVED] > state[b, VALID] or state[b, RESERVE] > MAX_RESERVE_MOVES * move:
                if n_region_list == 0:
                    n_region_list = _read_list(masks, region, region_list)
                    for q in range(n_region_list):
                        for t in range(d):
                            local[t, q] = centroids[region_list[q], t]
                n_near = _list_candidates(
                    boxes, b, radii[b], region_list, local, n_region_list, centroids, drift, slack, state[b, RESERVE],
                    squares, near, outcome,
                )  # fmt: skip
                state[b, VALID] = state[region, MOVED] + outcome[0] * (1 - 1e-9)
                state[b, RESERVE] = outcome[1]
                everything |= _write_list(near, n_near, masks, b)
            start = offsets[b]
            stop = offsets[b + 1]
            # Step 3. Find the rows whose bounds no longer hold.
            m = 0
            if everything:
                state[b, MOVED] = 0.0
                for r in range(start, stop):
                    row_indices[m] = r
                    m += 1
            else:
                limit = np.float32(state[b, MOVED] * UP)
                if state[b, LOWEST] >= limit:
                    continue
                for r in range(start, stop, 32):
                    bits = below(bounds, r, limit)
                    while bits != 0:
                        row_indices[m] = r + lowest_bit(bits)
                        m += r + lowest_bit(bits) < stop
                        bits &= bits - 1
            if n_near < 0:
                n_near = _read_list(masks, b, near)
            # Step 4. Relabel them.
            if n_near == 1 and only[b] == near[0]:
                state[b, LOWEST] = np.inf
                for r in range(start, stop):
                    bounds[r] = np.inf
                continue
            for q in range(n_near, n_near + GROUP):
                near[q] = k
            changed = counters[CHANGED]
            for q in range(0, m, LANES):
                lanes = min(LANES, m - q)
                relabel_rows(
                    raw, rows, weights, origin, scale, raw_centroids, centroids32, near, n_near, slack,
                    row_indices, q, lanes, block, found, winners, labels, sums, counts, counters,
                )  # fmt: skip
                for p in range(lanes):
                    margin = found[0, p]
                    bounds[row_indices[q + p]] = (margin + state[b, MOVED]) * DOWN if margin > 0 else -1.0
            state[b, LOWEST] = _lowest(bits_of_bounds, start, stop)
            if counters[CHANGED] != changed:
                only[b] = _common(labels, start, stop)
