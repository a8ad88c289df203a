"""Initialization of the exact algorithm: random rows, k-means++ and k-means||."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.seeding import draw_by_cost, evaluate_candidates
from streamkm.kernels.exact.sums import Real
from streamkm.models.exact.assign import first_assignment
from streamkm.models.exact.core import Sums
from streamkm.models.exact.points import Points, Window, prepare
from streamkm.models.exact.storage import copy_rows, release
from streamkm.models.exact.threads import ThreadTeam

_ROUNDS = 5
_OVERSAMPLING = 2.0
"""Rounds of k-means||, and expected draws per round as a multiple of k."""

_CHUNK_ROWS = 1 << 16
"""Rows that are read at a time, to limit memory."""

_CANONICAL_ORDER_ROWS = 8192
"""Up to this many points are brought into a canonical order before rows are drawn."""


def seed(
    method: str,
    points: Points,
    k: int,
    rng: np.random.RandomState,
    team: ThreadTeam,
) -> NDArray[np.float64]:
    """Choose initial centroids among the points.

    Of few points the choice depends neither on their order nor on whether a point is repeated or has a weight.

    Parameters
    ----------
    method
        ``"random"``, ``"k-means++"`` or ``"k-means||"``.
    points
        The points.
    k
        Number of centroids.
    rng
        Random generator, advanced.
    team
        Threads to use.

    Returns
    -------
    ndarray
        (k, d) raw units.
    """
    if len(points.given) <= _CANONICAL_ORDER_ROWS:
        X, weights = points.given, points.given_weights
        weights = weights if len(weights) else np.ones(len(X))
        order = _by_content(X)
        order = order[weights[order] > 0]
        points = prepare(X[order], weights[order], 1)
    if method == "random":
        return _random(points, k, rng).astype(np.float64)
    choose = _plus_plus if method == "k-means++" else _parallel
    return choose(points, k, rng, team).astype(np.float64)


def _by_content(X: Real) -> NDArray[np.int64]:
    """Order rows by a hash of their values: independent of the given order, with equal rows next to each other."""
    bits = (X + 0.0).view(np.uint32 if X.dtype == np.float32 else np.uint64).astype(np.uint64)  # no -0.0
    bits ^= bits >> np.uint64(29)
    factors = np.random.default_rng(0).integers(0, 2**64 - 1, bits.shape[1], np.uint64, endpoint=True) | np.uint64(1)
    return np.argsort((bits * factors).sum(axis=1, dtype=np.uint64), kind="stable")


class _NearestCosts:
    """Squared distances of all rows to the nearest of the centroids chosen so far."""

    def __init__(self, points: Points, team: ThreadTeam) -> None:
        n_blocks = len(points.offsets) - 1
        self.points, self.team = points, team
        self.nearest = points.storage.allocate((len(points.rows),), np.float32, fill=3e38)
        self.most = np.full(n_blocks, 3e38, np.float32)
        self.costs = np.full(n_blocks, 3e38)
        self._fresh = 1.0  # approximate share of rows that a new centroid can change

    def _call(self, candidates: NDArray[np.float32], trial: NDArray[np.float64]) -> None:
        p = self.points

        def work(window: Window, part: int, parts: int) -> None:
            evaluate_candidates(
                (part, parts, *window.blocks), p.rows, p.weights, p.offsets, p.boxes, candidates, self.nearest,
                self.most, self.costs, trial,
            )  # fmt: skip

        p.sweep(self.team, work, len(p.rows) * candidates.size * 0.1 * self._fresh, self.nearest)

    def take(self, candidate: NDArray[np.float32]) -> None:
        """Choose a point, (1, d) in working coordinates, as a centroid."""
        self._call(candidate, np.empty((0, 0)))
        self._fresh = max(0.1, self._fresh * 0.8) if self.points.has_blocks else 1.0

    def take_best(self, rows: NDArray[np.int64]) -> int:
        """Choose the row with the lowest resulting cost, of (m,) indices, as a centroid; return its index."""
        trial = np.empty((len(self.costs), len(rows)))
        candidates = copy_rows(self.points.rows, rows)
        self._call(candidates, trial)
        best = int(trial.sum(axis=0).argmin())
        self.take(candidates[best : best + 1].copy())
        return int(rows[best])

    @property
    def total(self) -> float:
        return float(self.costs.sum())

    def draw(self, share: float) -> int:
        """Draw a row with probability proportional to its cost; -1 if all costs are zero."""
        p = self.points
        return int(draw_by_cost(p.weights, p.offsets, self.nearest, self.costs, share * self.total))


class _WeightedSampler:
    """Draws points with probability proportional to their weights, as indices in the given order."""

    def __init__(self, points: Points, rng: np.random.RandomState) -> None:
        self._weights, self._n, self._rng = points.given_weights, len(points.given), rng
        starts = range(0, len(self._weights), _CHUNK_ROWS)
        sums = []
        for a in starts:
            sums.append(float(self._weights[a : a + _CHUNK_ROWS].sum()))
            release(self._weights, a, min(a + _CHUNK_ROWS, self._n))
        self._reached = np.cumsum(sums)

    def draw(self, count: int) -> NDArray[np.int64]:
        """Draw `count` points, with replacement."""
        shares = self._rng.uniform(size=count)
        if not len(self._weights):
            return np.minimum((shares * self._n).astype(np.int64), self._n - 1)
        return np.array([self._find(share * self._reached[-1]) for share in shares], np.int64)

    def _find(self, target: float) -> int:
        """Find the point at which the cumulated weight exceeds a target: first the chunk, then the point within it."""
        strip = min(int(np.searchsorted(self._reached, target, side="right")), len(self._reached) - 1)
        weights = self._weights[strip * _CHUNK_ROWS : (strip + 1) * _CHUNK_ROWS]
        reached = np.cumsum(weights) + (self._reached[strip - 1] if strip else 0.0)
        within = int(np.searchsorted(reached, target, side="right"))
        if within == len(reached):  # due to rounding
            within = int(np.flatnonzero(weights)[-1])
        return strip * _CHUNK_ROWS + within


def _random(points: Points, count: int, rng: np.random.RandomState) -> Real:
    """Draw `count` distinct points, or as many as there are and duplicates of them."""
    sampler = _WeightedSampler(points, rng)
    chosen: dict[bytes, Real] = {}
    for _ in range(64):
        for point in copy_rows(points.given, sampler.draw(count)) + 0.0:
            if len(chosen) < count:
                chosen.setdefault(point.tobytes(), point)
        if len(chosen) == count:
            return np.array(list(chosen.values()))
    for start in range(0, len(points.given), _CHUNK_ROWS):  # few distinct points: take the first ones
        for point in np.unique(points.given[start : start + _CHUNK_ROWS] + 0.0, axis=0):
            if len(chosen) < count:
                chosen.setdefault(point.tobytes(), point)
        release(points.given, start, min(len(points.given), start + _CHUNK_ROWS))
        if len(chosen) == count:
            break
    found: Real = _joined([np.array(list(chosen.values())), copy_rows(points.given, sampler.draw(count - len(chosen)))])
    return found


def _joined(parts: list[Any]) -> Any:
    """Concatenate arrays of points."""
    return np.concatenate(parts)


def _first(points: Points, costs: _NearestCosts, rng: np.random.RandomState) -> Real:
    """Draw the first centroid; (1, d)."""
    row = int(_WeightedSampler(points, rng).draw(1)[0])
    point = copy_rows(points.given, np.array([row]))
    costs.take(points.working(point).astype(np.float32))
    return point


def _plus_plus(points: Points, k: int, rng: np.random.RandomState, team: ThreadTeam) -> Real:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007, section 5): of several draws, the cheapest is kept."""
    n_candidates = 2 + int(math.log(k))
    costs = _NearestCosts(points, team)
    chosen = [_first(points, costs, rng)]
    for _ in range(1, k):
        rows = np.unique([costs.draw(share) for share in rng.uniform(size=n_candidates)])
        if rows[0] < 0:  # all points lie on centroids
            chosen.append(copy_rows(points.given, _WeightedSampler(points, rng).draw(1)))
            continue
        best = costs.take_best(rows)
        chosen.append(copy_rows(points.raw, np.array([best])))
    found: Real = _joined(chosen)
    return found


