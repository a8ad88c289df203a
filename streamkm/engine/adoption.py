"""Putting a snapshot in charge: a model that goes on from it, and has learned what came since."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from streamkm.codecs.base import Codec
from streamkm.engine.learning import learn
from streamkm.models import OnlineKMeans
from streamkm.models.spec import arguments
from streamkm.records import BatchRange, Position
from streamkm.sources.base import Source
from streamkm.sources.ranges import RangeReader
from streamkm.state import MiniBatch, ModelSpec
from streamkm.stores.base import Store


def from_snapshot(store: Store, spec: ModelSpec, number: int) -> OnlineKMeans:
    """The model that goes on from a snapshot: from the state kept with it, else from its clusters alone.

    Raises
    ------
    NotFoundError
        There is no such snapshot.
    """
    snapshot = store.snapshot(spec.name, number)
    state = store.kept(spec.name, number)
    if state is not None:
        return OnlineKMeans.from_state(state)
    return OnlineKMeans.from_snapshot(arguments(spec), snapshot, snapshot.centroids, snapshot.weights)


def missed(start: Position, beginning: Position, stop: Position, batch: int) -> Iterator[BatchRange]:
    """Ranges from one position to a later one, partition by partition, of `batch` offsets at most.

    Parameters
    ----------
    start, stop
        From and to; a partition that `start` does not know counts from its `beginning`.
    """
    for partition in sorted(stop):
        at = start.get(partition, beginning.get(partition, 0))
        while at < stop[partition]:
            until = min(at + batch, stop[partition])
            yield BatchRange(partition, at, until)
            at = until


def catch_up(
    learner: OnlineKMeans,
    ranges: Iterator[BatchRange],
    open_source: Callable[[], Source],
    codec: Codec,
    go_on: Callable[[], bool],
) -> list[MiniBatch] | None:
    """Learn ranges, each as a mini-batch; which they were, or None if `go_on` said no before the end.

    Raises
    ------
    PositionLostError
        The topic no longer has them.
    """
    learned: list[MiniBatch] = []
    source = None
    reader: RangeReader | None = None
    try:
        for wanted in ranges:
            if not go_on():
                return None
            source = source or open_source()
            if reader is None or reader.partition != wanted.partition:
                reader = RangeReader(source, wanted.partition)
            learn(learner, [codec.decode(records) for records in reader.read(wanted)])
            learned.append((wanted,))
    finally:
        if source is not None:
            source.close()
    return learned
