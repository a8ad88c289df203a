"""Seeding: distances to the nearest of the centroids chosen so far, kept block by block.

A block whose box is farther from a candidate than any of its rows is from its nearest centroid cannot gain by it, and
is not read: with k centroids chosen, that is most blocks. Distances are float32, their sums float64 in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit


@jit(fast=True)
def _gap(boxes: NDArray[np.float32], b: int, candidates: NDArray[np.float32], c: int) -> float:
    """Squared distance of a candidate from a box, rounded down."""
    squared = np.float32(0.0)
    for t in range(candidates.shape[1]):
        x = candidates[c, t]
        below = boxes[b, 0, t] - x
        above = x - boxes[b, 1, t]
        outside = max(above, below)
        outside = max(np.float32(0.0), outside)
        squared += outside * outside
    return float(squared * (1 - 1e-5))


@jit(fast=True, allocates=True)
def weigh_candidates(
    part: int,
    parts: int,
    first: int,
    last: int,
    rows: NDArray[np.float32],
    weights: NDArray[np.float64],
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    candidates: NDArray[np.float32],
    keep: bool,
    nearest: NDArray[np.float32],
    most: NDArray[np.float32],
    costs: NDArray[np.float64],
    trial: NDArray[np.float64],
) -> None:
    """Sum up, block by block, what squared distances would be left with each candidate; or take the one candidate.

    Parameters
    ----------
    part, parts, first, last
        Of blocks `first` to `last`, this call takes every parts-th, from `part` on.
    rows, weights
        As in `settle`.
    offsets
        IN (blocks + 1,): where each block's rows start.
    boxes
        IN (blocks or more, 3, d): as in `blocks_pass`; or (0, 3, d) if blocks are no neighbours.
    candidates
        IN (m, d).
    keep
        Take the only candidate.
    nearest
        IN, or INOUT to keep: (n,) squared distance of each row to the nearest centroid.
    most
        IN, or INOUT to keep: (blocks,) the largest of them.
    costs
        IN, or INOUT to keep: (blocks,) their weighted sum.
    trial
        OUT (blocks, m), unless to keep: that sum with each candidate.
    """
    d = rows.shape[1]
    weighted = len(weights) > 0
    longest = 1
    for b in range(first, last):
        longest = max(longest, offsets[b + 1] - offsets[b])
    block = np.empty((d, longest), np.float32)
    squares = np.empty(longest, np.float32)
    for b in range(first + part, last, parts):
        start = offsets[b]
        m = offsets[b + 1] - start
        loaded = False
        for c in range(len(candidates)):
            if len(boxes) > 0 and _gap(boxes, b, candidates, c) >= most[b]:
                if not keep:
                    trial[b, c] = costs[b]
                continue
            if not loaded:
                loaded = True
                for p in range(m):
                    for t in range(d):
                        block[t, p] = rows[start + p, t]
            for p in range(m):
                squares[p] = 0.0
            for t in range(d):
                x = candidates[c, t]
                for p in range(m):
                    difference = block[t, p] - x
                    squares[p] += difference * difference
            cost = 0.0
            if weighted:
                for p in range(m):
                    low = min(squares[p], nearest[start + p])
                    squares[p] = low
                    cost += low * weights[start + p]
            else:
                for p in range(m):
                    near = nearest[start + p]
                    low = min(near, squares[p])
                    squares[p] = low
                    cost += low
            if keep:
                highest = np.float32(0.0)
                for p in range(m):
                    nearest[start + p] = squares[p]
                    highest = max(highest, squares[p])
                most[b] = highest
                costs[b] = cost
            else:
                trial[b, c] = cost


@jit()
def draw_by_cost(
    weights: NDArray[np.float64],
    offsets: NDArray[np.int64],
    nearest: NDArray[np.float32],
    costs: NDArray[np.float64],
    target: float,
) -> int:
    """Find the row where the running sum of weighted squared distances passes a target.

    Parameters
    ----------
    weights, offsets, nearest, costs
        As in `weigh_candidates`.
    target
        At least 0, less than the sum of costs.

    Returns
    -------
    int
        A row whose share is not zero, or -1 if there is none. Where rounding left the target beyond the end, the last.
    """
    # Step 1. The block: the last with a cost, if none has the target.
    block = -1
    for b in range(len(costs)):
        if costs[b] > 0.0:
            block = b
            if target < costs[b]:
                break
            target -= costs[b]
    if block < 0:
        return -1
    # Step 2. The row within it.
    found = -1
    for r in range(offsets[block], offsets[block + 1]):
        share = nearest[r] * weights[r] if len(weights) > 0 else np.float64(nearest[r])
        if share > 0.0:
            found = r
            if share > target:
                break
            target -= share
    return found
