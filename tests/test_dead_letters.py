"""Bad records: reasons, limits, and dead letters, without a broker."""

from __future__ import annotations

import dataclasses
import json
import threading
import time

import numpy as np
import pytest

from streamkm.codecs import JsonCodec, make_codec
from streamkm.codecs.fields import MAX_ABS_VALUE
from streamkm.connectors import byte_records
from streamkm.engine import Engine, codec_for_model, dead_letters, maintenance
from streamkm.engine.bad_records import BadRecordLimit
from streamkm.errors import BadRecordsError, BrokerUnreachableError, SettingsError
from streamkm.metrics import LETTERS
from streamkm.models import validation
from streamkm.records import (
    MAX_KEPT_BYTES,
    BadRecord,
    Batch,
    BatchRange,
    DeliveryError,
    RawRecord,
    TopicPartition,
    truncate_for_quarantine,
)
from streamkm.stores import open_store
from streamkm.stores.base import QuarantinedRecord
from streamkm.testing import StopAfter
from test_engine import CODEC, OPTIONS, SPEC, N, World, eager, record
from waiting import PATIENCE, wait_until

__all__ = ["eager"]  # a fixture that every test here uses

TP = TopicPartition("t", 0)
KINDS = {
    "not-json": b"\xff",
    "not-finite": b'{"x": NaN, "y": 1}',
    "wrong-dimension": b"[1]",
    "too-large": b'{"x": 1, "y": 2, "z": "' + b"a" * 1000 + b'"}',
    "out-of-range": b'{"x": 1, "y": -2e140}',
}
BAD = dict(zip((10, 11, 500, 701, 1400), KINDS.values(), strict=True))
WITH_LETTERS = dataclasses.replace(OPTIONS, dead_letters="dead")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dead_letters, "FIRST_BACKOFF", 0.01)
    monkeypatch.setattr(dead_letters, "LAST_BACKOFF", 0.02)


class Mailbox:
    """Writers that append letters to a list, or fail as scripted."""

    def __init__(self):
        self.topics, self.sent, self.opened, self.closed = [], [], 0, 0
        self.away = self.refuse_first = 0
        self.too_large_over = 1_000_000

    def open(self):
        self.opened += 1
        if self.opened <= self.away:
            raise BrokerUnreachableError("no broker")
        return self

    def create_topic(self, topic, partitions=1):  # noqa: ARG002
        self.topics.append(topic)

    def write(self, records):
        answers = []
        for r in records:
            if self.refuse_first:
                self.refuse_first -= 1
                answers.append(DeliveryError("NotEnoughReplicas", permanent=False))
            elif len(r.value or b"") > self.too_large_over:
                answers.append(DeliveryError("MessageSizeTooLarge", permanent=True))
            else:
                self.sent.append(r)
                answers.append(None)
        return answers

    def close(self):
        self.closed += 1

    def offsets(self):
        return sorted(int(dict(r.headers)["__connect.errors.offset"]) for r in self.sent)


def poisoned():
    return World([record(i, BAD[i]) if i in BAD else record(i) for i in range(N)])


def with_letters(w, mailbox, options=WITH_LETTERS):
    return Engine(
        SPEC,
        open_source=w.source,
        codec=make_codec(CODEC),
        store=w.store,
        options=options,
        clock=w.clock,
        open_writer=mailbox.open,
    )


def all_delivered(w):
    wait_until(lambda: not w.store.undelivered("m"), "the letters")


def test_each_kind_of_bad_record_has_its_reason_and_its_neighbours_are_learned():
    w = poisoned()
    w.engine().run(w.until_all_read())
    c = w.counters()
    assert (c.points, c.bad, c.records) == (N - 5, 5, N)
    assert {b.record.value: b.reason for b in w.store.newest_quarantined("m")} == {v: k for k, v in KINDS.items()}
    assert w.store.quarantine_counts("m") == dict.fromkeys(KINDS, 1)
    assert w.verify()


