"""What an owner does beside learning: pauses, promotions, recent points, and events of its own."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from streamkm.codecs import make_codec
from streamkm.connectors import MemorySource
from streamkm.engine import JournalReplay, compare_snapshot
from streamkm.engine.recent import MAX_POINTS, MAX_VALUES, RecentSample
from streamkm.engine.snapshots import is_outlier_surge
from streamkm.errors import BrokerUnreachableError, StoreUnavailableError, TopicChangedError
from streamkm.records import TopicPartition
from streamkm.state import ModelEvent
from streamkm.stores import Promotion
from streamkm.testing import FlakySource, StopAfter
from test_engine import CODEC, OPTIONS, SPEC, UNDECAYED, N, World, batch_result, eager, record, until_promoted

__all__ = ["eager"]
P0, P1 = (TopicPartition("t", i) for i in range(2))


def raw(w, partition, offsets):
    """The points of some records of the topic."""
    wanted = {r.offset: json.loads(r.value) for r in w.records if r.partition == partition}
    return [[wanted[at][name] for name in "xy"] for at in offsets]


def several(w, *moments, then, tick=0.0, limit=600):
    """A stop request once all `moments` have come in order and `then` is true; each query advances `tick` seconds."""
    left, looks = list(moments), [0]

    def done():
        looks[0] += 1
        w.clock.advance(tick)
        assert looks[0] < limit, f"{len(left)} moments did not come"
        while left and left[0]():
            left.pop(0)
        return not left and then()

    return StopAfter(done, w.clock)


def after(looks, do):
    """A moment that comes at query number `looks` from now, and then calls something."""
    count = [0]

    def moment():
        count[0] += 1
        if count[0] == looks:
            do()
        return count[0] >= looks

    return moment


@pytest.mark.parametrize("method", ["control_requests", "renew"])
def test_a_session_goes_on_while_the_store_does_not_answer(method):
    class Silent:
        left = 3

        def __getattr__(self, name):
            self.left -= name == method
            if name == method and self.left >= 0:
                raise StoreUnavailableError("the disk does not answer")
            return getattr(w.store, name)

    w, store, sessions = World(), Silent(), []
    acquire = w.store.acquire
    w.store.acquire = lambda *a, **k: sessions.append(1) or acquire(*a, **k)
    w.engine(dataclasses.replace(OPTIONS, batch=100), store=store).run(
        several(w, lambda: store.left < 0, then=w.all_read, tick=1.0)
    )
    assert len(sessions) == 1


def test_a_commit_carries_some_of_the_points_learned_since_the_one_before_and_the_ends():
    w = World()
    w.engine(dataclasses.replace(OPTIONS, batch=100, snapshot_points=0)).run(
        StopAfter(lambda: (c := w.counters_or_none()) is not None and c.records >= 300, w.clock)
    )
    seen, position = w.store.recent("m"), w.store.load_checkpoint("m").progress.position
    assert seen.ends == {P0: N // 2, P1: N // 2}
    assert 0 < len(seen.points) <= 100
    learned = next(reversed([entry for _, entry in w.store.journal("m") if entry.batches]))
    expected = [raw(w, r.partition, range(r.start, r.stop)) for batch in learned.batches for r in batch]
    np.testing.assert_array_equal(seen.points, np.concatenate(expected))
    assert sum(seen.ends.values()) - sum(position.values()) == w.store.model("m").progress.lag


def test_of_many_points_the_newest_are_shown_and_nothing_grows():
    w = World()
    w.engine(dataclasses.replace(OPTIONS, batch=4 * N, snapshot_points=0)).run(w.until_all_read())
    seen = w.store.recent("m").points
    assert MAX_POINTS // 2 < len(seen) <= MAX_POINTS
    newest = raw(w, P1, [N // 2 - 1])[0]
    assert seen[-1].tolist() == newest


@pytest.mark.parametrize("sizes", [[8192], [3000, 5192], [1, 0, 3, 8000], [7, 8], [500], [501], [1] * 1200])
def test_points_of_a_mini_batch_are_evenly_strided_over_all_its_ranges(sizes):
    values = np.arange(sum(sizes), dtype=float)[:, None]
    recent_sample = RecentSample(1)
    recent_sample.add(np.split(values, np.cumsum(sizes)[:-1]))
    kept = recent_sample.take({}).points[:, 0]
    assert len(kept) == -(-len(values) // (stride := -(-len(values) // MAX_POINTS)))
    assert set(np.diff(kept)) <= {stride}
    assert kept[-1] == len(values) - 1


def test_of_many_mini_batches_the_newest_points_stay():
    recent_sample = RecentSample(2)
    for i in range(10_000):
        recent_sample.add([np.full((3, 2), i, float)])
        assert sum(map(len, recent_sample._pieces)) < MAX_POINTS + 3
    kept = recent_sample.take({}).points
    assert kept.shape == (MAX_POINTS, 2)
    assert kept[-1].tolist() == [9999.0, 9999.0]
    assert kept[0].tolist() == [9833.0, 9833.0]


@pytest.mark.parametrize(("d", "most"), [(80, 500), (81, 493), (40_000, 1), (50_000, 0)])
def test_long_points_are_fewer(d, most):
    recent_sample = RecentSample(d)
    recent_sample.add([np.ones((600, d))])
    seen = recent_sample.take({P0: 1})
    assert len(seen.points) <= most
    assert len(seen.points) > most // 2 or not most
    assert seen.points.size <= MAX_VALUES


def test_a_recent_sample_owns_its_points_and_has_only_new_ones():
    recent_sample, batch, ends = RecentSample(1), np.array([[1.0], [2.0]]), {P0: 2}
    assert recent_sample.take({}) is None
    recent_sample.add([batch])
    batch[:] = 0.0
    first = recent_sample.take(ends)
    assert first.points.tolist() == [[1.0], [2.0]]
    assert recent_sample.take(ends) is None
    ends[P0] = 3
    assert first.ends == {P0: 2}
    second = recent_sample.take(ends)
    assert (second.points.tolist(), second.ends) == ([[1.0], [2.0]], {P0: 3})
    third = RecentSample(1, second)
    assert third.take({P0: 3}) is None
    assert third.take({P0: 4}).points.tolist() == [[1.0], [2.0]]


def test_an_owner_that_is_paused_reads_nothing_keeps_its_lease_and_goes_on_exactly():
    w = World()
    at, beats, leases = [], [], []

    def pause():
        if w.counters_or_none() is None or w.counters().records < 300:
            return False
        w.store.set_paused("m", paused=True)
        return True

    def note():
        at.append((w.counters().records, w.store.model("m").progress.commit_seq))
        beats.append(engine.context.heartbeat.beats)
        leases.append(w.store.model("m").lease)
        assert engine.context.heartbeat.activity in {"paused", "renewing the lease"}

    def resume():
        note()
        w.store.set_paused("m", paused=False)

    engine = w.engine()
    moments = (pause, after(20, note), after(200, resume))
    engine.run(several(w, *moments, then=w.all_read))
    assert at[0] == at[1], "nothing was read or committed in between"
    assert 300 <= at[0][0] < N
    assert beats[1] - beats[0] >= 100
    assert leases[0].epoch == leases[1].epoch
    assert leases[1].expires_at > leases[0].expires_at + 10.0
    assert len(w.opened) == 1
    assert w.counters().points == N
    assert w.verify()


def test_a_pause_first_commits_what_was_learned():
    w = World()
    options = dataclasses.replace(OPTIONS, batch=20, checkpoint_every=5.0, snapshot_points=0)
    read, found = [], []

    def pause():
        if not w.opened or sum(w.opened[0].position().values()) < 300:
            return False
        w.store.set_paused("m", paused=True)
        return True

    def noticed():  # the first query after that; the next scheduled commit is later
        if engine.context.heartbeat.activity != "paused":
            return False
        read.append(sum(w.opened[0].position().values()))
        found.append(w.counters().records)
        return True

    engine = w.engine(options)
    engine.run(several(w, pause, noticed, then=lambda: True, tick=0.2))
    assert 300 <= read[0] == found[0] < N
    assert w.verify()


def test_partitions_that_wait_through_one_pause_after_the_other_have_not_stalled():
    w = World()

    class Slow(FlakySource):
        def poll(self, timeout, max_records):
            return super().poll(timeout, min(1, max_records))

    def pause():
        if w.counters_or_none() is None or w.counters().records < 3:
            return False
        w.store.set_paused("m", paused=True)
        return True

    def resume():
        w.clock.advance(3600.0)
        w.store.set_paused("m", paused=False)

    options = dataclasses.replace(OPTIONS, lease=1e6)
    engine = w.engine(options, open_source=lambda: Slow(w.source(), {}))
    again = after(2, lambda: w.store.set_paused("m", paused=True))
    moments = (pause, after(20, resume), again, after(20, resume))
    engine.run(several(w, *moments, then=lambda: w.counters().records >= 20))
    assert len(w.opened) == 1
    assert w.counters().points == sum(w.store.load_checkpoint("m").progress.position.values())


def test_an_owner_that_starts_while_the_model_is_paused_reads_nothing_at_all_and_stops_at_once():
    w = World()
    w.engine().run(StopAfter(lambda: (c := w.counters_or_none()) is not None and c.records >= 300, w.clock))
    before = w.store.model("m").progress
    w.store.set_paused("m", paused=True)
    options = dataclasses.replace(OPTIONS, checkpoint_every=1e9)
    polls = []

    def source():
        polls.append(FlakySource(w.source(), {}))
        return polls[-1]

    w.engine(options, open_source=source).run(several(w, after(50, lambda: None), then=lambda: True))
    assert [s.polls for s in polls] == [0]
    assert w.store.model("m").progress == before
    assert w.store.model("m").lease is None
    w.store.set_paused("m", paused=False)
    w.engine().run(w.until_all_read())
    assert w.verify()


def test_a_paused_owner_still_puts_a_snapshot_in_charge():
    w = World()
    w.engine(spec=UNDECAYED).run(StopAfter(lambda: (c := w.counters_or_none()) and c.records >= 1000, w.clock))
    before = w.counters().records
    number = w.store.add_snapshot(*batch_result(w, 600))
    w.store.set_paused("m", paused=True)
    w.store.request_promotion("m", Promotion(number, skip=False))
    w.engine(spec=UNDECAYED).run(several(w, then=lambda: w.store.control_requests("m").promotion is None))
    promoted = w.store.snapshot("m")
    assert promoted.reason == "promoted"
    assert w.counters().records == before
    assert w.verify(UNDECAYED)
    w.store.set_paused("m", paused=False)
    w.engine(spec=UNDECAYED).run(w.until_all_read())
    assert w.counters().points == N
    assert w.verify(UNDECAYED)


class Named(MemorySource):
    """A source of the topic that has an id now, like Kafka's."""

    def __init__(self, records, ids):
        super().__init__(records, topic="t", partitions=2)
        self.ids, self.id = ids, ids[-1]

    def identity(self):
        return {**super().identity(), "topic_id": self.id}

    def begin_identity_check(self):
        pass

    def confirm_identity(self):
        if self.ids[-1] != self.id:
            raise TopicChangedError("the topic was created anew")


