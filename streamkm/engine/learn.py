"""Learning one mini-batch: what the live loop, catching up and the re-run of a journal do alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamkm.codecs.base import Codec
from streamkm.models import OnlineKMeans
from streamkm.records import BadRecord, Batch, ByteRecords, Records
from streamkm.state import EventTimeLimit, Json, ModelSpec


def learn(learner: OnlineKMeans, batches: Sequence[Batch], limit: EventTimeLimit | None) -> int:
    """Learn one mini-batch: the points of its ranges, one range after the other, in one step.

    The live loop and the re-run of a journal both go through here, so they do the same arithmetic.

    Parameters
    ----------
    limit
        What `event_times.decode` was given. A model that an older streamkm let run ahead of it is brought back.

    Returns
    -------
    int
        Number of points.
    """
    batches = [b for b in batches if len(b)]
    if not batches:
        return 0
    if limit is not None:
        learner.cap_clock(limit.read_at + limit.lead)
    one = len(batches) == 1
    points = batches[0].points if one else np.concatenate([b.points for b in batches])
    times = batches[0].times if one else np.concatenate([b.times for b in batches])
    learner.learn_many(points, times=times)
    return len(points)


def codec_for_model(codec: Codec, spec: ModelSpec) -> Codec:
    """The codec, with an eye on what this model cannot take: where only directions count, a point without one."""
    return _ZeroVectorFilter(codec) if spec.learner.get("distance") == "cosine" else codec


class _ZeroVectorFilter:
    """A codec for which a point of zeros is a bad record."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.fields = codec, codec.fields

    def spec(self) -> Json:
        return self.codec.spec()

    def decode(self, records: Records) -> Batch:
        batch = self.codec.decode(records)
        some = batch.points.any(axis=1)
        if some.all() or not isinstance(records, ByteRecords):
            return batch
        message = "all values are zero, which has no direction"
        rows = np.searchsorted(records.offsets, batch.offsets[~some]).tolist()
        bad = [*batch.bad, *(BadRecord(records.truncated(i), "out-of-range", "", message) for i in rows)]
        return replace(
            batch,
            points=np.ascontiguousarray(batch.points[some]),
            times=batch.times[some],
            offsets=batch.offsets[some],
            bad=tuple(sorted(bad, key=lambda b: b.record.offset)),
        )
