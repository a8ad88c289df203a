"""Re-derive a model from its topic by its journal, to prove that what was published is what the records say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import numpy as np

from streamkm.codecs.base import Codec
from streamkm.engine.learning import learn, new_learner
from streamkm.engine.tenure import POLL_SECONDS
from streamkm.errors import PositionLostError
from streamkm.models import OnlineKMeans
from streamkm.records import BatchRange, Records, TopicPartition
from streamkm.sources.base import Source
from streamkm.state import MiniBatch, ModelSpec, Snapshot

PATIENCE_SECONDS = 30.0
"""How long a record that the journal names may take to come."""


class RangeReader:
    """Reads ranges of one partition, each after the one before, exactly as the journal cut them."""

    def __init__(self, source: Source, partition: TopicPartition, batch: int = 8192) -> None:
        self.source, self.partition, self.batch = source, partition, batch
        self.rest: Records | None = None
        self.at: int | None = None

    def read(self, wanted: BatchRange) -> list[Records]:
        """Records of [start, stop).

        Raises
        ------
        PositionLostError
            The topic no longer has them, or they do not come.
        """
        if self.at != wanted.start:
            self.source.seek({self.partition: wanted.start})
            self.rest, self.at = None, wanted.start
        parts: list[Records] = []
        waited = 0.0
        while self.at < wanted.stop:
            if self.rest is None:
                polled = self.source.poll(POLL_SECONDS, self.batch)
                if not polled:
                    waited += POLL_SECONDS
                    if waited > PATIENCE_SECONDS:
                        raise PositionLostError(
                            f"the journal names records up to {wanted.stop}, the topic gives none after {self.at}",
                            where=str(self.partition),
                        )
                    continue
                self.rest = polled[0]
            taken, self.rest = self.rest.split(wanted.stop) if self.rest.stop > wanted.stop else (self.rest, None)
            parts.append(taken)
            self.at = taken.stop
        return parts


class Rerun:
    """Learns a journal again, one mini-batch at a time.

    After the last mini-batch of a commit, `learner` is what that commit stored.

    Parameters
    ----------
    spec
        The model's spec, as stored.
    open_source
        Gives a source; one is opened for each partition and closed at the end.
    """

    def __init__(self, spec: ModelSpec, open_source: Callable[[], Source], codec: Codec) -> None:
        self.learner = new_learner(spec)
        self._open_source, self._codec = open_source, codec
        self._readers: dict[TopicPartition, RangeReader] = {}

    def learn(self, ranges: MiniBatch) -> None:
        """Learn one mini-batch of the journal."""
        decoded = []
        for wanted in ranges:
            reader = self._readers.get(wanted.partition)
            if reader is None:
                reader = self._readers[wanted.partition] = RangeReader(self._open_source(), wanted.partition)
            # A range comes in as many pieces as polls gave; decoding does not depend on the cut.
            decoded += [self._codec.decode(records) for records in reader.read(wanted)]
        learn(self.learner, decoded)

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
    differences = []
    for name, published, again in (
        ("ids", snapshot.ids, learner.ids_),
        ("centroids", snapshot.centroids, learner.centers_),
        ("weights", snapshot.weights, learner.weights_),
        ("spreads", snapshot.spreads, learner.spreads_),
    ):
        if published.shape != again.shape or published.tobytes() != again.tobytes():
            worst = np.max(np.abs(published - again)) if published.shape == again.shape else "their shapes differ"
            differences.append(f"{name} differ (largest difference {worst})")
    if snapshot.n_points != learner.n_seen:
        differences.append(f"points differ ({snapshot.n_points} published, {learner.n_seen} in the re-run)")
    return Verdict(snapshot.id, learner.n_seen, tuple(differences))
