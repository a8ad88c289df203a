"""Every source passes all checks of `source_checks`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kafka_traffic import write_everything
from source_checks import CHECKS, Check, Setting, by_partition, drain
from streamkm.connectors import FileSource, KafkaSource, MemorySource, Source
from streamkm.records import RawRecord, TopicPartition
from streamkm.testing import KafkaClusterInMemory, KafkaDriverInMemory

ROWS = [(i / 4, -i, f"text {i}" if i % 9 == 4 else str(i)) for i in range(60)]


def _memory() -> Setting:
    records = [
        RawRecord(TopicPartition("memory", p), 3 * i + p, 1000 + i, b"key", f"{p}:{i}".encode(), (("h", None),))
        for p in range(3)
        for i in range(25)
    ]
    expected = {TopicPartition("memory", p): [r for r in records if r.partition.partition == p] for p in range(3)}

    def build() -> MemorySource:
        source = MemorySource(records)
        source.advance(TopicPartition("memory", 1), 100)
        source.truncate(TopicPartition("memory", 2), 2)
        return source

    return Setting(build, expected)


def _files(directory: Path, kind: str) -> Setting:
    paths = []
    expected: dict[TopicPartition, list[object]] = {}
    for part, rows in enumerate((ROWS[:35], ROWS[35:])):
        path = directory / f"part-{part}.{kind}"
        if kind in {"npy", "npz"}:
            table = np.array([row[:2] for row in rows])
            np.save(path, table) if kind == "npy" else np.savez_compressed(path, table)
            expected[TopicPartition(str(path), 0)] = [(i, row[0], float(row[1])) for i, row in enumerate(rows)]
        else:
            frame = pl.DataFrame(rows, schema=["a", "b", "c"], orient="row")
            if kind == "csv":
                frame.write_csv(path)
            elif kind == "arrow":
                frame.write_ipc(path, record_batch_size=10)
            else:
                frame.write_parquet(path, row_group_size=10)
            expected[TopicPartition(str(path), 0)] = [(i, *row) for i, row in enumerate(rows)]
        paths.append(path)
    return Setting(lambda: FileSource(paths), expected)


def _hive(directory: Path) -> Setting:
    expected: dict[TopicPartition, list[object]] = {}
    for part in ("a", "b"):
        folder = directory / f"part={part}" / "year=2026"
        folder.mkdir(parents=True)
        pl.DataFrame(ROWS, schema=["a", "b", "c"], orient="row").write_parquet(folder / "x.parquet")
        expected[TopicPartition(str(folder / "x.parquet"), 0)] = [(i, *row, part, 2026.0) for i, row in enumerate(ROWS)]
    return Setting(lambda: FileSource(directory), expected)


def _url(directory: Path) -> Setting:
    """A file through pyarrow's filesystems; row groups instead of blocks are read at a time."""
    expected: dict[TopicPartition, list[object]] = {}
    frame = pl.DataFrame(ROWS, schema=["a", "b", "c"], orient="row")
    frame.write_parquet(directory / "a.parquet", row_group_size=7)
    frame.write_ipc(directory / "b.arrow", record_batch_size=9)
    frame.write_csv(directory / "c.csv")
    for name in ("a.parquet", "b.arrow", "c.csv"):
        expected[TopicPartition(f"file://{directory}/{name}", 0)] = [(i, *row) for i, row in enumerate(ROWS)]
    return Setting(lambda: FileSource(f"file://{directory}"), expected)


