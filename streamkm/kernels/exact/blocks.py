"""Assignment pass over blocks of neighbouring rows, each with a list of the centroids that can be nearest in its box.

A centroid is not a candidate if the whole box is on the other side of a bisecting plane (Pelleg and Moore 1999; Kanungo
et al. 2002, there over the nodes of a tree; here over its leaves, 16 rows of SIMD lanes or more each). Rows have one
bound each, as in `rows`, but only for the moves of the block's candidates; a block whose smallest bound holds is not
read.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.relabel import CHANGED, Lanes, PassCentroids, Relabelled, Rows, Share, relabel_rows
from streamkm.kernels.exact.rows import DOWN, UP
from streamkm.kernels.exact.simd import GROUP, LANES, below, lowest_bit
from streamkm.kernels.exact.sums import Frame, Sums

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


class Blocks(NamedTuple):
    """Blocks of neighbouring rows, and regions of `REGION` neighbouring blocks, in working coordinates (see `Frame`).

    Attributes
    ----------
    offsets
        (blocks + 1,) int64: first row of each block, then n.
    boxes
        (blocks + regions, 3, d) float32: lowest and highest coordinates and centre; of blocks first, then of regions.
        (0, 3, 0) without blocks of neighbours.
    radii
        (blocks + regions,) float64: largest distance of a row from the centre.
    """

    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    radii: NDArray[np.float64]


class BlockBounds(NamedTuple):
    """Bounds that tell which rows to compare again, and which centroids with. Distances are in working coordinates.

    Attributes
    ----------
    drift
        (k,) float64: length of each centroid's last move.
    moved
        (k + 1,) float64: last, the sum over all passes of the two largest moves.
    state
        (blocks + regions, STATE) float64.
    masks
        (blocks + regions, ceil(k / 64)) uint64: list of each block, one bit per centroid; all zero if there is none
        yet.
    only
        (blocks,) int64: common label of the block's rows, or `MIXED`.
    bounds
        (n + 32,) float32: value of the block's `MOVED` from which on a row must be compared.
    """

    drift: NDArray[np.float64]
    moved: NDArray[np.float64]
    state: NDArray[np.float64]
    masks: NDArray[np.uint64]
    only: NDArray[np.int64]
    bounds: NDArray[np.float32]


class _Choices(NamedTuple):
    """Centroids that a list is selected from.

    Attributes
    ----------
    indices
        (k,) int32: indices of the centroids, ascending.
    columns
        (d, k) float32: their working coordinates.
    """

    indices: NDArray[np.int32]
    columns: NDArray[np.float32]


class _Selection(NamedTuple):
    """The list that `_list_candidates` selects.

    Attributes
    ----------
    near
        (k + GROUP,) int32: indices of the listed centroids, ascending.
    outcome
        (2,) float64: lower bound of how much farther than the nearest all unlisted centroids are, for any point of the
        box; and the reserve for the next call.
    squares
        (k,) float32: temporary.
    """

    near: NDArray[np.int32]
    outcome: NDArray[np.float64]
    squares: NDArray[np.float32]


@jit(fast=True)
def _list_candidates(
    boxes: NDArray[np.float32],
    b: int,
    radius: float,
    choices: _Choices,
    n_choices: int,
    centroids: PassCentroids,
    drift: NDArray[np.float64],
    reserve: float,
    selection: _Selection,
) -> int:
    """List the centroids that may be nearest to some point of a box, and those at most about `reserve` farther.

    Parameters
    ----------
    boxes, b
        IN: as in `Blocks`; and the index of the box.
    radius
        Largest distance of one of the box's rows from its centre.
    choices, n_choices
        IN: the centroids to choose from, and how many there are.
    centroids, drift
        IN: all centroids, and (k,) the length of each one's last move.
    reserve
        Extra distance, not negative.
    selection
        OUT.

    Returns
    -------
    int
        Number of listed centroids.
    """
    indices, columns = choices
    near, outcome, squares = selection
    _, working, _, slack = centroids
    d = columns.shape[0]
    for q in range(n_choices):
        squares[q] = 0.0
    for t in range(d):
        x = boxes[b, 2, t]
        for q in range(n_choices):
            difference = columns[t, q] - x
            squares[q] += difference * difference
    lowest = squares[0]
    for q in range(n_choices):
        lowest = min(lowest, squares[q])
    nearest = np.sqrt(lowest) * (1 + 1e-5) + slack[1]
    reach = nearest + 2 * radius + reserve
    limit = np.float32(reach * reach * (1 + 1e-5))
    m = 0
    outside = np.float32(3e38)
    first = 0
    for q in range(n_choices):
        near[m] = q
        m += squares[q] <= limit
        first = q if squares[q] == lowest else first
        outside = squares[q] if limit < squares[q] < outside else outside
    smallest = np.sqrt(outside) * (1 - 1e-5) - slack[1] - nearest - 2 * radius
    first = indices[first]
    most = 0.0
    next_most = 0.0
    kept = 0
    for i in range(m):
        q = near[i]
        j = indices[q]
        ahead = 0.0
        if j != first:
            lead = 0.0  # of the first centroid over this one, in squared distance, at the least favourable corner
            for t in range(d):
                a = working[first, t]
                c = working[j, t]
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
    share: Share,
    rows: Rows,
    frame: Frame,
    blocks: Blocks,
    centroids: PassCentroids,
    block_bounds: BlockBounds,
    labels: NDArray[np.int32],
    sums: Sums,
    counters: NDArray[np.int64],
    force: bool,
) -> None:
    """Relabel the rows whose bounds no longer hold.

    Parameters
    ----------
    share
        Share of this call, in regions.
    rows, frame, blocks, centroids
        IN.
    block_bounds
        INOUT, except `drift` and `moved`.
    labels
        INOUT (n,): -1 if there is none yet.
    sums
        INOUT: the part of this call; nothing is summed if there are 0 clusters.
    counters
        INOUT (parts, 3): as in `Relabelled`.
    force
        Whether to recompute all lists and relabel all rows.
    """
    part, parts, first, last = share
    rows, frame, centroids = Rows(*rows), Frame(*frame), PassCentroids(*centroids)
    offsets, boxes, radii = blocks
    drift, moved, state, masks, only, bounds = block_bounds
    limbs, counts = sums
    working = centroids.working
    n_blocks = len(offsets) - 1
    k, d = working.shape
    total_move = moved[k]
    everyone = np.empty(k, np.int32)
    columns = np.empty((d, k), np.float32)
    for j in range(k):
        everyone[j] = j
        for t in range(d):
            columns[t, j] = working[j, t]
    all_choices = _Choices(everyone, columns)
    region_list = np.empty(k, np.int32)
    local = np.empty((d, k), np.float32)
    choices = _Choices(region_list, local)
    near = np.empty(k + GROUP, np.int32)
    outcome = np.empty(2)
    selection = _Selection(near, outcome, np.empty(k, np.float32))
    bits_of_bounds = bounds.view(np.int32)
    longest = 0
    for b in range(n_blocks):
        longest = max(longest, offsets[b + 1] - offsets[b])
    found = np.zeros((2, LANES), np.float32)
    row_indices = np.empty(longest + 64, np.uint32)
    lanes = Lanes(row_indices, np.zeros((d, LANES), np.float32), found, found[1].view(np.int32))
    target = Relabelled(labels, limbs[part], counts[part], counters[part])
    for g in range(first + part, last, parts):
        # Step 1. Update the region's list, from which its blocks select theirs.
        region = n_blocks + g
        move = _local_move(masks, region, MIXED, drift)
        state[region, MOVED] += move
        fresh = force
        n_region_list = 0
        if force or total_move > state[region, VALID] or state[region, RESERVE] > MAX_RESERVE_MOVES * move:
            n_near = _list_candidates(
                boxes, region, radii[region], all_choices, k, centroids, drift, state[region, RESERVE], selection
            )
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
                            local[t, q] = working[region_list[q], t]
                n_near = _list_candidates(
                    boxes, b, radii[b], choices, n_region_list, centroids, drift, state[b, RESERVE], selection
                )
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
            changed = counters[part, CHANGED]
            for q in range(0, m, LANES):
                count = min(LANES, m - q)
                relabel_rows(rows, frame, centroids, near, n_near, lanes, q, count, target)
                for p in range(count):
                    margin = found[0, p]
                    bounds[row_indices[q + p]] = (margin + state[b, MOVED]) * DOWN if margin > 0 else -1.0
            state[b, LOWEST] = _lowest(bits_of_bounds, start, stop)
            if counters[part, CHANGED] != changed:
                only[b] = _common(labels, start, stop)