def test_a_value_is_out_of_range_exactly_where_no_model_takes_it():
    assert MAX_ABS_VALUE == validation.LIMIT
    values = [b"[1,%.17g]" % x for x in (MAX_ABS_VALUE, -MAX_ABS_VALUE, np.nextafter(MAX_ABS_VALUE, np.inf), -1.7e308)]
    records = byte_records(TP, 0, 4, [RawRecord(TP, i, 0, None, v) for i, v in enumerate(values)])
    for strict in (False, True):
        batch = JsonCodec(["x", "y"], strict=strict).decode(records)
        assert batch.points.tolist() == [[1, MAX_ABS_VALUE], [1, -MAX_ABS_VALUE]]
        assert batch.offsets.tolist() == [0, 1]
        assert [(b.record.offset, b.reason, b.field) for b in batch.bad] == [
            (2, "out-of-range", "y"), (3, "out-of-range", "y"),
        ]  # fmt: skip
        assert batch.bad[1].message == "y is -1.7e+308, beyond the maximum of 1e+140"


def test_bad_records_of_all_steps_are_in_order_and_times_stay_with_their_points():
    values = [b"[1,1]", b"[1e200,1]", None, b"{", b"[2,2]", b"[1,1e200]", b"[3,3]"]
    records = byte_records(TP, 0, 7, [RawRecord(TP, i, 1000 * i, None, v) for i, v in enumerate(values)])
    batch = JsonCodec(["x", "y"]).decode(records)
    assert [b.record.offset for b in batch.bad] == [1, 3, 5]
    assert batch.offsets.tolist() == [0, 4, 6]
    assert batch.times.tolist() == [0.0, 4.0, 6.0]
    assert batch.points.flags.c_contiguous
    assert batch.tombstones == 1


def test_where_directions_count_a_point_without_one_is_bad_and_stops_nobody():
    spec = dataclasses.replace(SPEC, learner={**SPEC.learner, "distance": "cosine"})
    zeros = [record(i, b'{"x": 0, "y": -0.0}') if i in (100, 900) else record(i) for i in range(N)]
    w = World(zeros)
    w.engine(spec=spec).run(w.until_all_read())
    assert (w.counters().points, w.counters().bad) == (N - 2, 2)
    assert {(b.reason, b.record.offset) for b in w.store.newest_quarantined("m")} == {
        ("out-of-range", 50),
        ("out-of-range", 450),
    }
    assert w.verify(spec)
    codec = codec_for_model(make_codec(CODEC), spec)
    assert codec.spec() == make_codec(CODEC).spec()
    assert codec.fields == ("x", "y")
    assert codec_for_model(make_codec(CODEC), SPEC).decode(w_records(b"[0,0]")).points.tolist() == [[0, 0]]


def w_records(*values):
    return byte_records(TP, 0, len(values), [RawRecord(TP, i, -1, None, v) for i, v in enumerate(values)])


def batch(good, bad, partition=TP):
    """A batch of records at these offsets."""
    good = np.array(good, np.int64)
    flaws = tuple(BadRecord(RawRecord(partition, i, -1, None, b"?"), "not-json", "", f"bad {i}") for i in bad)
    span = BatchRange(partition, 0, 1000)
    return Batch(span, np.zeros((len(good), 1)), np.zeros(len(good)), good, flaws)


def test_bad_records_in_a_row_are_counted_in_each_partition_across_batches():
    limit = BadRecordLimit("m", dataclasses.replace(OPTIONS, max_bad_in_a_row=5, max_bad_ratio=1.0))
    other = TopicPartition("t", 1)
    limit.check(8, [batch([0, 3], [1, 2, 4, 5, 6, 7]), batch([0], [1, 2, 3, 4], other)])
    assert limit.in_a_row == {TP: 4, other: 4}
    limit.check(0, [batch([], [])])
    assert limit.in_a_row[TP] == 4
    limit.check(1, [batch([8], [])])
    limit.check(4, [batch([], [9, 10, 11, 12])])
    assert limit.in_a_row[TP] == 4
    with pytest.raises(BadRecordsError, match=r"5 records of t-0 in a row are bad, such as t-0@13: bad 13") as e:
        limit.check(2, [batch([14], [13])])
    assert "--max-bad-in-a-row" in e.value.hint
    limit.check(1, [batch([8], [9], other)])
    with pytest.raises(BadRecordsError, match="6 records of t-1"):
        limit.check(8, [batch([20, 30], [21, 22, 23, 24, 25, 26], other)])


