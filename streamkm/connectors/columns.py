"""Conversion of record objects to columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamkm.records import ByteRecords, Headers, RawRecord, TopicPartition


def byte_records(tp: TopicPartition, start: int, stop: int, records: Sequence[RawRecord]) -> ByteRecords:
    """Convert consecutive records to columns.

    Parameters
    ----------
    tp
        Partition of the records.
    start, stop
        Offset range [start, stop) that the records come from.
    records
        The records, in the order of offsets.
    """
    values = [record.value for record in records]
    n = len(values)
    data = np.frombuffer(b"".join(value or b"" for value in values), np.uint8)
    lengths = np.fromiter((len(value or b"") for value in values), np.int64, n)
    null = np.fromiter((value is None for value in values), np.bool_, n)
    ends = np.cumsum(lengths)

    def details(i: int) -> tuple[bytes | None, Headers]:
        return records[i].key, records[i].headers

    return ByteRecords(
        tp,
        start,
        stop,
        data,
        ends - lengths,
        np.where(null, -1, ends),
        np.fromiter((record.offset for record in records), np.int64, n),
        np.fromiter((record.timestamp for record in records), np.int64, n),
        details,
    )
