"""The binary format of a journal entry: the ranges of each mini-batch, in order, and what was published.

Ranges of a partition usually follow each other without gaps, and partitions alternate in a pattern. So each range is
stored as (partition, gap to the previous range of that partition, length), column by column in the narrowest integers
that fit, and the whole is deflated.

Layout before deflation, little-endian:

- version; numbers of topics, partitions, mini-batches and ranges; number of mini-batches before a publication was
  prepared (-1: none was); number of the promoted snapshot (0: none);
- the topics;
- the partitions, each with the offset that its first gap counts from;
- four columns (ranges per mini-batch; partition, gap and length of each range), each preceded by the width of its
  integers in bytes;
- the version of the arithmetic; whether the last mini-batch holds lost ranges instead; whether event times were
  limited, and the lead and the time of reading in seconds.

Older versions end with the columns: 2 has no lost ranges, 3 has them as the last mini-batch.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import StoreError
from streamkm.records import BatchRange, TopicPartition
from streamkm.state import EventTimeLimit, JournalEntry

_VERSION, _WITH_LOST, _PLAIN = 4, 3, 2
_HEAD = struct.Struct("<BHIIIiq")
_TOPIC = struct.Struct("<H")
_PARTITION = struct.Struct("<Hqq")
_TAIL = struct.Struct("<H??dd")
_WIDTHS = (1, 2, 4, 8)


def encode(entry: JournalEntry) -> bytes:
    """Serialise an entry; equal entries give equal bytes."""
    batches, prepared_after, promoted_snapshot, lost, limit, arithmetic = entry
    batches = (*batches, lost) if lost else batches
    partitions: dict[TopicPartition, int] = {}
    origins: list[int] = []
    stops: list[int] = []
    index, gaps, lengths = [], [], []
    for batch in batches:
        for partition, start, stop in batch:
            i = partitions.setdefault(partition, len(partitions))
            if i == len(stops):
                origins.append(start)
                stops.append(start)
            index.append(i)
            gaps.append(start - stops[i])
            lengths.append(stop - start)
            stops[i] = stop
    topics = {topic: i for i, topic in enumerate(dict.fromkeys(p.topic for p in partitions))}
    names = [topic.encode("utf-8", "surrogatepass") for topic in topics]
    counts = (len(topics), len(partitions), len(batches), len(index))
    parts = [_HEAD.pack(_VERSION, *counts, prepared_after, promoted_snapshot)]
    parts += [_TOPIC.pack(len(name)) + name for name in names]
    parts += [
        _PARTITION.pack(topics[p.topic], p.partition, origin) for p, origin in zip(partitions, origins, strict=True)
    ]
    parts += [_column(values) for values in ([len(batch) for batch in batches], index, gaps, lengths)]
    parts.append(_TAIL.pack(arithmetic, bool(lost), limit is not None, *(limit or (0.0, 0.0))))
    return zlib.compress(b"".join(parts), 6)


def decode(blob: bytes) -> JournalEntry:
    """Undo `encode`.

    Raises
    ------
    StoreError
        The bytes are damaged, or were written by a newer version of streamkm.
    """
    try:
        data = zlib.decompress(blob)
        version = data[0]
        if version in (_VERSION, _WITH_LOST, _PLAIN):
            return _decode(data)
    except (zlib.error, struct.error, IndexError, ValueError, TypeError, OverflowError) as e:
        raise StoreError(f"a journal entry of {len(blob)} bytes is damaged ({e})", hint="Restore a backup") from e
    raise StoreError(f"a journal entry has format {version}, this streamkm reads {_VERSION}", hint="Upgrade streamkm")


def _decode(data: bytes) -> JournalEntry:
    version, n_topics, n_partitions, n_batches, n_ranges, prepared_after, promoted_snapshot = _HEAD.unpack_from(data)
    at = _HEAD.size
    topics: list[str] = []
    for _ in range(n_topics):
        (length,) = _TOPIC.unpack_from(data, at)
        at += _TOPIC.size
        topics.append(data[at : at + length].decode("utf-8", "surrogatepass"))
        at += length
    partitions: list[TopicPartition] = []
    stops: list[int] = []
    for topic, partition, origin in _PARTITION.iter_unpack(data[at : at + n_partitions * _PARTITION.size]):
        partitions.append(TopicPartition(topics[topic], partition))
        stops.append(origin)
    at += n_partitions * _PARTITION.size
    columns: list[list[int]] = []
    for n in (n_batches, n_ranges, n_ranges, n_ranges):
        values = np.frombuffer(data, f"<i{data[at]}", n, at + 1)
        at += 1 + values.nbytes
        columns.append(values.tolist())
    counts, index, gaps, lengths = columns
    ranges: list[BatchRange] = []
    for i, gap, length in zip(index, gaps, lengths, strict=True):
        start = stops[i] + gap
        stops[i] = start + length
        if not 0 <= start <= stops[i] < 1 << 63:
            raise ValueError(f"it has a range from {start} to {stops[i]}")
        ranges.append(BatchRange(partitions[i], start, stops[i]))
    ends = list(accumulate(counts, initial=0))
    batches = tuple(tuple(ranges[a:b]) for a, b in pairwise(ends))
    arithmetic, with_lost, limited, lead, read_at = 1, version == _WITH_LOST, False, 0.0, 0.0
    if version == _VERSION:
        arithmetic, with_lost, limited, lead, read_at = _TAIL.unpack_from(data, at)
    lost = batches[-1] if with_lost else ()
    limit = EventTimeLimit(lead, read_at) if limited else None
    return JournalEntry(
        batches[:-1] if with_lost else batches, prepared_after, promoted_snapshot, lost, limit, arithmetic
    )


def _column(values: Sequence[int]) -> bytes:
    column: NDArray[np.int64] = np.array(values, np.int64)
    low, high = (int(column.min()), int(column.max())) if len(values) else (0, 0)
    width = next(w for w in _WIDTHS if -(1 << (8 * w - 1)) <= low and high < 1 << (8 * w - 1))
    return bytes([width]) + column.astype(f"<i{width}").tobytes()
