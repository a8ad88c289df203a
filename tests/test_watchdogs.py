"""Stalls of partitions, brokers, the store and the loop are detected, reported, retried or ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from kafka_fixtures import local_broker
from kafka_traffic import produce
from processes import program
from streamkm.broker.properties import free_ports
from streamkm.connectors import MemorySource
from streamkm.engine import Heartbeat, Watchdog
from streamkm.engine.health import KILL_SECONDS, LIVE_SECONDS
from streamkm.engine.source_manager import MAX_REOPENED, STALL_SECONDS, StallDetector
from streamkm.errors import BrokerUnreachableError, PartitionStalledError, SettingsError, StoreUnavailableError
from streamkm.http.probes import probes
from streamkm.metrics import ALARMS, Metrics
from streamkm.models import clusters
from streamkm.records import TopicPartition
from streamkm.stores import open_store
from streamkm.testing import FlakySource, FlakyStore, ManualClock, StopAfter
from test_engine import OPTIONS, Eager, N, World
from waiting import PATIENCE, wait_until

P0, P1 = (TopicPartition("t", i) for i in range(2))


@pytest.fixture(autouse=True)
def eager(monkeypatch):
    monkeypatch.setattr(clusters, "WORKER", Eager())


class Quick(MemorySource):
    """A source whose polls never wait."""

    def __init__(self, records):
        super().__init__(records, topic="t", partitions=2)

    def poll(self, timeout, max_records):
        del timeout
        return super().poll(0.0, max_records)


class Deaf(Quick):
    """A source that never returns the records of partition 1."""

    def seek(self, position):
        super().seek({tp: at for tp, at in position.items() if tp != P1})


class Ticking(StopAfter):
    """Advances the clock at every query of the loop."""

    def __init__(self, condition, clock, seconds=5.0):
        super().__init__(condition, clock)
        self.seconds = seconds

    def is_set(self):
        self.clock.advance(self.seconds)
        return super().is_set()


def test_a_partition_that_does_not_move_gets_a_new_source_and_an_alarm(caplog):
    w = World()
    sources = iter([Deaf(w.records), w.source()])
    began = w.clock.now
    engine = w.engine(open_source=lambda: next(sources))
    engine.run(Ticking(w.all_read, w.clock))
    assert w.counters().points == N
    assert engine.context.metrics.value(ALARMS, model="m", alarm="stalled-partition") == 1
    assert STALL_SECONDS < w.clock.now - began < 6 * STALL_SECONDS
    assert f"t-1@0, {N // 2} records before the end: 1 partitions have not advanced for 60 s" in caplog.text


def test_a_partition_that_never_moves_ends_the_run_after_some_new_sources_and_what_was_learned_is_kept():
    w = World()
    opened = []
    with pytest.raises(PartitionStalledError, match="t-1@0"):
        w.engine(open_source=lambda: opened.append(1) or Deaf(w.records)).run(Ticking(lambda: False, w.clock))
    assert len(opened) == 1 + MAX_REOPENED
    assert w.counters().points == N // 2
    assert w.store.model("m").lease is None


def test_an_idle_partition_is_no_stalled_one():
    w = World()
    began = w.clock.now
    opened = []
    engine = w.engine(open_source=lambda: opened.append(1) or Quick(w.records))
    engine.run(Ticking(lambda: w.clock.now - began > 3600, w.clock))
    assert w.counters().points == N
    assert len(opened) == 1, "also while partition 1 waited for partition 0"
    assert not engine.context.metrics.value(ALARMS, model="m", alarm="stalled-partition")


def test_a_partition_that_moves_a_little_now_and_then_is_not_stalled_and_ends_the_count():
    stalls = StallDetector("m")
    position, asked = {P0: 0, P1: 0}, []

    def end():
        asked.append(1)
        return {P0: 0, P1: 1000}

    now, step = 0.0, STALL_SECONDS / 4
    for _ in range(20):
        now += step
        position[P1] += 1
        stalls.check(position, end, now)
    assert asked, "partition 0 does not advance, but has no records"
    for _ in range(4):
        now += step
        stalls.check(position, end, now)
    with pytest.raises(PartitionStalledError, match="t-1@20, 980 records before the end"):
        stalls.check(position, end, now + step)
    assert stalls.reopened == 1
    position[P1] += 1
    stalls.check(position, end, now + 2 * step)
    assert (stalls.reopened, stalls.exhausted) == (0, False)


def test_while_no_broker_answers_it_is_live_and_not_ready_and_the_alarm_comes_once():
    w = World()
    seen = []

    def open_source():
        if len(w.opened) == 1 and len(seen) < 5:
            seen.append((*engine.context.heartbeat.ready(), engine.context.heartbeat.live()[0]))
            raise BrokerUnreachableError("no broker answered at h:1")
        return FlakySource(w.source(), {3: BrokerUnreachableError("gone")} if not w.opened[1:] else {})

    engine = w.engine(open_source=open_source)
    engine.run(w.until_all_read())
    assert len(seen) == 5
    assert seen[0] == (False, "broker unavailable: gone", True)
    assert seen[-1] == (False, "broker unavailable: no broker answered at h:1", True)
    assert engine.context.metrics.value(ALARMS, model="m", alarm="broker-unavailable") == 1
    assert w.counters().points == N


def test_while_the_store_is_away_it_is_not_ready_and_the_alarm_comes_once():
    w = World()
    store = FlakyStore(w.store, before={n: StoreUnavailableError("locked") for n in (4, 5, 6)})
    seen = []

    class Looking(StopAfter):
        def wait(self, timeout):
            seen.append(engine.context.heartbeat.ready())
            return super().wait(timeout)

    engine = w.engine(store=store)
    engine.run(Looking(w.all_read, w.clock))
    assert seen[:3] == [(False, "store unavailable: locked")] * 3
    assert engine.context.metrics.value(ALARMS, model="m", alarm="store-unavailable") == 1
    assert w.counters().points == N


def test_a_standby_is_ready_and_one_that_left_is_not():
    w = World()
    w.engine().run(w.until_all_read())
    w.store.acquire("m", "another", 1e9, w.clock.time())
    engine, seen = w.engine(), []
    engine.run(StopAfter(lambda: seen.append(engine.context.heartbeat.ready()) or len(seen) > 3, w.clock))
    assert seen[-1][0]
    assert seen[-1][1].startswith("standby, waiting for the lease")
    owner = w.engine(dataclasses.replace(OPTIONS, owner="another"))
    assert owner.context.heartbeat.ready() == (False, "starting, starting")
    owner.run(StopAfter(lambda: True))
    assert not owner.context.heartbeat.ready()[0]


def test_a_loop_that_makes_no_step_is_reported_with_its_place_and_ended_later(caplog):
    clock, metrics, ended, hold = ManualClock(), Metrics(), [], threading.Event()
    heartbeat = Heartbeat(clock.monotonic)

    def stuck_here():
        heartbeat.beat("committing")
        hold.wait(PATIENCE)

    thread = threading.Thread(target=stuck_here, daemon=True)
    thread.start()
    wait_until(lambda: heartbeat.beats)
    dog = Watchdog(heartbeat, "m", metrics, lambda: ended.append(1))
    for _ in range(int(LIVE_SECONDS)):
        dog.tick(1.0)
    assert (metrics.value(ALARMS, model="m", alarm="hung"), ended) == (None, [])
    assert heartbeat.live()[0]
    clock.advance(LIVE_SECONDS + 1)
    assert heartbeat.live() == (False, "committing, for 61.0 s")
    dog.tick(1.0)
    dog.tick(1.0)
    assert (metrics.value(ALARMS, model="m", alarm="hung"), ended) == (1, [])
    assert "m: no step for 61 s while committing" in caplog.text
    assert "stuck_here" in caplog.text
    heartbeat.beat("polling")
    dog.tick(1.0)
    assert "the loop runs again" in caplog.text
    for _ in range(int(KILL_SECONDS) + 1):
        assert not ended
        dog.tick(1.0)
    assert ended
    hold.set()
    thread.join(PATIENCE)


def test_a_watchdog_counts_only_the_time_in_which_it_ran_itself():
    heartbeat, metrics, ended = Heartbeat(), Metrics(), []
    with Watchdog(heartbeat, "m", metrics, lambda: ended.append(1)) as dog:
        assert dog._thread.is_alive()
        dog.heartbeat.beat("polling")
    dog._thread.join(PATIENCE)
    assert not dog._thread.is_alive()
    assert not ended


def get(port, path, authorization=""):
    """Status and body of a response."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Authorization": authorization})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, answer.read()


