"""Assignments: the record written for each point, and that each is written exactly once after any crash."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kafka
import numpy as np
import pytest

from consumers.cli import cli
from processes import program
from service_api import NOW, SPEC, Writer
from streamkm.assignment import assign
from streamkm.codecs import make_codec
from streamkm.connectors import KafkaSource, KafkaTransactionalWriter, MemorySource, byte_records
from streamkm.delivery import Assigner, AssignOptions, assignments
from streamkm.errors import (
    BrokerUnreachableError,
    PositionLostError,
    SettingsError,
    StoreUnavailableError,
    StreamkmError,
    WriterFencedError,
)
from streamkm.records import Batch, BatchRange, CommittedOffset, Position, ProducerRecord, RawRecord, TopicPartition
from streamkm.state import CodecSpec
from streamkm.stores import open_store
from waiting import PATIENCE, wait_until

FIELDS = ("x", "y")
CODEC = CodecSpec("json", FIELDS)
TP = TopicPartition("t", 0)


def spec_of(source: dict[str, Any]) -> Any:
    return dataclasses.replace(SPEC, name="m", fields=FIELDS, source=source, codec=CODEC)


def published(store: Any, source: dict[str, Any], **how: Any) -> Any:
    """Snapshot of a new model with two clusters, ids 4 and 7."""
    writer = Writer(store, spec_of(source))
    writer.commit(centroids=[(0.0, 0.0), (10.0, 10.0)], **how)
    return store.snapshot("m")


def ours(offset: int, **other: Any) -> CommittedOffset:
    """An offset as the assigner commits it."""
    note = {"model": "m", "target": "out", "epoch": 1, "count": 0, "offset": offset} | other
    return CommittedOffset(offset, json.dumps(note))


class Ledger:
    """Transactional writer in memory; some of its transactions fail."""

    def __init__(self) -> None:
        self.topics: dict[str, int] = {}
        self.records: list[ProducerRecord] = []
        self.marks: dict[TopicPartition, CommittedOffset] = {}
        self.others = ""
        self.opened = self.writes = 0
        self.fail_at: dict[int, StreamkmError] = {}

    def open(self) -> Ledger:
        self.opened += 1
        return self

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        self.topics.setdefault(topic, partitions)

    @property
    def position(self) -> dict[TopicPartition, int]:
        return {tp: mark.offset for tp, mark in self.marks.items()}

    def group_conflict(self) -> str:
        return self.others

    def committed(self, partitions: Any) -> dict[TopicPartition, CommittedOffset]:
        return {tp: self.marks[tp] for tp in partitions if tp in self.marks}

    def is_empty(self, topic: str) -> bool:
        return not any(r.topic == topic for r in self.records)

    def write(self, records: Any, position: dict[TopicPartition, CommittedOffset]) -> None:
        self.writes += 1
        if self.writes in self.fail_at:
            raise self.fail_at[self.writes]
        self.records += records
        self.marks |= position

    def close(self) -> None:
        pass


class Confirming(MemorySource):
    """Memory source with identity checks."""

    begins: Position | None = None

    def begin_identity_check(self) -> None:
        pass

    def confirm_identity(self) -> None:
        pass

    def beginning(self) -> Position:
        return self.begins or super().beginning()


def world(values: list[list[bytes | None]], store: Any, **options: Any) -> tuple[Assigner, Ledger]:
    ledger = Ledger()
    assigner = Assigner(
        "m",
        "out",
        open_source=lambda: Confirming.from_values(values),
        open_writer=ledger.open,
        codec=make_codec(CODEC),
        store=store,
        options=AssignOptions(max_snapshot_age=0.0, commit_interval=0.0, **options),
    )
    return assigner, ledger


def until(assigner: Assigner, condition: Any) -> None:
    """Run the assigner until the condition holds, and raise its errors."""
    stop, raised = threading.Event(), []

    def run() -> None:
        try:
            assigner.run(stop)
        except Exception as error:  # noqa: BLE001  # raised below
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: condition() or not thread.is_alive())
    finally:
        stop.set()
        thread.join(PATIENCE)
    if raised:
        raise raised[0]
    assert condition()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "INITIAL_BACKOFF", 0.01)
    monkeypatch.setattr(assignments, "POLL_SECONDS", 0.01)


def test_each_record_gets_its_origin_and_cluster():
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    values: list[list[bytes | None]] = [[b'{"x": 1, "y": 0}', b"no json", None, b'{"x": 10, "y": 13}'], [b"[1]"]]
    assigner, ledger = world(values, store)
    until(assigner, lambda: sum(ledger.position.values()) == 5)
    partitions = sorted(ledger.position)
    told = [json.loads(r.value) for r in ledger.records]
    where = {"model": "m", "snapshot": 1, "topic": partitions[0].topic, "partition": 0}
    assert told == [
        {**where, "id": 4, "distance": 1.0, "score": 2.0, "offset": 0},
        {**where, "id": 7, "distance": 3.0, "score": 6.0, "offset": 3},
    ]
    assert [(r.topic, r.partition, r.headers) for r in ledger.records] == [("out", 0, ())] * 2
    c = assigner.counts
    assert (c.records, c.assigned, c.bad, c.tombstones) == (5, 2, 2, 1)
    assert ledger.topics == {"out": 2}


def test_key_and_timestamp_are_copied_from_the_record():
    store = open_store("memory://")
    snapshot = published(store, {"kind": "memory"})
    raw = [RawRecord(TP, 5, 1234, b"k", b"[1, 2]"), RawRecord(TP, 6, -1, None, b"[3, 4]")]
    records = byte_records(TP, 5, 7, raw)
    out = assignments.assignment_records("out", snapshot, records, make_codec(CODEC).decode(records))
    assert [(r.key, r.timestamp) for r in out] == [(b"k", 1234), (None, -1)]


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_assignments_are_what_the_service_answers(distance):
    rng = np.random.default_rng(3)
    store = open_store("memory://")
    writer = Writer(store, spec_of({"kind": "memory"}))
    centroids = rng.normal(size=(12, 2))
    if distance == "cosine":
        centroids /= np.linalg.norm(centroids, axis=1)[:, None]
    writer.commit(centroids=centroids.tolist(), factors=[0.3, 4.0], distance=distance)
    snapshot = store.snapshot("m")
    points = np.vstack(
        [rng.normal(size=(500, 2)), centroids, rng.normal(size=(9, 2)) * (1e200 if distance == "euclidean" else 1e100)]
    )
    n = len(points)
    records = byte_records(TP, 0, n, [RawRecord(TP, i, 0, None, b"") for i in range(n)])
    batch = Batch(BatchRange(TP, 0, n), points, np.full(n, np.nan), np.arange(n))
    written = [json.loads(r.value) for r in assignments.assignment_records("out", snapshot, records, batch)]
    found = assign(snapshot, points)
    for name, expected in (("id", found.ids), ("distance", found.distances), ("score", found.scores)):
        assert [one[name] for one in written] == [x if np.isfinite(x) else None for x in expected.tolist()]


def test_it_waits_for_the_first_snapshot_and_uses_newer_ones():
    store = open_store("memory://")
    writer = Writer(store, spec_of({"kind": "memory"}))
    assigner, ledger = world([[b"[0, 1]"] * 3], store, batch_size=1)
    asked, plain = [], store.snapshot

    def snapshot(*arguments: Any, **named: Any) -> Any:
        asked.append(1)
        if len(asked) == 3:
            assert not ledger.records
            assert not ledger.opened  # and fences no other process before it can work
            writer.commit(centroids=[(0.0, 0.0)])
        return plain(*arguments, **named)

    store.snapshot = snapshot  # type: ignore[method-assign]
    until(assigner, lambda: len(ledger.records) == 3)
    assert [json.loads(r.value)["snapshot"] for r in ledger.records] == [1, 1, 1]


def test_after_an_error_it_goes_on_from_the_last_whole_transaction():
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    assigner, ledger = world([[b"[%d, 0]" % i for i in range(100)]], store, batch_size=7)
    ledger.fail_at = {4: BrokerUnreachableError("away"), 9: BrokerUnreachableError("away again")}
    until(assigner, lambda: sum(ledger.position.values()) == 100)
    assert [json.loads(r.value)["offset"] for r in ledger.records] == list(range(100))
    assert ledger.opened == 3


def test_a_store_that_is_away_does_not_stop_it():
    store = open_store("memory://")
    published(store, {"kind": "memory"})

    class Away:
        calls = 0

        def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Any:
            self.calls += 1
            if self.calls > 1:
                raise StoreUnavailableError("away")
            return store.snapshot(model, snapshot_id, at=at)

    assigner, ledger = world([[b"[1, 0]"] * 50], Away(), batch_size=5)
    until(assigner, lambda: len(ledger.records) == 50)


def test_one_that_is_shut_out_leaves():
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    assigner, ledger = world([[b"[1, 0]"] * 50], store, batch_size=5)
    ledger.fail_at = {3: WriterFencedError("another")}
    with pytest.raises(WriterFencedError):
        until(assigner, lambda: False)
    assert ledger.opened == 1


def test_lost_records_are_an_error_or_counted():
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    values: list[list[bytes | None]] = [[b"[1, 0]"] * 50]
    tp = Confirming.from_values(values).partitions()[0]
    for skip in (False, True):
        assigner, ledger = world(values, store, skip_lost=skip)

        def from_ten() -> Confirming:
            source = Confirming.from_values(values)
            source.begins = {tp: 10}
            return source

        assigner._open_source = from_ten
        ledger.marks = {tp: ours(4)}
        if not skip:
            with pytest.raises(PositionLostError, match="6 records were deleted") as lost:
                until(assigner, lambda: False)
            assert "--on-data-loss skip" in lost.value.hint
        else:
            until(assigner, lambda: ledger.position[tp] == 50)  # noqa: B023
            assert len(ledger.records) == 40
            assert assigner.counts.lost == 6


def test_a_start_at_the_end_stays_where_it_was():
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    values: list[list[bytes | None]] = [[b"[1, 0]"] * 5]
    assigner, ledger = world(values, store, start="end")
    tp = Confirming.from_values(values).partitions()[0]
    until(assigner, lambda: ledger.position == {tp: 5})
    values[0] += [b"[2, 0]"] * 4
    again, _ = world(values, store, start="end")
    again._open_writer = ledger.open
    until(again, lambda: ledger.position == {tp: 9})
    assert len(ledger.records) == 4


def test_the_topic_that_is_read_is_no_target(tmp_path):
    from click.testing import CliRunner

    url = f"sqlite:///{tmp_path}/s.db"
    with contextlib.closing(open_store(url)) as store:
        published(store, {"kind": "kafka", "topic": "orders"})
    done = CliRunner().invoke(cli, ["assign", "m", "--to", "orders", "--store", url])
    assert isinstance(done.exception, SettingsError)
    assert "orders.clusters" in done.exception.hint


def test_a_position_that_was_forgotten_is_not_taken_for_the_beginning():
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    values: list[list[bytes | None]] = [[b"[1, 0]"] * 5]
    for start, more in ((None, 0), ("beginning", 5), ("end", 0)):
        assigner, ledger = world(values, store, start=start)
        ledger.records = [ProducerRecord("out", None, b"old", ())]
        if start is None:
            with pytest.raises(SettingsError, match="no committed position says how far") as e:
                until(assigner, lambda: False)
            assert "--start end" in e.value.hint
        else:
            until(assigner, lambda: sum(ledger.position.values()) == 5)  # noqa: B023
        assert len(ledger.records) == 1 + more


def test_the_position_of_a_silent_topic_is_written_again():
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    assigner, ledger = world([[b"[1, 0]"]], store, position_refresh_interval=0.05)
    until(assigner, lambda: ledger.writes > 4)
    assert len(ledger.records) == 1


MOVED = {
    "auto-commit": CommittedOffset(4, ""),
    "a note of somebody else": CommittedOffset(4, "mine"),
    "no object": CommittedOffset(4, "[1]"),
    "went elsewhere": ours(5)._replace(offset=4),
    "another model's": ours(4, model="n"),
    "another target's": ours(4, target="elsewhere"),
}


@pytest.mark.parametrize("mark", MOVED.values(), ids=MOVED)
@pytest.mark.parametrize(("start", "first"), [(None, None), ("committed", 4), ("beginning", 0), ("end", 9)])
def test_a_position_changed_by_another_program_is_used_only_on_request(
    mark: CommittedOffset, start: str | None, first: int | None
) -> None:
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    assigner, ledger = world([[b"[1, 0]"] * 9], store, start=start)
    (tp,) = Confirming.from_values([[b"[1, 0]"] * 9]).partitions()
    ledger.marks = {tp: mark}
    if first is None:
        with pytest.raises(SettingsError, match=r"another program has changed the .*position: .*-0@4") as refused:
            until(assigner, lambda: False)
        assert "--start committed" in refused.value.hint
        assert ledger.marks == {tp: mark}
        return
    until(assigner, lambda: ledger.position == {tp: 9})
    assert len(ledger.records) == 9 - first
    note = json.loads(ledger.marks[tp].metadata)
    assert note == {"model": "m", "target": "out", "epoch": note["epoch"], "count": 9 - first, "offset": 9}


def test_epochs_and_counts_continue_and_a_name_in_use_is_rejected() -> None:
    store = open_store("memory://")
    published(store, {"kind": "memory"})
    (tp,) = Confirming.from_values([[b"[1, 0]"]]).partitions()
    marks: dict[TopicPartition, CommittedOffset] = {}
    for epoch in (1, 2, 3):
        assigner, ledger = world([[b"[1, 0]"] * 5 * epoch], store)
        ledger.marks = marks
        until(assigner, lambda: ledger.position == {tp: 5 * epoch})  # noqa: B023
        note = json.loads(ledger.marks[tp].metadata)
        assert (note["epoch"], note["count"]) == (epoch, 5 * epoch)
    ledger.others = "the consumer group g has active members (it is Stable)"
    with pytest.raises(SettingsError, match="active members"):
        until(assigner, lambda: False)


# On a broker


def read_committed(bootstrap: str, topic: str) -> dict[int, list[Any]]:
    """All records by partition."""
    with contextlib.closing(
        kafka.KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False)
    ) as consumer:
        tps = [kafka.TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(tps)
        consumer.seek_to_beginning(*tps)
        end = consumer.end_offsets(tps)
        got: dict[int, list[Any]] = {tp.partition: [] for tp in tps}
        deadline = time.monotonic() + PATIENCE
        while any(consumer.position(tp) < end[tp] for tp in tps):
            assert time.monotonic() < deadline
            for tp, records in consumer.poll(500, max_records=5000).items():
                got[tp.partition] += records
        return got


@pytest.fixture
def looking(setting) -> Iterator[kafka.KafkaConsumer]:
    """Looks at offsets, as often as a test likes: a consumer for each look costs more than what is looked at."""
    bootstrap, _, out, _ = setting
    with contextlib.closing(
        kafka.KafkaConsumer(bootstrap_servers=bootstrap, group_id=f"streamkm-m-assign:{out}")
    ) as it:
        yield it


def written(looking: kafka.KafkaConsumer, topic: str) -> int:
    """Offsets of a topic, whatever they hold."""
    tps = [kafka.TopicPartition(topic, p) for p in looking.partitions_for_topic(topic) or ()]
    return sum(looking.end_offsets(tps).values())


def reached(looking: kafka.KafkaConsumer, topic: str) -> int:
    """Records of a topic of two partitions that the group of the assigner has done with."""
    return sum(looking.committed(kafka.TopicPartition(topic, p)) or 0 for p in range(2))


def fill(
    bootstrap: str, topic: str, records: int, partitions: int, start: int = 0
) -> dict[int, list[tuple[int, bytes]]]:
    """Records of all sorts, numbered from `start`; the good ones by partition: offset and key."""
    good: dict[int, list[tuple[int, bytes]]] = {p: [] for p in range(partitions)}
    offsets = [start // partitions] * partitions
    with contextlib.closing(
        kafka.KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, batch_size=200_000)
    ) as producer:
        for i in range(start, start + records):
            p, key = i % partitions, b"key-%d" % i
            value = None if i % 997 == 0 else b"broken" if i % 501 == 0 else b'{"x": %d, "y": %d}' % (i % 11, i % 7)
            producer.send(topic, value, key, partition=p, timestamp_ms=1_700_000_000_000 + i)
            if value is not None and value != b"broken":
                good[p].append((offsets[p], key))
            offsets[p] += 1
        producer.flush(PATIENCE)
    return good


def model_on(bootstrap: str, topic: str, directory: Path) -> str:
    url = f"sqlite:///{directory}/s.db"
    with contextlib.closing(KafkaSource.connect(bootstrap, topic)) as source:
        identity = dict(source.identity())
    with contextlib.closing(open_store(url)) as store:
        published(store, identity, at=NOW)
    return url


@pytest.fixture
def setting(bootstrap: str, topic: Any, tmp_path: Path) -> Iterator[tuple[str, str, str, list[str]]]:
    """A topic of two partitions with a model on it, and how an assigner is started."""
    name = topic(2)
    url = model_on(bootstrap, name, tmp_path)
    out = f"{name}.out"
    yield bootstrap, name, out, ["assign", "m", "--to", out, "--store", url, "--bootstrap", bootstrap]
    with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.delete_topics([out])


@pytest.mark.kafka
def test_killed_at_any_moment_each_record_is_assigned_exactly_once(setting, looking, tmp_path):
    bootstrap, topic, out, command = setting
    kills, ahead = 6, 4000
    good: dict[int, list[tuple[int, bytes]]] = {0: [], 1: []}
    rng = random.Random(11)
    for n in range(kills):
        for partition, filled in fill(bootstrap, topic, ahead, 2, n * ahead).items():
            good[partition] += filled
        so_far = written(looking, out) if n else 0
        with program(tmp_path / "log", *command, "--commit-every", "10ms") as p:
            p.until(lambda so_far=so_far: written(looking, out) > so_far + 200)
            time.sleep(rng.uniform(0.0, 0.3))
            p.kill()
    with program(tmp_path / "log", *command) as p:
        p.until(lambda: reached(looking, topic) == kills * ahead)
        assert p.leave() == 0
    got = read_committed(bootstrap, out)
    for partition, expected in good.items():
        seen = [(json.loads(r.value)["offset"], r.key) for r in got[partition]]
        assert seen == expected
        assert {json.loads(r.value)["partition"] for r in got[partition]} == {partition}
        assert all(r.timestamp >= 1_700_000_000_000 for r in got[partition][:100])


@pytest.mark.kafka
def test_a_second_process_shuts_the_first_out(setting, looking, tmp_path):
    bootstrap, topic, out, command = setting
    good = fill(bootstrap, topic, 300, 2)
    with program(tmp_path / "one", *command) as one:
        one.until(lambda: written(looking, out) > 100)
        with program(tmp_path / "two", *command) as two:

            def left() -> bool:  # it is fenced at its next write
                for p, listed in fill(bootstrap, topic, 20, 2).items():
                    good[p] += listed
                return one.popen.poll() is not None

            wait_until(left)
            assert one.popen.returncode == 12
            assert "another process has taken over" in one.output()
            assert "Traceback" not in one.output()
            wanted = {p: [key for _, key in listed] for p, listed in good.items()}
            two.until(lambda: {p: [r.key for r in rs] for p, rs in read_committed(bootstrap, out).items()} == wanted)
            assert two.leave() == 0


@pytest.mark.kafka
def test_a_process_that_slept_through_its_successor_writes_nothing(setting, looking, tmp_path):
    bootstrap, topic, out, command = setting
    good = fill(bootstrap, topic, 20_000, 2)
    with program(tmp_path / "one", *command, "--commit-every", "10ms") as one:
        one.until(lambda: written(looking, out) > 500)
        one.signal(signal.SIGSTOP)
        with program(tmp_path / "two", *command) as two:
            wanted = {p: [key for _, key in listed] for p, listed in good.items()}

            def same() -> bool:
                return {p: [r.key for r in rs] for p, rs in read_committed(bootstrap, out).items()} == wanted

            two.until(same)
            one.signal(signal.SIGCONT)

            def left() -> bool:  # without records to write it would not be fenced
                for p, listed in fill(bootstrap, topic, 2, 2).items():
                    wanted[p] += [key for _, key in listed]
                return one.popen.poll() is not None

            wait_until(left)
            assert one.popen.returncode == 12
            two.until(same)
            assert two.leave() == 0


@pytest.mark.kafka
def test_a_transaction_that_was_aborted_leaves_the_position_alone(bootstrap, topic):
    out, source = topic(), TopicPartition(topic(), 0)
    with contextlib.closing(KafkaTransactionalWriter(bootstrap, f"t-{out}")) as writer:
        assert writer.committed([source]) == {}
        writer.write([ProducerRecord(out, b"k", b"1", (), 5, 0)], {source: CommittedOffset(0, "zero")})
        with pytest.raises(StreamkmError):
            writer.write([ProducerRecord(out, b"k", b"2" * 3_000_000, (), 5, 0)], {source: CommittedOffset(1, "one")})
    with contextlib.closing(KafkaTransactionalWriter(bootstrap, f"t-{out}")) as writer:
        assert writer.committed([source]) == {source: CommittedOffset(0, "zero")}
        writer.write([ProducerRecord(out, None, b"3", (), -1, 7)], {source: CommittedOffset(1, "")})
        assert not writer.is_empty(out)
        assert writer.is_empty(source.topic)
    assert [r.value for r in read_committed(bootstrap, out)[0]] == [b"1", b"3"]


def test_where_no_broker_is_nothing_hangs():
    with pytest.raises(BrokerUnreachableError):
        KafkaTransactionalWriter("127.0.0.1:1", "x", timeout=1.0)
