"""Points in the form that the exact algorithm's kernels use: working coordinates, blocks of neighbours and windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.blocks import REGION
from streamkm.kernels.exact.layout import bound_blocks, bound_regions, to_working
from streamkm.kernels.exact.sums import Real
from streamkm.models.exact.core import Frame, choose_frame
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

    Working coordinates are ``(raw - origin) * unit`` in float32, in units of the frame; `unit` is a power of two, so
    only the subtraction rounds.

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
        (n,) weights in kernel order, divided by `Frame.weight_unit`, at most 1; (0,) for ones.
    frame
        The coordinates in which the points are compared and summed.
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
    frame: Frame
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
        return (raw - self.frame.origin) * self.frame.unit

    def original_labels(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """Convert labels, (n,), from kernel order to the order of `given`."""
        if not len(self.permutation):
            return labels
        given = np.empty_like(labels)
        given[self.permutation] = labels
        return given

    def sweep(
        self, team: ThreadTeam, work: Callable[[Window, int, int], object], nanoseconds: float, *kept: NDArray[Any]
    ) -> None:
        """Run a kernel over all windows, one after the other, with several threads.

        Parameters
        ----------
        team
            The threads.
        work
            ``work(window, part, parts)`` calls a kernel.
        nanoseconds
            Approximate duration of all work on one thread.
        kept
            Other arrays that it uses, with one entry per row, whose pages are released too.
        """
        for window in self.windows:
            team.share(partial(work, window), nanoseconds / len(self.windows))
            if len(self.windows) > 1:
                self.release(window, *kept)

    def release(self, window: Window, *kept: NDArray[Any]) -> None:
        """Release the memory pages of a window, and of the rows that `kept` arrays, any shape, have for it."""
        for array in (self.rows, self.raw, self.weights, *kept):
            if len(array):
                release(array, *window.rows)


def prepare(
    X: Real,
    sample_weight: NDArray[np.float64] | None,
    n_clusters: int,
    team: ThreadTeam | None = None,
    *,
    blocks: bool | None = None,
    storage: Storage | None = None,
) -> Points:
    """Choose the frame of points, and `arrange` them in it.

    Parameters
    ----------
    X, sample_weight, n_clusters, blocks
        As in `arrange`.
    team
        Threads to use; None for the caller's only.
    storage
        Allocates arrays; None for memory.
    """
    storage, team = storage or Storage(), team or ThreadTeam(1)
    frame = choose_frame(frozen(X), sample_weight, team, storage)
    return arrange(X, sample_weight, frame, n_clusters, team, storage, blocks=blocks)


def arrange(
    X: Real,
    sample_weight: NDArray[np.float64] | None,
    frame: Frame,
    n_clusters: int,
    team: ThreadTeam,
    storage: Storage,
    *,
    blocks: bool | None = None,
) -> Points:
    """Convert points to the coordinates of a frame, and order them into blocks of neighbours if that pays.

    Parameters
    ----------
    X
        (n, d) float32 or float64, C-contiguous, finite.
    sample_weight
        (n,), not negative, or None for ones.
    frame
        From `choose_frame` of these points, or of more points that these are a part of.
    n_clusters
        Number of centroids that the points will be compared with.
    team
        Threads to use.
    storage
        Allocates arrays.
    blocks
        Whether to order rows into blocks; None to decide by n, d and `n_clusters`.
    """
    n, d = X.shape
    raw = frozen(X)
    origin, unit = frame.origin, frame.unit
    weights = _scaled_weights(sample_weight, frame.weight_unit, storage)
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
        frame=frame,
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


def _scaled_weights(sample_weight: NDArray[np.float64] | None, unit: float, storage: Storage) -> NDArray[np.float64]:
    """Divide weights by their unit; return (0,) weights if all are equal to it."""
    if sample_weight is None or not len(sample_weight):
        return _NO_WEIGHTS
    chunks = list(storage.chunks(len(sample_weight), 16))
    if sample_weight[0] == unit and all(bool((sample_weight[a:b] == unit).all()) for a, b in chunks):
        return _NO_WEIGHTS
    weights = storage.allocate(sample_weight.shape, np.float64)
    for a, b in chunks:
        np.divide(sample_weight[a:b], unit, out=weights[a:b])
        release(sample_weight, a, b)
        release(weights, a, b)
    return weights
