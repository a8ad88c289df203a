"""A replay starts with the new model, or at a kept checkpoint, and gives the same bits from each."""

from __future__ import annotations

import contextlib
import json
from functools import partial
from pathlib import Path

import kafka
import pytest

from processes import program, run
from streamkm.codecs import make_codec
from streamkm.engine import (
    JournalReplay,
    audit,
    best_replay_start,
    compare_snapshot,
    find_replay_starts,
    model_from_snapshot,
)
from streamkm.errors import NotFoundError
from streamkm.records import TopicPartition
from streamkm.stores import open_store
from test_end_to_end import Feed, points, values
from test_engine import CODEC, OPTIONS, SPEC, World, eager, record  # noqa: F401 - eager is a fixture

DAY = 86_400.0
KILLED_LIVE = Path(__file__).parent / "faults" / "killed_live.py"
P0, P1 = (TopicPartition("t", i) for i in range(2))


@pytest.fixture(scope="module")
def kept() -> World:
    """Thirteen days of a model with some hundred records per day."""
    w = World([])
    for day in range(13):
        w.records += [record(i) for i in range(300 * day, 300 * (day + 1))]
        w.engine(OPTIONS).run(w.until_all_read())
        w.clock.advance(DAY + 60.0)
    return w


def rerun(w: World, start, snapshot):
    """The comparison with a replay that starts at a commit."""
    state = w.store.kept_checkpoint("m", start).state if start else None
    with JournalReplay(SPEC, w.source, make_codec(CODEC), partial(model_from_snapshot, w.store, SPEC), state) as again:
        for _, entry in w.store.journal("m", snapshot.commit_seq, after_seq=start):
            again.apply(entry)
        return compare_snapshot(snapshot, again.learner)


def test_every_kept_checkpoint_leads_to_the_same_bits(kept):
    last = kept.store.snapshot("m")
    books, starts = find_replay_starts(kept.store, "m", last.commit_seq)
    books.close(last.position)
    assert books.errors == []
    assert len(starts) >= 8
    assert [o.batches for o in starts] == sorted((o.batches for o in starts), reverse=True)
    for origin in starts:
        assert rerun(kept, origin.commit_seq, last)
    assert audit(kept.store, "m") == []


def test_a_kept_checkpoint_that_is_not_what_was_learned_is_detected(kept):
    last = kept.store.snapshot("m")
    _, starts = find_replay_starts(kept.store, "m", last.commit_seq)
    one, other = starts[-2:]
    state = kept.store.kept_checkpoint("m", one.commit_seq).state
    with JournalReplay(SPEC, kept.source, make_codec(CODEC), None, state) as again:
        for _, entry in kept.store.journal("m", last.commit_seq, after_seq=other.commit_seq):
            again.apply(entry)
        assert not compare_snapshot(last, again.learner)


def test_a_young_model_is_learned_again_from_its_making():
    w = World()
    w.engine().run(w.until_all_read())
    _, starts = find_replay_starts(w.store, "m", w.store.snapshot("m").commit_seq)
    assert [(o.commit_seq, o.needs) for o in starts] == [(0, {P0: 0, P1: 0})]


def test_the_oldest_start_is_chosen_from_which_the_topic_has_everything(kept):
    last = kept.store.snapshot("m")
    _, starts = find_replay_starts(kept.store, "m", last.commit_seq)
    assert best_replay_start(starts, {}) is starts[0]
    third = starts[2]
    assert best_replay_start(starts, third.needs) is third
    assert best_replay_start(starts, {**third.needs, P1: third.needs[P1] + 1}) is starts[3]
    assert best_replay_start(starts, {P0: 1 << 40}) is starts[-1], "then the replay says what is missing"


def test_a_snapshot_from_before_the_journal_is_refused_with_the_way_out(kept):
    first = kept.store.snapshots("m", limit=1000)[-1]
    with pytest.raises(NotFoundError, match=rf"starts behind commit \d+ \(2023-.*needs commit {first.commit_seq}.*all"):
        find_replay_starts(kept.store, "m", first.commit_seq)


@pytest.mark.kafka
def test_what_retention_took_is_not_needed_after_a_checkpoint_that_was_kept(bootstrap, topic, tmp_path):
    name, url, log = topic(partitions=2), f"sqlite:///{tmp_path}/s.db", tmp_path / "log"
    arguments = ("--bootstrap", bootstrap, "--topic", name, "--fields", "a,b.c,d", "--k", "4", "--store", url)

    def learn(until, **fault):
        Feed(bootstrap, name, values(2000, seed=until), per_second=1e9, partitions=2).run()
        with program(log, "live", "m", *arguments, "--batch", "300", script=KILLED_LIVE, env=fault) as owner:
            owner.until(lambda: points(url, "m") == until)
            assert owner.leave() == 0

    learn(2000)
    learn(4000, FAULT_CLOCK=f"{DAY + 60}:0")  # the day after
    learn(6000)
    with contextlib.closing(open_store(url)) as store:
        (base,) = store.kept_checkpoints("m")
        first, last = store.snapshots("m")[-1], store.snapshot("m")
    assert first.commit_seq < base.commit_seq < last.commit_seq
    verify = ("--store", url, "--bootstrap", bootstrap)
    with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.delete_records({kafka.TopicPartition(tp.topic, tp.partition): at for tp, at in base.position.items()})
    rest = json.loads(run("verify", "m", *verify, "--json").stdout)
    assert (rest["equal"], rest["start_commit"]) == (True, base.commit_seq)
    gone = run("verify", "m", str(first.id), *verify)
    assert gone.returncode not in (0, 9)
    assert name in gone.stderr
