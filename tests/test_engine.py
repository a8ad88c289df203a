"""The live loop without a broker and without waiting: what is counted after every kind of trouble."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from streamkm.codecs import make_codec
from streamkm.engine import Engine, EngineOptions, Rerun, compare
from streamkm.engine.tenure import DISCOVERY_SECONDS
from streamkm.errors import (
    BadRecordsError,
    BrokerUnreachableError,
    ModelMismatchError,
    PositionLostError,
    StoreUnavailableError,
)
from streamkm.records import RawRecord, TopicPartition
from streamkm.sources import MemorySource
from streamkm.state import ModelSpec
from streamkm.stores import open_store
from streamkm.testing import FlakySource, FlakyStore, ManualClock, StopAfter

CODEC = {"kind": "json", "fields": ["x", "y"], "time_field": None, "max_bytes": 1000}
SPEC = ModelSpec(
    "m", ("x", "y"), 3, {"kind": "memory"}, {"kind": "OnlineKMeans", "warmup": 50, "half_life": 500.0, "seed": 1}, CODEC
)
OPTIONS = EngineOptions(batch=70, checkpoint_every=0.0, snapshot_every=1e9, snapshot_points=400, owner="a")
N = 1500


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


def record(i, value=..., partition=None):
    rng = np.random.default_rng(i)
    x, y = rng.normal(size=2) + [[0, 0], [9, 0], [0, 9]][i % 3]
    value = json.dumps({"x": x, "y": y}).encode() if value is ... else value
    partition = i % 2 if partition is None else partition
    return RawRecord(TopicPartition("t", partition), i // 2, 1_700_000_000_000 + i, None, value)


class World:
    """One topic and one store; engines come and go."""

    def __init__(self, records=None, store=None):
        self.records = [record(i) for i in range(N)] if records is None else records
        self.clock = ManualClock()
        self.store = open_store("memory://") if store is None else store
        self.opened = []

    def source(self):
        source = MemorySource(self.records, topic="t", partitions=2)
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

    def verify(self):
        last = self.store.snapshot("m")
        with Rerun(SPEC, self.source, make_codec(CODEC)) as again:
            for _, batches in self.store.journal("m", last.commit_seq):
                for ranges in batches:
                    again.learn(ranges)
            return compare(last, again.learner)


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


def test_a_store_that_is_away_for_a_moment_is_asked_again():
    w = World()
    store = FlakyStore(w.store, before={n: StoreUnavailableError("locked") for n in (3, 4, 5)})
    engine = w.engine(store=store)
    engine.run(w.until_all_read())
    assert w.counters().points == N
    assert (
        engine.parts.metrics.registry.get_sample_value("streamkm_errors_total", {"model": "m", "stage": "commit"}) == 3
    )
    assert w.verify()


def test_a_store_that_stays_away_longer_than_the_lease_ends_the_run_and_loses_nothing():
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
    assert sorted((b.record.offset, b.reason) for b in w.store.quarantined("m")) == [
        (5, "not-json"), (350, "wrong-dimension"), (700, "missing-field"),
    ]  # fmt: skip
    assert w.verify()


def test_a_stream_that_turns_bad_stops_the_engine_before_it_is_drained():
    records = [record(i, ... if i < 3000 else b"nonsense") for i in range(6000)]
    w = World(records)
    with pytest.raises(BadRecordsError, match=r"are bad, such as t-\d@\d+: ") as e:
        w.engine(dataclasses.replace(OPTIONS, max_bad_ratio=0.3)).run(w.until_all_read())
    assert "--max-bad-ratio" in e.value.hint
    c = w.counters()
    assert 0 < c.points <= 3000
    assert c.bad < 1000
    assert c.records == sum(w.store.load("m").progress.position.values())
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
    with pytest.raises(ModelMismatchError, match=r"n_clusters was 3, is 4") as e:
        w.engine(spec=dataclasses.replace(SPEC, n_clusters=4)).run(w.until_all_read())
    assert "model m" in str(e.value)


def test_lag_is_what_lies_between_position_and_end():
    w = World()
    w.engine(dataclasses.replace(OPTIONS, batch=100)).run(
        StopAfter(lambda: (c := w.counters_or_none()) is not None and c.records >= 300, w.clock)
    )
    p = w.store.model("m").progress
    assert p.lag == N - p.counters.records > 0


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
