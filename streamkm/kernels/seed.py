"""Seeding: k-means++ on weighted rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.random import draw, uniform

BLOCK = 512


@jit(fast=True)
def _nearer(
    columns: NDArray[np.float64],
    row: int,
    known: NDArray[np.float64],
    out: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> float:
    """Lower the known squared distances by those to one row, into `out`; return their weighted sum."""
    d, n = columns.shape
    weighted = len(weights) > 0
    cost = 0.0
    for start in range(0, n, BLOCK):  # a block of distances stays in the nearest cache over all dimensions
        stop = min(n, start + BLOCK)
        for i in range(start, stop):
            out[i] = 0.0
        for t in range(d):
            c = columns[t, row]
            for i in range(start, stop):
                difference = columns[t, i] - c
                out[i] += difference * difference
        for i in range(start, stop):
            out[i] = min(known[i], out[i])
            cost += out[i] * weights[i] if weighted else out[i]
    return cost


@jit()
def kmeans_plus_plus(
    rows: NDArray[np.float64],
    row_weights: NDArray[np.float64],
    origin: NDArray[np.float64],
    scale: NDArray[np.float64],
    n_candidates: int,
    rng: NDArray[np.uint64],
    centroids: NDArray[np.float64],
) -> None:
    """Choose rows as first centroids, far ones more likely (Arthur and Vassilvitskii 2007; greedy over candidates).

    When fewer distinct rows than centroids are left, rows are chosen again.

    Parameters
    ----------
    rows
        IN (n, d), n >= 1.
    row_weights
        IN (n,), or (0,) for ones.
    origin, scale
        (d,) each: rows are compared as ``(rows - origin) * scale``.
    n_candidates
        Rows drawn for each centroid; the one that leaves the lowest cost is taken.
    rng
        INOUT (1,) uint64.
    centroids
        OUT (k, d).
    """
    n, d = rows.shape
    columns = np.empty((d, n))
    for i in range(n):
        for t in range(d):
            columns[t, i] = (rows[i, t] - origin[t]) * scale[t]
    ones = np.ones(n)
    known = np.full(n, np.inf)
    trial = np.empty(n)
    kept = np.empty(n)
    first = max(0, draw(row_weights, ones, rng))
    for t in range(d):
        centroids[0, t] = rows[first, t]
    _nearer(columns, first, known, kept, row_weights)
    known, kept = kept, known
    for j in range(1, centroids.shape[0]):
        lowest = np.inf
        chosen = -1
        for _ in range(n_candidates):
            i = draw(row_weights, known, rng)
            if i < 0:
                break
            cost = _nearer(columns, i, known, trial, row_weights)
            if cost < lowest:
                lowest = cost
                chosen = i
                trial, kept = kept, trial
        if chosen < 0:
            chosen = int(uniform(rng) * n)
        else:
            known, kept = kept, known
        for t in range(d):
            centroids[j, t] = rows[chosen, t]
