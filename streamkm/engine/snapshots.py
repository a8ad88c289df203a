"""Decides when the next snapshot is due, makes it, and evaluates other numbers of clusters in the background."""

from __future__ import annotations

import logging
from contextlib import suppress

from streamkm.engine.context import EngineContext
from streamkm.errors import NotReadyError
from streamkm.models import OnlineKMeans
from streamkm.models.arguments import K_MAX
from streamkm.models.background import Task, Worker
from streamkm.models.k_selection import KProfile
from streamkm.records import Position
from streamkm.state import Counters, Event, Json, Snapshot
from streamkm.stores.base import Lease

SURGE_MIN_OUTLIERS = 10
"""Fewer outliers between two snapshots are no event,"""
SURGE_MIN_SHARE = 0.01
"""nor is a smaller share of the points between them,"""
SURGE_MIN_RATIO = 5
"""nor one that is not so many times the share of all time before."""


def is_outlier_surge(count: int, points: int, old: int, seen: int) -> bool:
    """Whether outliers are many more than they were.

    Parameters
    ----------
    count, points
        Outliers, and points with them, since the snapshot before.
    old, seen
        The same of all time before.
    """
    return (
        points > 0
        and count >= max(SURGE_MIN_OUTLIERS, SURGE_MIN_SHARE * points)
        and count * seen >= SURGE_MIN_RATIO * old * points
    )


class SnapshotPublisher:
    """What an owner knows about the snapshots of its model.

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
        The newest in charge; one that this owner published has no number.
    points_at
        Points of the model when it was published; without one, when the tenure began.
    reason
        Why a snapshot is being worked on; empty: none is.
    prepared_after
        How many mini-batches since the commit before were learned when that began; -1: it did not.
    promoted_snapshot
        Number of the snapshot that the next one puts in charge; 0: none.
    """

    def __init__(self, context: EngineContext, last: Snapshot | None, points: int) -> None:
        self.context, self.last = context, last
        self.points_at = points if last is None else last.detail.get("points", last.n_points)
        self.reason, self.prepared_after, self.promoted_snapshot = "", -1, 0
        self._at = context.clock.monotonic()
        self._evaluation: Json = {}
        self._k_advisor = KAdvisor(context.spec.name)

    def due(self, learner: OnlineKMeans, points: int) -> str:
        """Why a snapshot is to be made now; empty: it is not yet time.

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

    def prepare(self, learner: OnlineKMeans, reason: str, learned: int) -> None:
        """Begin to work on a snapshot.

        Parameters
        ----------
        learned
            Mini-batches since the last commit.
        """
        self.reason, self.prepared_after = reason, learned
        self._evaluation = learner.evaluate().to_json()
        learner.prepare()
        self._k_advisor.look(learner, self.context.clock.monotonic())

    def promote(self, number: int) -> None:
        """The next snapshot puts an older or a recomputed one in charge."""
        self.reason, self.promoted_snapshot = "promoted", number

    def snapshot(
        self, learner: OnlineKMeans, lease: Lease, counters: Counters, position: Position, now: float
    ) -> Snapshot:
        """The snapshot that was prepared or adopted."""
        p = learner.publish(as_is=self.promoted_snapshot > 0)
        # The model that was put in charge has counted for itself.
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

    def _events(self, learner: OnlineKMeans, ids: tuple[int, ...]) -> list[Event]:
        """What an owner has to tell beside the events of the model; see `rerun.TOLD_BY_OWNERS`."""
        last = self.last
        if self.promoted_snapshot:
            before = () if last is None else tuple(sorted(last.ids.tolist()))
            return [Event("promotion", before, ids, {"snapshot": self.promoted_snapshot})]
        if last is None:
            return []
        old, seen = last.detail.get("outliers", 0), last.n_points
        count, points = learner.n_outliers_ - old, learner.n_seen - seen
        if not is_outlier_surge(count, points, old, seen):
            return []
        return [Event("outliers", detail={"count": count, "points": points, "share": count / points})]

    def published(self, snapshot: Snapshot, points: int) -> None:
        """A snapshot was committed, when the model had so many points."""
        self.last, self.points_at, self._at = snapshot, points, self.context.clock.monotonic()
        self.reason, self.prepared_after, self.promoted_snapshot = "", -1, 0


log = logging.getLogger("streamkm.engine")

PROFILE_INTERVAL_SECONDS = 60.0
"""A profile takes most of a second of one core."""

WORKER = Worker("streamkm-k")
"""Not the one of the models: a snapshot must not wait for a profile."""


class KAdvisor:
    """Profiles of k for the snapshots of a model. They propose; nothing changes k but who runs the model.

    Parameters
    ----------
    name
        Of the model, for the log.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._task: Task[KProfile] | None = None
        self._begun_at, self._begun_with = float("-inf"), 0
        self._told = 0
        self.latest: Json | None = None
        """The profile, as JSON values with the ``running`` k; None before the first."""

    def look(self, learner: OnlineKMeans, now: float) -> None:
        """Take in a profile that is done, and begin another one if it is time.

        One that was begun with less than half of the points that are learned by now is outgrown: it is dropped, and
        another one begun. The first points of a backlog may all be of one partition, or of one hour.

        Parameters
        ----------
        now
            Seconds that never jump.
        """
        outgrown = learner.n_seen > 2 * self._begun_with
        if self._task is not None and self._task.done:
            found, self._task = self._task.result(), None
            if not outgrown:
                self._take(found, learner.k_)
        due = outgrown or now - self._begun_at >= PROFILE_INTERVAL_SECONDS
        if self._task is None and learner.k_ <= K_MAX and due:
            self._begun_at, self._begun_with = now, learner.n_seen
            with suppress(NotReadyError):  # nothing that was learned has weight: later, then
                self._task = WORKER.submit(learner.deferred_k_profile(K_MAX))

    def _take(self, found: KProfile, running: int) -> None:
        self.latest = {"running": running, **found.to_json()}
        if found.suggested not in (None, running, self._told):
            log.info("%s: k = %d may be better than %d: %s", self.name, found.suggested, running, found.reason)
        self._told = found.suggested or self._told
