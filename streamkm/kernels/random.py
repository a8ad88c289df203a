"""Random draws from a counter-based generator whose state is one integer, which is saved with a model.

splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 13).
"""

from __future__ import annotations

import numpy as np
from numba import uint64
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

DRAW_BLOCK_ROWS = 128
"""Rows per block of `sum_blocks`."""


@jit()
def uniform(rng: NDArray[np.uint64]) -> float:
    """Draw a number from [0, 1).

    Parameters
    ----------
    rng
        INOUT (1,) uint64.
    """
    rng[0] += uint64(0x9E3779B97F4A7C15)
    z = rng[0]
    z = (z ^ (z >> uint64(30))) * uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> uint64(27))) * uint64(0x94D049BB133111EB)
    z ^= z >> uint64(31)
    return float(z >> uint64(11)) * 2.0**-53


@jit()
def draw(weights: NDArray[np.float64], distances: NDArray[np.float64], rng: NDArray[np.uint64]) -> int:
    """Draw a row with probability proportional to weight times distance.

    Adjacent copies of a row are drawn like one row with the sum of their weights.

    Parameters
    ----------
    weights
        IN (n,), or (0,) for ones.
    distances
        IN (n,), not negative, for example squared distances.
    rng
        INOUT (1,) uint64.

    Returns
    -------
    int
        Index of the row, or -1 if every product is zero.
    """
    weighted = len(weights) > 0
    total = 0.0
    for i in range(len(distances)):
        total += weights[i] * distances[i] if weighted else distances[i]
    if not total > 0.0:
        return -1
    target = uniform(rng) * total
    reached = 0.0
    last = -1
    for i in range(len(distances)):
        mass = weights[i] * distances[i] if weighted else distances[i]
        if mass > 0.0:
            reached += mass
            last = i
            if reached > target:
                break
    return last


@jit(fast=True)
def sum_blocks(
    weights: NDArray[np.float64], distances: NDArray[np.float32] | NDArray[np.float64], sums: NDArray[np.float64]
) -> float:
    """Sum weight times distance over all rows and over each block of rows.

    Parameters
    ----------
    weights
        IN (n,), or (0,) for ones.
    distances
        IN (at least n,).
    sums
        OUT (ceil(n / DRAW_BLOCK_ROWS),): sums of the blocks; n is the length of the weights, if there are any.
    """
    n = len(weights) if len(weights) > 0 else len(distances)
    total = 0.0
    for b in range(len(sums)):
        start, stop = b * DRAW_BLOCK_ROWS, min(n, (b + 1) * DRAW_BLOCK_ROWS)
        block = 0.0
        if len(weights) > 0:
            for i in range(start, stop):
                block += weights[i] * distances[i]
        else:
            for i in range(start, stop):
                block += distances[i]
        sums[b] = block
        total += block
    return total


@jit()
def draw_by_blocks(
    weights: NDArray[np.float64],
    distances: NDArray[np.float32] | NDArray[np.float64],
    sums: NDArray[np.float64],
    rng: NDArray[np.uint64],
) -> int:
    """Draw a row like `draw`, but read one block only.

    Parameters
    ----------
    weights, distances, sums
        IN: as in `sum_blocks`, which computes `sums`.
    rng
        INOUT (1,) uint64.
    """
    total = 0.0
    for block in sums:
        total += block
    if not total > 0.0:
        return -1
    target = uniform(rng) * total
    reached = 0.0
    last = -1
    b = 0
    while b < len(sums) - 1 and reached + sums[b] <= target:
        reached += sums[b]
        b += 1
    # If rounding puts the target beyond the last row with a positive product, that row is drawn.
    while last < 0 and b >= 0:
        for i in range(b * DRAW_BLOCK_ROWS, min((b + 1) * DRAW_BLOCK_ROWS, len(distances))):
            mass = (weights[i] if len(weights) > 0 else 1.0) * distances[i]
            if mass > 0.0:
                reached += mass
                last = i
                if reached > target:
                    break
        b -= 1
    return last