def test_probes_answer_over_http():
    clock, metrics, reasons = ManualClock(), Metrics(), [""]
    metrics.add(ALARMS, model="m", alarm="hung")
    heartbeat = Heartbeat(clock.monotonic)
    store = []

    def ping():
        for error in store:
            raise error

    with probes("127.0.0.1", 0, metrics, heartbeat, lambda: reasons[0], ping=ping) as port:
        assert get(port, "/livez")[0] == 200
        assert get(port, "/readyz")[0] == 503
        heartbeat.beat("polling", "owner")
        status, body = get(port, "/readyz")
        assert (status, json.loads(body)) == (200, {"status": "ok", "detail": "owner, polling, for 0.0 s"})
        heartbeat.mark_down("store", "locked")
        status, body = get(port, "/readyz")
        assert (status, json.loads(body)) == (503, {"status": "unavailable", "detail": "store unavailable: locked"})
        heartbeat.mark_up("store")
        store.append(StoreUnavailableError("the database is damaged"))
        status, body = get(port, "/readyz")
        assert (status, json.loads(body)["detail"]) == (503, "store unavailable: the database is damaged")
        assert get(port, "/livez")[0] == 200
        store.clear()
        reasons[0] = "h:1: refused"
        assert get(port, "/readyz")[0] == 200, "an owner knows the state of its own connection"
        heartbeat.beat("waiting for the lease", "standby")
        status, body = get(port, "/readyz")
        assert (status, json.loads(body)["detail"]) == (503, "broker unavailable: h:1: refused")
        assert get(port, "/livez")[0] == 200
        clock.advance(LIVE_SECONDS + 1)
        assert get(port, "/livez")[0] == 503
        status, body = get(port, "/metrics")
        assert status == 200
        assert b'streamkm_alarms_total{alarm="hung",model="m"} 1.0' in body
        assert get(port, "/")[0] == 404
        taken = pytest.raises(
            SettingsError, match=f"--metrics-port: cannot listen on 127.0.0.1 port {port} .* Choose another one$"
        )
        with taken, probes("127.0.0.1", port, metrics, heartbeat, str):
            pass


