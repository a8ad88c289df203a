"""Initialization by k-means++ on weighted rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.assign import Real
from streamkm.kernels.random import DRAW_BLOCK_ROWS, draw_by_blocks, sum_blocks, uniform
from streamkm.kernels.search import squared_distances_to


@jit(allocates=True)
def _nearer(columns: Real, row: int, known: Real, out: Real) -> None:
    """Compute the minimum of known squared distances and those to one row, into `out`."""
    squared_distances_to(columns, columns[:, row].astype(np.float64), out)
    for i in range(len(out)):
        out[i] = out[i] if out[i] < known[i] else known[i]  # noqa: FURB136 -- a select is what becomes SIMD


@jit(allocates=True)
def kmeans_plus_plus(
    rows: NDArray[np.float64],
    row_weights: NDArray[np.float64],
    columns: Real,
    n_candidates: int,
    rng: NDArray[np.uint64],
    centroids: NDArray[np.float64],
) -> None:
    """Choose rows as initial centroids by greedy k-means++ (Arthur and Vassilvitskii 2007).

    If there are fewer distinct rows than centroids, rows are chosen repeatedly.

    Parameters
    ----------
    rows
        IN (n, d), n >= 1.
    row_weights
        IN (n,), or (0,) for ones.
    columns
        IN: the rows to compare, from `lay_columns`.
    n_candidates
        Rows drawn for each centroid, of which the one with the lowest resulting cost is chosen.
    rng
        INOUT (1,) uint64.
    centroids
        OUT (k, d).
    """
    n, padded = len(rows), columns.shape[1]
    known, trial = np.full(padded, np.inf, columns.dtype), np.empty(padded, columns.dtype)
    kept = np.ones(padded, columns.dtype)
    blocks = (n + DRAW_BLOCK_ROWS - 1) // DRAW_BLOCK_ROWS
    sums, trial_sums, kept_sums = np.empty(blocks), np.empty(blocks), np.empty(blocks)
    sum_blocks(row_weights, kept[:n], sums)
    first = max(0, draw_by_blocks(row_weights, kept[:n], sums, rng))
    for t in range(rows.shape[1]):
        centroids[0, t] = rows[first, t]
    _nearer(columns, first, known, kept)
    known, kept = kept, known
    sum_blocks(row_weights, known[:n], sums)
    for j in range(1, centroids.shape[0]):
        lowest = np.inf
        chosen = -1
        for _ in range(n_candidates):
            i = draw_by_blocks(row_weights, known[:n], sums, rng)
            if i < 0:
                break
            _nearer(columns, i, known, trial)
            cost = sum_blocks(row_weights, trial[:n], trial_sums)
            if cost < lowest:
                lowest = cost
                chosen = i
                trial, kept = kept, trial
                trial_sums, kept_sums = kept_sums, trial_sums
        if chosen < 0:
            chosen = int(uniform(rng) * n)
        else:
            known, kept = kept, known
            sums, kept_sums = kept_sums, sums
        for t in range(rows.shape[1]):
            centroids[j, t] = rows[chosen, t]