@pytest.fixture(scope="module")
def everything(bootstrap: str, admin: object) -> Iterator[tuple[str, Setting]]:
    """A topic with all kinds of records, and the records that kafka-python reads from it."""
    import uuid

    import kafka

    name = f"everything-{uuid.uuid4().hex[:8]}"
    admin.create_topics({name: {"num_partitions": 2, "replication_factor": 1}}, wait_for_metadata=True)
    write_everything(bootstrap, name, 2)
    expected: dict[TopicPartition, list[object]] = {}
    with contextlib.closing(
        kafka.KafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", enable_auto_commit=False)
    ) as consumer:
        partitions = [kafka.TopicPartition(name, p) for p in range(2)]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        end = consumer.end_offsets(partitions)
        while any(consumer.position(tp) < end[tp] for tp in partitions):
            for tp, records in consumer.poll(200).items():
                ours = TopicPartition(*tp)
                expected.setdefault(ours, []).extend(
                    RawRecord(ours, r.offset, r.timestamp, r.key, r.value, tuple(map(tuple, r.headers)))
                    for r in records
                )
    yield name, expected
    admin.delete_topics([name])


def _kafka(request: pytest.FixtureRequest, plain: bool) -> Setting:
    bootstrap = request.getfixturevalue("bootstrap")
    name, expected = request.getfixturevalue("everything")

    def open_source() -> KafkaSource:
        source = KafkaSource.connect(bootstrap, name, group_id="checks", public_api_only=plain)
        assert source.driver.columnar is not plain
        return source

    return Setting(open_source, expected)


def _kafka_in_memory() -> Setting:
    cluster = KafkaClusterInMemory()
    cluster.create_topic("memory", 3)
    setting = _memory()
    cluster.append(record for records in setting.expected.values() for record in records)
    cluster.advance(TopicPartition("memory", 1), 100)
    cluster.truncate(TopicPartition("memory", 2), 2)
    return Setting(lambda: KafkaSource(KafkaDriverInMemory(cluster), "memory", group_id="checks"), setting.expected)


IMPLEMENTATIONS: dict[str, Callable[[pytest.FixtureRequest, Path], Setting]] = {
    "memory": lambda _request, _path: _memory(),
    "driver": lambda _request, _path: _kafka_in_memory(),
    "csv": lambda _request, path: _files(path, "csv"),
    "npy": lambda _request, path: _files(path, "npy"),
    "npz": lambda _request, path: _files(path, "npz"),
    "parquet": lambda _request, path: _files(path, "parquet"),
    "arrow": lambda _request, path: _files(path, "arrow"),
    "hive": lambda _request, path: _hive(path),
    "url": lambda _request, path: _url(path),
    "kafka-columns": lambda request, _path: _kafka(request, plain=False),
    "kafka-plain": lambda request, _path: _kafka(request, plain=True),
}
CASES = [(name, check) for name in IMPLEMENTATIONS for check in CHECKS]


@pytest.mark.parametrize(
    ("name", "check"),
    [
        pytest.param(
            name,
            CHECKS[check],
            id=f"{name}:{check}",
            marks=[pytest.mark.kafka] if name.startswith("kafka") else [],
        )
        for name, check in CASES
    ],
)
def test_source(name: str, check: Check, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    setting = IMPLEMENTATIONS[name](request, tmp_path)
    assert sum(map(len, setting.expected.values())) >= 50
    source: Source = setting.open()
    try:
        check(source, setting)
    finally:
        source.close()


def test_every_source_has_checks() -> None:
    assert len(CHECKS) > 15
    assert all(sum(case == name for case, _ in CASES) == len(CHECKS) for name in IMPLEMENTATIONS)


def test_memory_reads_what_is_appended_while_it_waits() -> None:
    import threading

    source = MemorySource(topic="t", partitions=1)
    tp = TopicPartition("t", 0)
    source.seek({tp: 0})
    appender = threading.Thread(target=lambda: source.append([RawRecord(tp, 4, 0, None, b"late")]))
    appender.start()
    (got,) = source.poll(30.0, 10)
    appender.join()
    assert (got.start, got.stop, got.value(0)) == (0, 5, b"late")


def test_memory_moves_over_markers_without_records() -> None:
    tp = TopicPartition("t", 0)
    source = MemorySource(topic="t", partitions=1)
    source.advance(tp, 7)
    source.seek({tp: 2})
    (got,) = source.poll(0.0, 10)
    assert (len(got), got.start, got.stop) == (0, 2, 7)
    assert by_partition(drain(source, source.end())) == {}
