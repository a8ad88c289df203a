"""Re-derive a model from its topic by its journal, to prove that what was published is what the records say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from streamkm.codecs.base import Codec
from streamkm.engine.event_times import decode
from streamkm.engine.learning import learn, suited
from streamkm.errors import NotFoundError
from streamkm.models import OnlineKMeans
from streamkm.models.spec import new_learner
from streamkm.records import TopicPartition
from streamkm.sources.base import Source
from streamkm.sources.ranges import RangeReader
from streamkm.state import EventTimeLimit, Learning, MiniBatch, ModelSpec, ModelState, Snapshot

TOLD_BY_OWNERS = frozenset({"promotion", "outliers"})
"""Kinds of events that a re-run does not give: they tell of the snapshots between which they stand, not of the points
of a model; and what an older streamkm published does not have them."""


class Rerun:
    """Learns a journal again, one commit after the other; `learner` is then what that commit stored.

    Parameters
    ----------
    spec
        The model's spec, as stored.
    open_source
        Gives a source; one is opened for each partition and closed at the end.
    adopt
        Gives the model that goes on from a snapshot, by its number (`from_snapshot`).
    start
        The state that the first commit follows; None: the model as it was made.
    """

    def __init__(
        self,
        spec: ModelSpec,
        open_source: Callable[[], Source],
        codec: Codec,
        adopt: Callable[[int], OnlineKMeans] | None = None,
        start: ModelState | None = None,
    ) -> None:
        self.learner = new_learner(spec) if start is None else OnlineKMeans.from_state(start)
        self._open_source, self._codec, self._adopt = open_source, suited(codec, spec), adopt
        self._readers: dict[TopicPartition, RangeReader] = {}

    def repeat(self, learning: Learning) -> None:
        """Do again what the model did before one commit."""
        if learning.adopted:
            if self._adopt is None:
                raise NotFoundError(f"snapshot {learning.adopted} was put in charge, and nothing gives it again")
            self.learner = self._adopt(learning.adopted)
        for done, ranges in enumerate(learning.batches):
            if done == learning.prepared:
                self.learner.prepare()
            self._learn(ranges, learning.limit)
        if learning.prepared == len(learning.batches):
            self.learner.prepare()
        if learning.prepared >= 0 or learning.adopted:
            self.learner.publish(as_is=learning.adopted > 0)

    def _learn(self, ranges: MiniBatch, limit: EventTimeLimit | None) -> None:
        decoded = []
        for wanted in ranges:
            reader = self._readers.get(wanted.partition)
            if reader is None:
                reader = self._readers[wanted.partition] = RangeReader(self._open_source(), wanted.partition)
            # A range comes in as many pieces as polls gave; decoding does not depend on the cut.
            decoded += [decode(self._codec, records, limit) for records in reader.read(wanted)]
        learn(self.learner, decoded, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.source.close()


@dataclass(frozen=True)
class Verdict:
    """What a comparison of a snapshot with a re-run found.

    Attributes
    ----------
    differences
        One sentence for each array that is not equal bit for bit; empty when all are.
    """

    snapshot_id: int
    n_points: int
    differences: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.differences


def compare(snapshot: Snapshot, learner: OnlineKMeans) -> Verdict:
    """Compare a published snapshot with a re-run model, bit for bit."""
    found = learner.published_
    if found is None:
        return Verdict(snapshot.id, learner.n_seen, ("the re-run publishes nothing",))
    differences = []
    for name in ("ids", "centroids", "weights", "spreads", "born", "factors", "deviations"):
        published, again = getattr(snapshot, name), getattr(found, name)
        if published is None:
            continue  # an older streamkm did not publish them
        if again is None:
            differences.append(f"{name} differ (the re-run has none)")
        elif published.shape != again.shape or published.tobytes() != again.tobytes():
            worst = np.max(np.abs(published - again)) if published.shape == again.shape else "their shapes differ"
            differences.append(f"{name} differ (largest difference {worst})")
    happened = [e.to_json() for e in snapshot.events if e.kind not in TOLD_BY_OWNERS]
    if happened != [e.to_json() for e in found.events]:
        differences.append(f"events differ ({len(happened)} published, {len(found.events)} in the re-run)")
    if snapshot.n_points != learner.n_seen:
        differences.append(f"points differ ({snapshot.n_points} published, {learner.n_seen} in the re-run)")
    return Verdict(snapshot.id, learner.n_seen, tuple(differences))
