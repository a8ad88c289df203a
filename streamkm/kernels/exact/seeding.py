"""k-means++ initialization: squared distances to the nearest of the centroids chosen so far, with costs by block.

A block is not read if its box is farther from a candidate than any of its rows is from its nearest centroid: after some
centroids, these are most blocks. Distances are float32, their sums float64 in a fixed order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.exact.relabel import Share


@jit(fast=True)
def _box_distance(boxes: NDArray[np.float32], b: int, candidates: NDArray[np.float32], c: int) -> float:
    """Compute the squared distance of a candidate from a box, rounded down."""
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
def evaluate_candidates(
    share: Share,
    rows: NDArray[np.float32],
    weights: NDArray[np.float64],
    offsets: NDArray[np.int64],
    boxes: NDArray[np.float32],
    candidates: NDArray[np.float32],
    nearest: NDArray[np.float32],
    most: NDArray[np.float32],
    costs: NDArray[np.float64],
    trial: NDArray[np.float64],
) -> None:
    """Compute, by block, the cost that would remain with each candidate; or accept the only candidate.

    Parameters
    ----------
    share
        Share of this call, in blocks.
    rows, weights
        IN (n, d) in working coordinates, and (n,) or (0,): as in `Rows`.
    offsets
        IN (blocks + 1,): first row of each block, then n.
    boxes
        IN (blocks or more, 3, d): as in `Blocks`; or (0, 3, d) without blocks of neighbours.
    candidates
        IN (m, d).
    nearest
        IN, or INOUT to accept the candidate: (n,) squared distance of each row to the nearest centroid.
    most
        IN, or INOUT to accept the candidate: (blocks,) largest of these distances.
    costs
        IN, or INOUT to accept the candidate: (blocks,) weighted sum of these distances.
    trial
        OUT (blocks, m): the weighted sum with each candidate; or (0, 0) to accept the only candidate.
    """
    part, parts, first, last = share
    accept = trial.size == 0
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
            if len(boxes) > 0 and _box_distance(boxes, b, candidates, c) >= most[b]:
                if not accept:
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
            if accept:
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
    """Find the row at which the cumulative sum of weighted squared distances exceeds a target.

    Parameters
    ----------
    weights, offsets, nearest, costs
        As in `evaluate_candidates`.
    target
        At least 0, less than the sum of costs.

    Returns
    -------
    int
        A row with positive cost, or -1 if there is none; the last one if rounding puts the target beyond the end.
    """
    # Step 1. Find the block: the last one with a positive cost, if none contains the target.
    block = -1
    for b in range(len(costs)):
        if costs[b] > 0.0:
            block = b
            if target < costs[b]:
                break
            target -= costs[b]
    if block < 0:
        return -1
    # Step 2. Find the row in the block.
    found = -1
    for r in range(offsets[block], offsets[block + 1]):
        share = nearest[r] * weights[r] if len(weights) > 0 else np.float64(nearest[r])
        if share > 0.0:
            found = r
            if share > target:
                break
            target -= share
    return found
