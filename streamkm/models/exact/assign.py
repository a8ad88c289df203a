"""The assignment step: labels, the bounds that allow rows to be skipped, and how bounds follow moving centroids."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.blocks import (
    LOWEST,
    MIXED,
    MOVED,
    REGION,
    STATE,
    VALID,
    BlockBounds,
    Blocks,
    blocks_pass,
)
from streamkm.kernels.exact.relabel import PassCentroids, Rows, begin_pass
from streamkm.kernels.exact.rows import RowBounds, rows_pass
from streamkm.kernels.exact.sums import add_moves
from streamkm.kernels.groups import plain
from streamkm.models.exact.core import Sums
from streamkm.models.exact.points import Points, Window
from streamkm.models.exact.threads import ThreadTeam

log = logging.getLogger(__name__)

_MAX_LIST_SHARE = 0.6
"""Block bounds are used if a block's candidate list has, on average, at most this share of the centroids."""


class AssignmentStep(Protocol):
    """Labels of rows, and bounds that tell which rows to compare again; `rows_read` counts these in the last pass."""

    labels: NDArray[np.int32]
    rows_read: int

    def label(self, *, force: bool) -> int:
        """Update the labels, and return how many changed; with `force`, ignore the bounds."""

    def centroids_moved(self, drift: NDArray[np.float64]) -> None:
        """Update the bounds after each centroid moved by `drift`, (k,)."""

    def invalidate(self, rows: NDArray[np.int64]) -> None:
        """Discard the bounds of rows, (m,) indices, whose labels were changed elsewhere."""


class _AssignerBase:
    """State that both ways of assigning need."""

    def __init__(
        self,
        points: Points,
        sums: Sums,
        team: ThreadTeam,
        raw_centroids: NDArray[np.float64],
        centroids: NDArray[np.float64],
    ) -> None:
        (n, d), k = points.rows.shape, len(centroids)
        self.points, self.sums, self.team = points, sums, team
        self.labels: NDArray[np.int32] = points.storage.allocate((n,), np.int32, fill=-1)
        self.rows_read = 0
        self._counters = np.zeros((team.n_threads, 3), np.int64)
        padded, slack = np.empty((k + 1, d), np.float32), np.empty(3)
        self._centroids = plain(PassCentroids(raw_centroids, centroids, padded, slack))
        self._rows, self._frame = plain(Rows(points.raw, points.rows, points.weights)), plain(points.frame)
        self._sums, self._extent = plain(sums), points.frame.extent
        self._cost = n * d * (k * 0.05 + 2.0)

    def _begin(self) -> None:
        _, working, padded, slack = self._centroids
        begin_pass(working, self._extent, slack, padded, self._counters)

    def _sweep(self, work: Callable[[Window, int, int], object], *kept: NDArray[Any]) -> int:
        """Run a pass and return how many labels changed; measures its duration to decide on threads for the next."""
        start = time.perf_counter()
        self.points.sweep(self.team, work, self._cost, self.labels, *kept)
        self._cost = (time.perf_counter() - start) * 1e9 * self.team.parts(self._cost / len(self.points.windows))
        changed, evaluated, _ = map(sum, zip(*self._counters.tolist(), strict=True))
        self.rows_read = int(evaluated)
        return int(changed)


class RowAssigner(_AssignerBase):
    """Assigns rows in any order, with one bound per row.

    Parameters
    ----------
    points, sums, team, raw_centroids, centroids
        As in `first_assignment`.
    """

    def __init__(
        self,
        points: Points,
        sums: Sums,
        team: ThreadTeam,
        raw_centroids: NDArray[np.float64],
        centroids: NDArray[np.float64],
    ) -> None:
        super().__init__(points, sums, team, raw_centroids, centroids)
        k = len(centroids)
        allocate = points.storage.allocate
        self._bounds = RowBounds(
            np.zeros(k + 1),
            allocate((len(self.labels),), np.float32),
            allocate((len(self.labels) + 32,), np.float32),
        )
        self._arrays = plain(self._bounds)

    def label(self, *, force: bool) -> int:
        self._begin()

        def work(window: Window, part: int, parts: int) -> None:
            share = (part, parts, *window.rows)
            rows_pass(
                share,
                self._rows,
                self._frame,
                self._centroids,
                self._arrays,
                self.labels,
                self._sums,
                self._counters,
                force,
            )

        return self._sweep(work, self._bounds.bounds, self._bounds.floors)

    def centroids_moved(self, drift: NDArray[np.float64]) -> None:
        add_moves(drift, self._bounds.moved)

    def invalidate(self, rows: NDArray[np.int64]) -> None:
        self._bounds.bounds[rows] = -1.0
        self._bounds.floors[rows] = -1.0


