"""Log lines of long runs, with a manual clock."""

from __future__ import annotations

import dataclasses
import logging
import threading

import pytest
import sqlalchemy as sa

from streamkm.errors import StoreUnavailableError
from streamkm.metrics import ALARMS
from streamkm.records import BadRecord, RawRecord, TopicPartition
from streamkm.reporting import COUNT_SECONDS, PROGRESS_SECONDS, QUIET_SECONDS, ProgressReporter
from streamkm.stores import open_store
from streamkm.testing import FullStore, ManualClock, StopAfter
from streamkm.times import format_age
from test_engine import OPTIONS, ClockedSource, N, World, eager, record  # noqa: F401 - eager is a fixture

LOG = logging.getLogger("streamkm.test")


def bad(offset, reason="not-json"):
    return BadRecord(RawRecord(TopicPartition("t", 0), offset, -1, None, b"{"), reason, "", "not JSON")


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def said(caplog):
    """Returns the lines logged since the last call."""
    caplog.set_level(logging.INFO, "streamkm")

    def take():
        lines = [r.getMessage() for r in caplog.records if r.name.startswith("streamkm")]
        caplog.clear()
        return lines

    return take


@pytest.fixture
def report(clock):
    return ProgressReporter(LOG, "orders", clock.monotonic, consequence="it is in the quarantine", records=1000)


def test_the_first_of_each_reason_is_logged_and_the_others_are_counted_once_a_minute(report, clock, said):
    report.bad_records([bad(3), bad(4), bad(5)])
    assert said() == ["orders: bad record (not-json) at t-0@3: not JSON; it is in the quarantine"]
    report.bad_records([bad(6, "not-finite"), bad(7)])
    assert [line.split(";")[0] for line in said()] == ["orders: bad record (not-finite) at t-0@6: not JSON"]
    clock.advance(COUNT_SECONDS - 1)
    report.bad_records([bad(i) for i in range(10, 26_010)])
    report.update(1000, str)
    assert [line for line in said() if "bad" in line] == []
    clock.advance(1)
    report.update(1000, str)
    assert said() == ["orders: 26,003 more bad records in 60 s: 26,003 not-json, such as t-0@4: not JSON"]
    clock.advance(10 * COUNT_SECONDS)
    report.update(1000, str)
    assert [line for line in said() if "bad" in line] == []
    report.bad_records([bad(1, "not-finite")])
    report.finish(1010, "lag 0")
    counted, ended = said()
    assert counted == "orders: 1 more bad records in 10 min: 1 not-finite, such as t-0@1: not JSON"
    assert ended == "orders: stopped after 11 min, 10 records, 26,006 of them bad; lag 0"


def test_progress_is_logged_twice_a_minute_while_records_come_and_seldom_else(report, clock, said):
    report.update(5000, lambda: "lag 7")
    assert said() == []
    clock.advance(PROGRESS_SECONDS)
    report.update(61_000, lambda: "lag 7")
    report.update(62_000, lambda: "lag 6")
    assert said() == ["orders: 61,000 records, 2,000/s, lag 7"]
    clock.advance(PROGRESS_SECONDS)
    report.update(61_000, lambda: "lag 0")
    assert said() == []
    clock.advance(QUIET_SECONDS - PROGRESS_SECONDS)
    report.update(61_000, lambda: "lag 0")
    assert said() == ["orders: 61,000 records, 0/s, lag 0"]


def test_an_outage_is_logged_once_a_minute_until_it_ends(report, clock, said):
    for _ in range(120):
        report.mark_down("store", "full")
        clock.advance(1)
    assert said() == ["orders: the store is unavailable, trying again: full"] * 2
    report.mark_up("store")
    report.mark_down("store", "full")
    assert len(said()) == 1


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0.0 s"), (9.96, "10.0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (1e6, "12 d")],
)
def test_ages_in_log_lines(seconds, told):
    assert format_age(seconds) == told


def test_an_owner_logs_bad_records_progress_and_the_end(said):
    records = [record(i, value=b"{" if i % 4 == 0 else ...) for i in range(N)]
    w = World(records=records)
    w.engine().run(w.until_all_read())
    lines = said()
    (first,) = [line for line in lines if "bad record (" in line]
    assert first.startswith("m: bad record (not-json) at t-0@0: ")
    (counted,) = [line for line in lines if "more bad records" in line]
    assert f"{N // 4 - 1:,} not-json, such as t-" in counted
    ended = lines[-1]
    assert f"{N:,} records, {N // 4:,} of them bad" in ended
    assert "lag 0" in ended
    assert f"clusters, snapshot {w.store.model('m').last_snapshot}" in ended


def test_an_owner_logs_its_progress_while_it_learns(said):
    w = World()

    def all_read():
        w.clock.advance(20)
        return w.all_read()

    w.engine(dataclasses.replace(OPTIONS, lease=1000.0)).run(StopAfter(all_read, w.clock))
    progress = [line for line in said() if "/s, lag" in line]
    assert progress
    assert all(line.startswith("m: ") and "snapshot" in line for line in progress)


