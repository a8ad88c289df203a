"""Event times in the future are bad records in models that decay by event time, and a replay decides the same way."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest

from streamkm.codecs import make_codec
from streamkm.connectors import MemorySource
from streamkm.engine import (
    EngineOptions,
    JournalReplay,
    compare_snapshot,
    find_replay_starts,
    model_from_snapshot,
    session,
)
from streamkm.engine.event_times import decode
from streamkm.errors import NotFoundError
from streamkm.models import ARITHMETIC, OnlineKMeans
from streamkm.records import BatchRange, RawRecord, TopicPartition
from streamkm.state import CodecSpec, EventTimeLimit, JournalEntry, ModelSpec
from streamkm.stores import journal
from streamkm.testing import ManualClock
from test_engine import World, eager  # noqa: F401 - eager is a fixture

NOW = 1_764_000_000.0
YEARS = 70 * 365.25 * 86400
P = TopicPartition("t", 0)
OPTIONS = EngineOptions(batch=500, checkpoint_every=0.0, snapshot_every=1e9, snapshot_points=5000, owner="a")


def spec(time_field=None, **learner):
    codec = CodecSpec("json", ("x",), {"time_field": time_field, "max_bytes": 1000})
    arguments = {"kind": "OnlineKMeans", "half_life": 600.0, "half_life_unit": "seconds", "seed": 1, **learner}
    return ModelSpec("m", ("x",), 2, {"kind": "memory"}, arguments, codec)


def records(n, dated=lambda _, t: t, field=None):
    """Ten records per second up to now: two clusters that move by 30 units and stay 60 apart."""
    rng = np.random.default_rng(0)
    out = []
    for i in range(n):
        t = NOW - (n - i) / 10
        x = rng.choice([0.0, 60.0]) + 30 * i / n + rng.normal()
        value = {"x": x} if field is None else {"x": x, field: dated(i, t)}
        stamp = t if field else dated(i, t)
        out.append(RawRecord(P, i, round(stamp * 1000), None, json.dumps(value).encode()))
    return out


class OneWorld(World):
    def __init__(self, records, model):
        super().__init__(records)
        self.model, self.clock = model, ManualClock(NOW)

    def source(self):
        return MemorySource(self.records, topic="t", partitions=1)

    def engine(self, options=OPTIONS, **more):
        return super().engine(options, spec=self.model, **more)

    def run(self, **options):
        engine = self.engine(dataclasses.replace(OPTIONS, **options))
        engine.context = dataclasses.replace(engine.context, codec=make_codec(self.model.codec))
        engine.run(self.until_all_read())
        return OnlineKMeans.from_state(self.store.load_checkpoint("m").state)

    def replay(self, snapshot=None):
        last = self.store.snapshot("m", snapshot)
        _, starts = find_replay_starts(self.store, "m", last.commit_seq)
        start = starts[0].commit_seq
        state = self.store.kept_checkpoint("m", start).state if start else None
        load_snapshot = partial(model_from_snapshot, self.store, self.model)
        with JournalReplay(self.model, self.source, make_codec(self.model.codec), load_snapshot, state) as again:
            for _, entry in self.store.journal("m", last.commit_seq, after_seq=start):
                again.apply(entry)
            return start, compare_snapshot(last, again.learner)


@pytest.mark.parametrize("field", [None, "at"])
def test_one_event_time_in_the_future_does_not_end_forgetting(field):
    w = OneWorld(records(30_000, lambda i, t: t + YEARS if i == 5000 else t, field), spec(field))
    learner = w.run()
    counters = w.counters()
    assert (counters.points, counters.bad) == (29_999, 1)
    kept = np.delete(np.arange(30_000), 5000)
    expected = 2.0 ** (-(kept[-1] - kept) / 10 / 600.0)
    assert learner.weights_.sum() == pytest.approx(expected.sum(), rel=1e-6)
    lag = 30 * 600 / math.log(2) / 3000
    np.testing.assert_allclose(np.sort(learner.centers_.ravel()), [30 - lag, 90 - lag], atol=2.0)
    (held,) = w.store.iter_quarantine("m")
    assert (held.bad.reason, held.bad.record.offset, held.bad.field) == ("event-time-ahead", 5000, field or "")
    assert "2095-" in held.bad.message
    assert "at most 3600 s" in held.bad.message
    assert w.replay()[1]
    w.records += [r._replace(offset=r.offset + 30_000) for r in w.records[-600:]]
    assert w.run().weights_.sum() > expected.sum(), "it caused no forgetting after a restart"


def test_the_time_of_reading_is_in_the_journal_so_that_a_replay_decides_alike():
    w = OneWorld(records(6000, lambda i, t: t + 7200.0 if i == 4000 else t), spec())
    w.run()
    w.clock.advance(86_400.0)
    assert w.counters().bad == 1
    assert w.replay()[1]
    limits = {entry.limit for _, entry in w.store.journal("m") if entry.batches}
    assert limits == {EventTimeLimit(3600.0, NOW)}


def test_a_longer_lead_takes_what_a_shorter_one_does_not():
    w = OneWorld(records(6000, lambda i, t: t + 7200.0 if i == 4000 else t), spec())
    w.run(max_event_time_lead=8000.0)
    assert w.counters().bad == 0
    assert w.replay()[1]


@pytest.mark.parametrize("learner", [{"half_life": None}, {"half_life": 500.0, "half_life_unit": "points"}])
def test_where_no_event_time_is_used_none_is_refused(learner):
    w = OneWorld(records(3000, lambda _, t: t + YEARS), spec(**learner))
    w.run()
    assert (w.counters().points, w.counters().bad) == (3000, 0)
    assert {entry.limit for _, entry in w.store.journal("m")} == {None}


def test_a_model_whose_clock_ran_ahead_before_forgets_again():
    future = NOW + YEARS
    w = OneWorld(records(3000), spec())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session, "decays_by_event_time", lambda _: False)  # as before the limit existed
        w.records[100] = w.records[100]._replace(timestamp=round(future * 1000))
        w.run()
    assert w.store.load_checkpoint("m").state.params["clock"] == pytest.approx(future)
    w.records += [r._replace(offset=r.offset + 3000, timestamp=r.timestamp + 300_000) for r in w.records]
    w.records[3100] = w.records[3100]._replace(timestamp=w.records[3099].timestamp)
    w.clock.advance(300.0)
    learner = w.run()
    assert learner.state().params["clock"] <= NOW + 3900.0
    assert w.replay()[1]


def one(value, stamp=NOW, field="at"):
    codec = make_codec(spec(field).codec)
    source = MemorySource([RawRecord(P, 0, round(stamp * 1000), None, value)], topic="t", partitions=1)
    source.seek(source.beginning())
    (polled,) = source.poll(0.0, 10)
    return decode(codec, polled, EventTimeLimit(3600.0, NOW))


@pytest.mark.parametrize(
    ("at", "stamp", "message"),
    [
        (NOW + 3601, NOW, "3,601 s ahead of the time of reading"),
        (NOW, NOW - 7200, "7,200 s ahead of the record's timestamp"),
        (NOW + 9000, NOW + 9000, "9,000 s ahead of the time of reading"),
        ("2096-01-01T00:00:00Z", NOW, "2096-01-01T00:00:00Z"),
    ],
)
def test_an_event_time_ahead_is_reported_with_the_time_it_is_ahead_of(at, stamp, message):
    batch = one(json.dumps({"x": 1, "at": at}).encode(), stamp)
    assert len(batch) == 0
    assert message in batch.bad[0].message


def test_a_time_in_another_unit_is_named_as_such():
    batch = one(b'{"x": 1}', NOW * 1e3, field=None)
    assert "As milliseconds it would be 2025-11-24" in batch.bad[0].message
    assert "another unit" in batch.bad[0].message


@pytest.mark.parametrize("at", [NOW + 3600, NOW - 1e9, -86_400, -1e9, 0, "1969-07-20T20:17:00Z"])
def test_what_does_not_lie_ahead_is_taken_times_before_1970_too(at):
    batch = one(json.dumps({"x": 1, "at": at}).encode())
    assert len(batch) == 1
    assert not batch.bad


@pytest.mark.parametrize(
    "at",
    [
        b"9223372036825200000",
        b"-9223372036832400000",
        b"9223372036825200",
        b"-2147472692",
        b'"infinity"',
        b'"-infinity"',
    ],
)
def test_infinities_are_no_times(at):
    batch = one(b'{"x": 1, "at": %s}' % at)
    assert len(batch) == 0
    assert batch.bad[0].reason == "not-a-time"
    assert "infinity" in batch.bad[0].message


def test_a_record_without_a_timestamp_is_held_against_the_moment_of_reading():
    assert len(one(b'{"x": 1, "at": %d}' % (NOW + 3000), -0.001)) == 1
    assert len(one(b'{"x": 1, "at": %d}' % (NOW + 4000), -0.001)) == 0


def test_timestamps_in_seconds_are_warned_of_once(caplog):
    w = OneWorld(records(3000, lambda _, t: t / 1000), spec())
    w.run()
    told = [r for r in caplog.records if "January 1970" in r.getMessage()]
    assert len(told) == 1
    assert "t-0" in told[0].getMessage()


def test_a_store_of_another_arithmetic_goes_on_and_is_proven_from_where_this_one_took_over(monkeypatch):
    w = OneWorld(records(6000), spec())
    monkeypatch.setattr(session, "ARITHMETIC", 1)
    w.run()
    before = w.store.snapshot("m")
    monkeypatch.undo()
    w.records += [r._replace(offset=r.offset + 6000) for r in w.records[:3000]]
    w.run()
    (base,) = w.store.kept_checkpoints("m")
    assert base.commit_seq >= before.commit_seq
    start, verdict = w.replay()
    assert start == base.commit_seq
    assert verdict
    with pytest.raises(
        NotFoundError, match=f"arithmetic 1, and this version of streamkm has {ARITHMETIC}.*neither confirmed"
    ):
        w.replay(before.id)
    again = w.run()
    assert again.n_seen == 9000
    assert len(w.store.kept_checkpoints("m")) == 1


A, B = (TopicPartition("t", i) for i in range(2))
BATCHES = ((BatchRange(A, 0, 5), BatchRange(B, 7, 300)), (BatchRange(A, 5, 9),))
OLD = [
    (
        "789c636264606260006366206684d20c6076090316c008a5d9617c2646460646b030132b832a230b03001fa100c4",
        JournalEntry(BATCHES, 1, 3),
    ),
    (
        "789c6d89410a00200cc3d26d22f80f7fe8ff75c8bc1908a5ad0b033c8d74271462f14195fd759394abee618da960700043df04cb",
        JournalEntry(BATCHES, -1, 0, (BatchRange(B, 300, 310),)),
    ),
]


@pytest.mark.parametrize(("blob", "learning"), OLD)
def test_journals_of_earlier_versions_are_read(blob, learning):
    assert journal.decode(bytes.fromhex(blob)) == learning
    assert journal.decode(journal.encode(learning)) == learning
    assert learning.arithmetic == 1
