"""Solving a coreset anew: candidates from the live centroids, from swaps, and from scratch; the best one, polished.

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
from streamkm.kernels.coreset import thin
from streamkm.kernels.random import uniform
from streamkm.kernels.reductions import differences
from streamkm.kernels.search import descend, local_search, prune
from streamkm.kernels.seed import kmeans_plus_plus
from streamkm.models.centroids import FLOAT32_RATIO, columns_of, normalized, packed_like, power_of_two, weighted_mean
from streamkm.models.metric import Metric
from streamkm.models.validation import ONES, frozen
from streamkm.models.weighted_rows import masses, moved_share

Kind = Literal["lloyd", "swap", "cold"]

SAMPLE_ROWS = 1500
"""Candidates are found on a sample of the coreset of so many rows, or of `Effort.sample` a cluster if that is more."""

COLD_GAIN = 0.005
"""A candidate from scratch must be so much cheaper than the one from the live centroids, whose ids it would end."""

MAX_SAMPLE_EXCESS = 0.02
"""A candidate that is so much dearer than the best on the sample is not tried on all rows: it would not win there."""

TIE = 1e-4
"""Starts from scratch that differ by less than this share are equal: rounding must not decide between them."""

SAMPLE_TOLERANCE = 1e-3
"""On a sample, Lloyd stops when an iteration saves less than this share of the cost."""


@dataclass(frozen=True)
class Effort:
    """How hard to try.

    Attributes
    ----------
    sample
        Rows a cluster of the sample on which candidates are found.
    starts
        Starts from scratch: each gets k-means++ and one round of local search and Lloyd.
    offspring
        Candidates that are bred of two others: of all their centroids, those that are missed least are dropped.
    finalists
        The best of these compete on all rows, with the candidates from the live centroids. 0: none compete, the best on
        the sample wins, as long as ids need no protection.
    rounds
        Rounds of local search and Lloyd for the candidate from the live centroids.
    steps
        Iterations of Lloyd after each round, on the sample.
    polish
        Iterations of Lloyd of the winner, on all rows.
    tolerance
        They stop when one saves less than this share of the cost.
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
"""Iterations of Lloyd on all rows before finalists are compared."""

LIGHT_EFFORT = Effort(sample=20, starts=1, offspring=0, finalists=0, rounds=1, steps=5, polish=4, tolerance=1e-3)
"""For a re-solve while the stream runs."""


LARGE_GROWTH = 100_000
"""Points that take so long to learn that solving longer is worth it."""


