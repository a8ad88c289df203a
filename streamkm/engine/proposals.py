"""Whether another number of clusters would be better: looked into now and then, beside the learning."""

from __future__ import annotations

import logging
from contextlib import suppress

from streamkm.errors import NotReadyError
from streamkm.models import OnlineKMeans
from streamkm.models.arguments import K_MAX
from streamkm.models.background import Task, Worker
from streamkm.models.choice import KProfile
from streamkm.state import Json

log = logging.getLogger("streamkm.engine")

EVERY_SECONDS = 60.0
"""A profile takes most of a second of one core."""

WORKER = Worker("streamkm-k")
"""Not the one of the models: a snapshot must not wait for a profile."""


class Proposals:
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
        due = outgrown or now - self._begun_at >= EVERY_SECONDS
        if self._task is None and learner.k_ <= K_MAX and due:
            self._begun_at, self._begun_with = now, learner.n_seen
            with suppress(NotReadyError):  # nothing that was learned has weight: later, then
                self._task = WORKER.submit(learner.later_k_profile(K_MAX))

    def _take(self, found: KProfile, running: int) -> None:
        self.latest = {"running": running, **found.to_json()}
        if found.suggested not in (None, running, self._told):
            log.info("%s: k = %d may be better than %d: %s", self.name, found.suggested, running, found.reason)
        self._told = found.suggested or self._told
