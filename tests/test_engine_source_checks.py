"""Checks of the source: what a model rejects, and what it may skip; without a broker and without waiting."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from streamkm.connectors import MemorySource
from streamkm.engine import OffsetLedger
from streamkm.engine.source_checks import check_same_spec, check_same_stream, lost_ranges
from streamkm.errors import (
    BrokerUnreachableError,
    CorruptBatchError,
    ModelMismatchError,
    PositionLostError,
    TopicChangedError,
)
from streamkm.metrics import RECORDS_LOST
from streamkm.models import clusters
from streamkm.records import BatchRange, TopicPartition
from streamkm.state import CodecSpec, JournalEntry
from streamkm.testing import FlakySource, StopAfter
from test_engine import OPTIONS, SPEC, Eager, N, World

P0, P1, P2 = (TopicPartition("t", i) for i in range(3))
SKIP = dataclasses.replace(OPTIONS, on_data_loss="skip")


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(clusters, "WORKER", Eager())


class Topic(MemorySource):
    """A source with ids, like Kafka's topics."""

    def __init__(self, records, topic_id="one", cluster_id="here", partitions=2):
        super().__init__(records, topic="t", partitions=partitions)
        self.ids = {"topic_id": topic_id, "cluster_id": cluster_id}

    def identity(self):
        return {**super().identity(), **self.ids}


NAMED = dataclasses.replace(SPEC, source={"kind": "memory", "topic": "t", "topic_id": "one", "cluster_id": "here"})


def learn_some(w, options=OPTIONS, spec=SPEC, records=600):
    """Let a first owner learn part of the topic and stop."""
    w.engine(options, spec).run(StopAfter(lambda: (c := w.counters_or_none()) and c.records >= records, w.clock))
    return dict(w.store.model("m").progress.position)


def shortened(w, beginnings):
    def open_source():
        source = w.source()
        for tp, at in beginnings.items():
            source.truncate(tp, at)
        return source

    return open_source


def books(w):
    added = OffsetLedger()
    for commit, learning in w.store.journal("m"):
        added.add(commit, learning)
    added.close(w.store.model("m").progress.position)
    return added


def test_records_that_retention_took_are_counted_and_the_run_ends():
    w = World()
    at = learn_some(w)
    before = w.store.model("m").progress
    with pytest.raises(PositionLostError, match="50 records were deleted before they were read: t-1 begins at") as e:
        w.engine(open_source=shortened(w, {P1: at[P1] + 50})).run(w.until_all_read())
    assert f"model m, t-1@{at[P1]}" in e.value.where
    assert "--on-data-loss skip" in e.value.hint
    assert w.store.model("m").progress == before


def test_what_is_skipped_is_counted_logged_and_recorded_and_the_ledger_adds_up(caplog):
    w = World()
    at = learn_some(w)
    engine = w.engine(SKIP, open_source=shortened(w, {P0: at[P0] + 7, P1: at[P1] + 50}))
    engine.run(StopAfter(lambda: (c := w.counters()).records + c.lost == N, w.clock))
    c = w.counters()
    assert (c.lost, c.records, c.points) == (57, N - 57, N - 57)
    assert sum(w.store.model("m").progress.position.values()) == c.records + c.lost
    assert engine.context.metrics.value(RECORDS_LOST, model="m") == 57
    assert f"57 records were deleted before they were read, skipped: t-0@{at[P0]} to {at[P0] + 6}, t-1@" in caplog.text
    added = books(w)
    assert added.errors == []
    assert added.read == c.records
    assert [r for _, r in added.lost] == [BatchRange(p, at[p], at[p] + n) for p, n in ((P0, 7), (P1, 50))]
    again = w.engine(SKIP)
    again.run(StopAfter(lambda: True, w.clock))
    assert w.counters().lost == 57, "counted once"


def test_the_gap_is_on_record_before_anything_behind_it_is_learned():
    w = World()
    at = learn_some(w)
    w.engine(SKIP, open_source=shortened(w, {P1: at[P1] + 50})).run(
        StopAfter(lambda: w.counters().records >= N - 200, w.clock)
    )
    (entry,) = [learning for _, learning in w.store.journal("m") if learning.lost]
    assert entry.batches == ()


