"""Parser of the records of a Kafka record batch (message format 2), without an object per record.

The layout is Kafka's ``DefaultRecord``, in which every number is a zig-zag varint. A batch comes from the network, so
no length in it is trusted: nothing is read outside ``data[begin:end]``, whatever it contains.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

# Status codes of `parse_records`.
OK = 0
TRUNCATED = 1
BAD_VARINT = 2
BAD_LENGTH = 3
TRAILING_BYTES = 4
BAD_OFFSET = 5
UNFINISHED = 6
"""The next record is incomplete, which is not an error if there is more data to come."""


@jit()
def read_varint(data: NDArray[np.uint8], pos: int, end: int) -> tuple[int, int]:
    """Parse one zig-zag varint of up to 64 bits.

    Parameters
    ----------
    data
        (bytes,) uint8.
    pos, end
        Start of the varint, and end of the data that may be read.

    Returns
    -------
    tuple
        (value, next position); the position is ``-TRUNCATED`` or ``-BAD_VARINT`` if it is invalid.
    """
    raw = np.uint64(0)
    shift = np.uint64(0)
    while pos < end:
        byte = np.uint64(data[pos])
        pos += 1
        raw |= (byte & np.uint64(0x7F)) << shift
        if byte < np.uint64(0x80):
            value: int = np.int64(raw >> np.uint64(1)) ^ -np.int64(raw & np.uint64(1))  # type: ignore[assignment]
            return value, pos
        shift += np.uint64(7)
        if shift >= np.uint64(64):
            return 0, -BAD_VARINT
    return 0, -TRUNCATED


@jit()
def parse_records(  # noqa: PLR0911  # one return per kind of error
    data: NDArray[np.uint8],  # IN
    begin: int,
    end: int,
    base_offset: int,
    previous: int,
    last_offset: int,
    base_timestamp: int,
    append_timestamp: int,
    table: NDArray[np.int64],  # OUT
) -> tuple[int, int, int]:
    """Find the values of the next records of a batch.

    Parameters
    ----------
    data
        (bytes,) uint8.
    begin, end
        The records are in ``data[begin:end]``, starting at `begin`; the last one may be incomplete.
    base_offset, base_timestamp
        Added to the records' deltas.
    previous, last_offset
        Offset of the previous record, and last offset of the batch; offsets must increase up to it, possibly with gaps
        after compaction.
    append_timestamp
        Timestamp of all records if the broker sets it (``LogAppendTime``); -1 for timestamps of the producer.
    table
        (5, n): one column per record; at most n records are parsed. Its rows are: start of the record, for reading its
        key and headers; begin and end of its value in `data`, whose end is -1 if it is null; offset; and timestamp in
        milliseconds since 1970.

    Returns
    -------
    tuple
        (status, number of records, start of the next record). The status is `OK` if n records were parsed, else the
        reason why the next one cannot be; the records before it are valid in any case.
    """
    starts, begins, ends, offsets, timestamps = table[0], table[1], table[2], table[3], table[4]
    pos = begin
    for i in range(len(starts)):
        start = pos
        length, pos = read_varint(data, pos, end)
        if pos == -TRUNCATED:
            return UNFINISHED, i, start
        if pos < 0:
            return -pos, i, start
        if length < 1:
            return BAD_LENGTH, i, start
        if length > end - pos:
            return UNFINISHED, i, start
        stop = pos + length
        pos += 1  # attributes: unused by Kafka
        time_delta, pos = read_varint(data, pos, stop)
        if pos < 0:
            return -pos, i, start
        delta, pos = read_varint(data, pos, stop)
        if pos < 0:
            return -pos, i, start
        offset = base_offset + delta
        if offset <= previous or offset > last_offset:
            return BAD_OFFSET, i, start
        size, pos = read_varint(data, pos, stop)  # key
        if pos < 0:
            return -pos, i, start
        if size > stop - pos:
            return BAD_LENGTH, i, start
        if size > 0:
            pos += size
        size, pos = read_varint(data, pos, stop)  # value
        if pos < 0:
            return -pos, i, start
        if size > stop - pos:
            return BAD_LENGTH, i, start
        value = pos
        if size > 0:
            pos += size
        headers, pos = read_varint(data, pos, stop)
        if pos < 0:
            return -pos, i, start
        if headers < 0:
            return BAD_LENGTH, i, start
        while headers > 0:
            headers -= 1
            name, pos = read_varint(data, pos, stop)  # header key: never null
            if pos < 0:
                return -pos, i, start
            if name < 0 or name > stop - pos:
                return BAD_LENGTH, i, start
            pos += name
            content, pos = read_varint(data, pos, stop)  # header value
            if pos < 0:
                return -pos, i, start
            if content > stop - pos:
                return BAD_LENGTH, i, start
            if content > 0:
                pos += content
        if pos != stop:
            return BAD_LENGTH, i, start
        starts[i] = start
        begins[i] = value
        ends[i] = value + size if size >= 0 else -1
        offsets[i] = previous = offset
        timestamps[i] = append_timestamp if append_timestamp != -1 else base_timestamp + time_delta
    return OK, len(starts), pos
