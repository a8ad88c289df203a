"""Event times in the future are bad records: ages count from the newest, so one would stop all forgetting for good."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from streamkm.codecs.base import Codec
from streamkm.records import BadRecord, Batch, ByteRecords, Records
from streamkm.state import EventTimeLimit, ModelSpec
from streamkm.times import format_time

OTHER_UNITS = ((1e3, "milliseconds"), (1e6, "microseconds"), (1e9, "nanoseconds"))
YEAR = 365.25 * 86400.0
"""Seconds."""


def decays_by_event_time(spec: ModelSpec) -> bool:
    """Whether the weights of a model decay by event time."""
    return spec.learner.get("half_life") is not None and spec.learner.get("half_life_unit") == "seconds"


def decode(codec: Codec, records: Records, limit: EventTimeLimit | None) -> Batch:
    """Decode records; those with event times beyond the limit become bad records.

    The limit counts from the time of reading and, where the event time is a field, from the record's timestamp. The
    live loop, catching up after a promotion and journal replays all decode here.

    Parameters
    ----------
    limit
        None: no limit.
    """
    batch = codec.decode(records)
    if limit is None or not isinstance(records, ByteRecords) or not len(batch):
        return batch
    newest = limit.read_at + limit.lead
    field = codec.spec().options.get("time_field")
    rows = np.searchsorted(records.offsets, batch.offsets)
    stamps = records.timestamps[rows] / 1000.0
    bounds = np.full(len(batch), newest)
    if field is not None:
        bounds = np.where(stamps >= 0.0, np.minimum(stamps + limit.lead, newest), newest)
    ahead = batch.times > bounds  # false for an unknown time (NaN)
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
    good = ~ahead
    return replace(
        batch,
        points=np.ascontiguousarray(batch.points[good]),
        times=batch.times[good],
        offsets=batch.offsets[good],
        bad=tuple(sorted([*batch.bad, *bad], key=lambda b: b.record.offset)),
    )


def _message(field: str | None, time: float, reference: float, limit: EventTimeLimit) -> str:
    what = f"the event time {field}" if field else "the record's timestamp, its event time,"
    than = "the time of reading" if reference == limit.read_at else "the record's timestamp"
    message = (
        f"{what} is {format_time(time)}, {time - reference:,.0f} s ahead of {than} ({format_time(reference)}); "
        f"at most {limit.lead:g} s are taken (--max-event-time-lead)"
    )
    for divisor, unit in OTHER_UNITS:
        if abs(time / divisor - reference) < YEAR:
            return f"{message}. As {unit} it would be {format_time(time / divisor)}: is it written in another unit?"
    return message


def look_like_seconds(times: np.ndarray[tuple[int], np.dtype[np.float64]], now: float) -> bool:
    """Whether record timestamps are in seconds instead of Kafka's milliseconds: near `now` when read as seconds.

    Parameters
    ----------
    times
        (n,) seconds since 1970, on the assumption of milliseconds; NaN where unknown.
    now
        Seconds since 1970.
    """
    known = times[~np.isnan(times)]
    return bool(len(known)) and bool(np.all(np.abs(known * 1000.0 - now) < YEAR))
