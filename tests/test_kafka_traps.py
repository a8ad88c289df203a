"""Behaviour of Kafka and kafka-python that loses, repeats or stalls records, with a test for each."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka
import kafka.codec
import kafka.record.util
import pytest

from kafka_fixtures import local_broker
from kafka_traffic import Transactions, make_anew, produce
from processes import program, run, run_apart
from source_checks import by_partition, drain
from streamkm.broker import LocalBroker
from streamkm.codecs import make_codec
from streamkm.connectors import KafkaSource, KafkaTransactionalWriter
from streamkm.delivery import Assigner, AssignOptions
from streamkm.errors import CorruptBatchError, PositionLostError, SettingsError, SourceError, TopicNotFoundError
from streamkm.records import TopicPartition
from streamkm.state import Counters
from streamkm.stores import open_store
from test_assign import CODEC, published, until
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.kafka
Open = Callable[..., KafkaSource]


@pytest.fixture(params=["columns", "plain"])
def open_source(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Opens sources of both kinds, and closes them."""
    with contextlib.ExitStack() as stack:

        def build(bootstrap: str, topic: str, **options: Any) -> KafkaSource:
            source = KafkaSource.connect(bootstrap, topic, public_api_only=request.param == "plain", **options)
            stack.callback(source.close)
            return source

        yield build


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalBroker, Path]]:
    """A broker whose disk may be damaged, and which compacts eagerly."""
    directory = tmp_path_factory.mktemp("broker")
    with local_broker(data_dir=directory, properties={"log.cleaner.backoff.ms": "100"}) as broker:
        yield broker, directory


def create_topic(bootstrap: str, partitions: int = 1, **configs: str) -> str:
    name = f"trap-{uuid.uuid4().hex[:8]}"
    with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        dotted = {key.replace("_", "."): value for key, value in configs.items()}
        admin.create_topics(
            {name: {"num_partitions": partitions, "replication_factor": 1, "configs": dotted}}, wait_for_metadata=True
        )
    return name


def values(source: KafkaSource, end: dict[TopicPartition, int] | None = None) -> list[bytes | None]:
    got = drain(source, end or source.end())
    return [record.value for records in by_partition(got).values() for record in records]


def within(seconds: float, call: Callable[[], object]) -> object:
    """Result or error of a call that must end in time: a poll that loops never would."""
    done: list[object] = []

    def run() -> None:
        try:
            done.append(call())
        except Exception as error:  # noqa: BLE001  # told to the test below
            done.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert done, "the call never returned"
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]


def spoil(directory: Path, topic: str, needle: bytes) -> None:
    """Change one byte of a record in the broker's log, so that the batch's checksum is wrong."""
    (log,) = directory.rglob(f"{topic}-0/*.log")
    content = bytearray(log.read_bytes())
    content[content.index(needle)] ^= 0xFF
    with log.open("r+b") as file:  # in place: the broker has the file open
        file.write(content)


def test_a_poll_after_a_broken_batch_never_spins(own_broker: tuple[LocalBroker, Path], open_source: Open) -> None:
    broker, directory = own_broker
    topic = create_topic(broker.bootstrap)
    for value in (b"good-1", b"spoilt", b"good-2"):
        produce(broker.bootstrap, topic, [value] * 3)
    spoil(directory, topic, b"spoilt")
    source = open_source(broker.bootstrap, topic)
    source.seek(source.beginning())
    got: list[bytes | None] = []

    def read_on() -> None:
        while True:
            got.extend(r.value(i) for r in source.poll(1.0, 100) for i in range(len(r)))

    with pytest.raises(CorruptBatchError) as broken:
        within(PATIENCE, read_on)
    assert got == [b"good-1"] * 3
    assert broken.value.where == f"{topic}-0@3"
    assert broken.value.hint.startswith("Restore the partition")
    # kafka-python does not report where the next batch begins.
    assert (broken.value.lost or ())[:3] == ((topic, 0, 3) if source.driver.columnar else ())
    assert ("--on-data-loss skip" in broken.value.hint) == source.driver.columnar
    for _ in range(2):
        with pytest.raises(CorruptBatchError, match=f"{topic}-0@3"):
            within(5.0, lambda: source.poll(0.1, 100))
    # The hint works: a new source, behind the batch.
    source.close()
    after = open_source(broker.bootstrap, topic)
    after.seek({TopicPartition(topic, 0): 6})
    assert values(after) == [b"good-2"] * 3


