"""Decides when a snapshot is due, creates it, and evaluates other numbers of clusters in the background."""

from __future__ import annotations

import logging
from contextlib import suppress

from streamkm.engine.context import EngineContext
from streamkm.errors import NotReadyError
from streamkm.models.arguments import K_MAX
from streamkm.models.background import Task, Worker
from streamkm.models.k_selection import KProfile
from streamkm.models.learner import Learner
from streamkm.records import Position
from streamkm.state import Counters, Json, ModelEvent, Snapshot
from streamkm.stores.base import Lease

log = logging.getLogger("streamkm.engine")

PROFILE_INTERVAL_SECONDS = 60.0
"""Time between profiles, each of which takes most of a second of one core."""
WORKER = Worker("streamkm-k")
"""Separate from the worker of the models: a snapshot must not wait for a profile."""

SURGE_MIN_OUTLIERS = 10
"""Minimum number of outliers between two snapshots for an event."""
SURGE_MIN_SHARE = 0.01
"""Minimum share of outliers among the points between two snapshots for an event."""
SURGE_MIN_RATIO = 5
"""Minimum ratio of that share to the long-term share for an event."""


def is_outlier_surge(count: int, points: int, old: int, seen: int) -> bool:
    """Whether outliers are much more frequent than before.

    Parameters
    ----------
    count, points
        Outliers, and all points, since the previous snapshot.
    old, seen
        Outliers, and all points, before it.
    """
    return (
        points > 0
        and count >= max(SURGE_MIN_OUTLIERS, SURGE_MIN_SHARE * points)
        and count * seen >= SURGE_MIN_RATIO * old * points
    )


