"""Recomputing a range of a topic: fixed offsets, archive, result."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from datetime import UTC, datetime

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from streamkm.codecs import make_codec
from streamkm.connectors import MemorySource
from streamkm.engine import Engine, EngineOptions
from streamkm.errors import BadRecordsError, CorruptBatchError, DataError, PositionLostError, SettingsError
from streamkm.models.exact.estimator import ExactKMeans
from streamkm.recompute.archive import Archive, lost_offsets
from streamkm.recompute.compare import compare
from streamkm.recompute.replay import ReplayFit, WorkFolder, recompute
from streamkm.recompute.span import OffsetSpan, resolve_span
from streamkm.records import RawRecord, TopicPartition
from streamkm.state import CodecSpec, ModelSpec
from streamkm.stores import open_store
from streamkm.testing import ManualClock, StopAfter

CODEC = CodecSpec("json", ("x", "y"), {"time_field": None, "max_bytes": 1000})
SPEC = ModelSpec(
    "m", ("x", "y"), 3, {"kind": "memory"}, {"kind": "OnlineKMeans", "warmup": 50, "half_life": None, "seed": 1}, CODEC
)
CONTENTS = {"source": {"kind": "memory"}, "fields": ["x", "y"], "codec": CODEC.to_json()}
CHOICE = ReplayFit(3, "k-means++", 2, 300, 0.0, 0)
T0, T1 = TopicPartition("t", 0), TopicPartition("t", 1)
N = 3000
START = 1_700_000_000.0


def value(i):
    return np.random.default_rng(i).normal(size=2) + [[0, 0], [9, 0], [0, 9]][i % 3]


def record(i, content=...):
    x, y = value(i)
    content = json.dumps({"x": x, "y": y}).encode() if content is ... else content
    return RawRecord(TopicPartition("t", i % 2), i // 2, int(START * 1000) + i, None, content)


RECORDS = [record(i) for i in range(N)]
POINTS = np.concatenate([[value(i) for i in range(p, N, 2)] for p in (0, 1)])


def source(records=RECORDS):
    return MemorySource(records, topic="t", partitions=2)


def whole(n=N):
    return OffsetSpan({T0: 0, T1: 0}, {T0: n // 2, T1: n // 2})


@pytest.fixture
def store():
    """A store with a model that has learned all records."""
    opened, clock = open_store("memory://"), ManualClock()
    options = EngineOptions(batch=200, checkpoint_every=0.0, snapshot_points=1000, owner="a")
    engine = Engine(SPEC, open_source=source, codec=make_codec(CODEC), store=opened, options=options, clock=clock)
    engine.run(StopAfter(lambda: (p := opened.model("m").progress) and p.counters.records == N, clock))
    return opened


def replay(store, tmp_path, choice=CHOICE, span=None, records=RECORDS, **more):
    archive = Archive(tmp_path / "archive", CONTENTS)
    span = span or whole()
    archive.fill(span, lambda: source(records), make_codec(CODEC))
    return store.snapshot("m", recompute(store, SPEC, span, archive, WorkFolder(tmp_path / "work"), choice, **more))


# Resolution of ranges


@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [
        ("beginning", "now", whole()),
        ("offset:10", "end", OffsetSpan({T0: 10, T1: 10}, {T0: 1500, T1: 1500})),
        ("0:5,1:7", "0:9,1:8", OffsetSpan({T0: 5, T1: 7}, {T0: 9, T1: 8})),
        ("1:7", "now", OffsetSpan({T1: 7}, {T1: 1500})),
        ("snapshot:1", "now", OffsetSpan({T0: 500, T1: 480}, {T0: 1500, T1: 1500})),
        ("beginning", "snapshot:1", OffsetSpan({T0: 0, T1: 0}, {T0: 500, T1: 480})),
        ("2023-11-14T22:13:20.100+00:00", "2023-11-14T22:13:21", OffsetSpan({T0: 50, T1: 50}, {T0: 500, T1: 500})),
        ("2s", "1s", OffsetSpan({T0: 500, T1: 500}, {T0: 1000, T1: 1000})),
    ],
)
def test_places_are_pinned_to_offsets(start, stop, expected):
    assert datetime.fromtimestamp(START, UTC).isoformat() == "2023-11-14T22:13:20+00:00"
    found = resolve_span(source(), start, stop, lambda _: {T0: 500, T1: 480}, now=START + 3.0)
    assert found == expected


@pytest.mark.parametrize(
    ("start", "stop", "message"),
    [
        ("yesterday", "now", "'yesterday' is not a position in a topic"),
        ("now", "now", "there are no records from 'now' to 'now'"),
        ("7:1", "now", "there is no partition 7"),
        ("offset:9", "offset:9", "there are no records"),
    ],
)
def test_an_invalid_position_is_rejected(start, stop, message):
    with pytest.raises(SettingsError, match=message):
        resolve_span(source(), start, stop, lambda _: {}, now=START)


def test_a_place_that_retention_has_eaten_is_named():
    eaten = source()
    eaten.truncate(T1, 100)
    with pytest.raises(PositionLostError, match=r"t-1.*offset 7 is not between the beginning 100 and the end 1500"):
        resolve_span(eaten, "offset:7", "now", lambda _: {}, now=START)
    assert resolve_span(eaten, "beginning", "now", lambda _: {}).start == {T0: 0, T1: 100}


# Archive


class Counting(MemorySource):
    """A source that counts its records."""

    given = 0

    def poll(self, timeout, max_records):
        out = super().poll(timeout, max_records)
        Counting.given += sum(map(len, out))
        return out


def test_what_is_in_the_archive_is_not_read_again(tmp_path):
    Counting.given = 0

    def opened():
        return Counting(RECORDS, topic="t", partitions=2)

    archive = Archive(tmp_path, CONTENTS)
    archive.fill(whole(1000), opened, make_codec(CODEC))
    assert Counting.given >= 1000
    Counting.given = 0
    again = Archive(tmp_path, CONTENTS)
    again.fill(whole(1000), lambda: pytest.fail("nothing is missing"), make_codec(CODEC))
    again.fill(whole(), opened, make_codec(CODEC))
    rows = np.concatenate(list(again.points(whole())))
    np.testing.assert_array_equal(rows, POINTS)
    part = OffsetSpan({T0: 10, T1: 700}, {T0: 20, T1: 800})
    rows = np.concatenate(list(again.points(part)))
    np.testing.assert_array_equal(rows, [value(i) for i in (*range(20, 40, 2), *range(1401, 1601, 2))])


def test_markers_and_holes_end_a_range_as_well_as_records_do(tmp_path):
    holes = [r for r in RECORDS if r.offset % 7]

    def opened():
        made = source(holes)
        made.advance(T0, 1600)  # a hundred offsets of markers and aborted records after the last one
        return made

    span = resolve_span(opened(), "beginning", "now", lambda _: {})
    assert span.stop == {T0: 1600, T1: 1500}
    archive = Archive(tmp_path, CONTENTS)
    archive.fill(span, opened, make_codec(CODEC))
    assert sum(len(rows) for rows in archive.points(span)) == len(holes)
    assert [(p.partition, p.start, p.stop) for p in archive.parts] == [(0, 0, 1600), (1, 0, 1500)]


class Spoilt(MemorySource):
    """A source with unreadable batches, one of them longer than an archive reads at a time."""

    spoilt = ((T0, 100, 130), (T1, 20, 990))

    def poll(self, timeout, max_records):
        at = self.position()
        for tp, start, stop in self.spoilt:
            if start <= at.get(tp, -1) < stop:
                raise CorruptBatchError("checksum", where=f"{tp}@{at[tp]}", lost=(*tp, at[tp], stop))
        found = []
        for records in super().poll(timeout, max_records):
            until = next((a for tp, a, _ in self.spoilt if records.partition == tp and records.start < a), records.stop)
            if until < records.stop:
                self.seek({records.partition: until})
                found.append(records.split(until)[0])
            else:
                found.append(records)
        return found


def test_what_cannot_be_read_ends_it_or_is_passed_over_and_kept_on_record(tmp_path, monkeypatch):
    def opened():
        return Spoilt(RECORDS, topic="t", partitions=2)

    with pytest.raises(CorruptBatchError):
        Archive(tmp_path, CONTENTS).fill(whole(), opened, make_codec(CODEC))
    monkeypatch.setattr("streamkm.recompute.archive.READ_OFFSETS", 256)
    monkeypatch.setattr("streamkm.recompute.archive.PART_OFFSETS", 512)
    Archive(tmp_path, CONTENTS).fill(whole(), opened, make_codec(CODEC), skip_lost=True)
    archive = Archive(tmp_path, CONTENTS)
    assert lost_offsets(archive, whole()) == {"t-0": [[100, 130]], "t-1": [[20, 990]]}
    assert lost_offsets(archive, OffsetSpan({T0: 0, T1: 500}, {T0: 110, T1: 600})) == {
        "t-0": [[100, 110]],
        "t-1": [[500, 600]],
    }
    rows = np.concatenate(list(archive.points(whole())))
    kept = [*(2 * i for i in range(1500) if not 100 <= i < 130), *(2 * i + 1 for i in range(1500) if not 20 <= i < 990)]
    np.testing.assert_array_equal(rows, [value(i) for i in kept])


def test_an_archive_with_other_contents_is_rejected(tmp_path):
    Archive(tmp_path, CONTENTS).fill(whole(100), source, make_codec(CODEC))
    with pytest.raises(SettingsError, match="has other contents"):
        Archive(tmp_path, {**CONTENTS, "fields": ["x"]})


def test_bad_records_and_tombstones_are_left_out_and_counted(store, tmp_path):
    records = [record(i, b"{" if i % 10 == 0 else None if i % 10 == 1 else ...) for i in range(N)]
    found = replay(store, tmp_path, records=records)
    assert found.detail["counts"]["bad"] == found.detail["counts"]["tombstones"] == N // 10
    assert found.n_points == found.detail["counts"]["points"] == N * 8 // 10


def test_a_broken_topic_stops_the_replay(tmp_path):
    records = [record(i, b"{") for i in range(N)]
    with pytest.raises(BadRecordsError, match="100% of the records from 0 to 1500 are bad"):
        Archive(tmp_path, CONTENTS).fill(whole(), lambda: source(records), make_codec(CODEC))
    with pytest.raises(DataError, match="the range has no points"):
        replay(open_model(), tmp_path / "new", records=[record(i, None) for i in range(N)])


def open_model():
    opened = open_store("memory://")
    opened.create(SPEC, 0.0)
    return opened


# Result


def test_the_result_is_that_of_the_exact_algorithm_on_all_points(store, tmp_path):
    found = replay(store, tmp_path, trace=True)
    exact = ExactKMeans(3, n_init=2, random_state=0).fit(POINTS)
    np.testing.assert_array_equal(found.centroids, exact.cluster_centers_)
    assert found.detail["cost"] == exact.inertia_
    assert found.weights.tolist() == np.bincount(exact.labels_).tolist()
    assert (found.kind, found.n_points, dict(found.position)) == ("replay", N, {T0: 1500, T1: 1500})
    assert found.detail["stopped"] == "labels"
    assert len(found.detail["trace"]) == found.detail["iterations"]
    assert found.detail["span"] == {"t-0": [0, 1500], "t-1": [0, 1500]}
    squared = cdist(POINTS, store.snapshot("m").centroids, "sqeuclidean").min(axis=1)
    assert found.detail["live"]["cost"] == pytest.approx(squared.sum())
    assert found.detail["live"]["cost"] >= found.detail["cost"]


def test_clusters_keep_the_ids_that_the_live_model_gave_them(store, tmp_path):
    live = store.snapshot("m")
    found = replay(store, tmp_path)
    near = cdist(found.centroids, live.centroids).argmin(axis=1)
    assert found.ids.tolist() == live.ids[near].tolist()
    assert found.born.tolist() == live.born[near].tolist()
    more = replay(store, tmp_path / "more", dataclasses.replace(CHOICE, k=5, seed=3))
    assert len(set(more.ids.tolist())) == 5
    assert set(more.ids.tolist()) & set(live.ids.tolist())


@pytest.mark.parametrize("init", ["live", "snapshot:1", "random", "k-means||"])
def test_a_fit_may_start_from_clusters_that_are_known(store, tmp_path, init):
    found = replay(store, tmp_path, dataclasses.replace(CHOICE, init=init))
    assert found.detail["cost"] == pytest.approx(replay(store, tmp_path / "2").detail["cost"], rel=1e-9)


def test_initial_centroids_with_another_k_are_rejected(store, tmp_path):
    with pytest.raises(SettingsError, match="has 3 clusters, not 4"):
        replay(store, tmp_path, dataclasses.replace(CHOICE, k=4, init="live"))


def test_units_are_those_of_the_model(tmp_path):
    spec = dataclasses.replace(SPEC, learner={**SPEC.learner, "scale": "standard"})
    records = []
    for i in range(N):
        x, y = value(i)
        records.append(record(i, json.dumps({"x": x, "y": 1000 * y}).encode()))
    opened, clock = open_store("memory://"), ManualClock()
    options = EngineOptions(batch=200, checkpoint_every=0.0, snapshot_points=1000, owner="a")
    engine = Engine(
        spec,
        open_source=lambda: source(records),
        codec=make_codec(CODEC),
        store=opened,
        options=options,
        clock=clock,
    )
    engine.run(StopAfter(lambda: (p := opened.model("m").progress) and p.counters.records == N, clock))
    archive = Archive(tmp_path / "archive", CONTENTS)
    archive.fill(whole(), lambda: source(records), make_codec(CODEC))
    number = recompute(opened, spec, whole(), archive, WorkFolder(tmp_path / "work"), CHOICE)
    found, live = opened.snapshot("m", number), opened.snapshot("m")
    scaled = POINTS * [1.0, 1000.0] * live.factors
    exact = ExactKMeans(3, n_init=2, random_state=0).fit(scaled)
    np.testing.assert_allclose(found.centroids * live.factors, exact.cluster_centers_, rtol=1e-12)
    np.testing.assert_allclose(found.weights, 1000, atol=3)


def test_directions_are_not_recomputed(store, tmp_path):
    spec = dataclasses.replace(SPEC, learner={**SPEC.learner, "distance": "cosine"})
    archive = Archive(tmp_path / "archive", CONTENTS)
    with pytest.raises(SettingsError, match="Euclidean"):
        recompute(store, spec, whole(), archive, WorkFolder(tmp_path / "work"), CHOICE)


# Resuming after a kill


class Killed(BaseException):
    """Simulates SIGKILL."""


def test_a_killed_replay_goes_on_with_the_span_it_was_begun_with(store, tmp_path):
    work = WorkFolder(tmp_path / "work")
    asked = {"from": "beginning", "k": 3}
    span, resumed = work.load_or_create_plan(asked, whole)
    assert (span, resumed) == (whole(), False)
    archive = Archive(tmp_path / "archive", CONTENTS)
    with contextlib.suppress(Killed):
        archive.fill(span, lambda: Dying(RECORDS, topic="t", partitions=2), make_codec(CODEC))
    assert 0 < sum(p.points for p in archive.parts) < N
    again = WorkFolder(tmp_path / "work")
    span, resumed = again.load_or_create_plan(asked, lambda: pytest.fail("it is pinned"))
    assert (span, resumed) == (whole(), True)
    archive = Archive(tmp_path / "archive", CONTENTS)
    archive.fill(span, source, make_codec(CODEC))

    def die(progress):
        if progress.iteration == 2:
            raise Killed

    with contextlib.suppress(Killed):
        recompute(store, SPEC, span, archive, again, CHOICE, on_progress=die)
    number = recompute(store, SPEC, span, archive, again, CHOICE)
    found = store.snapshot("m", number)
    undisturbed = replay(store, tmp_path / "new")
    np.testing.assert_array_equal(found.centroids, undisturbed.centroids)
    assert found.detail["cost"] == undisturbed.detail["cost"]
    assert WorkFolder(tmp_path / "work").load_or_create_plan({"other": 1}, lambda: whole(10)) == (whole(10), False)


def test_nothing_is_left_in_the_end_but_what_others_put_there(store, tmp_path):
    replay(store, tmp_path)
    work, archive = WorkFolder(tmp_path / "work"), Archive(tmp_path / "archive", CONTENTS)
    (tmp_path / "archive" / ".00000-1-2.parquet.99.partial").touch()  # of a killed process
    (tmp_path / "work" / ".points.99.partial").touch()
    archive.remove()
    work.clear()
    assert list(tmp_path.iterdir()) == []
    work, archive = WorkFolder(tmp_path / "work"), Archive(tmp_path / "archive", CONTENTS)
    archive.fill(whole(100), source, make_codec(CODEC))
    for folder in ("work", "archive"):
        (tmp_path / folder / "mine.txt").touch()
    archive.remove()
    work.clear()
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["mine.txt", "mine.txt"]


class Dying(MemorySource):
    """A source that is killed in its second partition."""

    def poll(self, timeout, max_records):
        if T1 in self.position():
            raise Killed
        return super().poll(timeout, max_records)


# Comparison


def test_a_comparison_has_moved_clusters_and_changed_points(store, tmp_path):
    live = store.snapshot("m")
    moved = dataclasses.replace(
        live,
        id=7,
        ids=np.array([live.ids[0], live.ids[1], 99]),
        centroids=live.centroids + np.array([[3.0, 4.0], [0, 0], [0, 0]]),
    )
    found = compare(live, moved, POINTS, np.ones(N))
    assert (found.a, found.b, found.removed, found.added) == (live.id, 7, (int(live.ids[2]),), (99,))
    assert [m.id for m in found.shifts] == [live.ids[0], live.ids[1]]
    assert found.shifts[0].distance == pytest.approx(5.0)
    assert found.shifts[0].spreads == pytest.approx(5.0 / live.spreads[0])
    before, after = (cdist(POINTS, s.centroids) for s in (live, moved))
    assert found.cost_a == pytest.approx(np.square(before.min(axis=1)).mean())
    assert found.cost_b == pytest.approx(np.square(after.min(axis=1)).mean())
    changed = live.ids[before.argmin(axis=1)] != moved.ids[after.argmin(axis=1)]
    assert found.changed == pytest.approx(changed.mean())
    same = compare(live, live, POINTS, np.ones(N))
    assert (same.changed, same.removed, same.added) == (0.0, (), ())
    assert json.loads(json.dumps(found.to_json()))["points"] == N