def test_without_a_limit_in_a_row_only_the_share_counts():
    limit = BadRecordLimit("m", dataclasses.replace(OPTIONS, max_bad_in_a_row=0, max_bad_ratio=0.9))
    limit.check(999, [batch([], range(999))])
    with pytest.raises(BadRecordsError, match="100% of the last 1000 records"):
        limit.check(1, [batch([], [999])])


def test_one_partition_that_turns_bad_stops_the_engine_and_what_came_before_is_committed():
    # One record in ten, so the limit on the share alone would never stop it.
    records = [record(i, b"?" if i >= 1000 and i % 2 else ..., partition=i % 2) for i in range(3000)]
    w = World([r for i, r in enumerate(records) if i % 2 == 0 or i < 1000 or i % 10 == 1])
    options = dataclasses.replace(OPTIONS, max_bad_in_a_row=120)
    with pytest.raises(BadRecordsError, match="in a row are bad"):
        w.engine(options).run(w.until_all_read())
    c = w.counters()
    assert 0 < c.bad < 120
    assert c.points + c.bad == c.records
    assert sum(1 for _ in w.store.iter_quarantine("m")) == c.bad
    assert w.verify()


def test_dead_letters_are_the_records_with_the_headers_of_kafka_connect():
    flaw = BadRecord(RawRecord(TP, 7, 1234, b"k", b"v", (("h", b"1"),)), "not-a-number", "x", "x is not a number: é")
    sent = dead_letters.dead_letter("dead", "m", "json", QuarantinedRecord(flaw, 3, None))
    assert (sent.topic, sent.key, sent.value, sent.timestamp, sent.partition) == ("dead", b"k", b"v", 1234, None)
    assert sent.headers == (
        ("h", b"1"),
        ("__connect.errors.topic", b"t"),
        ("__connect.errors.partition", b"0"),
        ("__connect.errors.offset", b"7"),
        ("__connect.errors.connector.name", b"m"),
        ("__connect.errors.task.id", b"0"),
        ("__connect.errors.stage", b"VALUE_CONVERTER"),
        ("__connect.errors.class.name", b"streamkm.codecs.json"),
        ("__connect.errors.exception.class.name", b"streamkm.errors.DataError"),
        ("__connect.errors.exception.message", "x is not a number: é".encode()),
        ("__streamkm.reason", b"not-a-number"),
        ("__streamkm.field", b"x"),
    )


def test_a_large_record_is_truncated_and_its_dead_letter_says_so():
    long = b'{"x": 1, "y": 2, "z": "' + b"a" * 19_990_000 + b'"}'
    w, mailbox = World([record(0, long), *(record(i) for i in range(1, N))]), Mailbox()
    with_letters(w, mailbox).run(w.until_all_read())
    all_delivered(w)
    held = w.store.newest_quarantined("m")[0].record
    assert (len(held.value), held.size) == (MAX_KEPT_BYTES, len(long))
    (sent,) = mailbox.sent
    assert sent.value == long[:MAX_KEPT_BYTES]
    assert sent.headers[-1] == ("__streamkm.value.cut", str(len(long)).encode())
    assert w.verify()


@pytest.mark.parametrize(
    ("record", "kept"),
    [
        (RawRecord(TP, 0, 0, b"k", b"v", (("h", None),)), None),
        (RawRecord(TP, 0, 0, None, None), None),
        (RawRecord(TP, 0, 0, b"k" * 70_000, b"v"), (65_536, 1, 0, 1)),
        (RawRecord(TP, 0, 0, b"", b"v" * 70_000), (0, 65_536, 0, 70_000)),
        (RawRecord(TP, 0, 0, b"", b"v" * 65_536, (), 900_000), (0, 65_536, 0, 900_000)),
        (RawRecord(TP, 0, 0, b"", b"v", (("a", b"1"), ("b", b"h" * 70_000), ("c", b"2"))), (0, 1, 1, 1)),
        (RawRecord(TP, 0, 0, b"", b"v", (("", None),) * 1024), None),
        (RawRecord(TP, 0, 0, b"", b"v", (("", b""),) * 500_000), (0, 1, 1024, 1)),
    ],
)
def test_what_is_kept_of_a_record_is_bounded_in_every_part_and_says_when_it_is_not_all(record, kept):
    part = truncate_for_quarantine(record)
    if kept is None:
        assert part == record
    else:
        assert (len(part.key), len(part.value), len(part.headers), part.size) == kept
    assert len(part.headers) <= part.n_bytes <= 3 * MAX_KEPT_BYTES


