"""Kernels as plain Python, for `make coverage`: a plugin of pytest, for runs with NUMBA_DISABLE_JIT=1.

Kernels call a few functions that emit LLVM instructions, which exist only in compiled code. Here are the same functions
in Python, by their names: `streamkm.kernels._jit.intrinsic` gives these instead, to kernels that are imported
afterwards. That both compute the same is seen by the tests marked with `instructions`, which run both ways.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from streamkm.kernels import _jit


def _two_nearest_of(distances: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return distances and indices of the nearest and second nearest; infinity and 0 where there is none."""
    order = np.argsort(distances, axis=0, kind="stable")[:2]
    near = np.take_along_axis(distances, order, axis=0)
    return near[0], order[0], near[1], np.where(np.isinf(near[1]), 0, order[1])


def _squares(points: np.ndarray, packed: np.ndarray) -> np.ndarray:
    centroids = packed.transpose(0, 2, 1).reshape(-1, len(points))
    return ((centroids[:, :, None] - points[None]) ** 2).sum(axis=1)


def nearest_in_lanes(points, packed, best, nearest):
    best[:], nearest[:], _, _ = _two_nearest_of(_squares(points, packed))


def nearest_two_in_lanes(points, packed, best, nearest, next_best, second):
    best[:], nearest[:], next_best[:], second[:] = _two_nearest_of(_squares(points, packed))


def two_nearest(points, centroids, candidates, out, n_groups, d, relative, absolute):
    chosen = candidates[: n_groups * 4]
    squares = ((centroids[chosen][:, :, None] - points[None]) ** 2).sum(axis=1)
    near, first, far, _ = _two_nearest_of(squares)
    near, far = np.sqrt(near), np.sqrt(np.minimum(far, np.float32(3e38)))
    out[0] = far - near - ((far + near) * relative + absolute)
    out[1].view(np.int32)[:] = chosen[first]


def gather(rows, row_indices, first, block, d):
    block[:] = rows[row_indices[first : first + block.shape[1]]].T


def changed_lanes(found, labels, row_indices, first):
    lanes = found.shape[1]
    certain = found[0] > 0
    same = found[1].view(np.int32) == labels[row_indices[first : first + lanes]]
    return sum(1 << p for p in range(lanes) if not (certain[p] and same[p]))


def below(values, start, limit):
    return sum(1 << q for q in range(32) if values[start + q] < limit)


def lowest_bit(mask):
    mask = int(mask)
    return (mask & -mask).bit_length() - 1


def _add_limbs(raw, row, origin, factor, sums, j):
    # As float64 operations round, one after the other.
    value = (raw[row].astype(np.float64) - origin) * factor
    whole = np.rint(value)
    sums[j, 0, :-1] += whole.astype(np.int64)
    sums[j, 1, :-1] += np.rint((value - whole) * 2.0**31).astype(np.int64)


def interpreted(emit: Callable[..., Any]) -> Callable[..., Any]:
    """Return the Python function of an intrinsic's name."""
    return globals()[emit.__name__]


if numba.config.DISABLE_JIT:
    _jit.intrinsic = interpreted
    # Unsigned integers wrap, as in compiled code, and divisions by zero give infinity or NaN.
    np.seterr(all="ignore")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out the tests that would take minutes."""
    large = [item for item in items if item.get_closest_marker("large")]
    config.hook.pytest_deselected(items=large)
    items[:] = [item for item in items if item not in large]
