"""Rows ordered so that neighbours in space are neighbours in memory, in blocks with boxes.

A k-d tree, sixteen ways at a time: the splits come from a sample, then one pass counts and one moves the rows. It need not be
balanced to the row; what counts is that blocks are small and that making them costs about as much as three plain passes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact_sums import Real

_LEVELS = 4
_SAMPLE = 512


@jit()
def centred(raw: Real, origin: NDArray[np.float64], unit: float, rows: NDArray[np.float32]) -> None:
    """Bring rows to working coordinates.

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


@jit()
def _halve(keys: NDArray[np.float32], index: NDArray[np.int64], start: int, stop: int, half: int) -> None:
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


@jit()
def _split(
    rows: NDArray[np.float32], index: NDArray[np.int64], levels: int, axes: NDArray[np.int64], cuts: NDArray[np.float32]
) -> None:
    """Split a sample by medians of its widest axes into 2**levels parts.

    Parameters
    ----------
    rows
        IN (n, d).
    index
        INOUT (m,): which rows are in the sample; reordered.
    levels
        How often.
    axes, cuts
        OUT (2**levels,): for each inner node, in heap order from 1, the axis and what is the least value on its right.
    """
    m = len(index)
    starts = np.zeros(2 << levels, np.int64)
    ends = np.zeros(2 << levels, np.int64)
    ends[1] = m
    keys = np.empty(m, np.float32)
    for node in range(1, 1 << levels):
        start = starts[node]
        stop = ends[node]
        axis = 0
        widest = -1.0
        step = max(1, (stop - start) // 64)
        for t in range(rows.shape[1]):
            total = 0.0
            squares = 0.0
            count = 0
            for q in range(start, stop, step):
                value = np.float64(rows[index[q], t]) - rows[index[start], t]
                total += value
                squares += value * value
                count += 1
            spread = (squares - total * total / max(1, count)) / max(1, count)
            if spread > widest:
                widest = spread
                axis = t
        half = start + (stop - start) // 2
        axes[node] = axis
        cuts[node] = np.float32(3e38)
        if stop - start >= 2:
            for q in range(start, stop):
                keys[q] = rows[index[q], axis]
            _halve(keys, index, start, stop, half)
            cuts[node] = keys[half]
        starts[2 * node], ends[2 * node] = start, half
        starts[2 * node + 1], ends[2 * node + 1] = half, stop


@jit()
def order_rows(
    rows: NDArray[np.float32],
    spare: NDArray[np.float32],
    order: NDArray[np.int32],
    spare_order: NDArray[np.int32],
    target: int,
    offsets: NDArray[np.int64],
) -> int:
    """Order rows in place by a tree and cut them into blocks.

    Parameters
    ----------
    rows
        INOUT (n, d).
    spare, spare_order
        TMP, as `rows` and `order`.
    order
        OUT (n,): where each row was before.
    target
        Rows a block should have; none has more than one and a half times as many.
    offsets
        OUT (at least 4 n / target + 2,): where blocks start, then n.

    Returns
    -------
    int
        How many blocks.
    """
    n, d = rows.shape
    for i in range(n):
        order[i] = i
    most = target + target // 2
    stack = np.empty((4096, 3), np.int64)
    stack[0, 0], stack[0, 1], stack[0, 2] = 0, n, 0
    depth = 1
    axes = np.empty(1 << _LEVELS, np.int64)
    cuts = np.empty(1 << _LEVELS, np.float32)
    counts = np.empty(1 << _LEVELS, np.int64)
    leaves = np.empty(n, np.uint8)
    blocks = 0
    while depth > 0:
        depth -= 1
        start, stop, in_spare = stack[depth]
        size = stop - start
        a, b = (spare, rows) if in_spare else (rows, spare)
        a_order, b_order = (spare_order, order) if in_spare else (order, spare_order)
        levels = 0
        while levels < _LEVELS and (size >> levels) > target + target // 4:
            levels += 1
        parts = 1 << levels
        if levels > 0:
            step = max(1, size // _SAMPLE)
            _split(a, np.arange(start, stop, step), levels, axes, cuts)
            counts[:] = 0
            for i in range(start, stop):
                node = 1
                for _ in range(levels):
                    node = 2 * node + (a[i, axes[node]] >= cuts[node])
                leaves[i] = node - parts
                counts[node - parts] += 1
            if counts.max() == size:  # copies of one row: any order will do
                levels = 0
        if levels == 0:
            if in_spare:
                rows[start:stop] = spare[start:stop]
                order[start:stop] = spare_order[start:stop]
            pieces = -(-size // most)
            for piece in range(pieces):
                offsets[blocks] = start + piece * size // pieces
                blocks += 1
            continue
        at = start
        for leaf in range(parts):
            size = counts[leaf]
            counts[leaf] = at
            at += size
        for i in range(start, stop):
            to = counts[leaves[i]]
            counts[leaves[i]] += 1
            for t in range(d):
                b[to, t] = a[i, t]
            b_order[to] = a_order[i]
        for leaf in range(parts - 1, -1, -1):  # so that the first is taken first: blocks come in the order of rows
            first = counts[leaf - 1] if leaf > 0 else start
            if counts[leaf] > first:
                stack[depth, 0], stack[depth, 1], stack[depth, 2] = first, counts[leaf], 1 - in_spare
                depth += 1
    offsets[blocks] = n
    return blocks


@jit()
def bound_blocks(
    rows: NDArray[np.float32],
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    radii: NDArray[np.float64],
) -> None:
    """Box each block and each region, wide enough for what its rows were before they were rounded to float32.

    Parameters
    ----------
    rows
        IN (n, d).
    offsets
        IN (blocks + 1,).
    boxes
        OUT (blocks, 3, d): lowest and highest coordinates and centre.
    radii
        OUT (blocks,): no row is farther from the centre.
    """
    d = rows.shape[1]
    for b in range(len(offsets) - 1):
        start = offsets[b]
        stop = offsets[b + 1]
        for t in range(d):
            low = rows[start, t]
            high = low
            for i in range(start, stop):
                low = min(low, rows[i, t])
                high = max(high, rows[i, t])
            margin = max(abs(low), abs(high)) * np.float32(2e-7) + np.float32(1e-37)
            boxes[b, 0, t] = low - margin
            boxes[b, 1, t] = high + margin
            boxes[b, 2, t] = low * np.float32(0.5) + high * np.float32(0.5)
        most = 0.0
        edge = 0.0
        for t in range(d):
            edge = max(edge, abs(boxes[b, 0, t]), abs(boxes[b, 1, t]))
        for i in range(start, stop):
            squared = 0.0
            for t in range(d):
                difference = np.float64(rows[i, t]) - boxes[b, 2, t]
                squared += difference * difference
            most = max(most, squared)
        radii[b] = np.sqrt(most) * (1 + 1e-6) + edge * 2e-7 * np.sqrt(d)
