"""The conformance suite of stores: functions of a new store, collected by name in `CHECKS`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from streamkm.errors import ConflictError, LeaseLostError, NotFoundError, SettingsError
from streamkm.records import BadRecord, BatchRange, Position, RawRecord, TopicPartition
from streamkm.state import (
    CodecSpec,
    Commit,
    Counters,
    JournalEntry,
    ModelEvent,
    ModelSpec,
    ModelState,
    Progress,
    QuarantineLimits,
    Recent,
    Snapshot,
)
from streamkm.stores import ControlRequests, Job, Lease, Promotion, Store, Token
from streamkm.stores.base import QuarantinedRecord, RecordId
from streamkm.stores.sql import quarantine as sql_quarantine

P0, P1, P2 = (TopicPartition("orders", i) for i in range(3))
SPEC = ModelSpec(
    "m", ("amount", "lat"), 2, {"kind": "kafka", "topic": "orders"}, {"seed": 0}, CodecSpec("json", ("amount", "lat"))
)


def state_of(seq: int, size: int = 8) -> ModelState:
    """A state that identifies its commit."""
    return ModelState("OnlineKMeans", 1, {"seq": seq}, {"centers": np.full(size, seq, np.float64)})


def position_of(seq: int) -> dict[TopicPartition, int]:
    """Position after commit `seq` of `commit_of`: ten records per partition and commit."""
    return {P0: 10 * seq, P1: 10 * seq} if seq else {}


def journal_entry_of(seq: int) -> JournalEntry:
    """Two mini-batches of five records per partition; every other commit prepares a publication between them."""
    start = 10 * (seq - 1)
    batches = tuple(tuple(BatchRange(p, at, at + 5) for p in (P0, P1)) for at in (start, start + 5))
    return JournalEntry(batches, 1 if seq % 2 else -1)


def bad_of(seq: int) -> BadRecord:
    """One bad record of commit `seq`, with a header that is not text and one that is null."""
    record = RawRecord(P0, 10 * seq - 1, 1_700_000_000_000, b"\xff\0", b"{", (("h", b"\xfe"), ("none", None)))
    return BadRecord(record, "not-json", "", f"commit {seq}: not JSON at byte 1")


def snapshot_of(seq: int, *, at: float | None = None) -> Snapshot:
    """A snapshot that commit `seq` publishes."""
    return Snapshot(
        model="m",
        created_at=float(seq) if at is None else at,
        kind="live",
        reason="interval",
        fields=SPEC.fields,
        ids=np.array([1, 2]),
        centroids=np.full((2, 2), seq, np.float64),
        weights=np.array([seq, 1.0]),
        spreads=np.array([0.5, np.nan]),
        born=np.array([0, seq]),
        factors=np.array([1.0, 0.5]),
        distance="euclidean",
        inertia=float("nan"),
        n_points=20 * seq,
        position=position_of(seq),
        detail={"numpy": "2", "nested": {"a": [1, None]}},
        events=(ModelEvent("split", (1,), (1, 2), {"share": 0.25}), ModelEvent("death", (7,))),
        deviations=np.array([[0.25, np.nan], [1.0, seq]]),
    )


def commit_of(seq: int, *, snapshot: bool = False, bad: bool = False, size: int = 8) -> Commit:
    """Commit number `seq` of a stream of two partitions."""
    return Commit(
        state=state_of(seq, size),
        expected=position_of(seq - 1),
        progress=Progress(position_of(seq), Counters(20 * seq, 20 * seq), seq, 100.0 + seq, lag=7, warmup=(seq, 100)),
        journal_entry=journal_entry_of(seq),
        snapshot=snapshot_of(seq) if snapshot else None,
        quarantine=(bad_of(seq),) if bad else (),
    )


def recent_of(seq: int) -> Recent:
    """Recent points of commit `seq`: values that float32 cannot represent, and an end per partition."""
    return Recent(np.array([[seq + 1e-12, 1e300], [-0.0, 1_700_000_000.125]]), {P0: 10 * seq + 7, P1: 10 * seq})


def job_of(job_id: str, *, at: float = 5.0, model: str = "m") -> Job:
    """A queued job with values of every JSON type."""
    asked = {"from": None, "k": 8, "nested": {"a": [1, 2.5, "ü\0"]}}
    return Job(job_id, model, asked, "queued", {"stage": "starting", "done": 0}, 0, "", at, at)


def owned(store: Store, name: str = "m", owner: str = "me") -> Lease:
    """Create the model and acquire its lease."""
    store.create(replace(SPEC, name=name), 1.0)
    lease = store.acquire(name, owner, ttl=10.0, now=0.0)
    assert lease is not None
    return lease


def check_is_a_store(store: Store) -> None:
    assert isinstance(store, Store)
    store.ping()


def check_a_new_store_has_no_models(store: Store) -> None:
    assert list(store.models()) == []
    with pytest.raises(NotFoundError, match="no models yet"):
        store.model("m")


def check_create_returns_what_is_stored_the_first_time_and_every_time(store: Store) -> None:
    assert store.create(SPEC, 1.0) == SPEC
    assert store.create(replace(SPEC, n_clusters=9), 2.0) == SPEC
    info = store.model("m")
    assert (info.spec, info.created_at, info.progress, info.last_snapshot, info.lease) == (SPEC, 1.0, None, 0, None)


def check_a_name_that_is_not_valid_is_rejected(store: Store) -> None:
    for name in ("", "a/b", "a b", "ü", "x" * 129, "a\n"):
        with pytest.raises(SettingsError, match="is not a valid name"):
            store.create(replace(SPEC, name=name), 1.0)
    assert store.create(replace(SPEC, name="x" * 128), 1.0).name == "x" * 128


def check_models_are_listed_by_name(store: Store) -> None:
    for name in ("b", "a", "B", "a_", "a-b", "c", "9"):
        store.create(replace(SPEC, name=name), 1.0)
    in_order = [
        "9",
        "B",
        "a",
        "a-b",
        "a_",
        "b",
        "c",
    ]  # by code point, whatever the collation of the server
    assert [info.spec.name for info in store.models()] == in_order
    assert list(store.models()) == [store.model(name) for name in in_order]


def check_every_query_of_a_missing_model_names_the_existing_ones(store: Store) -> None:
    store.create(replace(SPEC, name="orders"), 1.0)
    store.create(replace(SPEC, name="clicks"), 1.0)
    questions: list[Callable[[], object]] = [
        lambda: store.model("nobody"),
        lambda: store.delete("nobody"),
        lambda: store.acquire("nobody", "me", 1.0, 0.0),
        lambda: store.load_checkpoint("nobody"),
        lambda: store.journal("nobody"),
        lambda: store.snapshot("nobody"),
        lambda: store.snapshot("nobody", 3),
        lambda: store.snapshot("nobody", at=3.0),
        lambda: store.snapshots("nobody"),
        lambda: store.newest_quarantined("nobody"),
        lambda: store.recent("nobody"),
        lambda: store.set_paused("nobody", paused=True),
        lambda: store.put_job(job_of("1", model="nobody")),
        lambda: store.jobs("nobody"),
        lambda: store.job("nobody", "1"),
        lambda: store.delivered_until("nobody", "hook"),
        lambda: store.advance_delivery("nobody", "hook", 0, 1),
    ]
    for question in questions:
        with pytest.raises(NotFoundError, match=r"'nobody'.*There are: clicks, orders"):
            question()


def check_a_model_without_commits_loads_as_none(store: Store) -> None:
    owned(store)
    assert store.load_checkpoint("m") is None
    assert list(store.journal("m")) == []
    assert list(store.snapshots("m")) == []
    assert list(store.newest_quarantined("m")) == []


def check_one_owner_at_a_time(store: Store) -> None:
    store.create(SPEC, 1.0)
    assert store.acquire("m", "one", ttl=10.0, now=0.0) == Lease("m", "one", 1, 10.0)
    assert store.acquire("m", "two", ttl=10.0, now=9.9) is None
    assert store.model("m").lease == Lease("m", "one", 1, 10.0)
    assert store.acquire("m", "two", ttl=5.0, now=10.0) == Lease("m", "two", 2, 15.0)


def check_the_same_owner_gets_a_new_epoch(store: Store) -> None:
    first = owned(store)
    second = store.acquire("m", "me", ttl=10.0, now=1.0)
    assert second is not None
    assert second.epoch == first.epoch + 1
    with pytest.raises(LeaseLostError):
        store.commit(first, commit_of(1))
    store.commit(second, commit_of(1))


def check_renew_extends_the_lease(store: Store) -> None:
    lease = owned(store)
    renewed = store.renew(lease, ttl=10.0, now=8.0)
    assert renewed == replace(lease, expires_at=18.0)
    assert store.acquire("m", "two", ttl=1.0, now=17.9) is None
    assert store.acquire("m", "two", ttl=1.0, now=18.0) is not None


def check_a_lost_lease_can_neither_renew_nor_commit(store: Store) -> None:
    mine = owned(store)
    store.commit(mine, commit_of(1))
    theirs = store.acquire("m", "two", ttl=10.0, now=20.0)
    assert theirs is not None
    with pytest.raises(LeaseLostError, match=r"me no longer owns .*two owns it with epoch 2"):
        store.renew(mine, ttl=10.0, now=20.0)
    with pytest.raises(LeaseLostError, match="two owns it"):
        store.commit(mine, commit_of(2))
    store.release(mine)
    assert store.model("m").lease == theirs
    store.commit(theirs, commit_of(2))


def check_an_expired_lease_that_nobody_took_still_commits(store: Store) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1))  # the lease of 10 seconds has expired by any real clock


def check_release_lets_the_next_owner_in_and_the_last_one_out(store: Store) -> None:
    mine = owned(store)
    store.release(mine)
    store.release(mine)
    assert store.model("m").lease is None
    with pytest.raises(LeaseLostError, match="has no owner"):
        store.commit(mine, commit_of(1))
    theirs = store.acquire("m", "two", ttl=10.0, now=1.0)
    assert theirs is not None
    assert theirs.epoch == mine.epoch + 1


def check_a_commit_stores_state_progress_and_counters(store: Store) -> None:
    lease = owned(store)
    for seq in (1, 2, 3):
        commit = commit_of(seq)
        assert store.commit(lease, commit) == 0
        checkpoint = store.load_checkpoint("m")
        assert checkpoint is not None
        assert checkpoint.state.to_bytes() == commit.state.to_bytes()
        assert checkpoint.progress == commit.progress
        assert store.model("m").progress == commit.progress


def check_the_journal_gives_every_commit_in_order(store: Store) -> None:
    lease = owned(store)
    for seq in range(1, 6):
        store.commit(lease, commit_of(seq))
    assert list(store.journal("m")) == [(seq, journal_entry_of(seq)) for seq in range(1, 6)]
    assert list(store.journal("m", until_seq=3)) == [(seq, journal_entry_of(seq)) for seq in range(1, 4)]
    assert list(store.journal("m", until_seq=0)) == []


def check_a_journal_being_read_does_not_grow(store: Store) -> None:
    lease = owned(store)
    for seq in range(1, 4):
        store.commit(lease, commit_of(seq))
    reading = store.journal("m")
    seen = [next(reading)[0]]
    store.commit(lease, commit_of(4))
    assert seen + [seq for seq, _ in reading] == [1, 2, 3]


def check_a_long_journal_is_read_whole(store: Store) -> None:
    lease = owned(store)
    for seq in range(1, 601):
        store.commit(lease, commit_of(seq))
    assert [seq for seq, _ in store.journal("m")] == list(range(1, 601))
    assert [seq for seq, _ in store.journal("m", until_seq=512)] == list(range(1, 513))


def check_a_partition_may_join(store: Store) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1))
    joined: Position = {**position_of(2), P2: 4}
    second = commit_of(2)
    store.commit(lease, replace(second, progress=replace(second.progress, position=joined)))
    third = commit_of(3)
    with pytest.raises(ConflictError, match=r"orders-2: 4 instead of None"):
        store.commit(lease, third)
    later: Position = {**position_of(3), P2: 9}
    store.commit(lease, replace(third, expected=joined, progress=replace(third.progress, position=later)))
    assert store.model("m").progress == replace(third.progress, position=later)


def check_a_commit_that_does_not_follow_changes_nothing(store: Store) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True, bad=True))
    good = commit_of(2, snapshot=True, bad=True)
    wrong: Mapping[str, Commit] = {
        "orders-1: 10 instead of 9": replace(good, expected={P0: 10, P1: 9}),
        "orders-1: 10 instead of None": replace(good, expected={P0: 10}),
        "orders-2: None instead of 0": replace(good, expected={**position_of(1), P2: 0}),
        "commit 3 cannot follow commit 1": replace(good, progress=replace(good.progress, commit_seq=3)),
        "commit 1 cannot follow commit 1": replace(good, progress=replace(good.progress, commit_seq=1)),
        "go back .*orders-0: from 10 to 3": replace(good, progress=replace(good.progress, position={P0: 3, P1: 20})),
        "go back .*orders-1: from 10 to None": replace(good, progress=replace(good.progress, position={P0: 20})),
        "already holds": replace(good, quarantine=(bad_of(2), bad_of(1))),
    }
    for message, commit in wrong.items():
        with pytest.raises(ConflictError, match=message):
            store.commit(lease, commit)
        checkpoint = store.load_checkpoint("m")
        assert checkpoint is not None
        assert checkpoint.state.params == {"seq": 1}
        assert checkpoint.progress == commit_of(1).progress
        assert [seq for seq, _ in store.journal("m")] == [1]
        assert [s.id for s in store.snapshots("m")] == [1]
        assert list(store.newest_quarantined("m")) == [bad_of(1)]
    assert store.commit(lease, good) == 2


def check_snapshots_are_numbered_from_1_and_know_their_commit(store: Store) -> None:
    lease = owned(store)
    numbers = [store.commit(lease, commit_of(seq, snapshot=seq % 2 == 0)) for seq in range(1, 7)]
    assert numbers == [0, 1, 0, 2, 0, 3]
    assert [(s.id, s.commit_seq) for s in store.snapshots("m")] == [(3, 6), (2, 4), (1, 2)]
    assert store.model("m").last_snapshot == 3


def check_a_snapshot_comes_back_exactly_and_cannot_be_changed(store: Store) -> None:
    lease = owned(store)
    made = snapshot_of(1)
    store.commit(lease, replace(commit_of(1), snapshot=made))
    expected = made.centroids.copy()
    made.centroids[:] = -1.0  # the store must have a copy
    for found in (store.snapshot("m"), store.snapshot("m", 1), store.snapshots("m")[0]):
        assert np.array_equal(found.centroids, expected)
        assert np.isnan(found.spreads[1])
        assert np.isnan(found.inertia)
        assert (found.model, found.fields, found.position) == ("m", SPEC.fields, position_of(1))
        assert found.detail == {"numpy": "2", "nested": {"a": [1, None]}}
        with pytest.raises(ValueError, match="read-only"):
            found.centroids[0, 0] = 5.0


def check_the_newest_snapshot_is_always_the_newest(store: Store) -> None:
    lease = owned(store)
    for seq in range(1, 5):
        store.commit(lease, commit_of(seq, snapshot=True))
        assert store.snapshot("m").id == seq
        assert store.snapshot("m").id == seq


def check_the_newest_snapshot_is_never_that_of_a_deleted_model(store: Store) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    assert store.snapshot("m").reason == "interval"
    store.delete("m")
    with pytest.raises(NotFoundError):
        store.snapshot("m")
    again = owned(store)
    store.commit(again, replace(commit_of(1), snapshot=replace(snapshot_of(1), reason="first")))
    assert store.snapshot("m").reason == "first"


def check_time_travel_finds_the_newest_at_or_before(store: Store) -> None:
    lease = owned(store)
    for seq, at in enumerate([10.0, 20.0, 20.0, 15.0, 30.0], start=1):
        store.commit(lease, replace(commit_of(seq), snapshot=snapshot_of(seq, at=at)))
    found = {at: store.snapshot("m", at=at).id for at in (10.0, 14.9, 15.0, 19.9, 20.0, 29.0, 30.0, 1e12)}
    assert found == {10.0: 1, 14.9: 1, 15.0: 4, 19.9: 4, 20.0: 3, 29.0: 3, 30.0: 5, 1e12: 5}
    with pytest.raises(NotFoundError, match=r"at or before 1970-01-01T00:00:09.500000Z. There are 1 to 5"):
        store.snapshot("m", at=9.5)


def check_a_missing_snapshot_names_the_range_there_is(store: Store) -> None:
    lease = owned(store)
    for question in (lambda: store.snapshot("m"), lambda: store.snapshot("m", 1)):
        with pytest.raises(NotFoundError, match="It has none yet"):
            question()
    for seq in range(1, 4):
        store.commit(lease, commit_of(seq, snapshot=True))
    for number in (0, 4, -1):
        with pytest.raises(NotFoundError, match=f"no snapshot {number}. There are 1 to 3"):
            store.snapshot("m", number)


def check_snapshots_page_backwards(store: Store) -> None:
    lease = owned(store)
    for seq in range(1, 8):
        store.commit(lease, commit_of(seq, snapshot=True))
    assert [s.id for s in store.snapshots("m", limit=3)] == [7, 6, 5]
    assert [s.id for s in store.snapshots("m", before=5, limit=3)] == [4, 3, 2]
    assert [s.id for s in store.snapshots("m", before=2)] == [1]
    assert [s.id for s in store.snapshots("m", before=1)] == []
    assert [s.id for s in store.snapshots("m", limit=0)] == []


def check_quarantined_records_come_back_newest_first(store: Store) -> None:
    lease = owned(store)
    for seq in range(1, 5):
        store.commit(lease, commit_of(seq, bad=True))
    assert list(store.newest_quarantined("m")) == [bad_of(seq) for seq in (4, 3, 2, 1)]
    assert list(store.newest_quarantined("m", limit=2)) == [bad_of(4), bad_of(3)]


def bad_commit(store: Store, lease: Lease, seq: int, *reasons: str) -> list[BadRecord]:
    """Make commit `seq` with a bad record of each reason; returns the records."""
    bad = [
        replace(bad_of(seq), reason=reason, record=bad_of(seq).record._replace(offset=10 * (seq - 1) + i))
        for i, reason in enumerate(reasons)
    ]
    store.commit(lease, replace(commit_of(seq), quarantine=tuple(bad)))
    return bad


def places(bad: Sequence[BadRecord]) -> list[RecordId]:
    """Ids of records."""
    return [(b.record.partition, b.record.offset) for b in bad]


def check_quarantined_records_are_found_by_reason_by_id_and_in_order(store: Store) -> None:
    lease = owned(store)
    first = bad_commit(store, lease, 1, "not-json", "too-large")
    second = bad_commit(store, lease, 2, "not-json")
    assert store.quarantine_counts("m") == {"not-json": 2, "too-large": 1}
    assert list(store.newest_quarantined("m", reason="not-json")) == [second[0], first[0]]
    assert list(store.newest_quarantined("m", reason="not-json", limit=1)) == second
    assert list(store.newest_quarantined("m", reason="nonsense")) == []
    assert list(store.iter_quarantine("m")) == [
        QuarantinedRecord(first[0], 1, None),
        QuarantinedRecord(first[1], 1, None),
        QuarantinedRecord(second[0], 2, None),
    ]
    assert store.quarantined_record("m", (P0, 1)) == QuarantinedRecord(first[1], 1, None)
    with pytest.raises(NotFoundError, match="orders-0@2 is not in quarantine"):
        store.quarantined_record("m", (P0, 2))
    for ask in (
        store.quarantine_counts,
        store.iter_quarantine,
        store.undelivered,
        lambda name: store.quarantined_record(name, (P0, 1)),
    ):
        with pytest.raises(NotFoundError, match="no model"):
            ask("nobody")


def check_a_long_quarantine_is_read_whole_and_does_not_grow_meanwhile(store: Store) -> None:
    lease = owned(store)
    bad = [replace(bad_of(1), record=bad_of(1).record._replace(offset=i)) for i in range(600)]
    store.commit(lease, replace(commit_of(1), quarantine=tuple(bad)))
    reading = store.iter_quarantine("m")
    seen = [next(reading).bad]
    late = replace(bad_of(2), record=bad_of(2).record._replace(offset=1000))
    store.commit(lease, replace(commit_of(2), quarantine=(late,)))
    assert seen + [held.bad for held in reading] == bad


def check_delivered_records_are_no_longer_undelivered(store: Store) -> None:
    lease = owned(store)
    first, second, third = bad_commit(store, lease, 1, "a", "b", "c")
    assert [held.bad for held in store.undelivered("m")] == [first, second, third]
    assert [held.bad for held in store.undelivered("m", limit=2)] == [first, second]
    store.mark_delivered("m", places([first, third]), 50.0)
    assert [held.bad for held in store.undelivered("m")] == [second]
    assert store.quarantined_record("m", (P0, 0)).delivered_at == 50.0
    store.mark_delivered("m", [*places([second]), (P2, 77)], 60.0)
    store.mark_delivered("m", [], 70.0)
    assert list(store.undelivered("m")) == []
    assert len(store.newest_quarantined("m")) == 3


def check_removed_records_leave_the_quarantine_and_no_counter(store: Store) -> None:
    lease = owned(store)
    first, second = bad_commit(store, lease, 1, "a", "b")
    before = store.model("m").progress
    store.remove_quarantined("m", [*places([first]), (P2, 5)])
    store.remove_quarantined("m", places([first]))
    store.remove_quarantined("m", [])
    assert list(store.newest_quarantined("m")) == [second]
    assert store.model("m").progress == before


def check_the_quarantine_is_bounded_but_keeps_what_is_not_delivered(store: Store) -> None:
    lease = owned(store)
    bad = bad_commit(store, lease, 1, *"abcdef")
    assert store.trim_quarantine("m", QuarantineLimits(6, 1 << 40, delivered_only=False)) == 0
    assert store.trim_quarantine("m", QuarantineLimits(4, 1 << 40, delivered_only=True)) == 0
    store.mark_delivered("m", places([bad[1], bad[4], bad[5]]), 1.0)
    assert store.trim_quarantine("m", QuarantineLimits(4, 1 << 40, delivered_only=True)) == 2
    assert [held.bad for held in store.iter_quarantine("m")] == [bad[0], bad[2], bad[3], bad[5]]
    assert store.trim_quarantine("m", QuarantineLimits(1, 1 << 40, delivered_only=True)) == 1
    assert store.trim_quarantine("m", QuarantineLimits(1, 1 << 40, delivered_only=False)) == 2
    assert [held.bad for held in store.iter_quarantine("m")] == [bad[3]]
    assert store.trim_quarantine("m", QuarantineLimits(0, 1 << 40, delivered_only=False)) == 1
    assert store.trim_quarantine("m", QuarantineLimits(0, 1 << 40, delivered_only=False)) == 0


def sized(seq: int, *sizes: int, whole: int | None = None) -> tuple[BadRecord, ...]:
    """Bad records of commit `seq`, with values of these sizes in bytes."""
    bad = bad_of(seq)
    return tuple(
        replace(bad, record=bad.record._replace(offset=10 * (seq - 1) + i, value=b"v" * size, size=whole))
        for i, size in enumerate(sizes)
    )


def check_a_commit_that_adds_trims_the_quarantine_to_rows_and_bytes(store: Store) -> None:
    lease = owned(store)
    for seq, sizes, limits, left in (
        (1, (9000, 9000, 9000), QuarantineLimits(2, 1 << 20), [1, 2]),
        (2, (5000, 9000), QuarantineLimits(100, 20_000), [10, 11]),
        (3, (30_000,), QuarantineLimits(100, 20_000), []),
        (4, (10,), None, [30]),
        (5, (10,), QuarantineLimits(1, 250), [40]),
    ):
        store.commit(lease, replace(commit_of(seq), quarantine=sized(seq, *sizes), quarantine_limits=limits))
        assert [held.bad.record.offset for held in store.iter_quarantine("m")] == left
    store.commit(lease, replace(commit_of(6), quarantine_limits=QuarantineLimits(0, 0)))
    assert len(store.newest_quarantined("m")) == 1, "a commit without bad records does not trim"


def check_undelivered_records_stay_without_their_value(store: Store) -> None:
    lease = owned(store)
    limits = QuarantineLimits(1, 12_000, delivered_only=True)
    store.commit(lease, replace(commit_of(1), quarantine=sized(1, 9000, 9000, 9000), quarantine_limits=limits))
    found = [held.bad.record for held in store.undelivered("m")]
    assert [(r.offset, len(r.value or b""), r.size) for r in found] == [(0, 0, 9000), (1, 0, 9000), (2, 9000, None)]
    store.mark_delivered("m", [(P0, 0), (P0, 2)], 1.0)
    assert store.trim_quarantine("m", limits) == 2
    assert [held.bad.record.offset for held in store.iter_quarantine("m")] == [1]


def check_a_commit_trims_the_quarantine_however_many_records_it_adds(store: Store) -> None:
    lease = owned(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sql_quarantine, "MAX_TRIMMED", 2)
        for seq, limits, left in (
            (1, QuarantineLimits(3, 1 << 20), [5, 6, 7]),
            (2, QuarantineLimits(100, 12_000), [17]),
        ):
            store.commit(lease, replace(commit_of(seq), quarantine=sized(seq, *[9000] * 8), quarantine_limits=limits))
            assert [held.bad.record.offset for held in store.iter_quarantine("m")] == left
        store.mark_delivered("m", [(P0, 17)], 1.0)
        limits = QuarantineLimits(4, 12_000, delivered_only=True)
        store.commit(lease, replace(commit_of(3), quarantine=sized(3, *[9000] * 8), quarantine_limits=limits))
    found = [(held.bad.record.offset, len(held.bad.record.value or b"")) for held in store.iter_quarantine("m")]
    assert found == [*((20 + i, 0) for i in range(7)), (27, 9000)]


def check_a_truncated_record_has_the_size_of_the_whole(store: Store) -> None:
    lease = owned(store)
    (bad,) = sized(1, 100, whole=5_000_000)
    store.commit(lease, replace(commit_of(1), quarantine=(bad,)))
    assert store.quarantined_record("m", (P0, 0)).bad == bad
    assert store.newest_quarantined("m", max_bytes=10)[0].record.size == 5_000_000


def check_a_list_of_quarantined_records_is_truncated_by_the_store(store: Store) -> None:
    lease = owned(store)
    (long,) = sized(1, 50_000)
    record = long.record._replace(key=b"k" * 9000, headers=(("h", b"x" * 9000),))
    store.commit(lease, replace(commit_of(1), quarantine=(replace(long, record=record), bad_of(1))))
    short, cut = (bad.record for bad in store.newest_quarantined("m", max_bytes=100))
    assert short == bad_of(1).record
    assert (cut.value, cut.size, cut.key, cut.headers) == (b"v" * 100, 50_000, b"k" * 100, ())
    assert store.newest_quarantined("m")[1].record == record


def check_undelivered_records_come_in_batches_of_limited_size(store: Store) -> None:
    lease = owned(store)
    sizes = [3 << 20, 3 << 20, 3 << 20, 9 << 20, 1]
    store.commit(lease, replace(commit_of(1), quarantine=sized(1, *sizes)))
    portions = []
    while waiting := store.undelivered("m"):
        portions.append([held.bad.record.offset for held in waiting])
        store.mark_delivered("m", places([held.bad for held in waiting]), 1.0)
    assert portions == [[0, 1], [2], [3], [4]]


def check_retention_deletes_old_snapshots_and_the_rest_answers_as_before(store: Store) -> None:
    lease, day = owned(store), 86_400.0
    now = 100 * day
    ages = [20.6, 20.3, 20.1, 9.5, 5.011, 5.010, 5.009, 5.0, 0.9, 0.8, 0.7]
    for seq, age in enumerate(ages, start=1):
        published = snapshot_of(seq, at=now - age * day)
        published = published if seq == 6 else replace(published, events=())
        store.commit(lease, replace(commit_of(seq), snapshot=published))
    assert store.apply_retention("m", now) == 3
    # The last of a day, the last of an hour and the one with events, and all recent ones.
    assert [s.id for s in store.snapshots("m")] == [11, 10, 9, 8, 7, 6, 4, 3]
    assert store.apply_retention("m", now) == 0
    assert store.snapshot("m", at=now - 15 * day).id == 3
    with pytest.raises(NotFoundError, match="streamkm snapshots lists those kept of 3 to 11"):
        store.snapshot("m", 5)
    with pytest.raises(NotFoundError):
        store.request_promotion("m", Promotion(5, skip=True))
    assert store.commit(lease, commit_of(12, snapshot=True)) == 12


def check_retention_spares_the_newest_the_recomputed_and_whatever_was_ever_promoted(store: Store) -> None:
    lease = owned(store)
    for seq in range(1, 6):
        store.commit(lease, replace(commit_of(seq), snapshot=replace(snapshot_of(seq, at=float(seq)), events=())))
    for at in (1.5, 2.5):
        store.add_snapshot(replace(snapshot_of(9, at=at), kind="replay", events=()), state_of(9))
    store.request_promotion("m", Promotion(2, skip=True))
    store.request_promotion("m", None)
    assert store.apply_retention("m", 1e9) == 2  # of 1, 3 and 4 the last of the day is kept
    assert [s.id for s in store.snapshots("m")] == [7, 6, 5, 4, 2]
    assert store.snapshot("m").id == 5
    assert store.apply_retention("m", 1e12) == 0


def check_a_checkpoint_a_day_is_kept_and_the_journal_begins_at_one(store: Store) -> None:
    lease, day = owned(store), 86_400.0

    def commit(seq: int, at: float) -> None:
        commit = commit_of(seq)
        store.commit(lease, replace(commit, progress=replace(commit.progress, committed_at=at)))

    assert not store.keep_checkpoint("m", 1.0 + 9 * day), "there is no checkpoint yet"
    commit(1, 10.0)
    assert not store.keep_checkpoint("m", 20.0), "the model was made a moment ago"
    assert store.kept_checkpoints("m") == []
    for seq in range(2, 41):  # two commits a day, and a call after each
        now = seq * day / 2
        commit(seq, now)
        due = (
            max(now, 1.0 + day) if seq % 2 == 0 else now + 5.0
        )  # exactly a day after the last one, or after the creation
        assert not store.keep_checkpoint("m", due - 0.5)
        assert store.keep_checkpoint("m", due) == (seq % 2 == 0)
        assert not store.keep_checkpoint("m", now + 6.0)
        store.apply_retention("m", now + 7.0)
        numbers, journal = [p.commit_seq for p in store.kept_checkpoints("m")], [s for s, _ in store.journal("m")]
        assert len(numbers) <= 10
        assert len(journal) <= 20
        assert journal == list(range((numbers[0] if seq >= 18 else 0) + 1, seq + 1))
    kept = store.kept_checkpoints("m")
    assert [p.commit_seq for p in kept] == list(range(24, 41, 2))
    for progress in kept:
        base, expected = store.kept_checkpoint("m", progress.commit_seq), commit_of(progress.commit_seq)
        assert base.progress == progress
        assert progress.position == expected.progress.position
        assert progress.counters == expected.progress.counters
        assert base.state.to_bytes() == expected.state.to_bytes()
    assert [seq for seq, _ in store.journal("m", 38, after_seq=35)] == [36, 37, 38]
    with pytest.raises(NotFoundError, match="commit 22 is not kept"):
        store.kept_checkpoint("m", 22)
    assert store.apply_retention("m", 1e12) > 0, "the newest kept checkpoint stays, however old it is"
    assert [p.commit_seq for p in store.kept_checkpoints("m")] == [40]
    assert list(store.journal("m")) == []
    assert store.apply_retention("m", 1e12) == 0
    commit(41, 1e12)


def check_models_do_not_see_each_other(store: Store) -> None:
    one, two = owned(store, "one"), owned(store, "two")
    store.commit(one, commit_of(1, snapshot=True, bad=True))
    assert store.load_checkpoint("two") is None
    assert list(store.snapshots("two")) == list(store.journal("two")) == list(store.newest_quarantined("two")) == []
    store.commit(two, commit_of(1, snapshot=True, bad=True))
    store.commit(two, commit_of(2, snapshot=True, bad=True))

    def check_all_of(name: str, seqs: list[int]) -> None:
        checkpoint = store.load_checkpoint(name)
        assert checkpoint is not None
        assert checkpoint.progress.commit_seq == store.snapshot(name).id == seqs[-1]
        assert [seq for seq, _ in store.journal(name)] == seqs
        assert [s.id for s in store.snapshots(name)] == seqs[::-1]
        assert list(store.newest_quarantined(name)) == [bad_of(seq) for seq in seqs[::-1]]
        assert len(list(store.undelivered(name))) == len(seqs)

    check_all_of("one", [1])
    check_all_of("two", [1, 2])
    store.delete("one")
    assert [info.spec.name for info in store.models()] == ["two"]
    check_all_of("two", [1, 2])


def check_a_deleted_model_is_gone_whole(store: Store) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True, bad=True))
    store.delete("m")
    with pytest.raises(LeaseLostError, match="no such model"):
        store.commit(lease, commit_of(2))
    again = owned(store)
    assert store.load_checkpoint("m") is None
    assert list(store.snapshots("m")) == list(store.journal("m")) == list(store.newest_quarantined("m")) == []
    assert store.commit(again, commit_of(1, snapshot=True, bad=True)) == 1


def check_a_lease_on_a_deleted_model_does_not_fit_the_next_of_its_name(store: Store) -> None:
    old = owned(store)
    store.delete("m")
    new = owned(store)
    assert new.epoch > old.epoch
    with pytest.raises(LeaseLostError):
        store.commit(old, commit_of(1))


def check_many_threads_can_read_while_one_commits(store: Store) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    done = threading.Event()
    wrong: list[object] = []

    def read() -> None:
        try:
            while not done.is_set():
                checkpoint = store.load_checkpoint("m")
                assert checkpoint is not None
                seq = checkpoint.progress.commit_seq
                assert checkpoint.state.params == {"seq": seq}
                assert checkpoint.progress.position == position_of(seq)
                assert store.snapshot("m").n_points >= 20 * seq
        except Exception as e:  # noqa: BLE001
            wrong.append(e)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for seq in range(2, 60):
        store.commit(lease, commit_of(seq, snapshot=True))
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []


def check_of_many_threads_one_wins_the_lease(store: Store) -> None:
    store.create(SPEC, 1.0)
    start = threading.Barrier(8)
    won: list[Lease | None] = []

    def take(owner: str) -> None:
        start.wait()
        won.append(store.acquire("m", owner, ttl=10.0, now=0.0))

    threads = [threading.Thread(target=take, args=(f"owner {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 8
    assert [lease for lease in won if lease is not None] == [store.model("m").lease]


def check_a_recomputed_snapshot_is_kept_with_its_state_and_answers_nothing(store: Store) -> None:
    lease = owned(store)
    assert store.commit(lease, commit_of(1, snapshot=True)) == 1
    recomputed = replace(snapshot_of(9), kind="replay", reason="replay")
    state = state_of(9)
    assert store.add_snapshot(recomputed, state) == 2
    assert store.snapshot_state("m", 2).to_bytes() == state.to_bytes()
    assert store.snapshot_state("m", 1) is None
    assert store.snapshot("m", 2).centroids.tolist() == recomputed.centroids.tolist()
    assert store.snapshot("m").id == store.snapshot("m", at=1e9).id == store.model("m").last_snapshot == 1
    assert [(s.id, s.kind) for s in store.snapshots("m")] == [(2, "replay"), (1, "live")]
    assert store.commit(lease, commit_of(2, snapshot=True)) == 3
    assert store.snapshot("m").id == store.model("m").last_snapshot == 3
    with pytest.raises(NotFoundError):
        store.add_snapshot(replace(recomputed, model="nobody"), state)


def check_a_promotion_is_requested_until_a_commit_fulfils_it(store: Store) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1, snapshot=True))
    assert store.control_requests("m").promotion is None
    with pytest.raises(NotFoundError, match="no snapshot 7"):
        store.request_promotion("m", Promotion(7, skip=False))
    store.request_promotion("m", Promotion(1, skip=True))
    assert store.control_requests("m").promotion == Promotion(1, skip=True)
    number = store.add_snapshot(replace(snapshot_of(9), kind="replay"), state_of(9))
    store.request_promotion("m", Promotion(number, skip=False))
    assert store.control_requests("m").promotion == Promotion(number, skip=False)
    store.commit(lease, commit_of(2))
    answer = commit_of(3, snapshot=True)
    # Fulfilling an earlier request leaves the present one.
    store.commit(lease, replace(answer, journal_entry=answer.journal_entry._replace(promoted_snapshot=1)))
    assert store.control_requests("m").promotion == Promotion(number, skip=False)
    answer = commit_of(4, snapshot=True)
    store.commit(lease, replace(answer, journal_entry=answer.journal_entry._replace(promoted_snapshot=number)))
    assert store.control_requests("m").promotion is None
    store.request_promotion("m", Promotion(1, skip=False))
    store.delete("m")
    assert store.control_requests("m").promotion is None
    owned(store)
    assert store.control_requests("m").promotion is None


def check_lost_records_are_counted_and_in_the_journal(store: Store) -> None:
    lease = owned(store)
    store.commit(lease, commit_of(1))
    first, gap = commit_of(2), (BatchRange(P0, 20, 23), BatchRange(P1, 20, 21))
    moved = {P0: 23, P1: 21}
    counted = replace(first.progress, position=moved, counters=first.progress.counters.plus(lost=4))
    store.commit(lease, replace(first, progress=counted, journal_entry=first.journal_entry._replace(lost=gap)))
    for progress in (store.model("m").progress, store.models()[0].progress):
        assert progress is not None
        assert (progress.counters, progress.position) == (Counters(40, 40, lost=4), moved)
    checkpoint = store.load_checkpoint("m")
    assert checkpoint is not None
    assert checkpoint.progress.counters.lost == 4
    assert [learning.lost for _, learning in store.journal("m")] == [(), gap]
    after = replace(first.progress, position={P0: 30, P1: 30}, counters=Counters(60, 60, lost=4), commit_seq=3)
    store.commit(lease, replace(first, expected=moved, progress=after))
    assert store.model("m").progress == after
    owned(store, "another")
    progress = store.model("another").progress
    assert progress is None


def check_recent_points_are_those_of_the_last_commit_that_had_some(store: Store) -> None:
    lease = owned(store)
    assert store.recent("m") is None
    store.commit(lease, commit_of(1))
    assert store.recent("m") is None
    for seq in (2, 3):
        given = recent_of(seq)
        store.commit(lease, replace(commit_of(seq), recent=given))
        expected = given.points.tobytes()
        given.points[:] = 0.0  # the store must have a copy
        found = store.recent("m")
        assert found is not None
        assert found.points.tobytes() == expected
        assert found.points.dtype == np.float64
        assert found.ends == recent_of(seq).ends
        with pytest.raises(ValueError, match="read-only"):
            found.points[0, 0] = 5.0
    store.commit(lease, commit_of(4))
    found = store.recent("m")
    assert found is not None
    assert found.ends == recent_of(3).ends, "a commit without recent points leaves the previous ones"
    with pytest.raises(ConflictError):
        store.commit(lease, replace(commit_of(4), recent=recent_of(9)))
    found = store.recent("m")
    assert found is not None
    assert found.ends == recent_of(3).ends, "nothing of a rejected commit is stored"
    store.commit(lease, replace(commit_of(5), recent=Recent(np.empty((0, 2)))))
    found = store.recent("m")
    assert found is not None
    assert (found.points.shape, found.ends) == ((0, 2), {})
    owned(store, "another")
    assert store.recent("another") is None


def check_a_pause_is_requested_and_withdrawn(store: Store) -> None:
    lease = owned(store)
    owned(store, "another")
    store.commit(lease, commit_of(1, snapshot=True))
    assert store.control_requests("m") == ControlRequests(None, paused=False) == store.control_requests("nobody")
    assert not store.model("m").paused
    for _ in range(2):
        store.set_paused("m", paused=True)
        assert store.model("m").paused
    assert [info.paused for info in store.models()] == [False, True]
    assert store.control_requests("m") == ControlRequests(None, paused=True)
    store.request_promotion("m", Promotion(1, skip=True))
    assert store.control_requests("m") == ControlRequests(Promotion(1, skip=True), paused=True)
    store.commit(lease, commit_of(2, snapshot=True))
    assert store.model("m").paused, "a commit does not change it"
    store.set_paused("m", paused=False)
    assert store.control_requests("m") == ControlRequests(Promotion(1, skip=True), paused=False)
    store.set_paused("m", paused=True)
    store.delete("m")
    owned(store)
    assert not store.model("m").paused


def check_tokens_have_names_and_digests_of_their_own(store: Store) -> None:
    assert list(store.tokens()) == []
    one = Token("ci", "a" * 64, "write", ("orders", "clicks"), 5.25)
    two = Token("Grafana ü", "b" * 64, "read", (), 6.0)
    store.add_token(one)
    store.add_token(two)
    assert list(store.tokens()) == [two, one]
    for taken in (one, one._replace(digest="c" * 64), one._replace(name="other")):
        with pytest.raises(ConflictError, match="already") as refused:
            store.add_token(taken)
        assert "a" * 64 not in f"{refused.value}{refused.value.__cause__}", "no digest in a message"
    assert list(store.tokens()) == [two, one]
    with pytest.raises(NotFoundError, match=r"no token is named 'cd'. There are: Grafana ü, ci"):
        store.remove_token("cd")
    store.remove_token("ci")
    assert list(store.tokens()) == [two]
    store.add_token(one._replace(name="new"))
    store.remove_token("new")
    store.remove_token("Grafana ü")
    with pytest.raises(NotFoundError, match="There are none"):
        store.remove_token("ci")


def check_a_job_comes_back_as_it_was_put_last(store: Store) -> None:
    owned(store)
    owned(store, "another")
    job = job_of("a1")
    store.put_job(job)
    assert store.job("m", "a1") == job
    done = replace(
        job, state="done", snapshot=7, error="x\0", progress={"stage": "fitting", "moved": 0}, updated_at=9.0
    )
    store.put_job(done)
    assert store.job("m", "a1") == done
    assert list(store.jobs("m")) == [done]
    store.put_job(job_of("b", at=6.0))
    store.put_job(job_of("c", at=6.0))
    store.put_job(job_of("a", at=4.0))
    assert [j.id for j in store.jobs("m")] == ["c", "b", "a1", "a"]
    assert list(store.jobs("another")) == []
    with pytest.raises(NotFoundError, match="no job 'a1'"):
        store.job("another", "a1")
    store.delete("m")
    owned(store)
    assert list(store.jobs("m")) == []


def check_the_newest_hundred_jobs_of_a_model_stay(store: Store) -> None:
    owned(store)
    owned(store, "another")
    store.put_job(job_of("old", model="another"))
    for i in range(103):
        store.put_job(job_of(f"j{i}", at=10.0 + i))
    assert [job.id for job in store.jobs("m")] == [f"j{i}" for i in range(102, 2, -1)]
    store.put_job(replace(job_of("j3", at=13.0), state="running", updated_at=999.0))
    assert len(store.jobs("m")) == 100
    assert store.job("m", "j3").state == "running"
    with pytest.raises(NotFoundError):
        store.job("m", "j2")
    assert [job.id for job in store.jobs("another")] == ["old"]


def check_a_delivery_advances_only_from_the_expected_snapshot(store: Store) -> None:
    owned(store)
    owned(store, "another")
    assert store.delivered_until("m", "hook") == 0
    assert not store.advance_delivery("m", "hook", 1, 2)
    assert store.advance_delivery("m", "hook", 0, 3)
    assert not store.advance_delivery("m", "hook", 0, 4)
    assert store.delivered_until("m", "hook") == 3
    assert store.advance_delivery("m", "hook", 3, 8)
    assert store.advance_delivery("m", "topic ü", 0, 1)
    assert [store.delivered_until("m", target) for target in ("hook", "topic ü", "Hook")] == [8, 1, 0]
    assert store.delivered_until("another", "hook") == 0
    store.delete("m")
    owned(store)
    assert store.delivered_until("m", "hook") == 0


def check_of_many_threads_one_advances_the_delivery(store: Store) -> None:
    owned(store)
    start = threading.Barrier(8)
    told: list[bool] = []

    def tell(snapshot: int) -> None:
        start.wait()
        told.append(store.advance_delivery("m", "hook", 0, snapshot))

    threads = [threading.Thread(target=tell, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [False] * 7 + [True]
    assert store.delivered_until("m", "hook") > 0


CHECKS: Mapping[str, Callable[[Store], None]] = {
    name.removeprefix("check_"): check for name, check in list(globals().items()) if name.startswith("check_")
}
