"""One run of Lloyd's algorithm: assign, update, until nothing changes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.distances import assigned_squares, relocate
from streamkm.kernels.groups import plain
from streamkm.models.exact.assign import AssignmentStep, first_assignment
from streamkm.models.exact.core import Sums, move_centroids, power_of_two
from streamkm.models.exact.points import Points, Window
from streamkm.models.exact.threads import ThreadTeam

log = logging.getLogger(__name__)

ZERO_DISTANCE = 2.0**-100
"""Squared distance per dimension, with coordinates of at most 1, up to which a point lies on its centroid: the mean of
equal points differs from them by rounding. Otherwise clusters without points could exchange such points for ever."""

Stopped = Literal["labels", "tol", "max_iter"]


@dataclass(frozen=True, eq=False)
class Iteration:
    """One iteration of a fit.

    Parameters
    ----------
    centroids
        (k, d) centroids to which points were assigned.
    sizes
        (k,) summed weights of the points assigned to each centroid.
    inertia
        Weighted sum of squared distances to the assigned centroids.
    moved
        Number of labels that this iteration changed; all points in the first.
    """

    centroids: NDArray[np.float64]
    sizes: NDArray[np.float64]
    inertia: float
    moved: int


@dataclass(frozen=True, eq=False)
class LloydResult:
    """Result of one run.

    Parameters
    ----------
    centroids
        (k, d) float64, raw units.
    sizes
        (k,) summed weights of the points nearest to each centroid.
    costs
        (k,) weighted sums of the squared distances of these points.
    inertia
        Sum of `costs`, computed exactly and rounded once.
    n_iter
        Number of assignments, including the last one, which changed nothing.
    stopped
        Stop reason: no label changed, no centroid moved more than `tol`, or `max_iter`.
    trace
        All iterations, if recorded.
    """

    centroids: NDArray[np.float64]
    sizes: NDArray[np.float64]
    costs: NDArray[np.float64]
    inertia: float
    n_iter: int
    stopped: Stopped
    trace: tuple[Iteration, ...]


class Lloyd:
    """A run of Lloyd's algorithm from given centroids.

    Parameters
    ----------
    points
        The points.
    start
        (k, d) initial centroids, raw units.
    team
        Threads to use.
    n_iter, moved
        To resume a run: the iteration of `start`, and the number of labels that it changed.

    Attributes
    ----------
    n_iter
        Iterations so far.
    stopped
        Stop reason, as in `LloydResult`.
    """

    def __init__(
        self, points: Points, start: NDArray[np.float64], team: ThreadTeam, *, n_iter: int = 1, moved: int | None = None
    ) -> None:
        k, d = start.shape
        self.points, self.team, self.k = points, team, k
        self.raw_centroids = start.astype(np.float64)
        self.centroids = points.working(self.raw_centroids)
        self.sums = Sums.zeros(team.n_threads, k, d)
        self._drift = np.zeros(k)
        self._core = plain(self.sums), plain(points.frame)
        self.n_iter = n_iter - 1
        self.stopped: Stopped = "max_iter"
        self.assigner: AssignmentStep = first_assignment(points, self.sums, team, self.raw_centroids, self.centroids)
        self._moved = len(self.assigner.labels) if moved is None else moved
        self.rows_read = len(self.assigner.labels)

    def steps(self, max_iter: int, tol: float) -> Iterator[int]:
        """Iterate; yield the number of changed labels after each assignment, before centroids are updated.

        Parameters
        ----------
        max_iter
            Most updates of centroids.
        tol
            Stop when no centroid moved more than this, in the unit of the points.
        """
        first = True
        while self.n_iter < max_iter:
            self.n_iter += 1
            # Step 1. Assign (the constructor made the first assignment). A full pass without bounds certifies that
            # nothing changed.
            if not first:
                self._moved = self._label(force=False)
                self.rows_read = self.assigner.rows_read
                if not self._moved:
                    self._moved = self._label(force=True)
                    self.rows_read += self.assigner.rows_read
            first = False
            yield self._moved
            # Step 2. Update, after moving the farthest points to clusters without points.
            changed = self._moved
            largest = self._update(may_stay=False)
            if largest < 0.0:
                changed += self._relocate_empty()
                largest = self._update(may_stay=True)
            if self.n_iter > 1 and not changed:
                self.stopped = "labels"
                return
            if largest <= tol:
                self.stopped = "tol"
                break
        self._label(force=True)  # assign to the centroids of the last update

    def finish(self, trace: tuple[Iteration, ...] = ()) -> LloydResult:
        """Compute the result of the run."""
        costs, inertia = self.costs()
        return LloydResult(self.raw_centroids.copy(), self.sizes(), costs, inertia, self.n_iter, self.stopped, trace)

    def record(self) -> Iteration:
        """Record the iteration that `steps` just yielded."""
        return Iteration(self.raw_centroids.copy(), self.sizes(), self.costs()[1], self._moved)

    def sizes(self) -> NDArray[np.float64]:
        """(k,) summed weights of clusters."""
        return self.sums.values[:, -1] * self.points.frame.weight_unit

    def _label(self, *, force: bool) -> int:
        return self.assigner.label(force=force)

    def _update(self, *, may_stay: bool) -> float:
        """Move centroids to their means; return the largest move, or -1 if one has no points and may not stay."""
        largest = move_centroids(*self._core, self.raw_centroids, self.centroids, self._drift, may_stay)
        if largest > 0.0:
            self.assigner.centroids_moved(self._drift)
        return largest

    def _relocate_empty(self) -> int:
        """Move the farthest points to clusters without points, as scikit-learn does; return how many moved.

        Points are taken by distance, then by index. A point that lies on its centroid, has no weight or is alone in its
        cluster stays.
        """
        counts = self.sums.counts.sum(axis=0)
        empty = np.flatnonzero(counts == 0)
        if not len(empty):
            return 0
        p, frame, labels = self.points, self.points.frame, self.assigner.labels
        limbs, own_counts = self.sums.limbs[0], self.sums.counts[0]
        moved: list[int] = []
        for row in self._farthest(len(empty) + self.k):  # at most one point per cluster is rejected
            old = int(labels[row])
            if len(moved) < len(empty) and counts[old] > 1:
                new = int(empty[len(moved)])
                weight = float(p.weights[row]) if len(p.weights) else 1.0
                relocate(p.raw, row, frame.origin, frame.scale, weight, limbs, own_counts, old, new)
                counts[old] -= 1
                labels[row] = new
                moved.append(row)
        self.assigner.invalidate(np.array(moved, np.int64))
        log.debug("moved the farthest points to %d of %d clusters without points", len(moved), len(empty))
        return len(moved)

    def _farthest(self, count: int) -> list[int]:
        """Rows farthest from their centroids, ties in the given order; none at distance 0 or without weight."""
        p = self.points
        best, far, given = np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64)
        for window in p.windows:
            first, last = window.rows
            squares = np.empty(last - first)
            self._squares(window, squares)
            if len(p.weights):
                squares[p.weights[first:last] == 0.0] = 0.0
            least = max(float(far[-1]) if len(far) == count else 0.0, _highest(squares, count))
            rows = first + np.flatnonzero((squares >= least) & (squares > ZERO_DISTANCE * p.raw.shape[1]))
            best, far = np.append(best, rows), np.append(far, squares[rows - first])
            given = np.append(given, p.permutation[rows] if len(p.permutation) else rows)
            order = np.lexsort((given, -far))[:count]
            best, far, given = best[order], far[order], given[order]
            if len(p.windows) > 1:
                p.release(window, self.assigner.labels)
        found: list[int] = best.tolist()
        return found

    def _squares(self, window: Window, squares: NDArray[np.float64]) -> tuple[NDArray[np.int64], float]:
        """Compute the squared distances of the rows of a window to their centroids, times ``scale**2``.

        Returns
        -------
        sums
            (k, 3) int64: exact sums by cluster, in limbs.
        unit
            Unit of these sums.
        """
        p, frame = self.points, self.points.frame
        # No row is farther from its centroid than from the centroid that is nearest to the origin.
        reach = float(np.abs((self.raw_centroids - frame.origin) * frame.scale).max(axis=1).min())
        unit = power_of_two(2.0 * p.raw.shape[1] * (1.0 + reach) ** 2)
        costs = np.zeros((self.team.n_threads, self.k, 3), np.int64)

        def work(part: int, parts: int) -> None:
            assigned_squares(
                (part, parts, *window.rows), p.raw, self.assigner.labels, self.raw_centroids, frame.scale, p.weights,
                unit, squares, costs[part],
            )  # fmt: skip

        self.team.share(work, (window.rows[1] - window.rows[0]) * (p.raw.shape[1] + 4))
        return costs.sum(axis=0), unit

    def costs(self) -> tuple[NDArray[np.float64], float]:
        """Sum squared distances by cluster, (k,), and over all: exact sums, rounded once."""
        p = self.points
        limbs, unit = np.zeros((self.k, 3), np.int64), 1.0
        for window in p.windows:
            some, unit = self._squares(window, np.empty(0))
            limbs += some
            if len(p.windows) > 1:
                p.release(window, self.assigner.labels)
        whole = [(high << 62) + (middle << 31) + low for high, middle, low in limbs.tolist()]
        sums = np.array([*(cost / 2**93 for cost in whole), sum(whole) / 2**93])
        sums = sums / unit * p.frame.weight_unit / p.frame.scale / p.frame.scale
        return sums[:-1], float(sums[-1])

    def relative_inertia(self) -> float:
        """Approximate difference of the inertia to that of all points at the origin, without a pass over the rows."""
        frame, sums = self.points.frame, self.sums.values
        centroids = (self.raw_centroids - frame.origin) * frame.scale
        parts = sums[:, -1:] * centroids**2 - 2.0 * centroids * sums[:, :-1]
        return float(parts.sum()) * frame.weight_unit / frame.scale / frame.scale


def _highest(squares: NDArray[np.float64], count: int) -> float:
    """The count-th largest value; 0 if there are fewer."""
    return float(np.partition(squares, -count)[-count]) if len(squares) > count else 0.0
