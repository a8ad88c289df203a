"""Round trips through stores, and equal behaviour of all stores."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

import strategies as own
from postgres_server import Databases
from streamkm.errors import StoreError
from streamkm.state import CodecSpec, Commit, Counters, JournalEntry, ModelSpec, ModelState, Progress
from streamkm.stores import Lease, SqlStore, Store, journal, open_store
from streamkm.stores.sql.schema import EscapedText, metadata

QUICK = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


KINDS = ("memory", "sqlite", "postgresql")


@pytest.fixture(scope="module", autouse=True)
def on_postgres(databases: Databases) -> Iterator[SqlStore]:
    """One database for the module, because creating one is slow."""
    with databases.fresh() as url, closing(open_store(url)) as store:
        _AllStores.on_postgres = store
        yield store


@contextmanager
def _store(kind: str, on_postgres: SqlStore) -> Iterator[Store]:
    if kind == "postgresql":
        with on_postgres.engines.writer.begin() as tx:
            tx.exec_driver_sql(f"TRUNCATE {', '.join(metadata.tables)}")
        yield on_postgres
        return
    with tempfile.TemporaryDirectory() as directory:
        url = "memory://" if kind == "memory" else f"sqlite:///{Path(directory)}/store.db"
        with closing(open_store(url)) as store:
            yield store


@pytest.fixture(scope="module", params=KINDS)
def shared(request: pytest.FixtureRequest, on_postgres: SqlStore) -> Iterator[Store]:
    """One store for all examples: each starts by deleting what the previous one left."""
    with _store(request.param, on_postgres) as store:
        yield store


def _emptied(store: Store) -> Store:
    for info in store.models():
        store.delete(info.spec.name)
    return store


@QUICK
@given(own.specs)
def test_a_spec_comes_back(shared: Store, spec: ModelSpec) -> None:
    store = _emptied(shared)
    assert store.create(spec, 5.0) == spec
    assert store.model(spec.name).spec == spec
    assert [info.spec for info in store.models()] == [spec]


@QUICK
@given(own.histories())
def test_everything_of_every_commit_comes_back(shared: Store, commits: list[Commit]) -> None:
    store = _emptied(shared)
    store.create(ModelSpec("m", ("x",), 1, {}, {}, CodecSpec("json")), 1.0)
    lease = store.acquire("m", "me", 10.0, 0.0)
    assert lease is not None
    written, places = [], set()
    for commit in commits:
        here = {(b.record.partition, b.record.offset) for b in commit.quarantine}
        if places & here:
            commit = Commit(commit.state, commit.expected, commit.progress, commit.journal_entry, commit.snapshot)  # noqa: PLW2901
        else:
            places |= here
        number = store.commit(lease, commit)
        written.append(commit)
        checkpoint = store.load_checkpoint("m")
        assert checkpoint is not None
        assert checkpoint.progress == commit.progress
        assert own.same_state(checkpoint.state, commit.state)
        assert (number == 0) == (commit.snapshot is None)
        if commit.snapshot is not None:
            found = store.snapshot("m")
            assert own.same_snapshot(found, commit.snapshot)
            assert (found.model, found.id, found.commit_seq) == ("m", number, commit.progress.commit_seq)
    assert list(store.journal("m")) == [(c.progress.commit_seq, c.journal_entry) for c in written]
    assert list(store.newest_quarantined("m")) == [b for c in reversed(written) for b in reversed(c.quarantine)]
    published = [c.snapshot for c in written if c.snapshot is not None]
    assert all(own.same_snapshot(a, b) for a, b in zip(store.snapshots("m"), reversed(published), strict=True))


@QUICK
@given(own.journal_entries())
def test_a_journal_entry_comes_back_in_order(learning: JournalEntry) -> None:
    assert journal.decode(journal.encode(learning)) == learning


@QUICK
@given(st.binary(max_size=60), own.journal_entries(), st.data())
def test_a_damaged_journal_entry_is_an_error_of_the_store(noise: bytes, learning: JournalEntry, data: Any) -> None:
    blob = journal.encode(learning)
    with pytest.raises(StoreError):
        journal.decode(blob[: data.draw(st.integers(0, len(blob) - 1))])
    with pytest.raises(StoreError):
        journal.decode(noise)


@given(own.texts)
def test_any_string_fits_a_text_column_and_comes_back(text: str) -> None:
    column, dialect = EscapedText(), Any
    stored = column.process_bind_param(text, dialect)
    assert stored is not None
    assert stored.isascii()
    assert "\0" not in stored
    assert column.process_result_value(stored, dialect) == text


class _AllStores(RuleBasedStateMachine):
    """The same calls on all stores give the same results and the same errors."""

    on_postgres: ClassVar[SqlStore]

    names = st.sampled_from(["a", "b"])
    owners = st.sampled_from(["one", "two"])

    def __init__(self) -> None:
        super().__init__()
        self._contexts = [_store(kind, self.on_postgres) for kind in KINDS]
        self.stores = [context.__enter__() for context in self._contexts]
        self.now = 0.0
        self.leases: list[Lease] = []

    def teardown(self) -> None:
        for context in self._contexts:
            context.__exit__(None, None, None)

    def _all(self, call: Callable[[Store], Any]) -> Any:
        answers = [_answer(call, store) for store in self.stores]
        for kind, answer in zip(KINDS, answers, strict=True):
            assert answer == answers[0], kind
        return answers[0]

    @initialize()
    def begin(self) -> None:
        self._all(lambda s: s.create(ModelSpec("a", ("x",), 2, {}, {}, CodecSpec("json")), 0.0))

    @rule(name=names, k=st.integers(1, 3))
    def create(self, name: str, k: int) -> None:
        self._all(lambda s: s.create(ModelSpec(name, ("x",), k, {}, {}, CodecSpec("json")), self.now))

    @rule(name=names)
    def delete(self, name: str) -> None:
        self._all(lambda s: s.delete(name))

    @rule(name=names, owner=owners, ttl=st.sampled_from([1.0, 5.0]), step=st.sampled_from([0.0, 1.0, 3.0]))
    def acquire(self, name: str, owner: str, ttl: float, step: float) -> None:
        self.now += step
        lease = self._all(lambda s: s.acquire(name, owner, ttl, self.now))
        if isinstance(lease, Lease):
            self.leases.append(lease)

    @rule(data=st.data(), what=st.sampled_from(["renew", "release"]))
    def keep_or_give_back(self, data: st.DataObject, what: str) -> None:
        if self.leases:
            lease = data.draw(st.sampled_from(self.leases))
            self._all(lambda s: s.renew(lease, 5.0, self.now) if what == "renew" else s.release(lease))

    @rule(data=st.data(), wrong=st.sampled_from(["", "", "", "position", "seq", "back"]), publish=st.booleans())
    def commit(self, data: st.DataObject, wrong: str, publish: bool) -> None:
        if not self.leases:
            return
        lease = data.draw(st.sampled_from(self.leases[-3:]))
        found = _answer(lambda s: s.load_checkpoint(lease.model), self.stores[0])
        position, seq = ({}, 0) if not isinstance(found, tuple) or found[0] != "checkpoint" else found[2:4]
        commit = data.draw(own.commits(expected=position, seq=seq + 1))
        expected, progress = commit.expected, commit.progress
        if wrong == "position":
            expected = {**expected, data.draw(own.partitions): 3}
        elif wrong == "seq":
            progress = Progress(progress.position, progress.counters, seq + 2, 0.0)
        elif wrong == "back":
            progress = Progress({}, progress.counters, seq + 1, 0.0)
        commit = Commit(
            commit.state,
            expected,
            progress,
            commit.journal_entry,
            commit.snapshot if publish else None,
            commit.quarantine,
        )
        self._all(lambda s: s.commit(lease, commit))

    @rule(name=names, number=st.none() | st.integers(0, 4), at=st.none() | own.seconds)
    def look(self, name: str, number: int | None, at: float | None) -> None:
        self._all(lambda s: s.models())
        self._all(lambda s: s.model(name))
        self._all(lambda s: s.load_checkpoint(name))
        self._all(lambda s: list(s.journal(name, until_seq=number)))
        self._all(lambda s: s.snapshot(name, number, at=at))
        self._all(lambda s: s.snapshots(name, before=number, limit=2))
        self._all(lambda s: s.newest_quarantined(name, limit=3))


def _answer(call: Callable[[Store], Any], store: Store) -> Any:
    """The result of a call, in comparable form."""
    try:
        found = call(store)
    except StoreError as e:
        # The messages of a database constraint and of the store in memory differ.
        return type(e), "" if "already holds" in e.message else (e.message, e.where, e.hint)
    if hasattr(found, "state"):
        return "checkpoint", found.state.to_bytes(), found.progress.position, found.progress.commit_seq, found.progress
    if hasattr(found, "centroids"):
        found = [found]
    if isinstance(found, list) and found and hasattr(found[0], "centroids"):
        return [(s.model, s.id, s.commit_seq, s.created_at, s.position, s.centroids.tobytes(), s.detail) for s in found]
    return found


TestAllStores = _AllStores.TestCase
TestAllStores.settings = settings(QUICK, max_examples=20, stateful_step_count=25)


def test_counters_add_up() -> None:
    assert Counters().plus(points=3, bad=1, tombstones=2) == Counters(6, 3, 1, 2)


def test_equal_states_give_equal_bytes() -> None:
    one, two = (ModelState("K", 1, p, {}) for p in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert one.to_bytes() == two.to_bytes()
