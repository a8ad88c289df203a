"""Re-solving of a coreset: candidates from the live centroids, by swaps and from scratch; the best one is polished.

All functions here are pure: what they give depends on their arguments only, so they may run in any thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.assign import Real, largest, pack_centroids
from streamkm.kernels.assign import assign as assign_rows
from streamkm.kernels.coreset import WeightedRows, thin
from streamkm.kernels.groups import plain
from streamkm.kernels.random import uniform
from streamkm.kernels.reductions import differences
from streamkm.kernels.search import lloyd_on_columns, local_search, remove_centroids
from streamkm.kernels.seed import kmeans_plus_plus
from streamkm.models.centroids import FLOAT32_RATIO, columns_of, normalized, packed_like, power_of_two, weighted_mean
from streamkm.models.metric import Metric
from streamkm.models.validation import ONES, frozen
from streamkm.models.weighted_rows import masses, moved_share

Kind = Literal["lloyd", "swap", "cold"]

SAMPLE_ROWS = 1500
"""Candidates are found on a sample of this many rows, or of `Effort.sample` per cluster if that is more."""

COLD_GAIN = 0.005
"""A candidate from scratch, which would end ids, must be cheaper than the best other one by at least this share."""

MAX_SAMPLE_EXCESS = 0.02
"""Candidates more expensive than the best one on the sample by more than this share are not tried on all rows."""

TIE = 1e-4
"""Candidates from scratch whose costs differ by less than this share are equal, so that rounding does not decide."""

SAMPLE_TOLERANCE = 1e-3
"""On a sample, Lloyd stops when an iteration reduces the cost by less than this share."""


@dataclass(frozen=True)
class Effort:
    """How much computation a re-solve spends.

    Attributes
    ----------
    sample
        Rows per cluster of the sample on which candidates are found.
    starts
        Starts from scratch, by k-means++ and one round of local search and Lloyd.
    offspring
        Candidates made by crossover of two others: of all their centroids, the least useful ones are dropped.
    finalists
        Number of the best of these that compete on all rows with the candidates from the live centroids. 0: the best on
        the sample wins, unless ids are published.
    rounds
        Rounds of local search and Lloyd for the candidate from the live centroids.
    steps
        Iterations of Lloyd after each round, on the sample.
    polish
        Iterations of Lloyd for the winner, on all rows.
    tolerance
        Lloyd stops when an iteration reduces the cost by less than this share.
    """

    sample: int
    starts: int
    offspring: int
    finalists: int
    rounds: int
    steps: int
    polish: int
    tolerance: float


FINALIST_ITERATIONS = 4
"""Iterations of Lloyd on all rows before the finalists are compared."""

LIGHT_EFFORT = Effort(sample=20, starts=1, offspring=0, finalists=0, rounds=1, steps=5, polish=4, tolerance=1e-3)
"""For re-solves between publications."""


LARGE_GROWTH = 100_000
"""Growth of the mass, in points, from which on a publication solves with the largest sample."""


def full_effort(mass_grown: float, k: int) -> Effort:
    """Effort for a publication: the more, the more the stream has grown since the last one and the fewer clusters."""
    large = mass_grown > LARGE_GROWTH
    starts = max(2 if k <= 16 else 3, min(8, int(min(mass_grown, 1e6) / 25_000), 400 // k))
    return Effort(
        sample=80 if large else 40,
        starts=starts,
        offspring=2 * starts - 2,
        finalists=2,
        rounds=2,
        steps=10,
        polish=16 if large else 8,
        tolerance=1e-4,
    )


@dataclass(frozen=True)
class ResolveProblem:
    """A coreset to solve; the arrays are not written to.

    Attributes
    ----------
    rows, weights
        (n, d) raw and (n,) float64.
    live
        (k, d) float64 raw: the live centroids. None: only starts from scratch.
    n_clusters
        k.
    origin
        (d,) float64: a point among the rows.
    metric
        Scale of each dimension, and whether distances are cosine.
    mean
        Approximate mean squared distance to the live centroids; 0 to compare in float64.
    move_penalty
        Share of the cost that a solution must save per share of the mass that it moves to another cluster of
        `published`; 0 if nothing is published.
    seed
        Seed of the random choices.
    published
        (k, d) float64 raw: the published centroids, if `move_penalty` is not 0.
    """

    rows: NDArray[np.float64]
    weights: NDArray[np.float64]
    live: NDArray[np.float64] | None
    n_clusters: int
    origin: NDArray[np.float64]
    metric: Metric
    mean: float
    move_penalty: float
    seed: int
    published: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Solution:
    """Result of a re-solve.

    Attributes
    ----------
    centroids
        (k, d) float64, raw.
    kind
        ``lloyd`` or ``swap``: from the live centroids; ``cold``: from scratch.
    """

    centroids: NDArray[np.float64]
    kind: Kind


class ScaledRows:
    """Weighted rows centred at zero and scaled to about one, with the kernels that use them.

    Parameters
    ----------
    rows
        (n, d) float64.
    weights
        (n,) float64.
    double
        Whether to compare in float64 instead of float32.
    spherical
        Whether rows and centroids have length one.
    """

    def __init__(
        self, rows: NDArray[np.float64], weights: NDArray[np.float64], *, double: bool, spherical: bool
    ) -> None:
        d = rows.shape[1]
        self.rows, self.weights = frozen(rows), frozen(weights)
        self.double, self.spherical = double, spherical
        self.zeros, self.ones = np.zeros(d), np.ones(d)

    @cached_property
    def columns(self) -> Real:
        """The rows in the layout of `lay_columns`."""
        return columns_of(self.rows, self.zeros, self.ones, double=self.double)

    def lloyd(self, centroids: NDArray[np.float64], max_iter: int, tol: float) -> float:
        """Run Lloyd on (k, d) centroids in place, and return their cost."""
        return lloyd_on_columns(self.rows, self.weights, self.columns, self.spherical, centroids, max_iter, tol)

    def assign(self, centroids: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return the nearest of (k, d) centroids of each row, and the squared distance to it, (n,) each."""
        packed = packed_like(*centroids.shape, double=self.double)
        labels, squared = np.empty(len(self.rows), np.int32), np.empty(len(self.rows))
        pack_centroids(centroids, self.zeros, self.ones, packed)
        assign_rows(self.rows, self.zeros, self.ones, ONES, packed, centroids, labels, squared)
        return labels, squared

    def seed(self, k: int, rng: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Choose (k, d) centroids by k-means++, with one candidate per centroid: local search follows."""
        centroids = np.empty((k, self.rows.shape[1]))
        kmeans_plus_plus(self.rows, self.weights, self.columns, 1, rng, centroids)
        return centroids

    def improve(
        self, centroids: NDArray[np.float64], rounds: int, steps: int, rng: NDArray[np.uint64]
    ) -> tuple[float, bool]:
        """Run local search and Lloyd on (k, d) centroids in place; return the cost, and whether one was swapped."""
        k = len(centroids)
        swapped = False
        cost = self.lloyd(centroids, 0, 0.0)
        for _ in range(rounds):
            if not local_search(
                self.rows, self.weights, self.columns, max(16, k), SAMPLE_TOLERANCE / k, centroids, rng
            ):
                break
            swapped = True
            cost = self.lloyd(centroids, steps, SAMPLE_TOLERANCE)
        return cost, swapped

    def crossover(
        self, first: NDArray[np.float64], second: NDArray[np.float64], prices: NDArray[np.float64] | None = None
    ) -> NDArray[np.float64]:
        """Combine two solutions: of all their centroids, keep the k whose removal would cost most.

        Parameters
        ----------
        first, second
            (k, d) each.
        prices
            (k,): additional cost of dropping one of the first.
        """
        child = np.empty_like(first)
        both = np.zeros(2 * len(first))
        if prices is not None:
            both[: len(first)] = prices
        remove_centroids(self.weights, self.columns, np.concatenate([first, second]), both, child)
        return child

    def sample(
        self, centroids: NDArray[np.float64], size: int, rng: NDArray[np.uint64], *, careful: bool
    ) -> ScaledRows:
        """Sample rows by their sensitivities to (k, d) centroids; if `careful`, with some of each neighbourhood."""
        labels, squared = self.assign(centroids)
        factors = self.ones if careful else ONES
        some = thin_rows(self.rows, self.weights, labels, squared, factors, len(centroids), size, self.zeros, rng)
        return ScaledRows(*some, double=self.double, spherical=self.spherical)


def thin_rows(
    rows: NDArray[np.float64],
    weights: NDArray[np.float64],
    labels: NDArray[np.int32],
    squared: NDArray[np.float64],
    factors: NDArray[np.float64],
    k: int,
    size: int,
    origin: NDArray[np.float64],
    rng: NDArray[np.uint64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return about `size` of the weighted rows, (m, d), with new weights, (m,); arguments as in `thin`."""
    capacity = size + 2 * k + 8
    kept, kept_weights = np.empty((capacity, rows.shape[1])), np.empty(capacity)
    weighted = plain(WeightedRows(rows, weights, labels, squared))
    n = thin(weighted, frozen(factors), k, float(size), origin, rng, kept, kept_weights)
    return kept[:n], kept_weights[:n]


def solve(problem: ResolveProblem, effort: Effort) -> Solution:
    """Find better centroids for a coreset, with the given effort."""
    rng = np.array([problem.seed], np.uint64)
    k, spherical = problem.n_clusters, problem.metric.spherical
    # Step 1. Centre and scale the rows, so that float32 suffices whatever the unit. Directions need no centring.
    n, d = problem.rows.shape
    if not n and problem.live is not None:  # no learned row has weight
        return Solution(problem.live.copy(), "lloyd")
    weights = normalized(problem.weights)
    origin = np.zeros_like(problem.origin) if spherical else problem.origin
    scaled = np.empty((n, d))
    differences(frozen(problem.rows), origin, problem.metric.factors, scaled)
    high = largest(frozen(scaled.reshape(-1)))
    power = 1.0 if spherical else power_of_two(high)
    scale = problem.metric.factors * power
    reach = high * high * d / FLOAT32_RATIO
    scaled *= power
    rows = ScaledRows(scaled, weights, double=not reach <= problem.mean, spherical=spherical)
    live = None if problem.live is None else (problem.live - origin) * scale
    # Step 2. Find candidates on a sample.
    size = max(SAMPLE_ROWS, effort.sample * k)
    sample = rows
    if size < 0.7 * n:
        some = weighted_mean(rows.rows, rows.weights)[np.newaxis] if live is None else live
        sample = rows.sample(some, size, rng, careful=effort.finalists > 0)
    candidates = _from_live(sample, live, effort, rng) if live is not None else []
    cold = _from_scratch(sample, k, effort, rng)
    if problem.published is not None and live is not None:
        # Old centroids with only the best few of the new ones: about as good, and fewer points change cluster.
        prices = problem.move_penalty * masses(sample.assign(live)[0], sample.weights, k)
        warm = candidates[-1]
        offspring = [sample.crossover(warm.centroids, other.centroids) for other in cold]
        offspring += [
            sample.crossover(live, other.centroids, prices * other.cost) for other in [*candidates[1:], *cold]
        ]
        for child in offspring:
            candidates.append(Candidate(child, "swap", sample.lloyd(child, effort.steps, SAMPLE_TOLERANCE)))
    lowest = min((c.cost for c in candidates), default=np.inf)
    if live is None and reach * power**2 <= cold[0].cost:
        rows = ScaledRows(rows.rows, weights, double=False, spherical=spherical)
    # As long as no ids are published, a start from scratch is as good as any other.
    least = COLD_GAIN if problem.move_penalty > 0.0 or not effort.finalists else 0.0
    candidates += [c for c in cold if live is None or c.cost < lowest * (1.0 - least)]
    # Step 3. The best of each kind compete on all rows, and the winner is polished.
    if problem.published is None:
        lowest = min(c.cost for c in candidates)
        candidates = [c for c in candidates if c.cost <= lowest * (1.0 + MAX_SAMPLE_EXCESS)]
    if effort.finalists or problem.published is not None:
        published = None if problem.published is None else rows.assign((problem.published - origin) * scale)[0]
        best = _best_on_all_rows(rows, candidates, published, problem.move_penalty, effort)
    else:
        best = min(candidates, key=lambda c: c.cost)
    rows.lloyd(best.centroids, effort.polish, effort.tolerance)
    return Solution(best.centroids / scale + origin, best.kind)


@dataclass
class Candidate:
    """Centroids that compete.

    Attributes
    ----------
    cost
        Cost on the sample.
    """

    centroids: NDArray[np.float64]
    kind: Kind
    cost: float


def _from_live(
    sample: ScaledRows, live: NDArray[np.float64], effort: Effort, rng: NDArray[np.uint64]
) -> list[Candidate]:
    """Candidates by plain Lloyd, and by swaps if these are better; centroids of the former are not moved yet."""
    plain = live.copy()
    cost = sample.lloyd(plain, effort.steps, SAMPLE_TOLERANCE)
    warm = plain.copy()
    warm_cost, swapped = sample.improve(warm, effort.rounds, effort.steps, rng)
    found = [Candidate(live.copy(), "lloyd", cost)]
    if swapped and warm_cost < cost:
        found.append(Candidate(warm, "swap", warm_cost))
    return found


def _from_scratch(sample: ScaledRows, k: int, effort: Effort, rng: NDArray[np.uint64]) -> list[Candidate]:
    """The best candidates from scratch and their offspring, best first.

    Crossover of two solutions that are good in different regions finds better ones than as many new starts (as in
    HG-means, Gribel and Vidal 2019, but with deterministic removal of centroids).
    """
    found = []
    for _ in range(effort.starts):
        centroids = sample.seed(k, rng)
        sample.lloyd(centroids, 2, SAMPLE_TOLERANCE)
        cost, _ = sample.improve(centroids, 1, LIGHT_EFFORT.steps, rng)
        found.append(Candidate(centroids, "cold", cost))
    found = _ranked(found)
    for _ in range(effort.offspring):
        # Tournament selection: the better one of two draws is a parent; the list is sorted.
        first, second = (min(int(uniform(rng) * len(found)) for _ in range(2)) for _ in range(2))
        if first == second:
            second = (first + 1) % len(found)
        child = sample.crossover(found[first].centroids, found[second].centroids)
        found = _ranked(
            [*found, Candidate(child, "cold", sample.lloyd(child, 2 * LIGHT_EFFORT.steps, SAMPLE_TOLERANCE))]
        )
        found = found[: max(4, effort.starts)]
    return found[: max(1, effort.finalists)]


def _ranked(candidates: list[Candidate]) -> list[Candidate]:
    """Sort by cost, best first; ties within rounding keep their order."""
    if not candidates:
        return candidates
    lowest = min(c.cost for c in candidates)
    return sorted(candidates, key=lambda c: c.cost if c.cost > lowest * (1.0 + TIE) else lowest)


def _best_on_all_rows(
    rows: ScaledRows, candidates: list[Candidate], published: NDArray[np.int32] | None, penalty: float, effort: Effort
) -> Candidate:
    """Choose the cheapest candidate on all rows, where changed ids increase the cost by `penalty`."""
    best, lowest = candidates[0], np.inf
    for candidate in candidates:
        cost = rows.lloyd(candidate.centroids, FINALIST_ITERATIONS, effort.tolerance)
        if published is not None:
            labels, _ = rows.assign(candidate.centroids)
            cost *= 1.0 + penalty * moved_share(published, labels, rows.weights, len(candidate.centroids))
        needed = COLD_GAIN if published is not None and candidate.kind == "cold" != best.kind else 0.0
        if cost < lowest * (1.0 - needed):
            best, lowest = candidate, cost
    return best