class BlockAssigner(_AssignerBase):
    """Assigns blocks of neighbouring rows, each with a candidate list of centroids.

    Parameters
    ----------
    points, sums, team, raw_centroids, centroids
        As in `first_assignment`; the points are in blocks.
    """

    def __init__(
        self,
        points: Points,
        sums: Sums,
        team: ThreadTeam,
        raw_centroids: NDArray[np.float64],
        centroids: NDArray[np.float64],
    ) -> None:
        super().__init__(points, sums, team, raw_centroids, centroids)
        k = len(centroids)
        n_boxes, self._n_blocks = len(points.radii), len(points.offsets) - 1
        self._blocks = plain(Blocks(points.offsets, points.boxes, points.radii))
        self._bounds = BlockBounds(
            drift=np.zeros(k),
            moved=np.zeros(k + 1),
            state=np.zeros((n_boxes, STATE)),
            masks=np.zeros((n_boxes, -(-k // 64)), np.uint64),
            only=np.full(self._n_blocks, MIXED),
            bounds=points.storage.allocate((len(self.labels) + 32,), np.float32),
        )
        self._arrays = plain(self._bounds)

    def label(self, *, force: bool) -> int:
        self._begin()

        def work(window: Window, part: int, parts: int) -> None:
            blocks_pass(
                (part, parts, *window.regions), self._rows, self._frame, self._blocks, self._centroids, self._arrays,
                self.labels, self._sums, self._counters, force,
            )  # fmt: skip

        changed = self._sweep(work, self._bounds.bounds)
        self._bounds.drift.fill(0.0)  # a pass at the same centroids moves nothing
        return changed

    def centroids_moved(self, drift: NDArray[np.float64]) -> None:
        self._bounds.drift[:] = drift
        add_moves(drift, self._bounds.moved)

    def invalidate(self, rows: NDArray[np.int64]) -> None:
        b = self._bounds
        blocks = np.searchsorted(self.points.offsets, rows, side="right") - 1
        b.only[blocks] = MIXED
        for which in (blocks, self._n_blocks + blocks // REGION):
            b.masks[which] = 0
            b.state[which, VALID] = -1.0
        b.state[blocks, MOVED] = 0.0
        b.state[blocks, LOWEST] = -1.0

    @property
    def mean_list(self) -> float:
        """Mean number of centroids on a block's candidate list."""
        return float(np.bitwise_count(self._bounds.masks[: self._n_blocks]).sum()) / self._n_blocks


def first_assignment(
    points: Points,
    sums: Sums,
    team: ThreadTeam,
    raw_centroids: NDArray[np.float64],
    centroids: NDArray[np.float64],
) -> AssignmentStep:
    """Label all rows, and choose whether to use row or block bounds.

    Parameters
    ----------
    points
        The points.
    sums
        Sums to update, with a part for each thread.
    team
        Threads to use.
    raw_centroids, centroids
        (k, d) in raw units and in working coordinates. The assignment keeps these arrays, whose values may be moved.
    """
    start, k = time.perf_counter(), len(centroids)
    if points.has_blocks:
        blocks = BlockAssigner(points, sums, team, raw_centroids, centroids)
        blocks.label(force=True)
        log.debug("candidate lists of blocks have %.1f of %d centroids on average", blocks.mean_list, k)
        if blocks.mean_list <= _MAX_LIST_SHARE * k:
            return blocks
    rows = RowAssigner(points, sums, team, raw_centroids, centroids)
    if points.has_blocks:
        rows.labels = blocks.labels  # the sums already include these labels
    rows.label(force=True)
    log.debug("first assignment took %.3f s", time.perf_counter() - start)
    return rows
