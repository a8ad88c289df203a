"""Putting a snapshot in charge: a model that goes on from it, and has learned what came since."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from streamkm.codecs.base import Codec
from streamkm.connectors.base import Source
from streamkm.connectors.ranges import RangeReader
from streamkm.engine.event_times import decode
from streamkm.engine.learn import learn
from streamkm.models import OnlineKMeans
from streamkm.models.spec import arguments
from streamkm.records import BatchRange, Position
from streamkm.state import EventTimeLimit, MiniBatch, ModelSpec, Snapshot
from streamkm.stores.base import Store

PAIRS = 8
"""Of rows that stand for a cluster; enough that they do not all lie on one line."""


def model_from_snapshot(store: Store, spec: ModelSpec, number: int) -> OnlineKMeans:
    """The model that goes on from a snapshot: from the state kept with it, else from its clusters alone.

    Raises
    ------
    NotFoundError
        There is no such snapshot.
    """
    snapshot = store.snapshot(spec.name, number)
    state = store.snapshot_state(spec.name, number)
    if state is not None:
        return OnlineKMeans.from_state(state)
    return OnlineKMeans.from_snapshot(arguments(spec), snapshot, *surrogate_points(snapshot))


def surrogate_points(s: Snapshot) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted rows that stand for the points of a snapshot, whose own are not kept.

    Each cluster has pairs of rows on both sides of its centroid, one deviation away in every field: they have its
    weight, mean and deviations. Where these are not known, or rows are of length one, the centroid stands alone.

    Returns
    -------
    rows, weights
        (m, d) and (m,).
    """
    if s.deviations is None or s.distance == "cosine" or not np.isfinite(s.deviations).all():
        return s.centroids, s.weights
    d = len(s.fields)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (PAIRS, d))
    steps = np.concatenate([signs, -signs])
    rows = s.centroids[:, np.newaxis] + steps * s.deviations[:, np.newaxis]
    return rows.reshape(-1, d), np.repeat(s.weights / len(steps), len(steps))


def ranges_between(start: Position, beginning: Position, stop: Position, batch: int) -> Iterator[BatchRange]:
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
    limit: EventTimeLimit | None,
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
            learn(learner, [decode(codec, records, limit) for records in reader.read(wanted)], limit)
            learned.append((wanted,))
    finally:
        if source is not None:
            source.close()
    return learned
