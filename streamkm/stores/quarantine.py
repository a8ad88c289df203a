"""Limits of the quarantine that all stores share, and what they do to a list of records."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from streamkm.records import BadRecord
from streamkm.state import QuarantineLimits
from streamkm.stores import serialization
from streamkm.stores.base import QuarantinedRecord, RecordId

BATCH_BYTES = 8 << 20
"""Bytes of records that `undelivered` returns at once, beyond the first record."""
MIN_HEADER_BYTES = 4096
"""Bytes of headers that a listing shows whatever the limit of its values."""


def record_id(bad: BadRecord) -> RecordId:
    """Partition and offset of a record."""
    return bad.record.partition, bad.record.offset


def first_batch(records: Sequence[QuarantinedRecord]) -> Sequence[QuarantinedRecord]:
    """As many of the first records as fit into `BATCH_BYTES`, and at least one."""
    sizes = accumulate(serialization.kept_bytes(held.bad) for held in records)
    return records[: max(1, bisect_right(list(sizes), BATCH_BYTES))]


def truncate(bad: BadRecord, max_bytes: int) -> BadRecord:
    """A record as listings show it, with at most `max_bytes` of its key and value."""
    record = bad.record
    long = record.value is not None and len(record.value) > max_bytes
    header_bytes = len(json.dumps([(n, (v or b"").hex()) for n, v in record.headers]))
    part = record._replace(
        key=record.key and record.key[:max_bytes],
        value=record.value and record.value[:max_bytes],
        headers=record.headers if header_bytes <= max(MIN_HEADER_BYTES, 4 * max_bytes) else (),
        size=record.size if record.size is not None or not long else len(record.value or b""),
    )
    return replace(bad, record=part)


def trim(records: list[QuarantinedRecord], limits: QuarantineLimits) -> int:
    """Remove the oldest records beyond the limits from a list, in place; values of undelivered ones where that is all.

    Returns
    -------
    int
        Number of records removed.
    """
    extra_rows = len(records) - limits.rows
    extra_bytes = sum(serialization.kept_bytes(held.bad) for held in records) - limits.size
    removed: set[int] = set()
    for i, held in enumerate(records):
        if extra_rows <= 0 and extra_bytes <= 0:
            break
        if held.delivered_at is not None or not limits.delivered_only:
            removed.add(i)
            extra_rows, extra_bytes = extra_rows - 1, extra_bytes - serialization.kept_bytes(held.bad)
    records[:] = [held for i, held in enumerate(records) if i not in removed]
    for i, held in enumerate(records):
        record = held.bad.record
        if extra_bytes <= 0 or not limits.delivered_only:
            break
        if held.delivered_at is None and record.value:
            size = len(record.value) if record.size is None else record.size
            records[i] = held._replace(bad=replace(held.bad, record=record._replace(value=b"", size=size)))
            extra_bytes -= len(record.value)
    return len(removed)
