"""Points in the form that the exact algorithm's kernels use: working coordinates, blocks of neighbours and windows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.blocks import REGION
from streamkm.kernels.exact.distances import sum_rows
from streamkm.kernels.exact.layout import bound_blocks, bound_regions, column_ranges, to_working
from streamkm.kernels.exact.sums import LIMB, Real
from streamkm.models.exact.kd_order import sort_by_kd_tree
from streamkm.models.exact.storage import Storage, release
from streamkm.models.exact.threads import ThreadTeam
from streamkm.models.validation import frozen

BLOCK_ROWS = 512
"""Rows of a block: the fastest of 64 to 1024; larger blocks have longer candidate lists, smaller ones more overhead."""

_MAX_BLOCK_DIMENSIONS = 16
_MIN_BLOCK_ROWS = 16 * BLOCK_ROWS
_MIN_BLOCK_CENTROIDS = 8
"""Blocks are used up to this many dimensions, and from this many rows and centroids on: elsewhere they cost more than
they save."""

_MAX_UNCENTERED_RATIO = 30.0
"""Float32 points of at most this multiple of half their range are compared in raw coordinates, without a copy."""

_ORIGIN_STEPS = 2.0**16
"""Origins are rounded to this fraction of the largest coordinate."""

_IDENTITY = np.empty(0, np.int32)
_NO_WEIGHTS = np.empty(0)
_NO_BOXES = np.empty((0, 3, 0), np.float32)


@dataclass(frozen=True)
class Window:
    """A range of rows that may be in memory at the same time, also as a range of blocks and of regions."""

    regions: tuple[int, int]
    blocks: tuple[int, int]
    rows: tuple[int, int]


@dataclass(frozen=True)
class Points:
    """Points in the order in which kernels read them, with the coordinates in which they are compared.

    Working coordinates are ``(raw - origin) * unit`` in float32; `unit` is a power of two, so only the subtraction
    rounds.

    Parameters
    ----------
    given
        (n, d) the points as given, C-contiguous.
    given_weights
        (n,) the weights as given; (0,) for ones.
    raw
        (n, d) the points in kernel order.
    rows
        (n, d) the points in kernel order and working coordinates.
    permutation
        (n,) index in `given` of each row; (0,) for the same order.
    weights
        (n,) weights in kernel order, divided by `weight_unit`, at most 1; (0,) for ones.
    weight_unit
        Unit of `weights`.
    origin, scale
        ``(raw - origin) * scale`` is at most 1 in absolute value; `scale` is a power of two.
    unit
        `scale`, or 1 if raw coordinates are accurate enough.
    extent
        Largest norm of a row, in working coordinates.
    offsets
        (blocks + 1,) first row of each block, then n.
    boxes, radii
        (blocks + regions, 3, d) and (blocks + regions,): bounding boxes and radii; empty without blocks of neighbours.
    windows
        Ranges of rows that may be in memory, covering all rows.
    storage
        Allocates arrays with one entry per row.
    """

    given: Real
    given_weights: NDArray[np.float64]
    raw: Real
    rows: NDArray[np.float32]
    permutation: NDArray[np.int32]
    weights: NDArray[np.float64]
    weight_unit: float
    origin: NDArray[np.float64]
    scale: float
    unit: float
    extent: float
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    radii: NDArray[np.float64]
    windows: tuple[Window, ...]
    storage: Storage

    @property
    def has_blocks(self) -> bool:
        """Whether rows are ordered into blocks of neighbours."""
        return len(self.boxes) > 0

    def working(self, raw: NDArray[Any]) -> NDArray[np.float64]:
        """Convert centroids or points, (m, d), to working coordinates."""
        return (raw - self.origin) * self.unit

    def original_labels(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Convert labels, (n,), from kernel order to the order of `given`."""
        if not len(self.permutation):
            return labels
        given = np.empty_like(labels)
        given[self.permutation] = labels
        return given

    def sweep(
        self, team: ThreadTeam, work: Callable[[int, int, Window], object], nanoseconds: float, *kept: NDArray[Any]
    ) -> None:
        """Run a kernel over all windows, one after the other, with several threads.

        Parameters
        ----------
        team
            The threads.
        work
            ``work(part, parts, window)`` calls a kernel.
        nanoseconds
            Approximate duration of all work on one thread.
        kept
            Other arrays that it uses, with one entry per row, whose pages are released too.
        """
        for window in self.windows:
            team.share(partial(_in_window, work, window), nanoseconds / len(self.windows))
            if len(self.windows) > 1:
                self.release(window, *kept)

    def release(self, window: Window, *kept: NDArray[Any]) -> None:
        """Release the memory pages of a window, and of the rows that `kept` arrays, any shape, have for it."""
        for array in (self.rows, self.raw, self.weights, *kept):
            if len(array):
                release(array, *window.rows)


