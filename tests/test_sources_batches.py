"""Record batches as columns hold the same records as kafka-python's own class."""

from __future__ import annotations

import contextlib
import zlib
from itertools import pairwise
from typing import NamedTuple

import crc32c
import kafka
import numpy as np
import pytest
import snappy
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kafka import codec
from kafka.consumer.fetcher import Fetcher
from kafka.record import MemoryRecords
from kafka.record.default_records import DefaultRecordBatchBuilder
from kafka.record.legacy_records import LegacyRecordBatchBuilder

from streamkm.connectors.kafka import decompression, oversized
from streamkm.connectors.kafka.record_batches import BatchRecords, RecordColumns, compile_parser, join
from streamkm.connectors.kafka.sockets import SUPPORTED_VERSIONS
from streamkm.errors import CorruptBatchError, SettingsError
from streamkm.kernels.decode import record_batch
from streamkm.records import MAX_KEPT_BYTES

TP = kafka.TopicPartition("t", 0)
HEADER = 61
CRC_AT = 17
CRC_FROM = 21


class Aborted(NamedTuple):
    producer_id: int
    first_offset: int


headers = st.lists(st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=6)), max_size=3)
content = st.tuples(
    st.integers(0, 2**41), st.none() | st.binary(max_size=5), st.none() | st.binary(max_size=300), headers
)
batch_plans = st.fixed_dictionaries(
    {
        "records": st.lists(content, min_size=1, max_size=8),
        "codec": st.integers(0, 4),
        "holes": st.lists(st.integers(0, 3), min_size=8, max_size=8),
        "tail": st.integers(0, 3),
        "producer": st.sampled_from([-1, 1, 2]),
        "append_time": st.booleans(),
        "kind": st.sampled_from(["data", "data", "data", "commit", "abort", "legacy-0", "legacy-1", "empty"]),
    }
)
plans = st.lists(batch_plans, min_size=1, max_size=6)


def test_this_version_of_kafka_python_is_read_as_columns():
    assert kafka.__version__ in SUPPORTED_VERSIONS


def patched(batch: bytes, at: int, raw: bytes) -> bytes:
    """A batch of format 2 with some bytes replaced and a corrected checksum."""
    out = bytearray(batch)
    out[at : at + len(raw)] = raw
    out[CRC_AT:CRC_FROM] = crc32c.crc32c(bytes(out[CRC_FROM:])).to_bytes(4, "big")
    return bytes(out)


def batch_of(base, records, *, codec=0, offsets=None, tail=0, producer=-1, append_time=False, control=False):
    builder = DefaultRecordBatchBuilder(
        2, codec, control or producer > 0, producer, 0 if producer > 0 else -1, 0 if producer > 0 else -1, 1 << 28
    )
    offsets = offsets or list(range(len(records)))
    for offset, (timestamp, key, value, head) in zip(offsets, records, strict=True):
        builder.append(offset, timestamp, key, value, head)
    batch = bytearray(builder.build())
    attributes = int.from_bytes(batch[21:23], "big") | (0x08 if append_time else 0) | (0x20 if control else 0)
    batch[0:8] = base.to_bytes(8, "big")
    batch = patched(bytes(batch), 21, attributes.to_bytes(2, "big"))
    return patched(batch, 23, (offsets[-1] + tail).to_bytes(4, "big")), base + offsets[-1] + tail + 1


def log_of(plan):
    """The bytes of some batches, their aborted transactions, and the offset after each batch."""
    log, at, aborted, open_at, ends = b"", 10, [], {}, []
    for step in plan:
        kind, producer = step["kind"], step["producer"]
        if kind.startswith("legacy"):
            magic = int(kind[-1])
            builder = LegacyRecordBatchBuilder(magic, step["codec"] % 3, 1 << 20)
            for i, (timestamp, key, value, _) in enumerate(step["records"]):
                builder.append(at + i, timestamp, key, value, [])
            log += bytes(builder.build())
            at += len(step["records"])
        elif kind in {"commit", "abort"}:
            if producer < 0:
                continue
            marker = (0, b"\0\0\0" + (b"\1" if kind == "commit" else b"\0"), b"\0\0\0\0\0\0", [])
            batch, at = batch_of(at, [marker], producer=producer, control=True)
            first = open_at.pop(producer, None)
            if kind == "abort" and first is not None:
                aborted.append(Aborted(producer, first))
            log += batch
        elif kind == "empty":
            batch, at = batch_of(at, [(0, None, b"", [])], tail=step["tail"])
            log += patched(batch[:HEADER], 57, b"\0\0\0\0")[:8] + (HEADER - 12).to_bytes(4, "big")
            log += patched(batch[:HEADER], 57, b"\0\0\0\0")[12:]
        else:
            offsets = [i + sum(step["holes"][: i + 1]) for i in range(len(step["records"]))]
            if producer > 0:
                open_at.setdefault(producer, at)
            batch, at = batch_of(
                at,
                step["records"],
                codec=step["codec"],
                offsets=offsets,
                tail=step["tail"],
                producer=producer,
                append_time=step["append_time"],
            )
            log += batch
        ends.append(at)
    return log, aborted, ends