@pytest.mark.kafka
def test_brokers_that_are_gone_for_a_while_are_waited_for_alive_and_not_ready_and_nothing_is_lost(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/s.db"
    (port,) = free_ports(1)
    record = b'{"x": 1, "y": %d}'
    with local_broker() as broker:
        broker.create_topic("t", 2)
        produce(broker.bootstrap, "t", [record % (i % 5) for i in range(500)])
        at = ("--bootstrap", broker.bootstrap, "--store", url, "--topic", "t", "--fields", "x,y", "--k", "2")
        quick = ("--kafka-property", "metadata.max.age.ms=500", "--metrics-port", str(port), "--lease", "2s")
        with program(tmp_path / "log", "live", "m", *at, *quick) as owner:

            def info():
                with contextlib.closing(open_store(url)) as store:
                    return store.model("m")

            def learned():
                progress = info().progress
                return progress.counters.points if progress else 0

            def kept_until():
                return info().lease.expires_at

            owner.until(lambda: Path(tmp_path / "s.db").exists() and "owner" in owner.output())
            owner.until(lambda: learned() == 500)
            assert get(port, "/readyz")[0] == 200
            # Paused: accepts connections, but never responds.
            os.kill(broker.pid, signal.SIGSTOP)
            owner.until(lambda: get(port, "/readyz")[0] == 503)
            assert get(port, "/livez")[0] == 200
            os.kill(broker.pid, signal.SIGCONT)
            owner.until(lambda: get(port, "/readyz")[0] == 200)
            # Stopped.
            broker.kill()
            owner.until(lambda: get(port, "/readyz")[0] == 503)
            assert b"broker unavailable" in get(port, "/readyz")[1]
            gone_at = time.time()
            owner.until(lambda: kept_until() > gone_at + 6)  # three times the lease
            assert get(port, "/livez")[0] == 200
            broker.start()
            produce(broker.bootstrap, "t", [record % (i % 5) for i in range(300)], partition=1)
            owner.until(lambda: learned() == 800)
            owner.until(lambda: get(port, "/readyz")[0] == 200)
            told = get(port, "/metrics")[1]
            (alarms,) = re.findall(rb'streamkm_alarms_total{alarm="broker-unavailable",model="m"} (\S+)', told)
            assert float(alarms) >= 2  # a busy machine may cause outages of its own
            assert owner.leave() == 0