def _parallel(points: Points, k: int, rng: np.random.RandomState, team: ThreadTeam) -> Real:
    """k-means|| (Bahmani et al. 2012, algorithm 2): rounds of many draws, then weighted k-means++ on them."""
    costs = _NearestCosts(points, team)
    chosen = [_first(points, costs, rng)]
    for _ in range(_ROUNDS):
        total = costs.total
        if not total > 0.0:
            break
        rows = np.concatenate(
            [_drawn(points, costs.nearest, window, _OVERSAMPLING * k / total, rng) for window in points.windows]
        )
        for candidate in copy_rows(points.rows, rows):
            costs.take(candidate[None])
        chosen.append(copy_rows(points.raw, rows))
    candidates = np.unique(_joined(chosen), axis=0)
    if len(candidates) < k:
        found: Real = _joined([candidates, _random(points, k - len(candidates), rng)])
        return found
    raw = candidates.astype(np.float64)
    sums = Sums.zeros(team.n_threads, *raw.shape)
    first_assignment(points, sums, team, raw, points.working(raw))
    return _plus_plus(prepare(candidates, sums.values[:, -1], k), k, rng, team)


def _drawn(
    points: Points, nearest: NDArray[np.float32], window: Window, factor: float, rng: np.random.RandomState
) -> NDArray[np.int64]:
    """Draw each row of a window independently, with probability `factor` times its cost."""
    first, last = window.rows
    expected = nearest[first:last] * (points.weights[first:last] if len(points.weights) else 1.0) * factor
    found: NDArray[np.int64] = first + np.flatnonzero(rng.uniform(size=last - first) < expected)
    release(nearest, first, last)
    return found