def read_plain(log, aborted, start, level, sizes):
    """Records by kafka-python: (offset, timestamp, key, value, headers), and the final position."""
    part = Fetcher.PartitionRecords(
        start, TP, MemoryRecords(log), isolation_level=level, aborted_transactions=list(aborted)
    )
    out = []
    while part:
        out += part.take(next(sizes))
    found = [(r.offset, -1 if r.timestamp is None else r.timestamp, r.key, r.value, tuple(r.headers)) for r in out]
    return found, part.next_fetch_offset


def read_columns(log, aborted, start, level, sizes):
    part = BatchRecords(start, TP, MemoryRecords(log), isolation_level=level, aborted_transactions=list(aborted))
    out, positions = [], [start]
    while part:
        n = next(sizes)
        taken = part.take(n)
        assert len(taken) <= n
        if len(taken):
            columns = join(list(taken))
            assert len(taken) == len(columns.offsets)
            out += rows(columns)
            assert positions[-1] <= columns.offsets[0]
            assert columns.offsets[-1] < part.next_fetch_offset
        positions.append(part.next_fetch_offset)
    assert all(a <= b for a, b in pairwise(positions))
    return out, part.next_fetch_offset


def rows(columns: RecordColumns):
    for i in range(len(columns.offsets)):
        end = columns.ends[i]
        value = None if end < 0 else columns.data[columns.begins[i] : end].tobytes()
        key, head = columns.details(i)
        yield int(columns.offsets[i]), int(columns.timestamps[i]), key, value, head


def cycle(sizes):
    while True:
        yield from sizes