@pytest.mark.parametrize("paused", [True, False])
@pytest.mark.parametrize("recreated", ["before it is opened", "after it was opened"])
def test_a_promotion_learns_nothing_of_a_topic_that_was_created_anew(paused, recreated):
    w, ids, opened = World(), ["one"], []
    spec = dataclasses.replace(UNDECAYED, source={"kind": "memory", "topic": "t", "topic_id": "one"})

    def open_source():
        opened.append(Named(w.records, ids))
        if len(opened) == 3:  # the one that reads the records since the snapshot
            ids.append("two")
        return opened[-1]

    w.engine(spec=spec, open_source=open_source).run(
        StopAfter(lambda: (c := w.counters_or_none()) and c.records >= 1000, w.clock)
    )
    number = w.store.add_snapshot(*batch_result(w, 600))
    w.store.set_paused("m", paused=paused)
    before = w.store.snapshot("m").reason

    def ask():
        if recreated == "before it is opened":
            ids.append("two")
        w.store.request_promotion("m", Promotion(number, skip=False))

    with pytest.raises(TopicChangedError):
        w.engine(spec=spec, open_source=open_source).run(several(w, after(5, ask), then=lambda: False))
    assert w.store.snapshot("m").reason == before
    assert w.store.control_requests("m").promotion is not None