def _in_window(work: Callable[[int, int, Window], object], window: Window, part: int, parts: int) -> None:
    work(part, parts, window)


def prepare(
    X: Real,
    sample_weight: NDArray[np.float64] | None,
    n_clusters: int,
    team: ThreadTeam | None = None,
    *,
    blocks: bool | None = None,
    storage: Storage | None = None,
) -> Points:
    """Choose the working coordinates of points, and order them into blocks of neighbours if that pays.

    Parameters
    ----------
    X
        (n, d) float32 or float64, C-contiguous, finite.
    sample_weight
        (n,), not negative, or None for ones.
    n_clusters
        Number of centroids that the points will be compared with.
    team
        Threads to use; None for the caller's only.
    blocks
        Whether to order rows into blocks; None to decide by n, d and `n_clusters`.
    storage
        Allocates arrays; None for memory.
    """
    n, d = X.shape
    storage, team = storage or Storage(), team or ThreadTeam(1)
    raw = frozen(X)
    origin, scale, unit, extent = _choose_frame(raw, team, storage)
    weights, weight_unit = _scaled_weights(sample_weight, storage)
    if blocks is None:
        blocks = d <= _MAX_BLOCK_DIMENSIONS and n >= _MIN_BLOCK_ROWS and n_clusters >= _MIN_BLOCK_CENTROIDS
    permutation = _IDENTITY
    offsets = np.minimum(np.arange(0, n + BLOCK_ROWS, BLOCK_ROWS), n)
    as_given = X.dtype == np.float32 and unit == 1.0 and not origin.any()
    rows: NDArray[np.float32] = raw
    if blocks or not as_given:
        rows = storage.allocate((n, d), np.float32)
        for a, b in storage.chunks(n, d * (raw.itemsize + 4)):
            team.divide(a, b, lambda _, i, j: to_working(raw[i:j], origin, unit, rows[i:j]), float((b - a) * d))
            release(raw, a, b)
            release(rows, a, b)
    if blocks:
        ordered = sort_by_kd_tree(rows, None if as_given else raw, weights, BLOCK_ROWS, team, storage)
        raw = frozen(rows if ordered.raw is None else ordered.raw)
        weights, permutation, offsets = ordered.weights, ordered.permutation, ordered.offsets
    regions = np.append(offsets[:-1:REGION], n)
    windows = _windows(offsets, regions, storage.max_rows(4 * d + 16 + (0 if raw is rows else d * raw.itemsize)))
    boxes, radii = (
        _bounding_boxes(rows, offsets, len(regions) - 1, windows, team) if blocks else (_NO_BOXES, np.empty(0))
    )
    return Points(
        given=frozen(X),
        given_weights=_NO_WEIGHTS if sample_weight is None or not len(weights) else frozen(sample_weight),
        raw=raw,
        rows=frozen(rows),
        permutation=permutation,
        weights=frozen(weights),
        weight_unit=weight_unit,
        origin=origin,
        scale=scale,
        unit=unit,
        extent=extent,
        offsets=offsets,
        boxes=boxes,
        radii=radii,
        windows=windows,
        storage=storage,
    )


def _windows(offsets: NDArray[np.int64], regions: NDArray[np.int64], max_rows: int | None) -> tuple[Window, ...]:
    """Combine regions into windows of as many rows as may be in memory."""
    n_regions, n_blocks = len(regions) - 1, len(offsets) - 1
    found, first = [], 0
    while first < n_regions:
        last = n_regions
        if max_rows is not None:
            last = max(first + 1, int(np.searchsorted(regions, regions[first] + max_rows, side="right")) - 1)
        found.append(
            Window(
                (first, last),
                (first * REGION, min(n_blocks, last * REGION)),
                (int(regions[first]), int(regions[last])),
            )
        )
        first = last
    return tuple(found)