@settings(max_examples=300, deadline=None)
@given(
    plan=plans,
    skip=st.integers(0, 12),
    level=st.sampled_from([0, 1]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    cut=st.integers(0, 80),
)
def test_columns_are_what_kafka_python_reads(plan, skip, level, sizes, cut):
    log, aborted, ends = log_of(plan)
    log = log[: len(log) - cut] if cut < len(log) else log  # the last batch of a fetch may be incomplete
    start = min(10 + skip, ends[-1] if ends else 10)
    plain, plain_position = read_plain(log, aborted, start, level, cycle(sizes))
    ours, position = read_columns(log, aborted, start, level, cycle(sizes))
    assert ours == plain
    assert position == max(plain_position, start)


KEPT, MAX_VALUE_BYTES = 10, 120


def small_pieces(m):
    """Reduce buffer and chunk sizes so that small batches exceed them; a record may have 170 bytes."""
    m.setattr(decompression, "CHUNK_BYTES", 50)
    m.setattr(decompression, "_INPUT_BYTES", 30)
    m.setattr(decompression, "_STEP_BYTES", 20)
    m.setattr(oversized, "MAX_KEPT_BYTES", KEPT)


def read_pieces(log, aborted, start, level, sizes, buffer):
    """Read in many small polls, with a restart at every third one; also returns the largest buffer in bytes."""
    part, out, position, most, polls = None, [], start, 0, 0
    while True:
        if part is None:
            part = BatchRecords(
                position,
                TP,
                MemoryRecords(log),
                isolation_level=level,
                aborted_transactions=list(aborted),
                buffer=buffer,
            )
        buffer.reset()
        n = next(sizes)
        taken = part.take(n)
        most = max(most, buffer.end)
        polls += 1
        found = [columns for columns in taken if len(columns.offsets)]
        if found:
            columns = join(found)
            assert len(columns.offsets) <= n
            assert len(taken) == n if buffer.full else len(columns.offsets)
            assert position <= columns.offsets[0]
            assert columns.offsets[-1] < part.next_fetch_offset
            for offset, timestamp, key, value, head in rows(columns):
                out.append((offset, timestamp, key, value, head, columns.cut.get(offset)))
            if all(c.data is found[0].data for c in found):
                assert columns.data is found[0].data  # not copied
        assert part.next_fetch_offset >= position
        moved, position = part.next_fetch_offset > position, part.next_fetch_offset
        if not part:
            return out, position, most
        if polls % 3 == 0 and moved:
            part = None


@settings(max_examples=300, deadline=None)
@given(
    plan=plans,
    skip=st.integers(0, 12),
    level=st.sampled_from([0, 1]),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_in_pieces_and_with_restarts_inside_of_batches_the_same_is_read(plan, skip, level, sizes):
    log, aborted, ends = log_of(plan)
    start = min(10 + skip, ends[-1] if ends else 10)
    plain, plain_position = read_plain(log, aborted, start, level, cycle(sizes))
    with pytest.MonkeyPatch.context() as m:
        small_pieces(m)
        buffer = decompression.DecompressionBuffer(0, MAX_VALUE_BYTES)
        ours, position, most = read_pieces(log, aborted, start, level, cycle(sizes), buffer)
    assert position == max(plain_position, start)
    assert most <= len(buffer.data)
    assert [row[:3] + row[4:5] for row in ours] == [row[:3] + row[4:5] for row in plain]
    for (*_, value, _, cut), (*_, whole, _) in zip(ours, plain, strict=True):
        assert value == (whole if cut is None else whole[:KEPT])
        assert cut is None or cut == len(whole) > MAX_VALUE_BYTES


@pytest.mark.parametrize("codec", range(1, 5))
def test_a_batch_is_decompressed_as_far_as_the_buffer_allows(codec):
    # 200 records of 400 kB are 80 MB: no array may be as large, and nothing may be decompressed twice.
    records = [(i, b"k%d" % i, b"%09d" % i + bytes(400_000), []) for i in range(200)]
    log = batch_of(10, records, codec=codec)[0]
    buffer = decompression.DecompressionBuffer(16 << 20)
    part = BatchRecords(10, TP, MemoryRecords(log), buffer=buffer)
    read, polls, used = [], 0, 0
    while part:
        buffer.reset()
        taken = part.take(10_000)
        polls += 1
        used += buffer.used
        if len(read) < 200 and taken.parts:
            columns = join(taken.parts)
            assert columns.data.nbytes <= 16 << 20
            read += [(o, v[:9], len(v)) for o, _, _, v, _ in rows(columns)]
    assert read == [(10 + i, b"%09d" % i, 400_009) for i in range(200)]
    assert polls > 5
    assert used < 81_000_000


@pytest.mark.parametrize("codec", [1, 4])
def test_the_beginning_of_an_oversized_record_is_kept(codec):
    long = bytes(30_000_000)
    records = [
        (1, b"a", b"one", [("h", b"v")]),
        (2, b"b", long, [("h", b"v"), ("null", None)]),
        (3, None, b"two", []),
        (4, long, b"long key", [("h", b"v")]),
        (5, b"c", b"three", [("h", b"v"), ("long", long), ("after", b"")]),
        (6, b"d", None, []),
    ]
    log = batch_of(10, records, codec=codec)[0]
    buffer = decompression.DecompressionBuffer(8 << 20)
    part, found, polls = BatchRecords(10, TP, MemoryRecords(log), buffer=buffer), [], 0
    while part:
        buffer.reset()
        taken, polls = part.take(100), polls + 1
        if taken.parts:
            columns = join(taken.parts)
            found += [(*row, columns.cut.get(row[0])) for row in rows(columns)]
    assert polls > 3
    assert found[0] == (10, 1, b"a", b"one", (("h", b"v"),), None)
    assert found[1] == (11, 2, b"b", bytes(MAX_KEPT_BYTES), (("h", b"v"), ("null", None)), 30_000_000)
    assert found[2] == (12, 3, None, b"two", (), None)
    assert found[3][0] == 13
    assert found[3][2] == bytes(buffer.max_record_bytes)
    assert found[3][3:5] == (b"long key", (("h", b"v"),))
    assert found[3][5] > 30_000_000
    assert found[4][:5] == (14, 5, b"c", b"three", (("h", b"v"),))
    assert found[4][5] > 30_000_000
    assert found[5] == (15, 6, b"d", None, (), None)


def one_batch(codec=0):
    records = [(1000 + i, b"key", b"value %d" % i, [("h", b"v")]) for i in range(5)]
    return batch_of(10, records, codec=codec)[0]


def take_all(log, **options):
    part = BatchRecords(10, TP, MemoryRecords(log), isolation_level=1, **options)
    out = []
    while part:
        out += part.take(3)
    return out


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 4), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_batch_with_a_valid_checksum_is_read_or_rejected(codec, changes):
    batch = bytearray(one_batch(codec))
    for at, byte in changes:
        batch[HEADER + at % (len(batch) - HEADER)] = byte
    log = patched(bytes(batch), HEADER, bytes(batch[HEADER : HEADER + 1]))
    with contextlib.suppress(CorruptBatchError):  # no other errors, and no reads out of bounds
        take_all(log)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
@example(b"")
@example(b"\0" * 17)
@example(b"\0" * 11 + b"\1" + b"\0" * 20)
def test_arbitrary_bytes_are_read_or_rejected(raw):
    with contextlib.suppress(CorruptBatchError):
        take_all(raw)


@pytest.mark.parametrize(
    ("at", "raw", "why"),
    [
        (CRC_AT, b"\0\0\0\0", "checksum"),
        (16, b"\7", "format 7 is unknown"),
    ],
)
def test_a_damaged_header_is_rejected(at, raw, why):
    batch = bytearray(one_batch())
    batch[at : at + len(raw)] = raw
    with pytest.raises(CorruptBatchError, match=why) as refused:
        take_all(bytes(batch))
    assert refused.value.where == "t-0@10"


@pytest.mark.parametrize(
    ("at", "raw", "why"),
    [
        (21, b"\0\7", "compression 7 is unknown"),
        (21, b"\0\1", "gzip data cannot be decompressed"),
        (21, b"\0\2", "snappy data cannot be decompressed"),
        (21, b"\0\3", "lz4 data cannot be decompressed"),
        (21, b"\0\4", "zstd data cannot be decompressed"),
        (57, b"\x7f\xff\xff\xff", "record count is impossible"),
        (57, b"\xff\xff\xff\xff", "record count is impossible"),
        (57, b"\0\0\0\4", "bytes are left"),
        (57, b"\0\0\0\6", "end in the middle|impossible"),
        (HEADER, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "more than 64 bits"),
        (HEADER, b"\x7f", "impossible length"),
        (HEADER + 3, b"\2", "offsets do not increase"),
    ],
)
def test_an_inconsistent_batch_is_rejected(at, raw, why):
    with pytest.raises(CorruptBatchError, match=why):
        take_all(patched(one_batch(), at, raw))


def test_records_before_a_broken_batch_come_first_and_the_error_stays():
    good, broken = one_batch(), bytearray(batch_of(15, [(0, None, b"x", [])])[0])
    broken[-1] ^= 1
    part = BatchRecords(10, TP, MemoryRecords(good + bytes(broken)), isolation_level=1)
    assert len(part.take(100)) == 5
    assert part.next_fetch_offset == 15
    for _ in range(3):
        with pytest.raises(CorruptBatchError, match="offsets 15 to 15") as refused:
            part.take(100)
        assert refused.value.where == "t-0@15"
        assert part


def test_checksums_can_be_disabled_by_the_client_settings():
    batch = bytearray(one_batch())
    batch[CRC_AT] ^= 1
    assert sum(len(c.offsets) for c in take_all(bytes(batch), check_crcs=False)) == 5


def test_deserializers_have_no_place():
    with pytest.raises(SettingsError):
        BatchRecords(0, TP, MemoryRecords(b""), value_deserializer=bytes)


def test_values_of_uncompressed_batches_are_not_copied():
    log = one_batch() + batch_of(15, [(0, None, b"x" * 10, [])])[0]
    columns = join(list(BatchRecords(10, TP, MemoryRecords(log)).take(100)))
    assert np.shares_memory(columns.data, np.frombuffer(log, np.uint8))


def test_compiling_ahead_covers_what_a_topic_needs():
    compile_parser()
    compiled = set(record_batch.parse_records.signatures)
    take_all(one_batch(0) + batch_of(15, [(0, None, b"x", [])], codec=1)[0])
    assert set(record_batch.parse_records.signatures) == compiled


ENCODERS = {1: codec.gzip_encode, 2: codec.snappy_encode, 3: codec.lz4_encode, 4: codec.zstd_encode}


def unpacked(number: int, data: bytes) -> bytes:
    pieces = list(decompression.DECOMPRESSORS[number][1](memoryview(data)))
    assert all(len(piece) <= decompression.CHUNK_BYTES for piece in pieces)
    return b"".join(pieces)


@pytest.mark.parametrize("number", ENCODERS)
@pytest.mark.parametrize("what", [b"abc", bytes(5_000_000), bytes(range(256)) * 12_000])
def test_what_is_compressed_comes_in_pieces(number, what):
    whole = bytes(ENCODERS[number](what))
    assert unpacked(number, whole) == what
    if number not in {2, 4}:  # these two do not report it themselves
        with pytest.raises((ValueError, EOFError, zlib.error)):
            unpacked(number, whole[: len(whole) // 2])


def test_a_block_of_snappy_alone_and_frames_one_after_the_other_are_read():
    assert unpacked(2, snappy.compress(b"abc" * 100)) == b"abc" * 100
    with pytest.raises(ValueError, match="cannot decompress"):
        unpacked(2, b"\xff\xff\xff\x7f" + b"abc")
    for number in (1, 3, 4):
        assert unpacked(number, bytes(ENCODERS[number](b"abc")) + bytes(ENCODERS[number](b"def"))) == b"abcdef"
