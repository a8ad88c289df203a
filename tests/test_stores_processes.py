"""A SQL store shared by processes: concurrent readers and a writer, SIGKILL anywhere, competition for a lease."""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

import store_workers
from processes import Worker
from store_checks import SPEC, commit_of, journal_entry_of, owned, position_of
from streamkm.errors import LeaseLostError, StoreUnavailableError
from streamkm.stores import SqlStore, Store, open_store
from waiting import wait_until

Start = Callable[..., Worker]
# Number of statements of a complete commit, and the first of them, as a test below checks. PostgreSQL's driver sends
# BEGIN itself.
STATEMENTS = {"sqlite": (12, "BEGIN IMMEDIATE"), "postgresql": (11, "UPDATE streamkm_leases")}


@pytest.fixture(params=list(STATEMENTS))
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """URLs of new stores."""
    if request.param == "postgresql":
        return request.getfixturevalue("database")
    numbers = itertools.count()
    return lambda: f"sqlite:///{tmp_path}/{next(numbers)}.db"


@pytest.fixture
def url(fresh: Callable[[], str]) -> str:
    return fresh()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    opened = open_store(url)
    yield opened
    opened.close()


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    """Starts a worker on the store, which ends with the test."""
    workers: list[Worker] = []

    def start(task: str, *arguments: object, on: str = url) -> Worker:
        workers.append(Worker(store_workers.work, task, on, *arguments))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


def _until(condition: Callable[[], bool], process: Worker) -> None:
    def alive() -> None:
        assert process.poll() is None, "the process ended early"

    wait_until(condition, check=alive)


def _seq(store: Store) -> int:
    progress = [info.progress for info in store.models()]
    return 0 if progress in ([], [None]) else progress[0].commit_seq


def _assert_whole(store: Store) -> int:
    """The store holds exactly the commits 1 to n of `store_workers.write`, for some n, which is returned."""
    checkpoint = store.load_checkpoint("m")
    if checkpoint is None:
        assert list(store.journal("m")) == []
        return 0
    n = checkpoint.progress.commit_seq
    assert checkpoint.state.params == {"seq": n}
    assert (checkpoint.state.arrays["centers"] == n).all()
    assert checkpoint.progress == commit_of(n).progress
    assert list(store.journal("m")) == [(seq, journal_entry_of(seq)) for seq in range(1, n + 1)]
    return n


def test_a_commit_killed_at_any_statement_is_there_whole_or_not_at_all(store: SqlStore, start: Start) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True, bad=True))
    store.release(lease)
    statements, _ = STATEMENTS[store.engines.writer.dialect.name]
    points = statements + 2
    process = start("die", points)
    expected = 1
    for point in range(points):
        assert process.said() == -signal.SIGKILL
        expected += point > statements
        assert _assert_whole(store) == expected, f"killed at statement {point}"
        assert [s.commit_seq for s in store.snapshots("m")] == list(range(expected, 0, -1))
        assert [bad.record.offset for bad in store.newest_quarantined("m")] == [
            10 * s - 1 for s in range(expected, 0, -1)
        ]
        process.connection.send("next")
    assert process.ended() == 0
    successor = store.acquire("m", "successor", ttl=1.0, now=1e12)
    assert successor is not None
    assert store.commit(successor, commit_of(3, snapshot=True, bad=True)) == 3


def test_the_table_of_crash_points_covers_every_statement_of_a_commit(url: str) -> None:
    store = open_store(url)
    lease = owned(store)
    seen: list[str] = []
    engine = store.engines.writer  # type: ignore[attr-defined]
    sa.event.listen(engine, "before_cursor_execute", lambda *arguments: seen.append(arguments[2]))
    store.commit(lease, commit_of(1, snapshot=True, bad=True))
    seen.clear()
    store.commit(lease, commit_of(2, snapshot=True, bad=True))
    store.close()
    statements, first = STATEMENTS[engine.dialect.name]
    assert len(seen) == statements
    assert re.match(first, seen[0])


