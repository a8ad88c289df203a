"""Promotion of a snapshot: a model that continues from it, and has learned the records since."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from streamkm.codecs.base import Codec
from streamkm.connectors.base import Source
from streamkm.connectors.ranges import RangeReader
from streamkm.engine.event_times import decode
from streamkm.engine.learn import learn
from streamkm.models.learner import Learner
from streamkm.models.spec import learner_from_snapshot, restore_learner
from streamkm.records import BatchRange, Position
from streamkm.state import EventTimeLimit, MiniBatch, ModelSpec, Snapshot
from streamkm.stores.base import ModelStore

PAIRS = 8
"""Pairs of surrogate points per cluster: several, so that they do not all lie on one line."""


def model_from_snapshot(store: ModelStore, spec: ModelSpec, number: int) -> Learner:
    """A model that continues from a snapshot: from the state stored with it, otherwise from its clusters.

    Raises
    ------
    NotFoundError
        There is no such snapshot.
    """
    snapshot = store.snapshot(spec.name, number)
    state = store.snapshot_state(spec.name, number)
    if state is not None:
        return restore_learner(state)
    return learner_from_snapshot(spec, snapshot, *surrogate_points(snapshot))


def surrogate_points(s: Snapshot) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted points in place of those behind a snapshot, which are not stored.

    Each cluster gets pairs of points on opposite sides of its centroid, one standard deviation away in every field:
    they have the weight, mean and deviations of the cluster. Where deviations are not known, and for cosine distance,
    the centroid is the only point.

    Returns
    -------
    rows, weights
        (m, d) in raw units, and (m,).
    """
    if s.deviations is None or s.distance == "cosine" or not np.isfinite(s.deviations).all():
        return s.centroids, s.weights
    d = len(s.fields)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (PAIRS, d))
    steps = np.concatenate([signs, -signs])
    rows = s.centroids[:, np.newaxis] + steps * s.deviations[:, np.newaxis]
    return rows.reshape(-1, d), np.repeat(s.weights / len(steps), len(steps))


def ranges_between(start: Position, beginning: Position, stop: Position, batch: int) -> Iterator[BatchRange]:
    """Ranges of at most `batch` offsets from position `start` to position `stop`, partition by partition.

    Parameters
    ----------
    start, stop
        Positions; a partition that is not in `start` is read from its `beginning`.
    """
    for partition in sorted(stop):
        at = start.get(partition, beginning.get(partition, 0))
        while at < stop[partition]:
            until = min(at + batch, stop[partition])
            yield BatchRange(partition, at, until)
            at = until


def catch_up(
    learner: Learner,
    ranges: Iterator[BatchRange],
    open_source: Callable[[], Source],
    codec: Codec,
    limit: EventTimeLimit | None,
    keep_going: Callable[[], bool],
) -> list[MiniBatch] | None:
    """Learn ranges, each as a mini-batch.

    Parameters
    ----------
    keep_going
        Called before each range; False cancels.

    Returns
    -------
    list or None
        The mini-batches learned; None when cancelled.

    Raises
    ------
    PositionLostError
        The topic no longer has some of the records.
    """
    learned: list[MiniBatch] = []
    source = None
    reader: RangeReader | None = None
    try:
        for wanted in ranges:
            if not keep_going():
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
