"""Live centroids with a coreset that keeps them good, and what was published of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import NotReadyError
from streamkm.kernels.assign import Real
from streamkm.models.acceptance import MIN_GAIN, CoresetFit, match_clusters, sampling_gain, shrink_moves
from streamkm.models.background import WORKER, Task
from streamkm.models.centroids import BatchResult, LiveCentroids, checked_array, nearest
from streamkm.models.coreset import Coreset
from streamkm.models.decay import AgedWeights
from streamkm.models.lineage.tracker import LineageTracker
from streamkm.models.metric import Metric, Scale
from streamkm.models.outliers import GapRule
from streamkm.models.resolve import LIGHT_EFFORT, ResolveProblem, Solution, full_effort, solve
from streamkm.models.schedule import FORGET_FACTOR, ResolveSchedule
from streamkm.models.seeding import initial_centroids
from streamkm.models.validation import frozen
from streamkm.models.weighted_rows import deviations, moved_share, overlap
from streamkm.state import Event, Publication, Snapshot

MOVE_PENALTY = 0.25
"""Once ids are published, it must be so by this much times the share of the mass that would change its id; a solution
that moves a tenth of the points has to save 2.5 % of the cost."""

ResolveOutcome = Literal["keep", "lloyd", "swap", "cold"]
View = Literal["published", "live"]


@dataclass
class PendingSolution:
    """A solution that is on its way.

    Attributes
    ----------
    task
        The work, or its result.
    due
        It takes effect with the first batch when so many rows were seen.
    metric
        What it was solved with.
    """

    task: Task[Solution] | Solution
    due: int
    metric: Metric

    def solution(self) -> Solution:
        """The result; waits for it."""
        if not isinstance(self.task, Solution):
            self.task = self.task.result()
        return self.task

    @property
    def ready(self) -> bool:
        """Whether the result is there."""
        return isinstance(self.task, Solution) or self.task.done

    def __getstate__(self) -> dict[str, Any]:
        """A copy or a pickle holds the result."""
        return {"task": self.solution(), "due": self.due, "metric": self.metric}


class Clusters:
    """Keeps live centroids as good as their coreset allows.

    A re-solve is worked on beside the stream. When its result takes effect is a matter of rows seen and not of time, so
    equal batches give equal clusters whatever the machine is doing. A result that is not there by then is waited for.

    Parameters
    ----------
    coreset
        An empty one.
    metric
        How distances are measured at first.
    scale
        How the units of the metric follow the data.
    schedule
        When to re-solve.
    rule
        Tells outliers; None: there are none.
    """

    def __init__(
        self, coreset: Coreset, metric: Metric, scale: Scale, schedule: ResolveSchedule, rule: GapRule | None
    ) -> None:
        self.coreset, self.scale, self.schedule, self.rule = coreset, scale, schedule, rule
        self.lineage = LineageTracker()
        self.published: Publication | None = None
        self.published_centroids: LiveCentroids | None = None
        """The centroids that were published last; live ones have moved on, and may have been ahead of them then."""
        self._pending: PendingSolution | None = None
        self._prepared: PendingSolution | None = None
        self._born: dict[int, int] = {}
        self._published_at = 0.0  # weight ever learned then
        self._spreads_unknown = False  # clusters were adopted without a trace of how their points spread
        self.live: LiveCentroids
        self._metric = metric

    def initialize(self, rows: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Make the first centroids of weighted rows."""
        metric, k = self._metric, self.coreset.n_clusters
        if self.rule is not None:
            inside = self.rule.refit(rows, weights, self._outlier_units(metric, rows, weights))
            if inside is not None:
                rows, weights = rows[inside], weights[inside]
        metric = metric.rescaled(rows, weights, self.scale)
        centroids, stats = initial_centroids(rows, weights, k, self.coreset.rng, metric)
        self.live = LiveCentroids.start(centroids, stats, metric)
        self.coreset.add_rows(rows, weights, self.live)
        self.schedule.learned = float(weights.sum())
        self.schedule.resolve_started(self.schedule.learned)

    def initialize_from_snapshot(self, s: Snapshot, rows: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Go on from clusters that are known, instead of `initialize`; weighted rows stand for their points."""
        metric = Metric(s.factors.copy(), self._metric.spherical)
        stats = np.zeros((len(s.ids), 3))
        stats[:, 0], stats[:, 1] = s.weights, s.weights * s.spreads**2
        self.live = LiveCentroids.start(s.centroids.copy(), stats, metric)
        self.live.ids[:], self.live.next_id = s.ids, int(s.ids.max()) + 1
        self.coreset.add_rows(rows, weights, self.live)
        self._spreads_unknown = len(rows) <= len(s.ids)
        self._born = dict(zip(s.ids.tolist(), s.born.tolist(), strict=True))
        self.schedule.learned = self._published_at = float(s.weights.sum())
        self.schedule.resolve_started(self.schedule.learned)

    def learn(
        self,
        X: Real,
        aged: AgedWeights,
        high: float,
        n_seen: int,
        starved: tuple[float, float],
    ) -> BatchResult:
        """Learn one batch.

        Parameters
        ----------
        X, aged, high
            As for `LiveCentroids.learn`.
        n_seen
            Rows seen before.
        starved
            Share and idle weight for `LiveCentroids.restart_starved`.
        """
        n = len(X)
        # Step 1. Let a solution take effect whose place in the stream this is.
        if self._pending is not None and n_seen >= self._pending.due:
            pending, self._pending = self._pending, None
            self.coreset.calibrate()
            self._apply_if_better(pending.solution(), pending.metric, *self.coreset.calibrated(), steps=1)
        # Step 2. Leave outliers out.
        if self.rule is not None and self.rule.found:
            X, aged = self.rule.remove_outliers(X, aged)
        # Step 3. Learn the batch, sample it, and give starving clusters a new start.
        live = self.live
        learned = live.learn(X, aged, high)
        self.coreset.sample_batch(X, aged, learned, live)
        share, idle = starved
        if learned.idle >= idle:
            live.restart_starved(X, aged.decayed, learned, share, idle, self.coreset.rng)
        # Step 4. Begin a re-solve if one is due.
        why = self.schedule.after_batch(learned, n_seen + n, n, aged)
        if why == "jump" or (why and self._pending is None and self._prepared is None):
            self._start_resolve(n_seen + n, why, X, aged.weights, high)
        return learned

    def _start_resolve(self, n_seen: int, why: str, X: Real, row_weights: NDArray[np.float64], high: float) -> None:
        due = n_seen + (0 if why == "jump" else self.schedule.lag)
        problem, task = self._problem(), None
        if why == "jump" and self.schedule.may_forget:
            # Not in the background: whether the past is in the way is known when the solution is.
            task = solve(problem, LIGHT_EFFORT)
            _, squared = nearest(X, high, task.centroids, problem.origin, problem.metric, 0.0)
            row_weights = row_weights if len(row_weights) else np.ones(len(X))
            mass = float(self.live.weights.sum())
            if self.schedule.should_forget(float(row_weights @ squared), float(row_weights.sum()), mass):
                self._forget(FORGET_FACTOR)
                problem, task = self._problem(), None
        self.schedule.resolve_started(float(self.live.weights.sum()))
        self._pending = PendingSolution(
            task or WORKER.submit(partial(solve, problem, LIGHT_EFFORT)), due, problem.metric
        )

    def _forget(self, factor: float) -> None:
        """Let all that was learned count less."""
        self.live.stats[:, :2] *= factor
        self.coreset.decay(factor)
        self.schedule.decay_since_publication *= factor
        if self.rule is not None:
            self.rule.decay(factor)

    def _problem(self) -> ResolveProblem:
        """The coreset as it is now, without the outliers that are in it."""
        self.coreset.calibrate()
        rows, weights = self.coreset.calibrated()
        k = len(self.live.ids)
        if self.rule is not None:
            inside = self.rule.refit(rows, weights, self._outlier_units(self.live.metric, rows, weights))
            if inside is not None:
                # Spikes have drawn centroids: they begin anew.
                self.coreset.filter_rows(inside)
                rows, weights = rows[inside], weights[inside]
                metric = self.live.metric.rescaled(rows, weights, self.scale)
                centroids, _ = initial_centroids(rows, weights, k, self.coreset.rng, metric)
                self._apply_if_better(Solution(centroids, "cold"), metric, rows, weights, force=True)
        metric = self.live.metric.rescaled(rows, weights, self.scale)
        return ResolveProblem(
            rows=frozen(rows),
            weights=frozen(weights),
            live=self.live.centroids.copy(),
            n_clusters=k,
            origin=self.live.origin.copy(),
            metric=metric,
            mean=self.live.mean_square if metric is self.live.metric else 0.0,
            move_penalty=0.0 if self.published_centroids is None else MOVE_PENALTY,
            seed=self.coreset.draw_seed(),
            published=None if self.published_centroids is None else self.published_centroids.centroids,
        )

    def _outlier_units(
        self, metric: Metric, rows: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Units in which to look for outliers: robust ones, if units follow the data at all."""
        return metric.rescaled(rows, weights, "none" if self.scale == "none" else "robust").factors

    def _apply_if_better(
        self,
        solution: Solution,
        metric: Metric,
        rows: NDArray[np.float64],
        weights: NDArray[np.float64],
        *,
        steps: int = 0,
        force: bool = False,
    ) -> tuple[ResolveOutcome, CoresetFit]:
        """Let a solution replace the live centroids if it is worth it; the coreset tells weights and costs.

        Returns
        -------
        outcome
            What the live centroids are now.
        fit
            Theirs.
        """
        live, k = self.live, len(self.live.ids)
        new = CoresetFit.of(rows, weights, solution.centroids, live, metric, steps)
        old = CoresetFit.of(rows, weights, live.centroids, live, metric)
        if metric is not live.metric:
            self.lineage.rescale(metric.factors / live.metric.factors)
        order, replaced = match_clusters(overlap(old.labels, new.labels, weights, (k, k)))
        needed = MIN_GAIN
        if self.published_centroids is not None:
            published = CoresetFit.of(rows, weights, self.published_centroids.centroids, live, metric)
            more = moved_share(published.labels, new.labels, weights, k) - moved_share(
                published.labels, old.labels, weights, k
            )
            needed = max(needed, sampling_gain(new, old, weights) + MOVE_PENALTY * more)
        if not new.cost < old.cost * (1.0 - needed) and not force:
            live.replace(live.centroids, old.totals, metric)
            return "keep", old
        self.schedule.resolve_improved()
        live.assign_new_ids(replaced)
        new = new.take(order)
        live.replace(new.centroids, new.totals, metric)
        return solution.kind, new

    def resolve(self) -> tuple[ResolveOutcome, CoresetFit]:
        """Solve now, and let it take effect; says which candidate won, and how the live centroids fit."""
        self._pending = None
        p = self._problem()
        effort = full_effort(self.schedule.learned - self._published_at, p.n_clusters)
        outcome, fit = self._apply_if_better(solve(p, effort), p.metric, p.rows, p.weights)
        self.schedule.resolve_started(float(self.live.weights.sum()))
        return outcome, fit

    def prepare(self) -> None:
        """Begin to solve for the next publication, in the background."""
        self._pending = None
        problem = self._problem()
        effort = full_effort(self.schedule.learned - self._published_at, problem.n_clusters)
        self.schedule.resolve_started(float(self.live.weights.sum()))
        self._prepared = PendingSolution(WORKER.submit(partial(solve, problem, effort)), 0, problem.metric)

    @property
    def prepared(self) -> bool:
        """Whether publishing would wait for nothing that was begun."""
        return self._prepared is None or self._prepared.ready

    def publish(self, n_seen: int, *, as_is: bool = False) -> Publication:
        """Publish what was prepared, or what solving now gives, under ids that go on from the last publication."""
        outcome: ResolveOutcome = "keep"
        live = self.live
        if as_is:
            self._prepared = None
            fit = CoresetFit.of(*self.coreset.calibrated(), live.centroids, live, live.metric)
        elif self._prepared is None:
            outcome, fit = self.resolve()
        else:
            prepared, self._prepared = self._prepared, None
            self.coreset.calibrate()
            outcome, fit = self._apply_if_better(
                prepared.solution(), prepared.metric, *self.coreset.calibrated(), steps=1
            )
        answers, factors = live.copy(), live.metric.factors
        if self.published_centroids is not None:
            fit = CoresetFit.of(fit.rows, fit.weights, shrink_moves(self.published_centroids, live), live, live.metric)
            answers.replace(fit.centroids, fit.totals, live.metric)
        self.lineage.next_id = max(self.lineage.next_id, live.next_id)
        ids, events = self.lineage.publish(
            answers.centroids * factors,
            fit.rows if live.metric.plain else fit.rows * factors,
            fit.weights,
            float(live.weights.sum()),
            decay=self.schedule.decay_since_publication,
            current_ids=live.ids,
            assigned=(fit.labels, fit.squared),
        )
        live.ids, live.next_id = ids, self.lineage.next_id
        answers.ids, answers.next_id = ids.copy(), self.lineage.next_id
        self.schedule.decay_since_publication, self._published_at = 1.0, self.schedule.learned
        detail = {"resolve": outcome, "coreset_rows": len(fit.rows), "cost": float(answers.stats[:, 1].sum())}
        within = None if self._spreads_unknown else deviations(fit.rows, fit.weights, fit.labels, answers.centroids)
        self._publish(answers, n_seen, tuple(events), detail, within)
        return self.published  # type: ignore[return-value]  # just made

    def _publish(
        self,
        a: LiveCentroids,
        n_seen: int,
        events: tuple[Event, ...],
        detail: Mapping[str, Any],
        within: NDArray[np.float64] | None,
    ) -> None:
        self.published_centroids = a
        self._born = {i: self._born.get(i, n_seen) for i in a.ids.tolist()}
        self.published = Publication(
            ids=frozen(a.ids),
            centroids=frozen(a.centroids),
            weights=frozen(a.weights),
            spreads=frozen(a.spreads),
            born=frozen(np.array([*self._born.values()], np.int64)),
            factors=frozen(a.metric.factors.copy()),
            deviations=None if within is None else frozen(within),
            n_seen=n_seen,
            events=events,
            detail=detail,
        )

    def view(self, view: View | None) -> LiveCentroids:
        """Centroids to ask: the published ones if there are any and no others are wanted.

        Raises
        ------
        NotReadyError
            Published ones are wanted, and there are none.
        """
        if view == "live" or (view is None and self.published_centroids is None):
            return self.live
        if self.published_centroids is None:
            raise NotReadyError("nothing was published yet", hint="Call publish(), or ask with view='live'")
        return self.published_centroids

    # Saving

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays, by name."""
        arrays = self.coreset.arrays() | self.live.arrays() | self.lineage.arrays()
        if self.rule is not None:
            arrays |= self.rule.arrays()
        if self.published_centroids is not None:
            arrays |= {f"published_{name}": a for name, a in self.published_centroids.arrays().items()}
        if self.published is not None and self.published.deviations is not None:
            arrays["published_deviations"] = self.published.deviations.copy()
        for name, pending in (("pending", self._pending), ("prepared", self._prepared)):
            if pending is not None:
                arrays[f"{name}_centroids"] = pending.solution().centroids.copy()
                arrays[f"{name}_factors"] = pending.metric.factors.copy()
        return arrays

    def params(self) -> dict[str, Any]:
        """Scalars, JSON values."""
        published = self.published
        pending, prepared = (
            None if p is None else {"due": p.due, "kind": p.solution().kind} for p in (self._pending, self._prepared)
        )
        return {
            "next_id": self.live.next_id,
            "coreset": self.coreset.scalars(),
            "schedule": self.schedule.scalars(),
            "lineage": self.lineage.params(),
            "rule": None if self.rule is None else self.rule.scalars(),
            "pending": pending,
            "prepared": prepared,
            "published_at": self._published_at,
            "flat": self._spreads_unknown,
            "published": None
            if published is None
            else {
                "n_seen": published.n_seen,
                "born": published.born.tolist(),
                "events": [e.to_json() for e in published.events],
                "detail": dict(published.detail),
            },
        }

    def restore(self, arrays: Mapping[str, NDArray[Any]], params: Mapping[str, Any], d: int) -> None:
        """Undo `arrays` and `params` on new clusters of d dimensions."""
        k, spherical = self.coreset.n_clusters, self._metric.spherical
        self.coreset.restore(arrays, params["coreset"])
        self.live = LiveCentroids.from_arrays(arrays, k, d, params["next_id"], spherical=spherical)
        self.schedule = ResolveSchedule.restore(self.schedule.on_drift, params["schedule"])
        self.lineage = LineageTracker.from_parts(params["lineage"], arrays)
        self._published_at = float(params["published_at"])
        self._spreads_unknown = bool(params.get("flat", False))
        if self.rule is not None:
            self.rule = GapRule.restore(arrays, params["rule"], d)
        if params["published"] is not None:
            own = {n.removeprefix("published_"): a for n, a in arrays.items() if n.startswith("published_")}
            told = params["published"]
            answers = LiveCentroids.from_arrays(own, k, d, params["next_id"], spherical=spherical)
            self._born = dict(zip(answers.ids.tolist(), told["born"], strict=True))
            events = tuple(Event.from_json(e) for e in told["events"])
            within = checked_array(own, "deviations", np.float64, (k, d)) if "deviations" in own else None
            self._publish(answers, told["n_seen"], events, told["detail"], within)
        self._pending, self._prepared = (self._restored(name, arrays, params[name]) for name in ("pending", "prepared"))

    def _restored(
        self, name: str, arrays: Mapping[str, NDArray[Any]], params: Mapping[str, Any] | None
    ) -> PendingSolution | None:
        if params is None:
            return None
        centroids = checked_array(arrays, f"{name}_centroids", np.float64, self.live.centroids.shape)
        factors = checked_array(arrays, f"{name}_factors", np.float64, self.live.metric.factors.shape)
        same = np.array_equal(factors, self.live.metric.factors)
        metric = self.live.metric if same else Metric(factors, self.live.metric.spherical)
        return PendingSolution(Solution(centroids, params["kind"]), params["due"], metric)
