import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import naive
from streamkm.kernels.decode.record_batch import (
    BAD_LENGTH,
    BAD_OFFSET,
    BAD_VARINT,
    OK,
    TRUNCATED,
    UNFINISHED,
    parse_records,
    read_varint,
)

INT64 = st.integers(-(2**63), 2**63 - 1)


def varint(value):
    raw = ((value << 1) ^ (value >> 63)) & (2**64 - 1)
    out = bytearray()
    while raw >= 0x80:
        out.append(raw & 0x7F | 0x80)
        raw >>= 7
    return bytes(out + bytes([raw]))


def record(timestamp, offset, key, value, headers):
    def sized(part):
        return varint(-1) if part is None else varint(len(part)) + part

    body = b"\0" + varint(timestamp) + varint(offset) + sized(key) + sized(value) + varint(len(headers))
    body += b"".join(sized(k) + sized(v) for k, v in headers)
    return varint(len(body)) + body


PARTS = st.none() | st.binary(max_size=200)
RECORDS = st.lists(
    st.tuples(
        st.integers(-(2**40), 2**40), PARTS, PARTS, st.lists(st.tuples(st.binary(max_size=5), PARTS), max_size=3)
    ),
    max_size=8,
)


@settings(deadline=None)  # the first example compiles
@given(INT64)
def test_a_varint_is_read_as_the_naive_twin_reads_it(value):
    data = np.frombuffer(varint(value), np.uint8)
    assert read_varint(data, 0, len(data)) == naive.read_varint(data.tolist(), 0) == (value, len(data))
    assert read_varint(data, 0, len(data) - 1)[1] == -TRUNCATED


@settings(deadline=None)
@given(RECORDS, st.integers(0, 2**40))
def test_a_batch_has_the_records_that_the_naive_twin_finds(records, base):
    encoded = b"".join(record(t, i, k, v, h) for i, (t, k, v, h) in enumerate(records))
    data, n = np.frombuffer(encoded, np.uint8), len(records)
    _, begins, ends, offsets, timestamps = table = np.empty((5, n), np.int64)
    assert parse_records(data, 0, len(data), base, base - 1, base + n, 1000, -1, table) == (OK, n, len(data))
    values = [None if e < 0 else encoded[b:e] for b, e in zip(begins.tolist(), ends.tolist(), strict=True)]
    found = list(zip(offsets.tolist(), timestamps.tolist(), values, strict=True))
    assert ("ok", found, len(data)) == naive.parse_records(data.tolist(), n, base, 1000)


@settings(deadline=None)
@given(RECORDS, st.data())
def test_a_batch_in_pieces_is_the_batch(records, drawn):
    encoded = b"".join(record(t, i, k, v, h) for i, (t, k, v, h) in enumerate(records))
    data, n = np.frombuffer(encoded, np.uint8), len(records)
    _, expected, _ = naive.parse_records(data.tolist(), n, 5, 0)
    at, end, found = 0, 0, []
    while len(found) < n:
        end = drawn.draw(st.integers(min(end + 1, len(data)), len(data)))
        m = drawn.draw(st.integers(1, n - len(found)))
        _, begins, ends, offsets, timestamps = table = np.empty((5, m), np.int64)
        before = found[-1][0] if found else 4
        status, rows, at = parse_records(data, at, end, 5, before, 5 + n, 0, -1, table)
        assert status == (OK if rows == m else UNFINISHED)
        for i in range(rows):
            value = None if ends[i] < 0 else encoded[begins[i] : ends[i]]
            found.append((int(offsets[i]), int(timestamps[i]), value))
    assert found == expected
    assert at == len(data)


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_record_cut_short_is_not_finished(cut):
    first = record(1, 0, b"k", b"value", [])
    encoded = first + record(1, 1, b"k", b"value", [])
    data = np.frombuffer(encoded[:-cut], np.uint8)
    table = np.empty((5, 2), np.int64)
    assert parse_records(data, 0, len(data), 0, -1, 1, 0, -1, table) == (UNFINISHED, 1, len(first))


STATUSES = {
    OK: "ok",
    TRUNCATED: "truncated",
    BAD_VARINT: "varint",
    BAD_LENGTH: "length",
    BAD_OFFSET: "offset",
    UNFINISHED: "unfinished",
}


def damaged_records():
    """A record with one byte changed or added, a number that does not end, or a wrong length."""
    body = record(1, 1, b"key", b"value", [(b"h", b"x"), (b"n", None)])[1:]
    bodies = [body[:i] + bytes([b]) + body[i + 1 :] for i in range(len(body)) for b in (0, 1, 2, 0x7E, 0x80, 0xFF)]
    bodies += [body[:i] + b"\xff" * 11 + body[i:] for i in range(len(body))]
    yield from (varint(len(b)) + b for b in bodies)
    yield from (varint(n) + body for n in range(-1, len(body) + 3))
    yield b"\xff" * 11


def test_a_damaged_record_is_rejected_where_and_why_the_naive_twin_rejects_it():
    first = record(0, 0, b"", b"first", [])
    seen = set()
    for last in damaged_records():
        data = np.frombuffer(first + last, np.uint8)
        starts, begins, ends, offsets, timestamps = table = np.zeros((5, 2), np.int64)
        status, rows, at = parse_records(data, 0, len(data), 7, 6, 8, 1000, -1, table)
        expected, records, stop = naive.parse_records(data.tolist(), 2, 7, 1000, 6, 8)
        assert (STATUSES[status], rows, at) == (expected, len(records), stop), last
        for i, (offset, timestamp, value) in enumerate(records):
            assert (offsets[i], timestamps[i]) == (offset, (timestamp + 2**63) % 2**64 - 2**63)
            assert (None if ends[i] < 0 else data[begins[i] : ends[i]].tobytes()) == value
        assert starts[:rows].tolist() == [0, len(first)][:rows]
        seen.add(status)
    assert seen == set(STATUSES)