class SnapshotPublisher:
    """Decides when a model publishes a snapshot, and creates it.

    Parameters
    ----------
    context
        Of the engine.
    last
        The newest snapshot in charge, if there is one.
    points
        Points of the model so far.

    Attributes
    ----------
    last
        The newest snapshot in charge; one published by this object has no number.
    points_at
        Points of the model at that snapshot; without one, at the start of the session.
    reason
        Why a snapshot is being prepared; empty: none is.
    prepared_after
        Number of mini-batches learned since the last commit when preparation started; -1: it has not.
    promoted_snapshot
        Number of the snapshot that the next one promotes; 0: none.
    """

    def __init__(self, context: EngineContext, last: Snapshot | None, points: int) -> None:
        self.context, self.last = context, last
        self.points_at = points if last is None else last.detail.get("points", last.n_points)
        self.reason, self.prepared_after, self.promoted_snapshot = "", -1, 0
        self._at = context.clock.monotonic()
        self._evaluation: Json = {}
        self._k_advisor = KAdvisor(context.spec.name)

    def due(self, learner: Learner, points: int) -> str:
        """The reason for a snapshot now; empty: none is due.

        Parameters
        ----------
        points
            Points of the model so far.
        """
        options, new_points = self.context.options, points - self.points_at
        if learner.warmup_ is not None or not new_points:
            return ""
        if self.last is None:
            return "first"
        if options.snapshot_points and new_points >= options.snapshot_points:
            return "points"
        return "interval" if self.context.clock.monotonic() - self._at >= options.snapshot_every else ""

    def prepare(self, learner: Learner, reason: str, learned: int) -> None:
        """Start to prepare a snapshot in the background.

        Parameters
        ----------
        learned
            Number of mini-batches since the last commit.
        """
        self.reason, self.prepared_after = reason, learned
        self._evaluation = learner.evaluate().to_json()
        learner.prepare()
        self._k_advisor.update(learner, self.context.clock.monotonic())

    def promote(self, number: int) -> None:
        """Let the next snapshot promote an older or recomputed one, by its number."""
        self.reason, self.promoted_snapshot = "promoted", number

    def snapshot(self, learner: Learner, lease: Lease, counters: Counters, position: Position, now: float) -> Snapshot:
        """The prepared or promoted snapshot.

        Parameters
        ----------
        now
            Seconds since 1970.
        """
        p = learner.publish(as_is=self.promoted_snapshot > 0)
        # A promoted model has cost counters of its own.
        before: Json = {} if self.last is None or self.promoted_snapshot else self.last.detail
        cost, points = learner.cost_ - before.get("cost", 0.0), learner.n_evaluated_ - before.get("judged", 0)
        return Snapshot(
            model=self.context.spec.name,
            created_at=now,
            kind="live",
            reason=self.reason,
            fields=self.context.spec.fields,
            ids=p.ids,
            centroids=p.centroids,
            weights=p.weights,
            spreads=p.spreads,
            born=p.born,
            factors=p.factors,
            deviations=p.deviations,
            distance=learner.distance,
            inertia=cost / points if points else float("nan"),
            n_points=learner.n_seen,
            position=dict(position),
            detail={
                "owner": lease.owner,
                "epoch": lease.epoch,
                "cost": learner.cost_,
                "judged": learner.n_evaluated_,
                "outliers": learner.n_outliers_,
                "evaluation": self._evaluation,
                "points": counters.points,
                "publication": p.detail,
                "k": self._k_advisor.latest,
            },
            events=(*p.events, *self._events(learner, tuple(sorted(p.ids.tolist())))),
        )

    def _events(self, learner: Learner, ids: tuple[int, ...]) -> list[ModelEvent]:
        """Events that the model itself does not have; see `verification.OWNER_EVENTS`."""
        last = self.last
        if self.promoted_snapshot:
            before = () if last is None else tuple(sorted(last.ids.tolist()))
            return [ModelEvent("promotion", before, ids, {"snapshot": self.promoted_snapshot})]
        if last is None:
            return []
        old, seen = last.detail.get("outliers", 0), last.n_points
        count, points = learner.n_outliers_ - old, learner.n_seen - seen
        if not is_outlier_surge(count, points, old, seen):
            return []
        return [ModelEvent("outliers", detail={"count": count, "points": points, "share": count / points})]

    def published(self, snapshot: Snapshot, points: int) -> None:
        """Note that a snapshot was committed, at a number of points of the model."""
        self.last, self.points_at, self._at = snapshot, points, self.context.clock.monotonic()
        self.reason, self.prepared_after, self.promoted_snapshot = "", -1, 0


class KAdvisor:
    """Evaluates numbers of clusters in the background, for display with snapshots; it never changes k.

    Parameters
    ----------
    name
        Name of the model, for the log.

    Attributes
    ----------
    latest
        The last profile as JSON values, with the ``running`` k; None before the first.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._task: Task[KProfile] | None = None
        self._started_at, self._started_with = float("-inf"), 0
        self._suggested = 0
        self.latest: Json | None = None

    def update(self, learner: Learner, now: float) -> None:
        """Collect a finished profile, and start another one if it is due.

        A profile that was started with less than half of the points learned by now is outdated: it is discarded, and
        another one is started. The first points of a backlog may all be of one partition, or of one hour.

        Parameters
        ----------
        now
            Monotonic seconds.
        """
        outdated = learner.n_seen > 2 * self._started_with
        if self._task is not None and self._task.done:
            found, self._task = self._task.result(), None
            if not outdated:
                self._take(found, learner.k_)
        due = outdated or now - self._started_at >= PROFILE_INTERVAL_SECONDS
        if self._task is None and learner.k_ <= K_MAX and due:
            self._started_at, self._started_with = now, learner.n_seen
            with suppress(NotReadyError):  # no point has weight yet
                self._task = WORKER.submit(learner.deferred_k_profile(K_MAX))

    def _take(self, found: KProfile, running: int) -> None:
        self.latest = {"running": running, **found.to_json()}
        if found.suggested not in (None, running, self._suggested):
            log.info("%s: k = %d may be better than %d: %s", self.name, found.suggested, running, found.reason)
        self._suggested = found.suggested or self._suggested
