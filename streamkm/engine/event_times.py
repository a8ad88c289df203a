"""Event times from the future: one of them would end forgetting for good, because all ages count from the newest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamkm.codecs.base import Codec
from streamkm.records import BadRecord, Batch, ByteRecords, Records
from streamkm.state import EventTimeLimit, ModelSpec
from streamkm.times import format_time

OTHER_UNITS = ((1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"))
YEAR = 365.25 * 86400.0


def decays_by_event_time(spec: ModelSpec) -> bool:
    """Whether event times decide how much a record of this model counts."""
    return spec.learner.get("half_life") is not None and spec.learner.get("half_life_unit") == "seconds"


def decode(codec: Codec, records: Records, limit: EventTimeLimit | None) -> Batch:
    """Decode records, and take those that lie beyond the limit for bad ones.

    The limit counts from the record's own timestamp, where the event time is one of its fields, and from the moment of
    reading. The live loop, catching up and the re-run of a journal all decode here.
    """
    batch = codec.decode(records)
    if limit is None or not isinstance(records, ByteRecords) or not len(batch):
        return batch
    newest = limit.read_at + limit.lead
    field = codec.spec().get("time_field")
    rows = np.searchsorted(records.offsets, batch.offsets)
    stamps = records.timestamps[rows] / 1000.0
    bounds = np.full(len(batch), newest)
    if field is not None:
        bounds = np.where(stamps >= 0.0, np.minimum(stamps + limit.lead, newest), newest)
    ahead = batch.times > bounds  # an unknown time is never ahead
    if not ahead.any():
        return batch
    bad = [
        BadRecord(
            records.truncated(int(rows[i])),
            "event-time-ahead",
            field or "",
            _message(field, float(batch.times[i]), float(bounds[i]) - limit.lead, limit),
        )
        for i in np.flatnonzero(ahead).tolist()
    ]
    there = ~ahead
    return replace(
        batch,
        points=np.ascontiguousarray(batch.points[there]),
        times=batch.times[there],
        offsets=batch.offsets[there],
        bad=tuple(sorted([*batch.bad, *bad], key=lambda b: b.record.offset)),
    )


def _message(field: str | None, time: float, reference: float, limit: EventTimeLimit) -> str:
    what = f"the event time {field}" if field else "the record's timestamp, its event time,"
    than = "the moment of reading" if reference == limit.read_at else "the record's timestamp"
    said = (
        f"{what} is {format_time(time)}, {time - reference:,.0f} s ahead of {than} ({format_time(reference)}); "
        f"at most {limit.lead:g} s are taken (--max-event-time-lead)"
    )
    for divisor, unit in OTHER_UNITS:
        if abs(time / divisor - reference) < YEAR:
            return f"{said}. As {unit} it would be {format_time(time / divisor)}: is it written in another unit?"
    return said


def look_like_seconds(times: np.ndarray[tuple[int], np.dtype[np.float64]], now: float) -> bool:
    """Whether timestamps of records are seconds where Kafka means milliseconds: January 1970, but about now as seconds.

    Parameters
    ----------
    times
        (n,): seconds since 1970, as read in milliseconds; NaN where unknown.
    now
        Seconds since 1970.
    """
    known = times[~np.isnan(times)]
    return bool(len(known)) and bool(np.all(np.abs(known * 1000.0 - now) < YEAR))