def test_a_writer_killed_again_and_again_leaves_exactly_a_committed_prefix(store: Store, start: Start) -> None:
    before = 0
    for round_ in range(3):
        process = start("write", 60_000)  # half a megabyte of state: most of the time is inside a commit
        _until(lambda: _seq(store) > before + 3 * round_, process)  # noqa: B023
        process.kill()
        assert process.ended() == -signal.SIGKILL
        n = _assert_whole(store)
        assert n > before
        assert [s.commit_seq for s in store.snapshots("m", limit=10_000)] == list(range(n - n % 2, 0, -2))
        assert [s.id for s in store.snapshots("m", limit=10_000)] == list(range(n // 2, 0, -1))
        assert len(store.newest_quarantined("m", limit=10_000)) == n // 3
        before = n


def test_a_second_process_reads_whole_commits_while_the_first_writes(store: Store, start: Start) -> None:
    process = start("write", 1000, 100)
    _until(lambda: _seq(store) > 2, process)
    seen = set()
    while process.poll() is None:
        checkpoint = store.load_checkpoint("m")
        assert checkpoint is not None
        n = checkpoint.progress.commit_seq
        assert checkpoint.state.params == {"seq": n}
        assert checkpoint.progress.position == position_of(n)
        info = store.model("m")
        assert info.progress is not None
        assert info.last_snapshot == info.progress.commit_seq // 2
        assert store.snapshot("m").commit_seq >= n - n % 2
        seen.add(n)
    assert process.ended() == 0
    assert len(seen) > 3
    assert _assert_whole(store) == 100


def test_of_two_processes_that_fight_for_a_lease_each_commit_is_one_of_one_owner(store: Store, start: Start) -> None:
    store.create(SPEC, 1.0)
    total = 100
    fighters = [start("fight", name, total) for name in ("one", "two")]
    scores = [fighter.said() for fighter in fighters]
    assert [fighter.ended() for fighter in fighters] == [0, 0]
    assert sum(won for won, _ in scores) == total
    assert _assert_whole(store) == total
    assert [s.commit_seq for s in store.snapshots("m", limit=total)] == list(range(total, 0, -1))


def test_an_owner_that_slept_through_its_lease_cannot_write(store: Store, start: Start) -> None:
    process = start("sleep", "between")
    process.stopped()
    lease = store.acquire("m", "successor", ttl=10.0, now=1e12)
    assert lease is not None
    store.commit(lease, commit_of(3))
    process.send_signal(signal.SIGCONT)
    assert process.said() == "lost"
    assert _assert_whole(store) == 3
    store.commit(lease, commit_of(4))


def test_an_owner_that_sleeps_inside_a_commit_keeps_others_out_until_the_commit_is_whole(
    store: Store, url: str, start: Start
) -> None:
    process = start("sleep", "inside")
    process.stopped()
    impatient = open_store(url, busy_timeout=0.05)
    with pytest.raises(StoreUnavailableError, match="locked by another writer"):
        impatient.acquire("m", "successor", ttl=10.0, now=1e12)
    assert _assert_whole(impatient) == 2
    process.send_signal(signal.SIGCONT)
    assert process.said() == "committed"
    lease = impatient.acquire("m", "successor", ttl=10.0, now=1e12)
    impatient.close()
    assert lease is not None
    assert _assert_whole(store) == 3
    store.commit(lease, commit_of(4))


def test_many_processes_may_open_a_new_store_at_once(start: Start, fresh: Callable[[], str]) -> None:
    url = fresh()
    processes = [start("first_open", on=url) for _ in range(3)]
    assert [process.ended() for process in processes] == [0] * 3
    opened = open_store(url)
    assert [info.spec for info in opened.models()] == [SPEC]
    opened.close()


def test_a_lost_lease_is_told_to_its_owner_by_name(store: Store, url: str) -> None:
    mine = owned(store)
    other = open_store(url)
    assert other.acquire("m", "other", ttl=1.0, now=100.0) is not None
    with pytest.raises(LeaseLostError, match="other owns it with epoch 2"):
        store.commit(mine, commit_of(1))
    other.close()