def test_a_promotion_that_no_broker_confirms_waits_and_leaves_the_model_as_it_is():
    w, gone = World(), []

    class Unsure(Named):
        def confirm_identity(self):
            if w.store.control_requests("m").promotion is not None and len(gone) < 3:
                gone.append(w.store.snapshot("m").reason)
                raise BrokerUnreachableError("gone")

    w.engine(spec=UNDECAYED).run(StopAfter(lambda: (c := w.counters_or_none()) and c.records >= 1000, w.clock))
    number = w.store.add_snapshot(*batch_result(w, 600))
    w.store.set_paused("m", paused=True)
    w.store.request_promotion("m", Promotion(number, skip=False))
    engine = w.engine(spec=UNDECAYED, open_source=lambda: Unsure(w.records, ["one"]))
    engine.run(several(w, then=lambda: w.store.control_requests("m").promotion is None))
    assert len(gone) == 3
    assert "promoted" not in gone
    assert w.store.snapshot("m").reason == "promoted"
    assert w.verify(UNDECAYED)


def test_a_broker_that_goes_away_in_a_pause_does_not_keep_what_was_learned_from_being_committed():
    w = World()
    asked = []

    class Unsure(FlakySource):
        """A source whose identity check never succeeds."""

        def begin_identity_check(self):
            pass

        def confirm_identity(self):
            if w.store.model("m").paused and len(w.opened) == 1:
                asked.append(self)
                raise BrokerUnreachableError("gone")

    def pause():
        if not w.opened or sum(w.opened[0].position().values()) < 700:
            return False
        w.store.set_paused("m", paused=True)
        return True

    options = dataclasses.replace(OPTIONS, snapshot_points=0, checkpoint_every=0.5)
    engine = w.engine(options, open_source=lambda: Unsure(w.source(), {}))
    engine.run(several(w, pause, lambda: len(w.opened) == 2, then=lambda: w.counters().records >= 700, tick=0.1))
    assert asked
    assert w.store.model("m").progress.counters.records < N
    assert w.verify()


