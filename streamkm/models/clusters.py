"""Live centroids, the coreset from which they are re-solved, and the published centroids."""

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
from streamkm.state import ModelEvent, Publication, Snapshot

MOVE_PENALTY = 0.25
"""Once ids are published, a new solution must also save this share of the cost per share of the mass that changes its
id: a solution that moves a tenth of the points has to save 2.5 %."""

ResolveOutcome = Literal["keep", "lloyd", "swap", "cold"]
View = Literal["published", "live"]


@dataclass
class PendingSolution:
    """A re-solve in progress, or its result that has not taken effect yet.

    Attributes
    ----------
    task
        The running work, or its result.
    due
        Number of rows seen from which on the result takes effect, at the start of a batch.
    metric
        Metric of the re-solve.
    """

    task: Task[Solution] | Solution
    due: int
    metric: Metric

    def solution(self) -> Solution:
        """Return the result, waiting for it if necessary."""
        if not isinstance(self.task, Solution):
            self.task = self.task.result()
        return self.task

    @property
    def ready(self) -> bool:
        """Whether the result is available."""
        return isinstance(self.task, Solution) or self.task.done

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold the result."""
        return {"task": self.solution(), "due": self.due, "metric": self.metric}


class Clusters:
    """Live centroids that are kept good by re-solving their coreset, and their publications.

    Re-solves run in the background. A result takes effect at a fixed number of rows, not at a time, so equal batches
    give equal clusters whatever the timing. A result that is not ready by then is waited for.

    Parameters
    ----------
    coreset
        An empty coreset.
    metric
        The initial metric.
    scale
        How the units of the metric are derived from the data.
    schedule
        Decides when to re-solve.
    rule
        Detects outliers; None: no detection.
    """

    def __init__(
        self, coreset: Coreset, metric: Metric, scale: Scale, schedule: ResolveSchedule, rule: GapRule | None
    ) -> None:
        self.coreset, self.scale, self.schedule, self.rule = coreset, scale, schedule, rule
        self.lineage = LineageTracker()
        self.published: Publication | None = None
        self.published_centroids: LiveCentroids | None = None
        """The centroids of the last publication; live ones have changed since."""
        self._pending: PendingSolution | None = None
        self._prepared: PendingSolution | None = None
        self._born: dict[int, int] = {}
        self._published_at = 0.0  # weight ever learned at the last publication
        self._spreads_unknown = False  # started from a snapshot without a coreset
        self.live: LiveCentroids
        self._metric = metric

    def initialize(self, rows: NDArray[np.float64], weights: NDArray[np.float64]) -> None:
        """Make the first centroids from weighted rows, (n, d) and (n,)."""
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
        """Continue from the clusters of a snapshot, instead of `initialize`; (m, d) rows represent their points."""
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
            Rows seen before this batch.
        starved
            Share and idle weight for `LiveCentroids.restart_starved`.
        """
        n = len(X)
        # Step 1. Apply a finished re-solve at its position in the stream.
        if self._pending is not None and n_seen >= self._pending.due:
            pending, self._pending = self._pending, None
            self.coreset.calibrate()
            self._apply_if_better(pending.solution(), pending.metric, *self.coreset.calibrated(), steps=1)
        # Step 2. Remove outliers.
        if self.rule is not None and self.rule.found:
            X, aged = self.rule.remove_outliers(X, aged)
        # Step 3. Learn the batch, sample it into the coreset, and restart starved clusters.
        live = self.live
        learned = live.learn(X, aged, high)
        self.coreset.sample_batch(X, aged, learned, live)
        share, idle = starved
        if learned.idle >= idle:
            live.restart_starved(X, aged.decayed, learned, share, idle, self.coreset.rng)
        # Step 4. Start a re-solve if one is due.
        why = self.schedule.after_batch(learned, n_seen + n, n, aged)
        if why == "jump" or (why and self._pending is None and self._prepared is None):
            self._start_resolve(n_seen + n, why, X, aged.weights, high)
        return learned

    def _start_resolve(self, n_seen: int, why: str, X: Real, row_weights: NDArray[np.float64], high: float) -> None:
        due = n_seen + (0 if why == "jump" else self.schedule.lag)
        problem, task = self._problem(), None
        if why == "jump" and self.schedule.may_forget:
            # Not in the background: the solution decides whether the past has to be forgotten.
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
        """Multiply the weight of everything learned by a factor."""
        self.live.stats[:, :2] *= factor
        self.coreset.decay(factor)
        self.schedule.decay_since_publication *= factor
        if self.rule is not None:
            self.rule.decay(factor)

    def _problem(self) -> ResolveProblem:
        """Make the re-solve problem of the current coreset, after removing outliers from it."""
        self.coreset.calibrate()
        rows, weights = self.coreset.calibrated()
        k = len(self.live.ids)
        if self.rule is not None:
            inside = self.rule.refit(rows, weights, self._outlier_units(self.live.metric, rows, weights))
            if inside is not None:
                # The outliers have attracted centroids: start again from scratch.
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
        """Scale factors for detecting outliers: robust ones, unless `scale` is ``"none"``."""
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
        """Replace the live centroids by a solution if it is better on the coreset by more than the required gain.

        Returns
        -------
        outcome
            ``keep``, or the kind of the solution that replaced them.
        fit
            Fit of the live centroids, after this.
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
        """Re-solve now and apply the result; return the outcome and the fit of the live centroids."""
        self._pending = None
        p = self._problem()
        effort = full_effort(self.schedule.learned - self._published_at, p.n_clusters)
        outcome, fit = self._apply_if_better(solve(p, effort), p.metric, p.rows, p.weights)
        self.schedule.resolve_started(float(self.live.weights.sum()))
        return outcome, fit

    def prepare(self) -> None:
        """Start to solve for the next publication, in the background."""
        self._pending = None
        problem = self._problem()
        effort = full_effort(self.schedule.learned - self._published_at, problem.n_clusters)
        self.schedule.resolve_started(float(self.live.weights.sum()))
        self._prepared = PendingSolution(WORKER.submit(partial(solve, problem, effort)), 0, problem.metric)

    @property
    def prepared(self) -> bool:
        """Whether `publish` would not have to wait."""
        return self._prepared is None or self._prepared.ready

    def publish(self, n_seen: int, *, as_is: bool = False) -> Publication:
        """Publish the prepared solution, or re-solve now; ids continue from the last publication.

        Parameters
        ----------
        n_seen
            Rows seen so far.
        as_is
            Publish the live centroids without solving.
        """
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
        published, factors = live.copy(), live.metric.factors
        if self.published_centroids is not None:
            fit = CoresetFit.of(fit.rows, fit.weights, shrink_moves(self.published_centroids, live), live, live.metric)
            published.replace(fit.centroids, fit.totals, live.metric)
        self.lineage.next_id = max(self.lineage.next_id, live.next_id)
        ids, events = self.lineage.publish(
            published.centroids * factors,
            fit.rows if live.metric.plain else fit.rows * factors,
            fit.weights,
            float(live.weights.sum()),
            decay=self.schedule.decay_since_publication,
            current_ids=live.ids,
            assigned=(fit.labels, fit.squared),
        )
        live.ids, live.next_id = ids, self.lineage.next_id
        published.ids, published.next_id = ids.copy(), self.lineage.next_id
        self.schedule.decay_since_publication, self._published_at = 1.0, self.schedule.learned
        detail = {"resolve": outcome, "coreset_rows": len(fit.rows), "cost": float(published.stats[:, 1].sum())}
        within = None if self._spreads_unknown else deviations(fit.rows, fit.weights, fit.labels, published.centroids)
        self._publish(published, n_seen, tuple(events), detail, within)
        return self.published  # type: ignore[return-value]  # set by `_publish`

    def _publish(
        self,
        a: LiveCentroids,
        n_seen: int,
        events: tuple[ModelEvent, ...],
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
        """Centroids for predictions: the published ones if there are any, unless `view` selects others.

        Raises
        ------
        NotReadyError
            `view` is ``"published"``, and nothing was published.
        """
        if view == "live" or (view is None and self.published_centroids is None):
            return self.live
        if self.published_centroids is None:
            raise NotReadyError("nothing was published yet", hint="Call publish(), or use view='live'")
        return self.published_centroids

    # Saving

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays, by name."""
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
        """Return the scalars, as JSON values."""
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
        """Restore the state from `arrays` and `params`, on new clusters of d dimensions."""
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
            stored = params["published"]
            published = LiveCentroids.from_arrays(own, k, d, params["next_id"], spherical=spherical)
            self._born = dict(zip(published.ids.tolist(), stored["born"], strict=True))
            events = tuple(ModelEvent.from_json(e) for e in stored["events"])
            within = checked_array(own, "deviations", np.float64, (k, d)) if "deviations" in own else None
            self._publish(published, stored["n_seen"], events, stored["detail"], within)
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