def test_letters_that_are_too_large_are_sent_without_payload_at_once_when_the_size_is_known():
    class Picky(Mailbox):
        calls = 0

        def write(self, records):
            self.calls += 1
            too_large = [len(r.value or b"") > 100 for r in records]
            answers = [
                DeliveryError("MessageSizeTooLarge", permanent=True, too_large=True) if large else None
                for large in too_large
            ]
            self.sent += [r for r, large in zip(records, too_large, strict=True) if not large]
            return answers

    bad = b"{" + b"x" * 200
    w, mailbox = World([record(i, ... if i % 4 else bad) for i in range(N)]), Picky()
    with_letters(w, mailbox).run(w.until_all_read())
    all_delivered(w)
    assert len(mailbox.sent) == N // 4
    assert {dict(r.headers)["__streamkm.value.omitted"] for r in mailbox.sent} == {b"201"}
    assert mailbox.calls < N // 16, "only the first was tried on its own"


def test_every_bad_record_gets_a_letter_and_is_marked():
    w, mailbox = poisoned(), Mailbox()
    engine = with_letters(w, mailbox)
    engine.run(w.until_all_read())
    all_delivered(w)
    assert mailbox.offsets() == [5, 5, 250, 350, 700]
    assert mailbox.topics == ["dead"]
    assert mailbox.closed == 1
    assert engine.context.metrics.value(LETTERS, model="m") == 5
    assert all(held.delivered_at is not None for held in w.store.iter_quarantine("m"))


def test_an_unavailable_broker_delays_dead_letters_and_nothing_else(caplog):
    w, mailbox = poisoned(), Mailbox()
    mailbox.away = 10**9
    with_letters(w, mailbox).run(w.until_all_read())
    assert w.counters().points == N - 5
    assert len(w.store.undelivered("m")) == 5
    assert caplog.text.count("dead letters wait in the store") == 1
    mailbox.away = 0
    again = StopAfter(lambda: not w.store.undelivered("m"), w.clock)
    with_letters(w, mailbox).run(again)  # another owner sends the letters that the previous one left
    assert mailbox.offsets() == [5, 5, 250, 350, 700]


def test_letters_that_are_rejected_are_sent_again_by_a_new_writer():
    w, mailbox = poisoned(), Mailbox()
    mailbox.refuse_first = 3
    with_letters(w, mailbox).run(StopAfter(lambda: w.all_read() and not w.store.undelivered("m"), w.clock))
    assert mailbox.offsets() == [5, 5, 250, 350, 700]
    assert mailbox.opened > 1


def test_a_letter_that_its_topic_will_never_take_goes_without_its_value():
    w, mailbox = poisoned(), Mailbox()
    mailbox.too_large_over = 500
    with_letters(w, mailbox).run(StopAfter(lambda: w.all_read() and not w.store.undelivered("m"), w.clock))
    assert mailbox.offsets() == [5, 5, 250, 350, 700]
    (short,) = [r for r in mailbox.sent if "__streamkm.value.omitted" in dict(r.headers)]
    told = dict(short.headers)
    assert (short.value, told["__streamkm.value.omitted"]) == (b"", str(len(KINDS["too-large"])).encode())
    assert told["__streamkm.reason"] == b"too-large"
    assert told["__connect.errors.topic"] == b"t"


def test_dead_letters_never_delay_learning(monkeypatch):
    w, mailbox = poisoned(), Mailbox()
    go_on, gone_on = threading.Event(), []
    mailbox.create_topic = lambda _: gone_on.append(go_on.wait(PATIENCE))
    monkeypatch.setattr(dead_letters, "CLOSE_SECONDS", 0.2)
    with_letters(w, mailbox).run(w.until_all_read())
    assert w.counters().points == N - 5
    assert gone_on == [], "everything was learned, and the run ended, while the topic of dead letters was not available"
    go_on.set()
    wait_until(lambda: gone_on)