def test_a_snapshot_behind_a_gap_is_verified_when_what_was_learned_is_still_there():
    records = [r for r in World().records if r.partition.partition == 0]
    w = World(records)
    w.engine().run(w.until_all_read())
    w.records = World().records
    w.engine(SKIP, open_source=shortened(w, {P1: 100})).run(StopAfter(lambda: w.counters().records == N - 100, w.clock))
    assert w.store.snapshot("m").n_points == N - 100
    assert w.verify()
    assert books(w).errors == []


@pytest.mark.parametrize("on_data_loss", ["fail", "skip"])
def test_records_that_go_while_they_are_read_are_found_too(on_data_loss):
    w = World()
    sources = [w.source(), w.source()]
    calls, cut = iter(sources), []
    options = dataclasses.replace(OPTIONS, on_data_loss=on_data_loss)

    def reached():
        if not cut and (c := w.counters_or_none()) and c.records >= 600:
            cut.extend(one.truncate(P1, 700) for one in sources)
        return (c := w.counters_or_none()) is not None and c.records + c.lost == N

    engine = w.engine(options, open_source=lambda: next(calls))
    if on_data_loss == "fail":
        with pytest.raises(PositionLostError, match="records were deleted before they were read: t-1 begins at 700"):
            engine.run(StopAfter(reached, w.clock))
        assert w.counters().records == sum(w.store.model("m").progress.position.values())
    else:
        engine.run(StopAfter(reached, w.clock))
        assert 0 < w.counters().lost <= 700
        assert books(w).errors == []


@pytest.mark.parametrize("on_data_loss", ["fail", "skip"])
def test_a_position_beyond_the_end_ends_the_run_whatever_may_be_skipped(on_data_loss):
    w = World()
    at = learn_some(w)
    w.records = [r for r in w.records if r.offset < 100]
    ends = w.source().end()
    gone = sum(max(0, at[p] - ends[p]) for p in at)
    with pytest.raises(PositionLostError, match=f" {gone} records that the model has read are not in") as e:
        w.engine(dataclasses.replace(OPTIONS, on_data_loss=on_data_loss)).run(w.until_all_read())
    assert f"t-0@{at[P0]}" in e.value.where
    assert "t-0 ends at 100" in e.value.message
    assert "another name" in e.value.hint


def test_the_position_is_before_an_unreadable_batch_until_the_gap_is_on_record():
    w = World()
    broken = CorruptBatchError("wrong checksum", lost=("t", 0, 105, 110))
    shorter = MemorySource([r for r in w.records if r.offset < 50], topic="t", partitions=2)
    sources = iter([FlakySource(w.source(), {4: broken}), shorter])
    options = dataclasses.replace(SKIP, checkpoint_every=1e9, snapshot_points=0)
    with pytest.raises(PositionLostError, match="are not in the topic any more"):
        w.engine(options, open_source=lambda: next(sources)).run(w.until_all_read())
    assert w.counters().records == sum(w.store.model("m").progress.position.values()) == 3 * 70
    assert books(w).errors == []


def test_a_topic_with_fewer_partitions_is_another_one():
    w = World()
    learn_some(w)
    with pytest.raises(TopicChangedError, match="has 1 partitions, the model has read 2") as e:
        w.engine(SKIP, open_source=lambda: MemorySource((), topic="t", partitions=1)).run(w.until_all_read())
    assert "t-1@" in e.value.where


@pytest.mark.parametrize(
    ("ids", "words"),
    [({"topic_id": "two"}, "the topic's id was one, is two"), ({"cluster_id": "there"}, "the cluster's id was here")],
)
def test_another_topic_or_cluster_is_refused_at_the_start(ids, words):
    w = World()
    learn_some(w, spec=NAMED)
    before = w.store.model("m").progress
    with pytest.raises(TopicChangedError, match=words) as e:
        w.engine(SKIP, NAMED, open_source=lambda: Topic(w.records, **ids)).run(w.until_all_read())
    assert e.value.where == "model m, topic t"
    assert w.store.model("m").progress == before