def _bounding_boxes(
    rows: NDArray[np.float32],
    offsets: NDArray[np.int64],
    n_regions: int,
    windows: tuple[Window, ...],
    team: ThreadTeam,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Compute the bounding boxes and radii of blocks, then of regions."""
    n_blocks = len(offsets) - 1
    boxes = np.empty((n_blocks + n_regions, 3, rows.shape[1]), np.float32)
    radii = np.empty(len(boxes))
    readable = frozen(rows)
    for window in windows:

        def work(_: int, a: int, b: int) -> None:
            bound_blocks(readable, offsets[a : b + 1], boxes[a:b], radii[a:b])

        team.divide(*window.blocks, work, 2.0 * (window.rows[1] - window.rows[0]) * rows.shape[1])
        release(rows, *window.rows)
    bound_regions(n_blocks, REGION, boxes, radii)
    return boxes, radii


def _choose_frame(raw: Real, team: ThreadTeam, storage: Storage) -> tuple[NDArray[np.float64], float, float, float]:
    """Choose origin, scale and unit, independent of the order of rows, and compute the largest norm of a row."""
    n, d = raw.shape
    low, high = np.full(d, np.inf), np.full(d, -np.inf)
    lows, highs = np.full((team.n_threads, d), np.inf), np.full((team.n_threads, d), -np.inf)
    for a, b in storage.chunks(n, d * raw.itemsize):
        team.divide(a, b, lambda part, i, j: column_ranges(raw[i:j], lows[part], highs[part]), 0.3 * (b - a) * d)
        low, high = np.minimum(low, lows.min(axis=0)), np.maximum(high, highs.max(axis=0))
        release(raw, a, b)
    middle, reach = low / 2 + high / 2, high / 2 - low / 2
    size = float(np.maximum(-low, high).max())
    as_given = raw.dtype == np.float32 and 1e-12 < size < 1e12 and size <= _MAX_UNCENTERED_RATIO * float(reach.max())
    origin = np.zeros(d)
    if not as_given:
        sums = np.zeros((team.n_threads, 1, 2, d + 1), np.int64)
        scale = power_of_two(float(reach.max()))
        for a, b in storage.chunks(n, d * raw.itemsize):
            team.divide(a, b, lambda part, i, j: sum_rows(raw[i:j], middle, scale, sums[part]), 3.0 * (b - a) * d)
            release(raw, a, b)
        limbs = sums.sum(axis=0)[0]
        mean = middle + (limbs[0, :d] + limbs[1, :d] / LIMB) / LIMB / n / scale
        # Rounded, so that subtracting it rounds as little as possible.
        origin = np.round(mean * scale * _ORIGIN_STEPS) / _ORIGIN_STEPS / scale
    reach = np.maximum(high - origin, origin - low)
    scale = power_of_two(float(reach.max()))
    unit = 1.0 if as_given else scale
    return origin, scale, unit, float(np.sqrt(((reach * unit) ** 2).sum()))


def power_of_two(largest: float) -> float:
    """Power of two that scales a number to between 0.5 and 1."""
    return math.ldexp(1.0, max(-1000, min(1000, -math.frexp(largest)[1]))) if largest > 0 else 1.0


def _scaled_weights(sample_weight: NDArray[np.float64] | None, storage: Storage) -> tuple[NDArray[np.float64], float]:
    """Divide weights by a power of two so that the largest is at most 1; return (0,) weights if all are equal."""
    if sample_weight is None or not len(sample_weight):
        return _NO_WEIGHTS, 1.0
    chunks = list(storage.chunks(len(sample_weight), 16))
    largest = max(float(sample_weight[a:b].max()) for a, b in chunks)
    if largest == min(float(sample_weight[a:b].min()) for a, b in chunks) > 0.0:
        return _NO_WEIGHTS, largest
    unit = math.ldexp(1.0, math.frexp(largest)[1])
    weights = storage.allocate(sample_weight.shape, np.float64)
    for a, b in chunks:
        np.divide(sample_weight[a:b], unit, out=weights[a:b])
        release(sample_weight, a, b)
        release(weights, a, b)
    return weights, unit
