"""The live loop without a broker and without waiting: exact counts after every kind of failure."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import numpy as np
import pytest

from streamkm.codecs import make_codec
from streamkm.connectors import MemorySource
from streamkm.engine import (
    Engine,
    EngineOptions,
    JournalReplay,
    compare_snapshot,
    model_from_snapshot,
    session,
    snapshots,
)
from streamkm.engine.source_manager import DISCOVERY_SECONDS
from streamkm.errors import (
    BadRecordsError,
    BrokerUnreachableError,
    ModelMismatchError,
    PositionLostError,
    SourceError,
    StoreUnavailableError,
)
from streamkm.models import OnlineKMeans, clusters
from streamkm.models.background import Task
from streamkm.records import RawRecord, TopicPartition
from streamkm.state import CodecSpec, ModelSpec
from streamkm.stores import Promotion, open_store
from streamkm.testing import FlakySource, FlakyStore, ManualClock, StopAfter

CODEC = CodecSpec("json", ("x", "y"), {"time_field": None, "max_bytes": 1000})
SPEC = ModelSpec(
    "m", ("x", "y"), 3, {"kind": "memory"}, {"kind": "OnlineKMeans", "warmup": 50, "half_life": 500.0, "seed": 1}, CODEC
)
OPTIONS = EngineOptions(batch=70, checkpoint_every=0.0, snapshot_every=1e9, snapshot_points=400, owner="a")
N = 1500


class Eager:
    """A worker that runs tasks at once, so that the content of commits does not depend on the machine."""

    @staticmethod
    def submit(work):
        task = Task(work)
        task.run()
        return task


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(clusters, "WORKER", Eager())


class Killed(BaseException):
    """In place of SIGKILL: must not be caught."""


def record(i, value=..., partition=None):
    rng = np.random.default_rng(i)
    x, y = rng.normal(size=2) + [[0, 0], [9, 0], [0, 9]][i % 3]
    value = json.dumps({"x": x, "y": y}).encode() if value is ... else value
    partition = i % 2 if partition is None else partition
    return RawRecord(TopicPartition("t", partition), i // 2, 1_700_000_000_000 + i, None, value)


class ClockedSource(MemorySource):
    """Waits for records by a manual clock, as an owner whose next commit is due later would never make it otherwise."""

    def __init__(self, records, clock):
        super().__init__(records, topic="t", partitions=2)
        self.clock = clock

    def poll(self, timeout, max_records):
        polled = super().poll(min(timeout, 0.01), max_records)
        if not polled:
            self.clock.advance(timeout)
        return polled


class World:
    """One topic and one store, for several engines."""

    def __init__(self, records=None, store=None):
        self.records = [record(i) for i in range(N)] if records is None else records
        self.clock = ManualClock()
        self.store = open_store("memory://") if store is None else store
        self.opened = []

    def source(self):
        source = ClockedSource(self.records, self.clock)
        self.opened.append(source)
        return source

    def engine(self, options=OPTIONS, spec=SPEC, store=None, open_source=None):
        return Engine(
            spec,
            open_source=open_source or self.source,
            codec=make_codec(CODEC),
            store=store or self.store,
            options=options,
            clock=self.clock,
        )

    def counters(self):
        progress = self.store.model("m").progress
        return progress.counters if progress else None

    def counters_or_none(self):
        return self.counters() if self.store.models() else None

    def all_read(self):
        c = self.counters_or_none()
        return c is not None and c.records == len(self.records)

    def until_all_read(self):
        return StopAfter(self.all_read, self.clock)

    def verify(self, spec=SPEC):
        last = self.store.snapshot("m")
        adopt = partial(model_from_snapshot, self.store, spec)
        with JournalReplay(spec, self.source, make_codec(CODEC), adopt) as again:
            for _, entry in self.store.journal("m", last.commit_seq):
                again.apply(entry)
            return compare_snapshot(last, again.learner)


def test_every_record_is_learned_once_and_the_journal_gives_the_same_bits():
    w = World()
    w.engine().run(w.until_all_read())
    last = w.store.snapshot("m")
    assert w.counters().points == last.n_points == N
    assert dict(last.position) == {TopicPartition("t", 0): N // 2, TopicPartition("t", 1): N // 2}
    assert w.verify()


def test_snapshots_come_first_by_points_and_at_the_stop():
    w = World()
    w.engine().run(w.until_all_read())
    reasons = [s.reason for s in reversed(w.store.snapshots("m"))]
    assert reasons[0] == "first"
    assert reasons[-1] == "stop"
    assert set(reasons[1:-1]) == {"points"}
    assert [s.id for s in w.store.snapshots("m")] == list(range(len(reasons), 0, -1))


def test_snapshots_come_by_time():
    w = World()
    options = dataclasses.replace(OPTIONS, snapshot_points=0, snapshot_every=10.0)
    ticking = StopAfter(w.all_read)

    class Ticking:
        def is_set(self):
            w.clock.advance(3.0)
            return ticking.is_set()

        def wait(self, timeout):
            w.clock.advance(timeout)
            return self.is_set()

    w.engine(options).run(Ticking())
    times = [s.created_at for s in reversed(w.store.snapshots("m")) if s.reason == "interval"]
    assert len(times) >= 3
    assert min(np.diff(times)) >= 10.0


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("commit", [1, 2, 3, 7, 12])
def test_killed_around_any_commit_every_record_still_counts_once(moment, commit):
    w = World()
    with pytest.raises(Killed):
        w.engine(store=FlakyStore(w.store, **{moment: {commit: Killed()}})).run(w.until_all_read())
    assert not w.all_read()
    w.clock.advance(OPTIONS.lease + 1)
    w.engine(dataclasses.replace(OPTIONS, owner="b")).run(w.until_all_read())
    assert w.counters().points == N
    assert w.verify()


def test_a_store_that_answers_after_it_committed_does_not_make_it_count_twice():
    w = World()
    store = FlakyStore(w.store, after={4: StoreUnavailableError("connection lost after COMMIT")})
    w.engine(store=store).run(w.until_all_read())
    assert w.counters().points == N
    assert w.verify()


def test_a_store_that_is_unavailable_for_a_moment_is_tried_again():
    w = World()
    store = FlakyStore(w.store, before={n: StoreUnavailableError("locked") for n in (3, 4, 5)})
    engine = w.engine(store=store)
    engine.run(w.until_all_read())
    assert w.counters().points == N
    assert (
        engine.context.metrics.registry.get_sample_value("streamkm_errors_total", {"model": "m", "stage": "commit"})
        == 3
    )
    assert w.verify()


def test_a_store_that_is_unavailable_for_longer_than_the_lease_ends_the_run_and_loses_nothing():
    w = World()
    store = FlakyStore(w.store, before={n: StoreUnavailableError("disk full") for n in range(5, 500)})
    with pytest.raises(StoreUnavailableError, match="disk full"):
        w.engine(store=store).run(w.until_all_read())
    assert 0 < w.counters().points < N
    w.clock.advance(OPTIONS.lease + 1)
    w.engine().run(w.until_all_read())
    assert w.counters().points == N
    assert w.verify()


def test_a_broker_that_goes_away_is_read_again_from_where_learning_stands():
    w = World()
    flaky = iter([{3: BrokerUnreachableError("gone")}, {1: BrokerUnreachableError("gone again")}, {}])
    engine = w.engine(open_source=lambda: FlakySource(w.source(), next(flaky)))
    engine.run(w.until_all_read())
    assert len(w.opened) == 3
    assert w.counters().points == N
    assert w.verify()


def test_an_owner_whose_lease_was_taken_writes_nothing_and_waits_its_turn():
    w = World()
    stolen = []

    def steal():
        if not stolen and w.store.models() and (c := w.counters()) and c.records > 400:
            w.clock.advance(OPTIONS.lease + 1)
            stolen.append((w.store.acquire("m", "thief", 5.0, w.clock.time()), w.counters().records))
        return w.all_read()

    w.engine().run(StopAfter(steal, w.clock))
    (lease, records_then) = stolen[0]
    assert lease.epoch == 2
    assert records_then < N
    assert w.counters().points == N
    assert w.verify()


def test_bad_records_and_tombstones_are_counted_and_kept():
    records = [record(i) for i in range(N)]
    for i, value in ((10, b"{"), (700, b"[1]"), (701, None), (1400, b'{"x": 1}')):
        records[i] = record(i, value)
    w = World(records)
    w.engine().run(w.until_all_read())
    c = w.counters()
    assert (c.records, c.points, c.bad, c.tombstones) == (N, N - 4, 3, 1)
    assert sorted((b.record.offset, b.reason) for b in w.store.newest_quarantined("m")) == [
        (5, "not-json"), (350, "wrong-dimension"), (700, "missing-field"),
    ]  # fmt: skip
    assert w.verify()


def test_bad_records_that_weigh_much_bring_a_commit_forward(monkeypatch):
    monkeypatch.setattr(session, "MAX_PENDING_BAD_BYTES", 20_000)
    w = World([record(i, b"x" * 5000) for i in range(700)])
    options = dataclasses.replace(OPTIONS, checkpoint_every=1e9, max_bad_ratio=1.0, max_bad_in_a_row=0)
    w.engine(options).run(w.until_all_read())
    assert w.counters().bad == 700
    assert w.store.model("m").progress.commit_seq >= 700 / OPTIONS.batch


def test_a_stream_that_turns_bad_stops_the_engine_before_it_is_drained():
    records = [record(i, ... if i < 3000 else b"nonsense") for i in range(6000)]
    w = World(records)
    with pytest.raises(BadRecordsError, match=r"are bad, such as t-\d@\d+: ") as e:
        w.engine(dataclasses.replace(OPTIONS, max_bad_ratio=0.3)).run(w.until_all_read())
    assert "--max-bad-ratio" in e.value.hint
    c = w.counters()
    assert 0 < c.points <= 3000
    assert c.bad < 1000
    assert c.records == sum(w.store.load_checkpoint("m").progress.position.values())
    assert w.verify()


def test_what_was_learned_is_committed_before_a_lost_position_ends_the_run():
    w = World()
    options = dataclasses.replace(OPTIONS, checkpoint_every=1e9, snapshot_points=0)
    failures = {6: PositionLostError("retention removed it", where="t-0@400")}
    with pytest.raises(PositionLostError, match="t-0@400"):
        w.engine(options, open_source=lambda: FlakySource(w.source(), failures)).run(w.until_all_read())
    assert w.counters().points == 5 * 70


def test_a_new_model_can_start_at_the_end_and_stays_there_when_it_is_restarted():
    w = World()
    w.engine(dataclasses.replace(OPTIONS, start="end")).run(
        StopAfter(lambda: w.counters_or_none() is not None, w.clock)
    )
    w.records = w.records + [record(i) for i in range(N, N + 200)]
    w.engine(dataclasses.replace(OPTIONS, start="end")).run(
        StopAfter(lambda: (c := w.counters()) and c.records == 200, w.clock)
    )
    assert w.counters().points == 200


def test_a_new_partition_is_read_from_its_beginning_without_a_restart():
    w = World()
    source = MemorySource(w.records, topic="t", partitions=2)
    added = []

    def done():
        if not added and w.all_read():
            source.append([RawRecord(TopicPartition("t", 2), i, -1, None, b'{"x": 1, "y": 2}') for i in range(40)])
            added.append(w.clock.advance(DISCOVERY_SECONDS))
        return (c := w.counters_or_none()) is not None and c.points == N + 40

    w.engine(open_source=lambda: source).run(StopAfter(done, w.clock))
    assert w.store.snapshot("m").position[TopicPartition("t", 2)] == 40


def test_other_settings_for_a_stored_model_are_refused_and_named():
    w = World()
    w.engine().run(w.until_all_read())
    with pytest.raises(ModelMismatchError, match=r"\bk was 3, is 4") as e:
        w.engine(spec=dataclasses.replace(SPEC, n_clusters=4)).run(w.until_all_read())
    assert "model m" in str(e.value)


def test_lag_is_what_lies_between_position_and_end():
    w = World()
    w.engine(dataclasses.replace(OPTIONS, batch=100)).run(
        StopAfter(lambda: (c := w.counters_or_none()) is not None and c.records >= 300, w.clock)
    )
    p = w.store.model("m").progress
    assert p.lag == N - p.counters.records > 0


def test_what_was_learned_is_committed_though_no_broker_tells_the_end():
    class Silent(ClockedSource):
        polled = False

        def poll(self, timeout, max_records):
            self.polled = True
            return super().poll(timeout, max_records)

        def end(self):
            if self.polled:
                raise SourceError("no broker answers")
            return super().end()

    w = World()
    w.engine(open_source=lambda: Silent(w.records, w.clock)).run(w.until_all_read())
    assert w.counters().points == N
    assert w.store.model("m").progress.lag == -1


def test_an_idle_owner_keeps_its_lease_and_writes_no_commits():
    w = World()
    w.engine().run(w.until_all_read())
    commits = w.store.model("m").progress.commit_seq
    leases = []

    def idle():
        w.clock.advance(4.0)
        if (lease := w.store.model("m").lease) is not None:
            leases.append(lease)
        return len(leases) > 6

    w.engine().run(StopAfter(idle))
    assert w.store.model("m").progress.commit_seq == commits
    assert leases[-1].expires_at > leases[0].expires_at
    assert leases[-1].epoch == leases[0].epoch


class Slow:
    """A worker whose tasks are done at the third query."""

    def submit(self, work):
        task = Task(work)

        class Late:
            looks = 0

            @property
            def done(self):
                self.looks += 1
                if self.looks >= 3:
                    task.run()
                return task.done

            result = task.result

        return Late()


def test_learning_goes_on_while_a_snapshot_is_worked_on_and_the_journal_knows(monkeypatch):
    monkeypatch.setattr(clusters, "WORKER", Slow())
    w = World()
    w.engine().run(w.until_all_read())
    journal_entries = [entry for _, entry in w.store.journal("m")]
    assert any(0 <= entry.prepared_after < len(entry.batches) for entry in journal_entries)
    assert w.counters().points == N
    assert w.verify()


def test_a_snapshot_tells_ids_events_units_and_how_good_the_clusters_are():
    w = World()
    spec = dataclasses.replace(SPEC, learner={**SPEC.learner, "scale": "standard"})
    w.engine(spec=spec).run(w.until_all_read())
    first, last = w.store.snapshot("m", 1), w.store.snapshot("m")
    assert first.born.tolist() == [first.n_points] * 3
    assert set(first.ids.tolist()) == set(last.ids.tolist())
    assert last.born.tolist() == first.born.tolist()
    assert last.distance == "euclidean"
    assert np.all(last.factors < 1.0)
    assert last.detail["outliers"] == 0
    assert 0.5 < last.detail["evaluation"]["silhouette"] <= 1.0
    assert last.detail["publication"]["resolve"] in {"keep", "lloyd", "swap", "cold"}
    assert w.verify(spec)


def test_the_events_of_a_stream_that_changes_are_stored_and_verified():
    here = [record(i) for i in range(N)]
    there = [record(i, json.dumps({"x": 60.0 + i % 7, "y": -80.0}).encode()) for i in range(N)]
    w = World(here + [r._replace(offset=r.offset + N // 2) for r in there])
    w.engine().run(w.until_all_read())
    events = [e for s in w.store.snapshots("m") for e in s.events]
    assert "birth" in {e.kind for e in events}
    assert w.verify()


def test_k_is_chosen_from_the_first_points_and_only_proposed_later(monkeypatch):
    monkeypatch.setattr(snapshots, "PROFILE_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(snapshots, "WORKER", Eager())
    spec = dataclasses.replace(SPEC, n_clusters=0, learner={**SPEC.learner, "half_life": None, "warmup": 200})
    corners = [(0.0, 0.0), (9.0, 0.0), (0.0, 9.0), (9.0, 9.0), (40.0, 40.0), (40.0, 0.0)]
    later = []
    for i in range(4 * N):
        x, y = np.random.default_rng(i).normal(size=2) + corners[i % 6]
        r = record(i, json.dumps({"x": x, "y": y}).encode())
        later.append(r._replace(offset=r.offset + N // 2))
    w = World([record(i) for i in range(N)] + later)
    w.engine(spec=spec).run(w.until_all_read())
    last = w.store.snapshot("m")
    assert len(last.ids) == last.detail["k"]["running"] == 3
    assert last.detail["k"]["suggested"] == 6
    assert "silhouette" in last.detail["k"]["reason"]
    assert w.verify(spec)


class Held:
    """A worker whose tasks finish on request."""

    def __init__(self):
        self.tasks = []

    def submit(self, work):
        self.tasks.append(Held.Task(work))
        return self.tasks[-1]

    class Task:
        done = False

        def __init__(self, work):
            self.result = work


def test_a_number_of_clusters_that_the_first_points_suggest_is_not_told_of_twice_as_many(monkeypatch, caplog):
    caplog.set_level("INFO", "streamkm.engine")
    monkeypatch.setattr(snapshots, "WORKER", worker := Held())
    learner, asked = OnlineKMeans(2, warmup=50, seed=0), snapshots.KAdvisor("m")
    rng = np.random.default_rng(0)
    learner.learn_many(rng.normal(size=(300, 2)))
    asked.update(learner, 0.0)
    learner.learn_many(rng.normal(90.0, 1.0, (800, 2)))
    worker.tasks[0].done = True
    asked.update(learner, 1.0)
    assert asked.latest is None
    worker.tasks[1].done = True
    asked.update(learner, 2.0)
    assert (asked.latest["suggested"], len(worker.tasks)) == (2, 2)
    assert not caplog.messages


def batch_result(w, n):
    """Snapshot and state of a recomputation of the first `n` records, with clusters far from the live ones."""
    points = np.array([[json.loads(r.value)[f] for f in "xy"] for r in w.records[:n]])
    labels = np.arange(n) % 3  # the records' own clusters
    centroids = np.array([points[labels == j].mean(axis=0) for j in range(3)])
    spreads = [np.sqrt(((points[labels == j] - centroids[j]) ** 2).sum(axis=1).mean()) for j in range(3)]
    snapshot = dataclasses.replace(
        w.store.snapshot("m"),
        kind="replay",
        reason="replay",
        ids=np.array([11, 5, 7]),
        centroids=centroids,
        weights=np.bincount(labels).astype(float),
        spreads=np.array(spreads),
        born=np.array([1, 2, 3]),
        n_points=n,
        position={TopicPartition("t", 0): n // 2, TopicPartition("t", 1): n // 2},
        events=(),
    )
    arguments = {k: v for k, v in UNDECAYED.learner.items() if k != "kind"}
    model = OnlineKMeans.from_snapshot(arguments, snapshot, points, np.ones(n))
    return snapshot, model.state()


UNDECAYED = dataclasses.replace(SPEC, learner={**SPEC.learner, "half_life": None})


def until_promoted(w):
    return StopAfter(lambda: w.store.control_requests("m").promotion is None and w.all_read(), w.clock)


@pytest.mark.parametrize("n", [600, N])
def test_a_recomputed_snapshot_goes_on_with_its_weights_and_ids_and_all_that_came_since(n):
    w = World()
    w.engine(spec=UNDECAYED).run(StopAfter(lambda: (c := w.counters_or_none()) and c.records >= 1000, w.clock))
    snapshot, state = batch_result(w, n if n < 1000 else 800)
    number = w.store.add_snapshot(snapshot, state)
    w.store.request_promotion("m", Promotion(number, skip=False))
    before = w.counters()
    w.engine(spec=UNDECAYED).run(until_promoted(w))
    promoted = next(s for s in w.store.snapshots("m") if s.reason == "promoted")
    assert promoted.ids.tolist() == [11, 5, 7]
    assert promoted.weights.sum() == pytest.approx(promoted.n_points, rel=1e-12)
    assert promoted.n_points == sum(promoted.position.values()) >= before.points
    last = w.store.snapshot("m")
    assert last.weights.sum() == pytest.approx(N, rel=1e-12)
    assert w.counters().records == N
    assert sorted(last.ids.tolist()) == [5, 7, 11]
    assert w.verify(UNDECAYED)


def test_a_roll_back_may_leave_out_what_came_since():
    w = World()
    w.engine(spec=UNDECAYED).run(w.until_all_read())
    first = w.store.snapshot("m", 1)
    assert first.n_points < N
    w.store.request_promotion("m", Promotion(1, skip=True))
    w.engine(spec=UNDECAYED).run(until_promoted(w))
    now = w.store.snapshot("m")
    assert now.reason == "promoted"
    np.testing.assert_array_equal(now.centroids, first.centroids)
    assert now.ids.tolist() == first.ids.tolist()
    assert now.weights.tolist() == first.weights.tolist()
    assert dict(now.position) == {TopicPartition("t", 0): N // 2, TopicPartition("t", 1): N // 2}
    assert w.verify(UNDECAYED)


def test_a_snapshot_whose_records_are_deleted_is_not_promoted(caplog):
    w = World()
    w.engine(spec=UNDECAYED).run(w.until_all_read())
    last = w.store.snapshot("m")
    gone = dataclasses.replace(w.store.snapshot("m", 1), kind="replay", position={TopicPartition("t", 0): 0})
    number = w.store.add_snapshot(gone, w.store.load_checkpoint("m").state)
    w.store.request_promotion("m", Promotion(number, skip=False))
    w.engine(spec=UNDECAYED, open_source=lambda: Shortened(w.records)).run(
        StopAfter(lambda: w.store.control_requests("m").promotion is None, w.clock)
    )
    assert "cannot be promoted" in caplog.text
    assert w.store.snapshot("m").id == last.id


class Shortened(MemorySource):
    """A topic whose first records are deleted."""

    def __init__(self, records):
        super().__init__(records, topic="t", partitions=2)

    def seek(self, position):
        if any(at < 100 for at in position.values()):
            raise PositionLostError("gone", where="t-1")
        super().seek(position)