def test_another_topic_is_refused_after_a_reconnect_and_what_was_learned_is_kept():
    w = World()
    sources = iter(
        [FlakySource(Topic(w.records), {4: BrokerUnreachableError("gone")}), Topic(w.records, topic_id="two")]
    )
    options = dataclasses.replace(OPTIONS, checkpoint_every=1e9, snapshot_points=0)
    with pytest.raises(TopicChangedError, match="is two"):
        w.engine(options, NAMED, open_source=lambda: next(sources)).run(w.until_all_read())
    assert w.counters().points == 3 * 70


def test_ids_are_compared_where_both_sides_know_them():
    check_same_stream(NAMED, {"kind": "memory", "topic": "t"})
    check_same_stream(SPEC, NAMED.source)
    check_same_stream(NAMED, {**NAMED.source, "topic_id": ""})
    check_same_spec(dataclasses.replace(NAMED, source={**NAMED.source, "topic_id": ""}), NAMED)


def test_another_id_in_the_spec_is_reported_as_an_id_and_another_name_as_another_setting():
    with pytest.raises(TopicChangedError, match="the topic's id was one, is two"):
        check_same_spec(dataclasses.replace(NAMED, source={**NAMED.source, "topic_id": "two"}), NAMED)
    with pytest.raises(ModelMismatchError, match="topic was t, is u"):
        check_same_spec(dataclasses.replace(NAMED, source={**NAMED.source, "topic": "u"}), NAMED)
    with pytest.raises(ModelMismatchError, match="codec was"):
        check_same_spec(dataclasses.replace(NAMED, codec=CodecSpec("csv")), NAMED)


def test_many_partitions_are_named_by_the_first_ten():
    position = {TopicPartition("t", i): 5 for i in range(30)}
    with pytest.raises(PositionLostError, match=r"^model m, t-0@5.* and 20 more: 30 records were deleted") as e:
        lost_ranges("m", position, dict.fromkeys(position, 6), dict.fromkeys(position, 9), skip=False)
    assert "t-10" not in e.value.where


def test_a_broker_that_is_away_when_an_owner_begins_is_waited_for_with_the_lease_kept(caplog):
    w = World()
    tries = []

    def open_source():
        tries.append(w.clock.now)
        if len(tries) <= 12:
            raise BrokerUnreachableError("gone")
        return w.source()

    with caplog.at_level(logging.WARNING, "streamkm"):
        w.engine(open_source=open_source).run(w.until_all_read())
    assert w.counters().points == N
    assert tries[-1] - tries[0] > 2 * OPTIONS.lease
    assert w.store.acquire("m", "b", 1.0, w.clock.time()).epoch == 2, "no other owner in between"
    assert "no broker, trying again" in caplog.text


def test_a_stop_while_no_broker_answers_leaves_at_once_and_commits_nothing():
    w = World()

    def open_source():
        raise BrokerUnreachableError("gone")

    w.engine(open_source=open_source).run(StopAfter(lambda: w.clock.now > 1_700_000_030, w.clock))
    assert w.counters() is None
    assert w.store.model("m").lease is None


