"""Walks the records of a Kafka record batch (message format 2) without making an object per record.

The layout is that of Kafka's ``DefaultRecord``: every number a zig-zag varint. A batch comes from a network, so no
length in it is believed: nothing is read outside ``data[begin:end]``, whatever the bytes say.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit

# Why a walk stopped; `parse_records` returns one of them.
OK = 0
TRUNCATED = 1
BAD_VARINT = 2
BAD_LENGTH = 3
TRAILING_BYTES = 4
BAD_OFFSET = 5


@jit()
def read_varint(data: NDArray[np.uint8], pos: int, end: int) -> tuple[int, int]:
    """Read one zig-zag varint of up to 64 bits.

    Parameters
    ----------
    data
        (bytes,) uint8.
    pos, end
        Where it begins, and where it must have ended.

    Returns
    -------
    tuple
        (value, next position); the position is ``-TRUNCATED`` or ``-BAD_VARINT`` when there is none.
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
def parse_records(  # noqa: PLR0911  # each way a batch can be broken is told
    data: NDArray[np.uint8],  # IN
    begin: int,
    end: int,
    base_offset: int,
    last_offset: int,
    base_timestamp: int,
    append_timestamp: int,
    starts: NDArray[np.int64],  # OUT, one per record
    begins: NDArray[np.int64],  # OUT
    ends: NDArray[np.int64],  # OUT
    offsets: NDArray[np.int64],  # OUT
    timestamps: NDArray[np.int64],  # OUT
) -> int:
    """Find the values of a batch's records.

    Parameters
    ----------
    data
        (bytes,) uint8.
    begin, end
        The (decompressed) records of the batch are ``data[begin:end]``; its record count is ``len(starts)``.
    base_offset, base_timestamp
        What the records' deltas are relative to.
    last_offset
        The batch's last offset; offsets must increase up to it (compaction leaves holes).
    append_timestamp
        The timestamp of all records, where the broker sets it (``LogAppendTime``); -1 for the producer's own.
    starts
        (n,) where record i begins, for those who want its key and headers.
    begins, ends
        (n,) value i is ``data[begins[i]:ends[i]]``; ``ends[i] == -1`` is null.
    offsets, timestamps
        (n,) offset and milliseconds since 1970.

    Returns
    -------
    int
        `OK`, or why the batch cannot be read; the outputs then mean nothing.
    """
    pos = begin
    previous = base_offset - 1
    for i in range(len(starts)):
        starts[i] = pos
        length, pos = read_varint(data, pos, end)
        if pos < 0:
            return -pos
        if length < 1 or length > end - pos:
            return BAD_LENGTH
        stop = pos + length
        pos += 1  # attributes: unused by Kafka
        delta, pos = read_varint(data, pos, stop)
        if pos < 0:
            return -pos
        timestamps[i] = append_timestamp if append_timestamp != -1 else base_timestamp + delta
        delta, pos = read_varint(data, pos, stop)
        if pos < 0:
            return -pos
        offset = base_offset + delta
        if offset <= previous or offset > last_offset:
            return BAD_OFFSET
        offsets[i] = previous = offset
        size, pos = read_varint(data, pos, stop)  # key
        if pos < 0:
            return -pos
        if size > stop - pos:
            return BAD_LENGTH
        if size > 0:
            pos += size
        size, pos = read_varint(data, pos, stop)  # value
        if pos < 0:
            return -pos
        if size > stop - pos:
            return BAD_LENGTH
        begins[i] = pos
        if size >= 0:
            pos += size
            ends[i] = pos
        else:
            ends[i] = -1
        headers, pos = read_varint(data, pos, stop)
        if pos < 0:
            return -pos
        if headers < 0:
            return BAD_LENGTH
        while headers > 0:
            headers -= 1
            size, pos = read_varint(data, pos, stop)  # header key: never null
            if pos < 0:
                return -pos
            if size < 0 or size > stop - pos:
                return BAD_LENGTH
            pos += size
            size, pos = read_varint(data, pos, stop)  # header value
            if pos < 0:
                return -pos
            if size > stop - pos:
                return BAD_LENGTH
            if size > 0:
                pos += size
        if pos != stop:
            return BAD_LENGTH
    return OK if pos == end else TRAILING_BYTES
