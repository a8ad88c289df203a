"""Layout of rows: ordered by a k-d tree, so that neighbours in space are neighbours in memory, in blocks with boxes.

Several levels of the tree are built at a time: the splits come from a sample, then one pass counts the rows of each
part and another one moves them. The tree need not be balanced exactly: blocks must be small, and building it must cost
about as much as three plain passes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.sums import Real

ROWS_PER_VECTOR = 16
"""Rows that are processed as one vector: a single row of few dimensions would leave most SIMD lanes empty."""

INTERLEAVED_ROWS = 16
"""Rows that descend a tree together, to hide the latency of the loads at each level."""


@jit()
def to_working(raw: Real, origin: NDArray[np.float64], unit: float, rows: NDArray[np.float32]) -> None:
    """Convert rows to working coordinates.

    Parameters
    ----------
    raw
        IN (n, d).
    origin
        IN (d,).
    unit
        Power of two.
    rows
        OUT (n, d): ``(raw - origin) * unit``.
    """
    for i in range(raw.shape[0]):
        for t in range(raw.shape[1]):
            rows[i, t] = (raw[i, t] - origin[t]) * unit


@jit(allocates=True)
def column_ranges(rows: Real, low: NDArray[np.float64], high: NDArray[np.float64]) -> None:
    """Find the range of each column.

    Parameters
    ----------
    rows
        IN (n, d), n >= 1.
    low, high
        OUT (d,).
    """
    d = rows.shape[1]
    length = ROWS_PER_VECTOR * d
    flat = rows.reshape(-1)
    least, most = np.empty(length, rows.dtype), np.empty(length, rows.dtype)
    for r in range(ROWS_PER_VECTOR):
        for t in range(d):
            least[r * d + t] = flat[t]
            most[r * d + t] = flat[t]
    for begin in range(0, len(flat), length):
        some = flat[begin : begin + length]
        for q in range(len(some)):
            x, lowest, highest = some[q], least[q], most[q]
            least[q] = x if x < lowest else lowest  # noqa: FURB136 -- a select of loaded values is what becomes SIMD
            most[q] = x if x > highest else highest  # noqa: FURB136
    for t in range(d):
        low[t] = least[t]
        high[t] = most[t]
    for r in range(ROWS_PER_VECTOR):
        for t in range(d):
            low[t] = min(low[t], np.float64(least[r * d + t]))
            high[t] = max(high[t], np.float64(most[r * d + t]))


@jit()
def _select_median(keys: NDArray[np.float32], index: NDArray[np.int64], start: int, stop: int, half: int) -> None:
    """Reorder keys, and an index with them, so that those before `half` are not larger (Hoare 1961)."""
    while stop - start > 1:
        a, b, c = keys[start], keys[(start + stop) // 2], keys[stop - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        i = start
        j = stop - 1
        while i <= j:
            while keys[i] < pivot:
                i += 1
            while keys[j] > pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                index[i], index[j] = index[j], index[i]
                i += 1
                j -= 1
        if half <= j:
            stop = j + 1
        elif half >= i:
            start = i
        else:
            return


@jit(allocates=True)
def split_sample(sample: NDArray[np.float32], levels: int, axes: NDArray[np.uint32], cuts: NDArray[np.float32]) -> None:
    """Split a sample into 2**levels parts, recursively at the median of the axis with the largest variance.

    Parameters
    ----------
    sample
        IN (m, d).
    levels
        Number of levels.
    axes, cuts
        OUT (2**levels,): axis of each inner node, in heap order from 1, and the lowest value of its right child.
    """
    m, d = sample.shape
    index = np.empty(m, np.int64)
    for q in range(m):
        index[q] = q
    starts = np.zeros(2 << levels, np.int64)
    ends = np.zeros(2 << levels, np.int64)
    ends[1] = m
    keys = np.empty(m, np.float32)
    for node in range(1, 1 << levels):
        begin = starts[node]
        end = ends[node]
        axis = 0
        widest = -1.0
        step = max(1, (end - begin) // 64)
        for t in range(d):
            total = 0.0
            squares = 0.0
            count = 0
            for q in range(begin, end, step):
                value = np.float64(sample[index[q], t]) - sample[index[begin], t]
                total += value
                squares += value * value
                count += 1
            spread = (squares - total * total / max(1, count)) / max(1, count)
            if spread > widest:
                widest = spread
                axis = t
        half = begin + (end - begin) // 2
        axes[node] = axis
        cuts[node] = np.float32(3e38)
        if end - begin >= 2:
            for q in range(begin, end):
                keys[q] = sample[index[q], axis]
            _select_median(keys, index, begin, end, half)
            cuts[node] = keys[half]
        starts[2 * node], ends[2 * node] = begin, half
        starts[2 * node + 1], ends[2 * node + 1] = half, end


@jit(allocates=True)
def find_leaves(
    rows: NDArray[np.float32],
    start: int,
    stop: int,
    levels: int,
    axes: NDArray[np.uint32],
    cuts: NDArray[np.float32],
    leaves: NDArray[np.uint16],
    counts: NDArray[np.int64],
) -> None:
    """Find the part of a split that each row belongs to.

    Parameters
    ----------
    rows
        IN (n, d).
    start, stop
        Range of rows.
    levels, axes, cuts
        As in `split_sample`.
    leaves
        OUT (stop - start,): index of each row's part.
    counts
        INOUT (2**levels,): number of rows in each part.
    """
    # Unsigned, because an index that may be negative costs two more instructions.
    parts = np.uint32(1 << levels)
    nodes = np.empty(INTERLEAVED_ROWS, np.uint32)
    whole = start + (stop - start) // INTERLEAVED_ROWS * INTERLEAVED_ROWS
    for begin in range(start, whole, INTERLEAVED_ROWS):
        for q in range(INTERLEAVED_ROWS):
            nodes[q] = np.uint32(1)
        for _ in range(levels):
            for q in range(INTERLEAVED_ROWS):
                node = nodes[q]
                nodes[q] = np.uint32(2) * node + np.uint32(rows[np.uint64(begin + q), axes[node]] >= cuts[node])
        for q in range(INTERLEAVED_ROWS):
            leaves[begin + q - start] = nodes[q] - parts
    for i in range(whole, stop):
        node = np.uint32(1)
        for _ in range(levels):
            node = np.uint32(2) * node + np.uint32(rows[i, axes[node]] >= cuts[node])
        leaves[i - start] = node - parts
    for i in range(stop - start):
        counts[leaves[i]] += 1


@jit()
def move_rows(
    source: NDArray[np.int32],
    target: NDArray[np.int32],
    start: int,
    stop: int,
    leaves: NDArray[np.uint16],
    cursors: NDArray[np.int64],
) -> None:
    """Move rows to the positions of their parts, keeping their order.

    Parameters
    ----------
    source
        IN (n, m): rows as 32-bit words of any meaning.
    target
        OUT (n, m).
    start, stop
        Range of rows.
    leaves
        IN (stop - start,): from `find_leaves`.
    cursors
        INOUT (parts,): position of the next row of each part.
    """
    words, moved = source.reshape(-1), target.reshape(-1)
    m = np.uint64(source.shape[1])
    for i in range(start, stop):
        leaf = leaves[i - start]
        to = cursors[leaf]
        cursors[leaf] = to + 1
        old, new = np.uint64(i) * m, np.uint64(to) * m
        for t in range(m):
            moved[new + t] = words[old + t]


@jit(fast=True)
def _farthest(rows: NDArray[np.float32], start: int, stop: int, boxes: NDArray[np.float32], b: int) -> float:
    """Find the largest squared distance of a row from the centre of its box, in float32."""
    most = np.float32(0.0)
    for i in range(start, stop):
        squared = np.float32(0.0)
        for t in range(rows.shape[1]):
            difference = rows[i, t] - boxes[b, 2, t]
            squared += difference * difference
        most = max(squared, most)
    return float(most)


@jit(allocates=True)
def bound_blocks(
    rows: NDArray[np.float32],
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    radii: NDArray[np.float64],
) -> None:
    """Compute the bounding box of each block, widened to contain its rows before they were rounded to float32.

    Parameters
    ----------
    rows
        IN (n, d).
    offsets
        IN (blocks + 1,).
    boxes
        OUT (blocks, 3, d): lowest and highest coordinates and centre.
    radii
        OUT (blocks,): upper bound of the distance of a row from the centre.
    """
    d = rows.shape[1]
    low = np.empty(d)
    high = np.empty(d)
    for b in range(len(offsets) - 1):
        start = offsets[b]
        stop = offsets[b + 1]
        column_ranges(rows[start:stop], low, high)
        edge = 0.0
        for t in range(d):
            size = max(abs(low[t]), abs(high[t]))
            margin = size * 2e-7 + 1e-37
            boxes[b, 0, t] = low[t] - margin
            boxes[b, 1, t] = high[t] + margin
            boxes[b, 2, t] = low[t] * 0.5 + high[t] * 0.5
            edge = max(edge, size)
        most = _farthest(rows, start, stop, boxes, b)
        radii[b] = np.sqrt(most) * (1 + 1e-5) + edge * 3e-7 * np.sqrt(d)


@jit()
def bound_regions(n_blocks: int, region: int, boxes: NDArray[np.float32], radii: NDArray[np.float64]) -> None:
    """Compute the bounding boxes of regions from the boxes of their blocks.

    Parameters
    ----------
    n_blocks
        Number of blocks.
    region
        Blocks per region; the last one may have fewer.
    boxes, radii
        INOUT (blocks+regions, 3, d), (blocks+regions,): as in `bound_blocks`; blocks first, then regions.
    """
    d = boxes.shape[2]
    for g in range(len(radii) - n_blocks):
        at = n_blocks + g
        first = g * region
        last = min(n_blocks, first + region)
        diagonal = 0.0
        for t in range(d):
            low = np.inf
            high = -np.inf
            for b in range(first, last):
                low = min(low, np.float64(boxes[b, 0, t]))
                high = max(high, np.float64(boxes[b, 1, t]))
            boxes[at, 0, t] = low
            boxes[at, 1, t] = high
            boxes[at, 2, t] = low * 0.5 + high * 0.5
            centre = np.float64(boxes[at, 2, t])
            diagonal += max(high - centre, centre - low) ** 2
        farthest = 0.0
        for b in range(first, last):
            squared = 0.0
            for t in range(d):
                squared += (np.float64(boxes[b, 2, t]) - boxes[at, 2, t]) ** 2
            farthest = max(farthest, np.sqrt(squared) * (1 + 1e-12) + radii[b])
        radii[at] = min(np.sqrt(diagonal) * (1 + 1e-12), farthest)
