"""Two concurrent writers of one model on PostgreSQL, with row locks: serialisable results.

The first call is stopped before each of its statements in turn, until the second has ended or waits for a lock. What
both answer, and what is stored then, must be what a store in memory gives for one of the two orders.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from postgres_server import Databases
from store_checks import P0, SPEC, commit_of, job_of, owned, snapshot_of, state_of
from streamkm.errors import NotFoundError, StoreError
from streamkm.state import Commit, QuarantineLimits
from streamkm.stores import Lease, MemoryStore, Promotion, SqlStore, Store, open_store
from streamkm.stores.sql.schema import metadata

Call = Callable[[Store, Lease, str], Any]


def _promoting() -> Commit:
    commit = commit_of(2, snapshot=True, bad=True)
    return replace(commit, journal_entry=commit.journal_entry._replace(promoted_snapshot=1))


CALLS: Mapping[str, Call] = {
    "create": lambda s, lease, who: s.create(replace(SPEC, name=lease.model, source={"by": who}), 2.0),
    "delete": lambda s, lease, _: s.delete(lease.model),
    "acquire": lambda s, lease, who: s.acquire(lease.model, who, 5.0, 1e6),
    "release": lambda s, lease, _: s.release(lease),
    "commit": lambda s, lease, _: s.commit(lease, _promoting()),
    "add_snapshot": lambda s, lease, who: s.add_snapshot(
        replace(snapshot_of(9), model=lease.model, kind="replay"), state_of(len(who))
    ),
    "request_promotion": lambda s, lease, who: s.request_promotion(lease.model, Promotion(2, skip=who == "first")),
    "remove_quarantined": lambda s, lease, _: s.remove_quarantined(lease.model, [(P0, 9), (P0, 19)]),
    "advance_delivery": lambda s, lease, who: s.advance_delivery(lease.model, "hook", 0, len(who)),
    "put_job": lambda s, lease, who: s.put_job(replace(job_of("1"), model=lease.model, error=who)),
    "trim_quarantine": lambda s, lease, _: s.trim_quarantine(
        lease.model, QuarantineLimits(0, 1 << 40, delivered_only=False)
    ),
}


@dataclass(frozen=True)
class Pair:
    """Two stores on one database, the lease of a model, and a connection that observes locks."""

    one: SqlStore
    two: SqlStore
    lease: Lease
    looking: psycopg.Connection

    def save(self) -> None:
        """Save the present content."""
        self.looking.execute("; ".join(f"CREATE TABLE saved_{name} AS TABLE {name}" for name in metadata.tables))

    def restore(self, *, empty: bool) -> None:
        """Restore the saved content, or an empty database."""
        names = [table.name for table in metadata.sorted_tables]
        statements = [f"DELETE FROM {name}" for name in reversed(names)]  # noqa: S608
        if not empty:
            statements += [f"INSERT INTO {name} TABLE saved_{name}" for name in names]  # our own names
        self.looking.execute("; ".join(statements))

    def a_call_waits(self) -> bool:
        waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return self.looking.execute(waiting).fetchone() is not None


@pytest.fixture(scope="module")
def pair(databases: Databases) -> Iterator[Pair]:
    with ExitStack() as stack:
        url = stack.enter_context(databases.fresh())
        one, two = (stack.enter_context(closing(open_store(url))) for _ in range(2))
        looking = stack.enter_context(psycopg.connect(url, autocommit=True))
        pair = Pair(one, two, _set_up(one), looking)
        pair.save()
        yield pair


def _set_up(store: Store) -> Lease:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True, bad=True))
    store.add_snapshot(replace(snapshot_of(9), kind="replay"), state_of(9))
    store.request_promotion("m", Promotion(1, skip=False))
    return lease


def _answer(call: Call, store: Store, lease: Lease, who: str) -> Any:
    try:
        return call(store, lease, who)
    except StoreError as e:
        return type(e)


def _stored(store: Store) -> list[Any]:
    """The content, and what the next owner finds after a deleted model is created again."""
    found: list[Any] = []
    try:
        states = [store.snapshot_state("m", s.id) for s in store.snapshots("m") if s.kind == "replay"]
        found += [store.model("m"), store.control_requests("m").promotion, [s and s.params for s in states]]
        found += [[(s.id, s.commit_seq, s.kind) for s in store.snapshots("m")]]
        found += [list(store.jobs("m")), store.delivered_until("m", "hook")]
        found += [[seq for seq, _ in store.journal("m")], list(store.iter_quarantine("m"))]
    except NotFoundError:
        found += [store.create(SPEC, 1.0), store.model("m").lease]
    return [*found, store.acquire("m", "next", 1.0, 1e12)]


def _in_turn(first: str, second: str, *, there: bool, swapped: bool) -> tuple[Any, Any, list[Any]]:
    store = MemoryStore()
    lease = _set_up(store) if there else Lease("m", "me", 1, 10.0)
    calls = [("first", first), ("second", second)]
    answers = {who: _answer(CALLS[name], store, lease, who) for who, name in (calls[::-1] if swapped else calls)}
    return answers["first"], answers["second"], _stored(store)


def _at_once(pair: Pair, first: str, second: str, point: int, *, there: bool) -> tuple[Any, Any, list[Any]] | None:
    """The results of both calls at the same time; None when the first has no statement with this number."""
    pair.restore(empty=not there)
    reached, go = threading.Event(), threading.Event()
    count = itertools.count()

    def pause(*_: object) -> None:
        if next(count) == point:
            reached.set()
            go.wait(30)

    engine = pair.one.engines.writer
    events = ("before_cursor_execute", "commit", "rollback")
    for event in events:
        sa.event.listen(engine, event, pause)
    with ThreadPoolExecutor(2) as threads:
        one: Future[Any] = threads.submit(_answer, CALLS[first], pair.one, pair.lease, "first")
        while not reached.wait(0.001) and not one.done():
            pass
        two: Future[Any] = threads.submit(_answer, CALLS[second], pair.two, pair.lease, "second")
        while not wait([two], 0.001).done and not pair.a_call_waits():
            pass
        go.set()
    for event in events:
        sa.event.remove(engine, event, pause)
    return (one.result(), two.result(), _stored(pair.two)) if reached.is_set() else None


@pytest.mark.parametrize("there", [True, False], ids=["there", "absent"])
@pytest.mark.parametrize("first", list(CALLS))
def test_of_two_calls_at_once_one_comes_after_the_other(pair: Pair, first: str, there: bool) -> None:
    for second in CALLS:
        if not there and "create" not in (first, second):
            continue
        right = [_in_turn(first, second, there=there, swapped=swapped) for swapped in (False, True)]
        for point in itertools.count(1):  # before the first statement nothing has happened
            found = _at_once(pair, first, second, point, there=there)
            if found is None:
                break
            assert found in right, f"{first} stopped before its statement {point}, {second} beside it"