@pytest.mark.parametrize("writes", [FullStore.WRITES, ("commit",)], ids=["no lease", "a lease and no commit"])
def test_who_stands_by_waits_for_a_full_disk(said, writes):
    w = World()
    began = w.clock.now
    full = FullStore(w.store, lambda: w.clock.now < began + 3600, writes)
    engine = w.engine(store=full)
    waited = []

    def all_read():
        if w.clock.now < began + 3600:
            waited.append((engine.context.heartbeat.ready()[0], full.refused, w.counters_or_none()))
        return w.all_read()

    engine.run(StopAfter(all_read, w.clock))
    assert w.clock.now >= began + 3600
    assert {counters for *_, counters in waited} == {None}
    assert not any(ready for ready, refused, _ in waited if refused)
    assert engine.context.metrics.value(ALARMS, model="m", alarm="store-unavailable") == 1
    assert w.counters().points == N
    assert w.verify()
    lines = said()
    told = [line for line in lines if "the store is unavailable" in line]
    assert 50 <= len(told) <= 61
    assert full.refused > len(told)
    assert sum("the store is back" in line for line in lines) == 1


def test_a_standby_whose_commit_was_rejected_is_ready_once_another_owner_committed():
    w, seen = World(), []
    engine = w.engine(store=FullStore(w.store, lambda: True, ("commit",)))

    def seen_enough():
        if not seen and engine.context.heartbeat.role == "stopped":  # its commit was rejected, and it stands by
            w.store.acquire("m", "b", 1e9, w.clock.time())
        if seen or engine.context.heartbeat.role == "stopped":
            seen.append(engine.context.heartbeat.ready()[0])
        if len(seen) == 5:
            w.engine(dataclasses.replace(OPTIONS, owner="b")).run(w.until_all_read())
            w.store.acquire("m", "b", 1e9, w.clock.time())
        return len(seen) == 10

    engine.run(StopAfter(seen_enough, w.clock))
    assert not any(seen[:5])
    assert seen[-1]


def test_an_owner_whose_commit_had_to_wait_commits_what_it_reads_after():
    w, refused = World(), []

    def is_full():  # for a second, so that the commit takes as long, and the next one is due ten times as much later
        if not refused and (c := w.counters_or_none()) is not None and c.records >= N - 500:
            refused.append(w.clock.now)
        return bool(refused) and w.clock.now < refused[0] + 1.0

    options = dataclasses.replace(OPTIONS, snapshot_points=10**9)
    w.engine(options, store=FullStore(w.store, is_full, ("commit",))).run(w.until_all_read())
    assert refused
    assert w.clock.now >= refused[0] + 11.0
    assert w.counters().points == N
    assert w.verify()


def test_an_owner_whose_disk_fills_ends_when_the_lease_would(said):
    w = World()
    source = ClockedSource(w.records[: N - 500], w.clock)
    disk_is_full = threading.Event()
    full = FullStore(w.store, disk_is_full.is_set)

    def all_read():
        # The last records come when the others are committed, however long a snapshot holds that up.
        if not disk_is_full.is_set() and (c := w.counters_or_none()) is not None and c.records == N - 500:
            disk_is_full.set()
            source.append(w.records[N - 500 :])
        return w.all_read()

    with pytest.raises(StoreUnavailableError, match="the disk is full"):
        w.engine(store=full, open_source=lambda: source).run(StopAfter(all_read, w.clock))
    assert w.counters().records == N - 500
    assert any("stopped after" in line for line in said())
    w.clock.advance(60)
    w.engine().run(w.until_all_read())
    assert w.counters().points == N
    assert w.verify()


@pytest.fixture
def small_disk(sqlite_url):
    """A world on an SQLite file that cannot grow while `full` returns true."""
    w = World(store=open_store(sqlite_url))

    @sa.event.listens_for(w.store.engines.reader, "checkout")
    def limited(connection, *_):
        # The file keeps its size: only writes that need another page fail, with SQLITE_FULL.
        connection.execute(f"PRAGMA max_page_count = {1 if w.full() else 1 << 30}")

    w.full = lambda: False
    yield w
    w.store.close()


def learned(w):
    c = w.counters_or_none()
    return 0 if c is None else c.records


def test_an_owner_continues_when_a_full_sqlite_disk_has_room_again_within_its_lease(small_disk, said):
    w = small_disk
    filled = []
    w.full = lambda: bool(filled) and w.clock.now < filled[0] + OPTIONS.lease / 3

    def all_read():
        if not filled and learned(w) >= 500:
            filled.append(w.clock.now)
        return w.all_read()

    w.engine().run(StopAfter(all_read, w.clock))
    assert filled
    assert any("the disk is full" in line for line in said())
    assert w.counters().points == N
    assert w.verify()


def test_a_standby_takes_over_when_a_full_sqlite_disk_has_room_again(small_disk, said):
    w = small_disk
    filled = []
    w.full = lambda: bool(filled) and w.clock.now < filled[0] + 20 * OPTIONS.lease

    def fill():
        if not filled and learned(w) >= 500:
            filled.append(w.clock.now)
        return w.all_read()

    with pytest.raises(StoreUnavailableError, match="the disk is full"):
        w.engine().run(StopAfter(fill, w.clock))
    assert w.full()
    before = learned(w)
    assert 500 <= before < N
    waited = set()

    def all_read():
        if w.full():
            waited.add(learned(w))
        return w.all_read()

    w.engine(dataclasses.replace(OPTIONS, owner="b")).run(StopAfter(all_read, w.clock))
    assert waited == {before}
    assert w.clock.now >= filled[0] + 20 * OPTIONS.lease
    assert any("the disk is full" in line for line in said())
    assert w.counters().points == N
    assert w.verify()