def test_letters_are_sent_again_until_they_arrive_without_a_commit_in_between(monkeypatch):
    monkeypatch.setattr(dead_letters, "FIRST_BACKOFF", 0.001)
    monkeypatch.setattr(dead_letters, "LAST_BACKOFF", 0.001)
    monkeypatch.setattr(dead_letters, "CLOSE_SECONDS", PATIENCE)
    w, mailbox = poisoned(), Mailbox()
    mailbox.away = 10**9
    give_up = time.monotonic() + PATIENCE

    def delivered():
        if w.all_read():
            mailbox.away = 0
        return (w.all_read() and not w.store.undelivered("m")) or time.monotonic() > give_up

    with_letters(w, mailbox).run(StopAfter(delivered, w.clock))
    assert mailbox.offsets() == [5, 5, 250, 350, 700]


def test_letters_of_several_batches_are_sent_without_a_pause(monkeypatch):
    monkeypatch.setattr(dead_letters, "BATCH_LETTERS", 2)
    monkeypatch.setattr(dead_letters, "FIRST_BACKOFF", 10 * PATIENCE)
    monkeypatch.setattr(dead_letters, "CLOSE_SECONDS", PATIENCE)
    w, mailbox = poisoned(), Mailbox()
    with_letters(w, mailbox).run(w.until_all_read())
    assert mailbox.offsets() == [5, 5, 250, 350, 700]


def test_a_topic_for_dead_letters_needs_a_writer():
    with pytest.raises(SettingsError, match="but no writer"):
        poisoned().engine(WITH_LETTERS)


def test_the_quarantine_is_bounded_while_counters_go_on():
    records = [record(i, ... if i % 4 else b"?") for i in range(N)]
    w = World(records)
    w.engine(dataclasses.replace(OPTIONS, quarantine_keep=50)).run(w.until_all_read())
    assert w.counters().bad == N // 4
    assert len(w.store.newest_quarantined("m", limit=N)) == 50
    newest = w.store.newest_quarantined("m", limit=1)[0]
    assert newest.record.offset == max(r.offset for r in records if r.value == b"?")


def test_what_is_not_delivered_is_kept_even_beyond_the_bound():
    w, mailbox = World([record(i, ... if i % 4 else b"?") for i in range(N)]), Mailbox()
    mailbox.away = 10**9
    with_letters(w, mailbox, dataclasses.replace(WITH_LETTERS, quarantine_keep=50)).run(w.until_all_read())
    assert len(w.store.undelivered("m", limit=N)) == N // 4


@pytest.mark.parametrize(("policy", "left"), [("thin", 3), ("all", 6)])
def test_an_owner_applies_retention_to_snapshots_unless_it_keeps_all(policy, left):
    w = World()
    w.engine().run(w.until_all_read())
    assert len(w.store.snapshots("m")) == 5
    w.clock.advance(30 * 86_400)
    w.records += [record(i) for i in range(N, N + 500)]
    options = dataclasses.replace(OPTIONS, keep_snapshots=policy, snapshot_points=0)
    w.engine(options).run(w.until_all_read())
    assert len(w.store.snapshots("m")) == left
    assert w.verify()


def test_maintenance_that_the_store_rejects_is_done_later():
    class Full:
        def __getattr__(self, name):
            return getattr(w.store, name)

        def trim(self, *_, **__):
            from streamkm.errors import StoreUnavailableError

            raise StoreUnavailableError("disk full")

    w = World()
    w.engine(store=Full()).run(w.until_all_read())
    assert w.counters().points == N
    assert maintenance.INTERVAL_SECONDS > 1


def test_memory_and_sql_stores_take_the_same_records(tmp_path):
    for url in ("memory://", f"sqlite:///{tmp_path}/s.db"):
        w, mailbox = World([record(i, BAD.get(i, ...)) for i in range(N)], open_store(url)), Mailbox()
        with_letters(w, mailbox).run(w.until_all_read())
        all_delivered(w)
        assert json.loads(json.dumps(mailbox.offsets())) == [5, 5, 250, 350, 700]
        w.store.close()