def processor_seconds(pid: int) -> float:
    """What a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


SPINNER = """
import sys, kafka, kafka.errors
consumer = kafka.KafkaConsumer(bootstrap_servers=sys.argv[1], enable_auto_commit=False)
partition = kafka.TopicPartition(sys.argv[2], 0)
consumer.assign([partition])
consumer.seek(partition, 0)
try:
    consumer.poll(10_000)
except kafka.errors.CorruptRecordError:
    print("raised", flush=True)
    consumer.poll(100)
"""


def test_kafka_python_itself_spins_after_a_broken_batch(own_broker: tuple[LocalBroker, Path]) -> None:
    """When it no longer does, the guard against it can be removed."""
    broker, directory = own_broker
    topic = create_topic(broker.bootstrap)
    produce(broker.bootstrap, topic, [b"spoilt"])
    spoil(directory, topic, b"spoilt")
    # In a separate process: a looping thread would slow down all following tests.
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SPINNER, broker.bootstrap, topic], stdout=subprocess.PIPE, text=True
    ) as spinner:
        try:
            assert spinner.stdout.readline() == "raised\n"
            at = processor_seconds(spinner.pid)

            def ended() -> None:
                assert spinner.poll() is None, "it spins no longer"

            wait_until(lambda: processor_seconds(spinner.pid) > at + 0.5, check=ended)
        finally:
            spinner.kill()
            spinner.wait(PATIENCE)


def test_a_position_lies_behind_markers_and_aborted_records(bootstrap: str, topic: Any, open_source: Open) -> None:
    name = topic(1)
    with contextlib.closing(Transactions(bootstrap, name)) as transactions:
        transactions.write(name, [b"a", b"b"])
        transactions.write(name, [b"never"], commit=False)
    source = open_source(bootstrap, name)
    tp = TopicPartition(name, 0)
    assert source.end() == {tp: 5}
    source.seek({tp: 0})
    got = drain(source, {tp: 5}, max_records=2)
    assert (got[0].start, len(got[0])) == (0, 2)
    assert got[-1].stop == 5
    assert source.position() == {tp: 5}
    assert [r.value for r in by_partition(got)[tp]] == [b"a", b"b"]


def test_a_range_without_any_record_is_read_to_its_end(bootstrap: str, topic: Any, open_source: Open) -> None:
    name = topic(1)
    with contextlib.closing(Transactions(bootstrap, name)) as transactions:
        transactions.write(name, [b"never"] * 3, commit=False)
    source = open_source(bootstrap, name)
    source.seek(source.beginning())
    assert values(source) == []


def test_an_open_transaction_is_not_read_and_is_no_lag(bootstrap: str, topic: Any, open_source: Open) -> None:
    name = topic(1)
    tp = TopicPartition(name, 0)
    with contextlib.closing(Transactions(bootstrap, name)) as transactions:
        transactions.write(name, [b"before"])
        transactions.begin(name, [b"open"])
        produce(bootstrap, name, [b"behind it"])
        source = open_source(bootstrap, name)
        source.seek(source.beginning())
        assert source.end() == {tp: 2}
        assert values(source) == [b"before"]
        assert list(source.poll(0.3, 10)) == []
        transactions.producer.commit_transaction()
        wait_until(lambda: source.end() != {tp: 2})
        assert values(source) == [b"open", b"behind it"]


def test_what_retention_took_is_lost_at_seek(bootstrap: str, topic: Any, admin: Any, open_source: Open) -> None:
    name = topic(1)
    tp = TopicPartition(name, 0)
    produce(bootstrap, name, [b"x"] * 10)
    admin.delete_records({kafka.TopicPartition(name, 0): 7})
    source = open_source(bootstrap, name)
    assert source.beginning() == {tp: 7}
    with pytest.raises(PositionLostError, match="offset 3 was deleted: the partition begins at 7"):
        source.seek({tp: 3})
    source.seek({tp: 7})
    assert len(values(source)) == 3


def test_records_deleted_while_reading_are_an_error_and_never_skipped(
    bootstrap: str, topic: Any, admin: Any, open_source: Open
) -> None:
    name = topic(1)
    tp = TopicPartition(name, 0)
    produce(bootstrap, name, [b"x"] * 10)
    source = open_source(bootstrap, name)
    source.seek({tp: 2})
    admin.delete_records({kafka.TopicPartition(name, 0): 7})

    def read_on() -> None:
        while True:
            assert list(source.poll(1.0, 100)) == []

    with pytest.raises(PositionLostError, match=f"{name}-0: offset 2 was deleted: the partition begins at 7"):
        within(PATIENCE, read_on)
    with pytest.raises(PositionLostError):
        source.poll(0.1, 10)


def test_a_recreated_topic_has_another_identity_and_old_positions_are_lost(
    bootstrap: str, topic: Any, admin: Any, open_source: Open
) -> None:
    name = topic(1)
    produce(bootstrap, name, [b"old"] * 5)
    first = open_source(bootstrap, name)
    before, position = first.identity(), first.end()
    assert before["topic_id"]
    assert before["cluster_id"]
    make_anew(admin, name)
    again = open_source(bootstrap, name)
    assert again.identity()["topic_id"] != before["topic_id"]
    with pytest.raises(PositionLostError, match="offset 5 does not exist: the partition ends at 0"):
        again.seek(position)


def test_new_partitions_are_noticed(bootstrap: str, topic: Any, admin: Any, open_source: Open) -> None:
    name = topic(1)
    source = open_source(bootstrap, name)
    assert len(source.partitions()) == 1
    source.seek(source.beginning())
    admin.create_partitions({name: 3})
    wait_until(lambda: len(source.partitions()) == 3)
    produce(bootstrap, name, [b"new"], partition=2)
    source.seek(source.beginning())
    assert values(source) == [b"new"]


def test_a_compacted_log_is_read_over_its_holes(own_broker: tuple[LocalBroker, Path], open_source: Open) -> None:
    broker, _ = own_broker
    topic = create_topic(
        broker.bootstrap,
        cleanup_policy="compact",
        segment_bytes="1048576",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.001",
        delete_retention_ms="0",
    )
    with contextlib.closing(kafka.KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=20)) as producer:
        for i in range(300):
            producer.send(topic, b"%d" % i, key=b"key-%d" % (i % 7), partition=0)
        producer.flush(PATIENCE)
    tp = TopicPartition(topic, 0)

    def compacted() -> Any:
        produce(broker.bootstrap, topic, [None])  # rolls the segment, so that the one before may be compacted
        source = open_source(broker.bootstrap, topic)
        end = source.end()
        source.seek({tp: 0})
        got = drain(source, end, max_records=5)
        found = [record for record in by_partition(got)[tp] if record.value is not None]
        if len(found) < 20:
            return source, end, got, found
        source.close()
        return None

    source, end, got, found = wait_until(compacted, "compaction")
    assert [int(record.value) for record in found[-7:]] == list(range(293, 300))
    assert [records.start for records in got] == [0, *(records.stop for records in got[:-1])]
    source.seek({tp: found[0].offset - 1 if found[0].offset else 0})
    assert values(source, end)[0] == found[0].value


def test_a_broken_batch_is_passed_over_where_that_is_wanted_and_is_on_record(
    own_broker: tuple[LocalBroker, Path], tmp_path: Path
) -> None:
    broker, directory = own_broker
    topic, url = create_topic(broker.bootstrap), f"sqlite:///{tmp_path}/s.db"
    for word in (b"good-1", b"spoilt", b"good-2"):
        points = [b'{"x": %d, "y": %d, "word": "%b"}' % (i % 7, 50 * (i % 2), word) for i in range(1500)]
        produce(broker.bootstrap, topic, points, linger_ms=1000, batch_size=1 << 20)
    spoil(directory, topic, b"spoilt")
    at = ("--store", url, "--bootstrap", broker.bootstrap)
    fields = ("--topic", topic, "--fields", "x,y", "--k", "2", "--checkpoint-every", "50ms")
    ended = run_apart("live", "m", *at, *fields)
    assert ended.returncode == 4
    assert "--on-data-loss skip" in ended.stderr
    with contextlib.closing(open_store(url)) as store:
        with program(tmp_path / "log", "live", "m", *at, *fields, "--on-data-loss", "skip") as owner:

            def counted() -> Counters:
                progress = store.model("m").progress
                return progress.counters if progress is not None else Counters()

            owner.until(lambda: counted().points == 3000)
            assert owner.leave() == 0
        assert counted() == Counters(3000, 3000, lost=1500)
    assert f"1500 records could not be read, skipped: {topic}-0@1500 to 2999" in (tmp_path / "log").read_text()
    verdict = run("verify", "m", *at, "--json")
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr
    found = json.loads(verdict.stdout)
    assert (found["equal"], found["points"]) == (True, 3000)
    assert [(gap["start"], gap["stop"]) for gap in found["lost"]] == [(1500, 3000)]
    # A replay too; without the option its error names it.
    refused = run_apart("replay", "m", *at)
    assert refused.returncode == 4
    assert "--on-data-loss skip" in refused.stderr
    done = run_apart("replay", "m", *at, "--on-data-loss", "skip", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["n_points"], found["detail"]["lost"]) == (3000, {f"{topic}-0": [[1500, 3000]]})
    # Assignments continue behind it too.
    memory = open_store("memory://")
    published(memory, {"kind": "memory"})
    assigner = Assigner(
        "m",
        f"{topic}.out",
        open_source=lambda: KafkaSource.connect(broker.bootstrap, topic),
        open_writer=lambda: KafkaTransactionalWriter(broker.bootstrap, f"assign:{topic}"),
        codec=make_codec(CODEC),
        store=memory,
        options=AssignOptions(skip_lost=True),
    )
    until(assigner, lambda: assigner.counts.assigned == 3000)
    assert (assigner.counts.records, assigner.counts.lost) == (3000, 1500)


def test_a_compacted_topic_is_recomputed_from_what_is_left(
    own_broker: tuple[LocalBroker, Path], tmp_path: Path
) -> None:
    broker, _ = own_broker
    topic = create_topic(
        broker.bootstrap,
        cleanup_policy="compact",
        segment_bytes="1048576",
        segment_ms="100",
        min_cleanable_dirty_ratio="0.001",
        delete_retention_ms="0",
    )
    with contextlib.closing(kafka.KafkaProducer(bootstrap_servers=broker.bootstrap, linger_ms=20)) as producer:
        for i in range(3000):
            value = b'{"x": %d, "y": %d}' % (i % 7, 100 * (i % 2))
            producer.send(topic, value, key=b"key-%d" % (i % 500), partition=0)
        producer.flush(PATIENCE)
    url = f"sqlite:///{tmp_path}/s.db"
    at = ("--store", url, "--bootstrap", broker.bootstrap)
    fields = ("--topic", topic, "--fields", "x,y", "--k", "2", "--checkpoint-every", "200ms")
    with program(tmp_path / "log", "live", "m", *at, *fields) as owner, contextlib.closing(open_store(url)) as store:

        def made() -> bool:
            return any(m.progress is not None for m in store.models())

        owner.until(made)

        def compacted() -> tuple[dict[TopicPartition, int], int] | None:
            produce(broker.bootstrap, topic, [None])  # rolls the segment
            with contextlib.closing(KafkaSource.connect(broker.bootstrap, topic)) as source:
                source.seek(source.beginning())
                end = source.end()
                left = sum(value is not None for value in values(source, end))
            return (end, left) if left <= 600 else None

        end, left = wait_until(compacted, "compaction")
        assert owner.leave() == 0
        result = run_apart("replay", "m", "--from", "beginning", "--to", "now", *at, "--json")
        assert result.returncode == 0, result.stderr
        found = json.loads(result.stdout)
        assert 500 <= found["n_points"] <= left
        assert [p["offset"] for p in found["position"]] == [end[TopicPartition(topic, 0)]]
        assert end[TopicPartition(topic, 0)] > 3000, "offsets go on counting where records are gone"
        exact = store.snapshot("m", found["id"])
    assert exact.weights.sum() == found["n_points"]
    assert sorted(exact.centroids[:, 1].tolist()) == [0.0, 100.0]


def test_reading_goes_on_when_the_broker_comes_back(own_broker: tuple[LocalBroker, Path]) -> None:
    broker, _ = own_broker
    topic = create_topic(broker.bootstrap)
    produce(broker.bootstrap, topic, [b"before"] * 3)
    patient = {"metadata.max.age.ms": int(1000 * PATIENCE)}  # three times as long, and a silent broker is away
    with contextlib.closing(KafkaSource.connect(broker.bootstrap, topic, client=patient)) as source:
        source.seek(source.beginning())
        assert values(source) == [b"before"] * 3
        broker.restart()
        produce(broker.bootstrap, topic, [b"after"] * 3)
        assert values(source, {TopicPartition(topic, 0): 6}) == [b"after"] * 3


def test_the_client_is_set_so_that_it_can_neither_skip_nor_commit_nor_hang(bootstrap: str, topic: Any) -> None:
    with contextlib.closing(KafkaSource.connect(bootstrap, topic(1), group_id="g")) as source:
        config = source.driver._consumer.config
        assert config["auto_offset_reset"] == "none"
        assert config["enable_auto_commit"] is False
        assert config["isolation_level"] == "read_committed"
        assert config["group_id"] is None  # else a poll waits for the coordinator
        assert config["key_deserializer"] is config["value_deserializer"] is None
        assert config["check_crcs"] is True
        source.seek(source.beginning())
        assert source.driver._consumer.subscription() is None  # assigned: no listener runs on another thread


@pytest.mark.parametrize(
    "name",
    [
        "value.deserializer",
        "key_deserializer",
        "auto.offset.reset",
        "enable.auto.commit",
        "isolation.level",
        "group.id",
    ],
)
def test_a_user_cannot_set_what_would_lose_records(bootstrap: str, topic: Any, name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        KafkaSource.connect(bootstrap, topic(1), client={name: "latest"})


def test_checksums_are_computed_in_c() -> None:
    assert kafka.record.util.crc32c_c is not None
    assert kafka.record.util._crc32c is kafka.record.util.crc32c_c


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_every_compression_is_installed(codec: str) -> None:
    assert getattr(kafka.codec, f"has_{codec}")()


def test_positions_are_committed_for_other_tools_and_reading_needs_no_group(
    bootstrap: str, topic: Any, admin: Any
) -> None:
    name = topic(2)
    group = f"group-{name}"
    produce(bootstrap, name, [b"x"] * 4)
    with contextlib.closing(KafkaSource.connect(bootstrap, name, group_id=group)) as source:
        source.seek(source.beginning())
        values(source)
        source.commit({TopicPartition(name, 0): 1, TopicPartition(name, 1): 0})
        source.commit(source.position())

    def committed() -> dict[int, int]:
        with contextlib.suppress(kafka.errors.RetriableError):
            return {tp.partition: offset.offset for tp, offset in admin.list_group_offsets(group)[group].items()}
        return {}

    wait_until(lambda: committed() == {0: 4, 1: 0})


def test_a_commit_never_raises_and_never_waits(bootstrap: str, topic: Any) -> None:
    name = topic(1)
    with contextlib.closing(KafkaSource.connect(bootstrap, name, group_id="")) as source:  # no broker takes this group
        source.commit({TopicPartition(name, 0): 10})
        source.commit({TopicPartition("another", 7): 10})
    with contextlib.closing(KafkaSource.connect(bootstrap, name)) as source:
        source.commit({TopicPartition(name, 0): 10})


def test_a_topic_that_is_not_there_is_named_with_those_near_it_and_not_made(bootstrap: str, topic: Any) -> None:
    name = topic(1)
    with contextlib.closing(KafkaSource.connect(bootstrap, name[:-1])) as source:
        with pytest.raises(TopicNotFoundError, match=f"(?s){name[:-1]}.*Did you mean .*{name}"):
            source.partitions()
        for call in (source.identity, source.beginning, source.end):
            with pytest.raises(TopicNotFoundError):
                call()
    impossible = KafkaSource.connect(bootstrap, "no such topic: not even a name")
    with contextlib.closing(impossible), pytest.raises(SourceError):
        impossible.partitions()