def test_a_new_model_that_finds_no_broker_at_first_starts_where_the_option_says():
    w = World()
    answers = iter((BrokerUnreachableError("gone"), None))

    def open_source():
        if (error := next(answers)) is not None:
            raise error
        return w.source()

    options = dataclasses.replace(OPTIONS, start="end")
    w.engine(options, open_source=open_source).run(StopAfter(lambda: w.counters_or_none() is not None, w.clock))
    assert w.store.model("m").progress.position == {P0: N // 2, P1: N // 2}


class Sure(Topic):
    """A source whose identity check succeeds or fails as scripted."""

    def __init__(self, records, errors=()):
        super().__init__(records)
        self.errors, self.asked, self.confirmed = iter(errors), 0, 0

    def begin_identity_check(self):
        self.asked += 1

    def confirm_identity(self):
        self.confirmed += 1
        if error := next(self.errors, None):
            raise error


def test_what_was_polled_of_another_topic_is_never_committed():
    w = World()
    errors = [None, None, *[TopicChangedError("made anew")] * 9]
    options = dataclasses.replace(OPTIONS, snapshot_points=0, snapshot_every=1e9)
    with pytest.raises(TopicChangedError, match="made anew"):
        w.engine(options, NAMED, open_source=lambda: Sure(w.records, errors)).run(w.until_all_read())
    assert w.counters().records == sum(w.store.model("m").progress.position.values()) == 2 * 70


def test_every_commit_is_confirmed_and_the_check_begins_before_its_last_records_are_learned():
    w = World()
    source = Sure(w.records)
    w.engine(open_source=lambda: source).run(w.until_all_read())
    commits = [entry for _, entry in w.store.journal("m") if entry.batches]
    assert source.confirmed == len(commits) > 5
    assert source.asked >= source.confirmed - 1, "the last commit, at the stop, follows an empty poll"


def test_a_commit_that_no_broker_confirms_waits_and_loses_nothing():
    w = World()
    errors, ready = iter([None, *[BrokerUnreachableError("gone")] * 3]), []

    def all_read():
        ready.append(engine.context.heartbeat.ready()[0])
        return w.all_read()

    engine = w.engine(spec=NAMED, open_source=lambda: Sure(w.records, errors))
    engine.run(StopAfter(all_read, w.clock))
    assert False in ready
    assert ready[-1], "one that confirms is back, without a reconnect"
    assert w.counters().points == N
    assert w.verify(NAMED)


def test_a_stop_while_nothing_can_be_confirmed_leaves_it_to_the_next_owner():
    w = World()
    gone = [None, None, *[BrokerUnreachableError("gone")] * 999]
    source = Sure(w.records, gone)
    w.engine(spec=NAMED, open_source=lambda: source).run(StopAfter(lambda: source.confirmed > 20, w.clock))
    assert w.counters().points == 2 * 70
    w.engine(spec=NAMED).run(w.until_all_read())
    assert w.counters().points == N
    assert w.verify(NAMED)


def learned(*ranges, promoted=0, gone=()):
    return JournalEntry(tuple((r,) for r in ranges), promoted_snapshot=promoted, lost=gone)


@pytest.mark.parametrize(
    ("entries", "position", "words"),
    [
        (
            [learned(BatchRange(P0, 0, 5)), learned(BatchRange(P0, 7, 9))],
            {P0: 9},
            "t-0@5 to 6 is neither read nor lost",
        ),
        ([learned(BatchRange(P0, 0, 5)), learned(BatchRange(P0, 3, 9))], {P0: 9}, "t-0@3 to 4 is read twice"),
        ([learned(BatchRange(P0, 0, 5))], {P0: 8}, "the position of t-0 is 8, the journal ends at 5"),
        ([learned(BatchRange(P0, 0, 5))], {}, "the position of t-0 is None"),
        ([learned(BatchRange(P0, 0, 9)), learned(BatchRange(P0, 2, 8), promoted=1)], {P0: 9}, "learns t-0 again to 8"),
        ([learned(BatchRange(P0, 0, 5), gone=(BatchRange(P0, 6, 8),))], {P0: 8}, "t-0@5 to 5 is neither"),
    ],
)
def test_a_ledger_that_does_not_add_up_says_where(entries, position, words):
    added = OffsetLedger()
    for commit, learning in enumerate(entries, 1):
        added.add(commit, learning)
    added.close(position)
    assert len(added.errors) == 1
    assert words in added.errors[0]


def test_a_ledger_adds_up_over_recorded_gaps_and_promotions():
    added = OffsetLedger()
    added.add(2, learned(BatchRange(P0, 3, 5), BatchRange(P1, 0, 4)))
    added.add(3, learned(gone=(BatchRange(P0, 5, 8), BatchRange(P2, 0, 2))))
    added.add(4, learned(BatchRange(P0, 8, 9)))
    added.add(5, learned(BatchRange(P0, 6, 9), BatchRange(P1, 1, 4), promoted=1))
    added.add(6, learned(promoted=2))
    added.close({P0: 9, P1: 4, P2: 2})
    assert added.errors == []
    assert (added.read, [commit for commit, _ in added.lost]) == (7, [3, 3])