def test_a_store_that_is_away_leaves_a_pause_as_it_is():
    w = World()
    w.engine().run(StopAfter(lambda: (c := w.counters_or_none()) and c.records >= 300, w.clock))
    before = w.counters()
    w.store.set_paused("m", paused=True)

    class Away:
        def __getattr__(self, name):
            return getattr(w.store, name)

        def asked(self, _):
            raise StoreUnavailableError("locked")

    w.engine(store=Away()).run(several(w, after(50, lambda: None), then=lambda: True))
    assert w.counters() == before


def test_a_promotion_is_an_event_of_the_snapshot_that_it_published():
    w = World()
    w.engine(spec=UNDECAYED).run(StopAfter(lambda: (c := w.counters_or_none()) and c.records >= 1000, w.clock))
    before = w.store.snapshot("m")
    number = w.store.add_snapshot(*batch_result(w, 600))
    w.store.request_promotion("m", Promotion(number, skip=False))
    w.engine(spec=UNDECAYED).run(until_promoted(w))
    found = [(s, e) for s in w.store.snapshots("m") for e in s.events if e.kind == "promotion"]
    [(snapshot, event)] = found
    assert snapshot.reason == "promoted"
    assert event.before == tuple(sorted(before.ids.tolist()))
    assert event.after == tuple(sorted(snapshot.ids.tolist())) == (5, 7, 11)
    assert event.detail == {"snapshot": number}
    assert snapshot.inertia == snapshot.detail["cost"] / snapshot.detail["judged"], "the cost of its own model"
    assert w.verify(UNDECAYED), "events of owners are not compared"


def strewn(far):
    """A stream in which the records with these numbers are far from every cluster and from each other."""
    records = [record(i) for i in range(2 * N)]
    for i in far:
        angle, distance = 2.4 * i, 4000.0 + 37.0 * (i % 50)
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        records[i] = record(i, json.dumps({"x": x, "y": y}).encode())
    return records


def test_many_outliers_at_once_are_an_event():
    w = World(strewn([301, *range(1501, 2399, 40)]))  # the first ones establish the gap
    w.engine().run(w.until_all_read())
    [(snapshot, event)] = [(s, e) for s in w.store.snapshots("m") for e in s.events if e.kind == "outliers"]
    last = w.store.snapshot("m", snapshot.id - 1)
    count, points = snapshot.detail["outliers"] - last.detail["outliers"], snapshot.n_points - last.n_points
    assert count >= 10
    assert (event.before, event.after) == ((), ())
    assert event.detail == {"count": count, "points": points, "share": count / points}
    with JournalReplay(SPEC, w.source, make_codec(CODEC)) as again:
        for _, entry in w.store.journal("m", snapshot.commit_seq):
            again.apply(entry)
        assert compare_snapshot(snapshot, again.learner), "events of owners are not compared"
        birth = dataclasses.replace(snapshot, events=(ModelEvent("birth", after=(9,)),))
        assert not compare_snapshot(birth, again.learner), "events of the model are compared"


@pytest.mark.parametrize(
    ("count", "points", "old", "seen", "expected"),
    [
        (10, 1000, 0, 500, True),
        (9, 100, 0, 500, False),
        (10, 1001, 0, 500, False),
        (50, 1000, 10, 1000, True),
        (49, 1000, 10, 1000, False),
        (500, 1000, 500, 1000, False),
        (-3, 1000, 10, 1000, False),
        (0, 0, 0, 500, False),
    ],
)
def test_outliers_are_an_event_when_they_are_many_more_than_before(count, points, old, seen, expected):
    assert is_outlier_surge(count, points, old, seen) is expected


def test_the_first_snapshot_has_no_event_of_outliers():
    w = World()
    w.engine(spec=SPEC).run(w.until_all_read())
    assert {e.kind for s in w.store.snapshots("m") for e in s.events} <= {"birth", "death", "split", "merge", "drift"}
