"""Failures that are specific to SQLite: files, locks, disks."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from service_api import Api
from store_checks import commit_of, owned
from streamkm.errors import StoreError, StoreUnavailableError
from streamkm.records import BatchRange, TopicPartition
from streamkm.state import JournalEntry
from streamkm.stores import SqlStore, journal, open_store
from streamkm.stores.sql import errors, schema, sqlite
from waiting import PATIENCE


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(file: Path) -> Iterator[SqlStore]:
    opened = open_store(f"sqlite:///{file}", busy_timeout=0.05)
    yield opened
    opened.close()


def _refused(url: str, match: str) -> None:
    with pytest.raises(StoreUnavailableError, match=match) as refused:
        open_store(url, busy_timeout=0.05)
    assert refused.value.hint
    assert url.split("?", maxsplit=1)[0] in refused.value.where
    assert refused.value.__cause__ is not None


def test_a_directory_that_does_not_exist_is_named(tmp_path: Path) -> None:
    _refused(f"sqlite:///{tmp_path}/missing/store.db", "the directory .*missing does not exist")


def test_a_directory_is_not_a_store(tmp_path: Path) -> None:
    _refused(f"sqlite:///{tmp_path}", "is a directory")


def test_a_file_is_not_a_directory(file: Path) -> None:
    file.write_text("")
    _refused(f"sqlite:///{file}/store.db", "store.db is not a directory")


def test_a_directory_that_nobody_can_write_is_told() -> None:
    _refused("sqlite:////proc/store.db", "cannot be opened|does not exist")


def test_a_file_that_is_no_database_is_told_and_left_alone(file: Path) -> None:
    text = "amount,lat\n1,2\n" * 200
    file.write_text(text)
    _refused(f"sqlite:///{file}", "is not an SQLite database")
    assert file.read_text() == text


def test_a_store_that_must_exist_is_not_made(file: Path) -> None:
    for mode in ("rw", "ro"):
        _refused(f"sqlite:///{file}?mode={mode}", "store.db does not exist")
    assert not file.exists()


def test_a_read_only_store_answers_and_refuses_to_write(store: SqlStore, file: Path) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    reading = open_store(f"sqlite:///{file}?mode=ro")
    assert reading.snapshot("m").id == 1
    with pytest.raises(StoreUnavailableError, match="read-only"):
        reading.commit(lease, commit_of(2))
    reading.close()
    store.commit(lease, commit_of(2))


def test_a_lock_that_is_held_too_long_is_told_and_the_call_may_be_made_again(store: SqlStore, file: Path) -> None:
    lease = owned(store)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    for _ in range(5):
        with pytest.raises(StoreUnavailableError, match="locked by another writer"):
            store.commit(lease, commit_of(1))
    assert store.engines.reader.pool.checkedout() == 0
    assert store.load_checkpoint("m") is None
    store.ping()
    holder.execute("ROLLBACK")
    holder.close()
    store.commit(lease, commit_of(1))


def test_a_full_disk_keeps_nothing_of_the_commit_and_the_call_may_be_made_again(store: SqlStore) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    with store.engines.reader.connect() as connection:
        limit = [connection.exec_driver_sql("PRAGMA page_count").scalar_one() + 10]

    @sa.event.listens_for(store.engines.reader, "checkout")
    def limited(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {limit[0]}")

    big = commit_of(2, snapshot=True, bad=True, size=100_000)
    with pytest.raises(StoreUnavailableError, match="disk is full") as full:
        store.commit(lease, big)
    assert "nothing of this write was kept" in full.value.hint
    checkpoint = store.load_checkpoint("m")
    assert checkpoint is not None
    assert checkpoint.progress == commit_of(1).progress
    assert [s.id for s in store.snapshots("m")] == [1]
    limit[0] = 1_000_000
    assert store.commit(lease, big) == 2


def test_a_disk_that_does_not_write_is_told_and_the_call_may_be_made_again(store: SqlStore) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1))
    big = commit_of(2, size=1_000_000)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    try:
        with pytest.raises(StoreUnavailableError, match=r"the disk does not read or write|disk is full"):
            store.commit(lease, big)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    checkpoint = store.load_checkpoint("m")
    assert checkpoint is not None
    assert checkpoint.progress == commit_of(1).progress
    store.commit(lease, big)


def test_a_damaged_database_is_told(store: SqlStore, file: Path) -> None:
    owned(store)
    store.close()
    data = bytearray(file.read_bytes())
    data[2000:] = b"\xa5" * (len(data) - 2000)
    file.write_bytes(data)
    with pytest.raises(StoreUnavailableError, match="damaged"):
        open_store(f"sqlite:///{file}").models()


def test_when_all_connections_are_busy_the_caller_is_told(store: SqlStore, file: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{file}", poolclass=sa.QueuePool, pool_size=1, max_overflow=0, pool_timeout=0)
    busy = pytest.raises(StoreUnavailableError, match="all connections are busy")
    with engine.connect(), busy, errors.translate_errors(store.engines):
        engine.connect()
    engine.dispose()


@pytest.mark.parametrize(
    "error",
    [
        sa.exc.ProgrammingError("SELECT", {}, sqlite3.ProgrammingError("no such thing")),
        sa.exc.InvalidRequestError("not so"),
        sqlite3.OperationalError("no such table: streamkm_models"),
    ],
)
def test_whatever_else_a_database_raises_is_an_error_of_the_store(
    store: SqlStore, file: Path, error: Exception
) -> None:
    with pytest.raises(StoreError) as mapped, errors.translate_errors(store.engines):
        raise error
    assert not isinstance(mapped.value, StoreUnavailableError)
    assert mapped.value.__cause__ is error
    assert mapped.value.where == f"sqlite:///{file}"


def test_damaged_arrays_of_a_snapshot_are_told_with_their_place(store: SqlStore) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    with store.engines.writer.begin() as tx:
        tx.execute(sa.update(schema.snapshots).values(arrays=b"123"))
    with pytest.raises(StoreError, match=r"model m, snapshot 1: it is damaged"):
        store.snapshot("m")


def test_connections_have_the_settings_that_exactness_rests_on(store: SqlStore, file: Path) -> None:
    with store.engines.reader.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "foreign_keys": 1, "synchronous": 1, "busy_timeout": 50}


def test_a_new_file_that_another_process_locks_is_waited_for_until_the_time_is_over(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")

        class Patient(sqlite3.Connection):
            def execute(self, *arguments: str) -> sqlite3.Cursor:
                try:
                    return super().execute(*arguments)
                except sqlite3.OperationalError:
                    other.execute("ROLLBACK")
                    raise

        impatient = sqlite3.connect(file, timeout=0.0)
        with contextlib.closing(impatient), pytest.raises(sqlite3.OperationalError, match="locked"):
            sqlite._use_wal(impatient, str(file), -1.0)
        with contextlib.closing(sqlite3.connect(file, timeout=0.0, factory=Patient)) as patient:
            sqlite._use_wal(patient, str(file), PATIENCE)
            assert patient.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bits", [0, 6, 7, 8, 14, 15, 16, 30, 31, 32, 54, 55, 60])
def test_numbers_of_the_journal_take_as_few_bytes_as_hold_them(bits: int, sign: int) -> None:
    partition, base = TopicPartition("t", 0), 2**61

    def size_of(gap: int) -> int:
        entry = JournalEntry(
            ((BatchRange(partition, base, base + 1),), (BatchRange(partition, base + 1 + gap, base + 2 + gap),))
        )
        blob = journal.encode(entry)
        assert journal.decode(blob) == entry
        return len(zlib.decompress(blob))

    for gap in (sign * 2**bits - 1, sign * 2**bits):
        width = next(w for w in (1, 2, 4, 8) if -(2 ** (8 * w - 1)) <= gap < 2 ** (8 * w - 1))
        assert size_of(gap) - size_of(0) == 2 * (width - 1)  # of two ranges


def test_a_mini_batch_of_three_partitions_costs_few_bytes_in_the_journal(store: SqlStore) -> None:
    rng = np.random.default_rng(0)
    at = {TopicPartition("orders", p): 10**9 for p in range(3)}
    batches = []
    for _ in range(200):
        batch = []
        for partition, start in at.items():
            at[partition] = start + int(rng.integers(300, 500))
            batch.append(BatchRange(partition, start, at[partition]))
        batches.append(tuple(batch))
    assert len(journal.encode(JournalEntry(tuple(batches)))) / len(batches) < 6
    assert len(journal.encode(JournalEntry(tuple(batches[:1])))) < 100


@pytest.mark.parametrize("there", ["nothing", "an empty file", "another database"])
@pytest.mark.parametrize("query", ["", "?mode=rwc", "?mode=rw", "?mode=ro"])
def test_who_only_looks_makes_no_store_and_changes_no_file(file: Path, there: str, query: str) -> None:
    if there == "an empty file":
        file.write_bytes(b"")
    if there == "another database":
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE theirs (x)")
        database.close()
    before = file.read_bytes() if file.exists() else None
    says = "store.db does not exist" if before is None else "there is no store of streamkm"
    with pytest.raises(StoreUnavailableError, match=says) as refused:
        open_store(f"sqlite:///{file}{query}", create=False)
    assert "streamkm live" in refused.value.hint
    assert (file.read_bytes() if file.exists() else None) == before
    assert {f.name for f in file.parent.iterdir()} <= {"store.db"}


def test_a_store_whose_pages_are_damaged_says_so_when_it_is_pinged(tmp_path: Path) -> None:
    file = tmp_path / "store.db"
    with contextlib.closing(open_store(f"sqlite:///{file}")) as opened:
        lease = owned(opened)
        for seq in range(1, 4):
            opened.commit(lease, commit_of(seq, snapshot=True, bad=True))
    whole = file.read_bytes()
    with sqlite3.connect(file) as database:
        roots = database.execute(
            "SELECT name, rootpage FROM sqlite_master WHERE type = 'table' AND name LIKE 'streamkm%'"
        ).fetchall()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    database.close()
    with contextlib.closing(open_store(f"sqlite:///{file}")) as opened:
        for name, root in roots:
            opened.ping()
            with file.open("rb+") as damaged:
                damaged.seek((root - 1) * size)
                damaged.write(b"\x55" * size)
            with pytest.raises(StoreError) as refused:
                opened.ping()
            assert "damaged" in refused.value.message, name
            assert Api(opened).get("/readyz").status_code == 503
            file.write_bytes(whole)
    assert len(roots) > 10
