"""Learning one mini-batch, as the live loop, catching up after a promotion and journal replays do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from streamkm.codecs.base import Codec
from streamkm.models.learner import Learner
from streamkm.records import BadRecord, Batch, ByteRecords, Records
from streamkm.state import CodecSpec, EventTimeLimit, ModelSpec


def learn(learner: Learner, batches: Sequence[Batch], limit: EventTimeLimit | None) -> int:
    """Learn the points of one mini-batch, range after range, in one step.

    The live loop and journal replays both call this, so their arithmetic is the same.

    Parameters
    ----------
    limit
        As given to `event_times.decode`. It also caps the model's own clock, which older versions did not limit.

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
    """The codec for a model; with cosine distance, points of zeros become bad records, as they have no direction."""
    return _ZeroVectorFilter(codec) if spec.learner.get("distance") == "cosine" else codec


class _ZeroVectorFilter:
    """Wraps a codec: points of zeros become bad records."""

    def __init__(self, codec: Codec) -> None:
        self.codec, self.fields = codec, codec.fields

    def spec(self) -> CodecSpec:
        return self.codec.spec()

    def decode(self, records: Records) -> Batch:
        batch = self.codec.decode(records)
        nonzero = batch.points.any(axis=1)
        if nonzero.all() or not isinstance(records, ByteRecords):
            return batch
        message = "all values are zero, so the point has no direction"
        rows = np.searchsorted(records.offsets, batch.offsets[~nonzero]).tolist()
        bad = [*batch.bad, *(BadRecord(records.truncated(i), "out-of-range", "", message) for i in rows)]
        return replace(
            batch,
            points=np.ascontiguousarray(batch.points[nonzero]),
            times=batch.times[nonzero],
            offsets=batch.offsets[nonzero],
            bad=tuple(sorted(bad, key=lambda b: b.record.offset)),
        )