def full_effort(mass_grown: float, k: int) -> Effort:
    """For a publication: more candidates the more the stream has grown since the last one, and the fewer clusters."""
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
    """A coreset to solve; arrays are not written to.

    Attributes
    ----------
    rows, weights
        (n, d) raw and (n,) float64.
    live
        (k, d) float64 raw: where to start from. None: from scratch only.
    n_clusters
        k.
    origin
        (d,) float64: a point among the rows.
    metric
        How distances are measured.
    mean
        Mean squared distance to the live centroids, about; 0 compares in float64.
    move_penalty
        Share of the cost that a solution must save for each share of the mass that it moves to another cluster of
        `published`; 0: ids need no protection.
    seed
        Of the random choices.
    published
        (k, d) float64 raw: the centroids whose ids are known to somebody; with a price only.
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
    """What solving gave.

    Attributes
    ----------
    centroids
        (k, d) float64, raw.
    kind
        Where they come from: ``lloyd`` and ``swap`` from the live ones, ``cold`` from scratch.
    """

    centroids: NDArray[np.float64]
    kind: Kind


class ScaledRows:
    """Weighted rows brought near one around zero, ready for the kernels.

    Parameters
    ----------
    rows
        (n, d) float64.
    weights
        (n,) float64.
    double
        Compare in float64.
    spherical
        As in `lloyd`.
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
        """The rows, from `lay_columns`."""
        return columns_of(self.rows, self.zeros, self.ones, double=self.double)

    def lloyd(self, centroids: NDArray[np.float64], max_iter: int, tol: float) -> float:
        """Move centroids; their cost."""
        return descend(self.rows, self.weights, self.columns, self.spherical, centroids, max_iter, tol)

    def assign(self, centroids: NDArray[np.float64]) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Nearest centroid of each row, and the squared distance."""
        packed = packed_like(*centroids.shape, double=self.double)
        labels, squared = np.empty(len(self.rows), np.int32), np.empty(len(self.rows))
        pack_centroids(centroids, self.zeros, self.ones, packed)
        assign_rows(self.rows, self.zeros, self.ones, ONES, packed, centroids, labels, squared)
        return labels, squared

    def seed(self, k: int, rng: NDArray[np.uint64]) -> NDArray[np.float64]:
        """k-means++, one candidate a centroid: local search comes after it."""
        centroids = np.empty((k, self.rows.shape[1]))
        kmeans_plus_plus(self.rows, self.weights, self.columns, 1, rng, centroids)
        return centroids

    def improve(
        self, centroids: NDArray[np.float64], rounds: int, steps: int, rng: NDArray[np.uint64]
    ) -> tuple[float, bool]:
        """Rounds of local search and Lloyd; the cost, and whether a centroid was swapped."""
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
        """As many centroids as each of two solutions has, those of both that are missed most.

        Parameters
        ----------
        first, second
            (k, d) each.
        prices
            (k,): what it costs to drop one of the first.
        """
        child = np.empty_like(first)
        both = np.zeros(2 * len(first))
        if prices is not None:
            both[: len(first)] = prices
        prune(self.weights, self.columns, np.concatenate([first, second]), both, child)
        return child

    def sample(
        self, centroids: NDArray[np.float64], size: int, rng: NDArray[np.uint64], *, careful: bool
    ) -> ScaledRows:
        """A sample of the rows by their sensitivities to centroids, a careful one with some of each neighbourhood."""
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
    """About as many of weighted rows as `size` says, and their weights; arguments as in `thin`."""
    capacity = size + 2 * k + 8
    kept, kept_weights = np.empty((capacity, rows.shape[1])), np.empty(capacity)
    n = thin(rows, weights, labels, squared, frozen(factors), k, float(size), origin, rng, kept, kept_weights)
    return kept[:n], kept_weights[:n]


def solve(problem: ResolveProblem, effort: Effort) -> Solution:
    """Find better centroids of a coreset."""
    rng = np.array([problem.seed], np.uint64)
    k, spherical = problem.n_clusters, problem.metric.spherical
    # Step 1. Bring rows near one around zero: then float32 and any unit will do. Directions are so already.
    n, d = problem.rows.shape
    if not n and problem.live is not None:  # nothing that was learned has weight
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
    # Step 2. Candidates, on a sample.
    size = max(SAMPLE_ROWS, effort.sample * k)
    sample = rows
    if size < 0.7 * n:
        some = weighted_mean(rows.rows, rows.weights)[np.newaxis] if live is None else live
        sample = rows.sample(some, size, rng, careful=effort.finalists > 0)
    candidates = _from_live(sample, live, effort, rng) if live is not None else []
    cold = _from_scratch(sample, k, effort, rng)
    if problem.published is not None and live is not None:
        # The old centroids with only those of the new that they miss most: as good, and fewer points move.
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
    # As long as no ids were published, a start from scratch is as good as any.
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
    """Centroids that may win.

    Attributes
    ----------
    cost
        Theirs, on the sample.
    """

    centroids: NDArray[np.float64]
    kind: Kind
    cost: float


def _from_live(
    sample: ScaledRows, live: NDArray[np.float64], effort: Effort, rng: NDArray[np.uint64]
) -> list[Candidate]:
    """Plain Lloyd, and swaps if they are better; neither has moved off the sample yet."""
    plain = live.copy()
    cost = sample.lloyd(plain, effort.steps, SAMPLE_TOLERANCE)
    warm = plain.copy()
    warm_cost, swapped = sample.improve(warm, effort.rounds, effort.steps, rng)
    found = [Candidate(live.copy(), "lloyd", cost)]
    if swapped and warm_cost < cost:
        found.append(Candidate(warm, "swap", warm_cost))
    return found


def _from_scratch(sample: ScaledRows, k: int, effort: Effort, rng: NDArray[np.uint64]) -> list[Candidate]:
    """The best starts from scratch and their offspring, best first.

    Breeding two solutions, each good in other places, and dropping what is missed least finds better ones than as many
    fresh starts (as in HG-means of Gribel and Vidal 2019, with deterministic dropping).
    """
    found = []
    for _ in range(effort.starts):
        centroids = sample.seed(k, rng)
        sample.lloyd(centroids, 2, SAMPLE_TOLERANCE)
        cost, _ = sample.improve(centroids, 1, LIGHT_EFFORT.steps, rng)
        found.append(Candidate(centroids, "cold", cost))
    found = _ranked(found)
    for _ in range(effort.offspring):
        # Of two drawn at random the better one is a parent; the list is in order.
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
    """Best first, earlier ones before others that are no better beyond rounding."""
    if not candidates:
        return candidates
    lowest = min(c.cost for c in candidates)
    return sorted(candidates, key=lambda c: c.cost if c.cost > lowest * (1.0 + TIE) else lowest)


def _best_on_all_rows(
    rows: ScaledRows, candidates: list[Candidate], published: NDArray[np.int32] | None, penalty: float, effort: Effort
) -> Candidate:
    """Compare on all rows; whoever would end ids must save the price of the mass it moves."""
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
