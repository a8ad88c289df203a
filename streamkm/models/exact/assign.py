"""The assignment step: who keeps which bounds, and what they need to know of how centroids moved."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.blocks import LOWEST, MIXED, MOVED, REGION, STATE, VALID, blocks_pass
from streamkm.kernels.exact.relabel import begin_pass
from streamkm.kernels.exact.rows import rows_pass
from streamkm.kernels.exact.sums import LIMB, add_moves
from streamkm.models.exact.points import Points, Window
from streamkm.models.exact.threads import ThreadTeam

log = logging.getLogger(__name__)

_MAX_LIST_SHARE = 0.6
"""Blocks are kept if their lists have, on average, at most this share of the centroids."""


class Assigner(Protocol):
    """Labels, and bounds that tell which of them to look at again; `rows_read` counts those the last pass did."""

    labels: NDArray[np.int32]
    rows_read: int

    def label(self, raw_centroids: NDArray[np.float64], centroids: NDArray[np.float64], *, force: bool) -> int:
        """Bring labels up to date and count changes; with `force`, look at every row, whatever bounds say."""

    def centroids_moved(self, drift: NDArray[np.float64]) -> None:
        """Take note of how far each centroid moved."""

    def invalidate(self, rows: NDArray[np.int64]) -> None:
        """Drop what is known of rows whose labels were changed."""


class ClusterSums:
    """Sums and counts of clusters, one part a thread; what parts hold together is exact.

    Parameters
    ----------
    parts
        How many threads may add at the same time.
    k, d
        Clusters and dimensions; 0 clusters to sum nothing.
    """

    def __init__(self, parts: int, k: int, d: int) -> None:
        self.sums = np.zeros((parts, k, 2, d + 1), np.int64)
        self.counts = np.zeros((parts, k), np.int64)

    @property
    def weights(self) -> NDArray[np.float64]:
        """(k,) summed weights of clusters, in units of `Points.weight_unit`."""
        high, low = self.sums[:, :, :, -1].sum(axis=0).T
        found: NDArray[np.float64] = (high + low / LIMB) / LIMB
        return found


class _AssignerBase:
    """What both ways have in common."""

    def __init__(self, points: Points, k: int, cluster_sums: ClusterSums, team: ThreadTeam) -> None:
        n, d = points.rows.shape
        self.points, self.cluster_sums, self.team, self.k = points, cluster_sums, team, k
        self.labels: NDArray[np.int32] = points.storage.allocate((n,), np.int32, fill=-1)
        self.rows_read = 0
        self.slack = np.empty(3)
        self.narrowed = np.empty((k + 1, d), np.float32)
        self.report = np.zeros((team.n_threads, 3), np.int64)
        self._cost = n * d * (k * 0.05 + 2.0)

    def _begin(self, centroids: NDArray[np.float64]) -> None:
        begin_pass(centroids, self.points.extent, self.slack, self.narrowed, self.report)

    def _sweep(self, work: Callable[[int, int, Window], object], *kept: NDArray[Any]) -> int:
        """Run a pass; how many labels changed. The next pass is shared by threads if this one took long enough."""
        start = time.perf_counter()
        self.points.sweep(self.team, work, self._cost, self.labels, *kept)
        self._cost = (time.perf_counter() - start) * 1e9 * self.team.parts(self._cost / len(self.points.windows))
        changed, evaluated, _ = map(sum, zip(*self.report.tolist(), strict=True))
        self.rows_read = int(evaluated)
        return int(changed)


class RowAssigner(_AssignerBase):
    """Rows in any order, one bound each.

    Parameters
    ----------
    points
        The points.
    k
        How many centroids.
    cluster_sums
        Where to sum up.
    team
        Threads.
    """

    def __init__(self, points: Points, k: int, cluster_sums: ClusterSums, team: ThreadTeam) -> None:
        super().__init__(points, k, cluster_sums, team)
        self._moved = np.zeros(k + 1)
        allocate = points.storage.allocate
        self._bounds = allocate((len(self.labels),), np.float32)
        self._floors = allocate((len(self.labels) + 32,), np.float32)

    def label(self, raw_centroids: NDArray[np.float64], centroids: NDArray[np.float64], *, force: bool) -> int:
        p, t = self.points, self.cluster_sums
        self._begin(centroids)

        def work(part: int, parts: int, window: Window) -> None:
            rows_pass(
                part, parts, *window.rows, p.raw, p.rows, p.weights, p.origin, p.scale, raw_centroids, self.narrowed,
                self.slack, self._moved, force, self._bounds, self._floors, self.labels, t.sums[part], t.counts[part],
                self.report[part],
            )  # fmt: skip

        return self._sweep(work, self._bounds, self._floors)

    def centroids_moved(self, drift: NDArray[np.float64]) -> None:
        add_moves(drift, self._moved)

    def invalidate(self, rows: NDArray[np.int64]) -> None:
        self._bounds[rows] = -1.0
        self._floors[rows] = -1.0


class BlockAssigner(_AssignerBase):
    """Blocks of neighbouring rows, each with its list of centroids.

    Parameters
    ----------
    points
        The points, in blocks.
    k
        How many centroids.
    cluster_sums
        Where to sum up.
    team
        Threads.
    """

    def __init__(self, points: Points, k: int, cluster_sums: ClusterSums, team: ThreadTeam) -> None:
        super().__init__(points, k, cluster_sums, team)
        self._n_blocks = len(points.offsets) - 1
        self._state = np.zeros((len(points.radii), STATE))
        self._masks = np.zeros((len(points.radii), -(-k // 64)), np.uint64)
        self._only = np.full(self._n_blocks, MIXED)
        self._bounds = points.storage.allocate((len(self.labels) + 32,), np.float32)
        self._drift = np.zeros(k)
        self._moved = np.zeros(k + 1)

    def label(self, raw_centroids: NDArray[np.float64], centroids: NDArray[np.float64], *, force: bool) -> int:
        p, t = self.points, self.cluster_sums
        self._begin(centroids)

        def work(part: int, parts: int, window: Window) -> None:
            blocks_pass(
                part, parts, *window.regions, p.raw, p.rows, p.weights, p.origin, p.scale, p.offsets, p.boxes, p.radii,
                raw_centroids, centroids, self.narrowed, self._drift, self.slack, self._moved[-1], force, self._state,
                self._masks, self._only, self._bounds, self.labels, t.sums[part], t.counts[part], self.report[part],
            )  # fmt: skip

        changed = self._sweep(work, self._bounds)
        self._drift = np.zeros(self.k)  # a pass at the same centroids moves nothing
        return changed

    def centroids_moved(self, drift: NDArray[np.float64]) -> None:
        self._drift = drift.copy()
        add_moves(drift, self._moved)

    def invalidate(self, rows: NDArray[np.int64]) -> None:
        blocks = np.searchsorted(self.points.offsets, rows, side="right") - 1
        self._only[blocks] = MIXED
        for which in (blocks, self._n_blocks + blocks // REGION):
            self._masks[which] = 0
            self._state[which, VALID] = -1.0
        self._state[blocks, MOVED] = 0.0
        self._state[blocks, LOWEST] = -1.0

    @property
    def mean_list(self) -> float:
        """Centroids on a block's list, on average."""
        return float(np.bitwise_count(self._masks[: self._n_blocks]).sum()) / self._n_blocks


def first_assignment(
    points: Points,
    k: int,
    cluster_sums: ClusterSums,
    team: ThreadTeam,
    raw_centroids: NDArray[np.float64],
    centroids: NDArray[np.float64],
) -> Assigner:
    """Label all rows, and choose the way to keep labels up to date.

    Parameters
    ----------
    points
        The points.
    k
        How many centroids.
    cluster_sums
        Where to sum up.
    team
        Threads.
    raw_centroids, centroids
        (k, d) as given and in working coordinates.
    """
    start = time.perf_counter()
    if points.has_blocks:
        blocks = BlockAssigner(points, k, cluster_sums, team)
        blocks.label(raw_centroids, centroids, force=True)
        log.debug("blocks have %.1f of %d centroids on their lists", blocks.mean_list, k)
        if blocks.mean_list <= _MAX_LIST_SHARE * k:
            return blocks
    rows = RowAssigner(points, k, cluster_sums, team)
    if points.has_blocks:
        rows.labels = blocks.labels  # the sums have these rows already
    rows.label(raw_centroids, centroids, force=True)
    log.debug("first labels after %.3f s", time.perf_counter() - start)
    return rows
