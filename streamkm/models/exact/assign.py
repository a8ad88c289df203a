"""The assignment step: labels, the bounds that allow rows to be skipped, and how bounds follow moving centroids."""

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
"""Block bounds are used if a block's candidate list has, on average, at most this share of the centroids."""


class AssignmentStep(Protocol):
    """Labels of rows, and bounds that tell which rows to compare again; `rows_read` counts these in the last pass."""

    labels: NDArray[np.int32]
    rows_read: int

    def label(self, raw_centroids: NDArray[np.float64], centroids: NDArray[np.float64], *, force: bool) -> int:
        """Update the labels for (k, d) centroids, and return how many changed; with `force`, ignore the bounds."""

    def centroids_moved(self, drift: NDArray[np.float64]) -> None:
        """Update the bounds after each centroid moved by `drift`, (k,)."""

    def invalidate(self, rows: NDArray[np.int64]) -> None:
        """Discard the bounds of rows, (m,) indices, whose labels were changed elsewhere."""


class ClusterSums:
    """Sums and counts of clusters, one part per thread; the sum over the parts is exact.

    Parameters
    ----------
    parts
        Number of threads that may add at the same time.
    k, d
        Clusters and dimensions; 0 clusters to compute no sums.
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
    """State that both ways of assigning need."""

    def __init__(self, points: Points, k: int, cluster_sums: ClusterSums, team: ThreadTeam) -> None:
        n, d = points.rows.shape
        self.points, self.cluster_sums, self.team, self.k = points, cluster_sums, team, k
        self.labels: NDArray[np.int32] = points.storage.allocate((n,), np.int32, fill=-1)
        self.rows_read = 0
        self.slack = np.empty(3)
        self.centroids32 = np.empty((k + 1, d), np.float32)
        self.counters = np.zeros((team.n_threads, 3), np.int64)
        self._cost = n * d * (k * 0.05 + 2.0)

    def _begin(self, centroids: NDArray[np.float64]) -> None:
        begin_pass(centroids, self.points.extent, self.slack, self.centroids32, self.counters)

    def _sweep(self, work: Callable[[int, int, Window], object], *kept: NDArray[Any]) -> int:
        """Run a pass and return how many labels changed; measures its duration to decide on threads for the next."""
        start = time.perf_counter()
        self.points.sweep(self.team, work, self._cost, self.labels, *kept)
        self._cost = (time.perf_counter() - start) * 1e9 * self.team.parts(self._cost / len(self.points.windows))
        changed, evaluated, _ = map(sum, zip(*self.counters.tolist(), strict=True))
        self.rows_read = int(evaluated)
        return int(changed)


class RowAssigner(_AssignerBase):
    """Assigns rows in any order, with one bound per row.

    Parameters
    ----------
    points
        The points.
    k
        Number of centroids.
    cluster_sums
        Sums and counts to update.
    team
        Threads to use.
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
                part, parts, *window.rows, p.raw, p.rows, p.weights, p.origin, p.scale, raw_centroids, self.centroids32,
                self.slack, self._moved, force, self._bounds, self._floors, self.labels, t.sums[part], t.counts[part],
                self.counters[part],
            )  # fmt: skip

        return self._sweep(work, self._bounds, self._floors)

    def centroids_moved(self, drift: NDArray[np.float64]) -> None:
        add_moves(drift, self._moved)

    def invalidate(self, rows: NDArray[np.int64]) -> None:
        self._bounds[rows] = -1.0
        self._floors[rows] = -1.0


class BlockAssigner(_AssignerBase):
    """Assigns blocks of neighbouring rows, each with a candidate list of centroids.

    Parameters
    ----------
    points
        The points, in blocks.
    k
        Number of centroids.
    cluster_sums
        Sums and counts to update.
    team
        Threads to use.
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
                raw_centroids, centroids, self.centroids32, self._drift, self.slack, self._moved[-1], force,
                self._state, self._masks, self._only, self._bounds, self.labels, t.sums[part],
                t.counts[part], self.counters[part],
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
        """Mean number of centroids on a block's candidate list."""
        return float(np.bitwise_count(self._masks[: self._n_blocks]).sum()) / self._n_blocks


def first_assignment(
    points: Points,
    k: int,
    cluster_sums: ClusterSums,
    team: ThreadTeam,
    raw_centroids: NDArray[np.float64],
    centroids: NDArray[np.float64],
) -> AssignmentStep:
    """Label all rows, and choose whether to use row or block bounds.

    Parameters
    ----------
    points
        The points.
    k
        Number of centroids.
    cluster_sums
        Sums and counts to update.
    team
        Threads to use.
    raw_centroids, centroids
        (k, d) in raw units and in working coordinates.
    """
    start = time.perf_counter()
    if points.has_blocks:
        blocks = BlockAssigner(points, k, cluster_sums, team)
        blocks.label(raw_centroids, centroids, force=True)
        log.debug("candidate lists of blocks have %.1f of %d centroids on average", blocks.mean_list, k)
        if blocks.mean_list <= _MAX_LIST_SHARE * k:
            return blocks
    rows = RowAssigner(points, k, cluster_sums, team)
    if points.has_blocks:
        rows.labels = blocks.labels  # the sums already include these labels
    rows.label(raw_centroids, centroids, force=True)
    log.debug("first assignment took %.3f s", time.perf_counter() - start)
    return rows
