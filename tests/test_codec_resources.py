"""A codec whose registry is away: it is waited for as a broker is, and nothing is lost."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

from streamkm.codecs import CodecResources, make_codec
from streamkm.connectors import MemorySource
from streamkm.delivery import Assigner, AssignOptions
from streamkm.engine import Engine, JournalReplay, audit, compare_snapshot, model_from_snapshot
from streamkm.errors import BrokerUnreachableError
from streamkm.metrics import ALARMS, ERRORS
from streamkm.state import CodecSpec
from streamkm.stores import Promotion, open_store
from streamkm.testing import SchemaRegistryInMemory, StopAfter
from test_assign import Confirming, Ledger, published, quick, until
from test_codecs import frame, framed
from test_engine import OPTIONS, UNDECAYED, N, World, eager, record

__all__ = ["eager", "framed", "quick"]
SCHEMAS = {"1": "x,y", "2": "y,x"}
SPEC = dataclasses.replace(UNDECAYED, codec=CodecSpec("framed", ("x", "y")))
AWAY = "codec unavailable: the schema registry does not answer"


def framed_record(i):
    """Record i with the first schema, or in the second half with the second one."""
    found = record(i)
    point = json.loads(found.value)
    values = [point["x"], point["y"]] if i < N // 2 else [point["y"], point["x"]]
    return found._replace(value=frame(1 if i < N // 2 else 2, json.dumps(values)))


class Outage:
    """A topic whose second schema the codec cannot get, until the registry is back."""

    def __init__(self):
        self.world = World([framed_record(i) for i in range(N)])
        self.registry = SchemaRegistryInMemory({"1": SCHEMAS["1"]})
        self.seen = []

    def engine(self, open_source=None, options=OPTIONS):
        codec = make_codec(SPEC.codec, CodecResources(self.registry))
        self.running = Engine(
            SPEC,
            open_source=open_source or self.world.source,
            codec=codec,
            store=self.world.store,
            options=options,
            clock=self.world.clock,
        )
        self.registry.away = False
        first = self.world.source()
        first.seek(first.beginning())
        codec.decode(first.poll(0.0, 1)[0])  # it has the first schema now
        self.registry.schemas, self.registry.away = dict(SCHEMAS), True
        return self.running

    def until(self, condition, *steps):
        """A stop request at `condition`; in the n-th wait, what the probes say is noted, and step n is done."""
        outage = self

        class Looking(StopAfter):
            def wait(self, timeout):
                heartbeat = outage.running.context.heartbeat
                outage.seen.append((*heartbeat.ready(), heartbeat.live()[0]))
                assert len(outage.seen) < 200, "it waits for ever"
                if len(outage.seen) <= len(steps):
                    steps[len(outage.seen) - 1]()
                return super().wait(timeout)

        return Looking(condition, self.world.clock)

    def back(self):
        self.registry.away = False

    def alarms(self):
        return self.running.context.metrics.value(ALARMS, model="m", alarm="codec-unavailable")


def nothing():
    pass


def test_a_registry_that_is_away_is_waited_for_live_and_not_ready_and_no_bit_is_different(caplog):
    outage, without = Outage(), Outage()
    w = outage.world
    outage.engine().run(outage.until(w.all_read, nothing, nothing, nothing, outage.back))
    assert outage.seen == [(False, AWAY, True)] * 4
    assert outage.running.context.heartbeat.ready()[1].startswith("stopped")
    assert outage.alarms() == 1
    assert outage.running.context.metrics.value(ERRORS, model="m", stage="decode") == 4
    assert caplog.text.count("the codec is unavailable, trying again: registry:8081") == 1
    assert w.counters().points == N
    engine = without.engine()
    without.back()
    engine.run(without.until(without.world.all_read))
    assert not without.seen
    assert w.store.load_checkpoint("m").state.to_bytes() == without.world.store.load_checkpoint("m").state.to_bytes()


def test_what_was_learned_is_verified_with_the_schemas_alone():
    outage = Outage()
    w = outage.world
    outage.engine().run(outage.until(w.all_read, outage.back))
    kept = CodecResources(SchemaRegistryInMemory(SCHEMAS))
    spec = w.store.model("m").spec
    with JournalReplay(
        spec, w.source, make_codec(spec.codec, kept), partial(model_from_snapshot, w.store, spec)
    ) as again:
        for _, entry in w.store.journal("m"):
            again.apply(entry)
        assert compare_snapshot(w.store.snapshot("m"), again.learner)
    assert audit(w.store, "m") == []


def test_one_that_is_stopped_while_it_waits_leaves_the_records_to_the_next():
    outage = Outage()
    w = outage.world
    outage.engine().run(outage.until(lambda: len(outage.seen) == 3))
    before = w.counters().records
    assert 0 < before < N
    assert sum(w.store.model("m").progress.position.values()) == before
    engine = outage.engine()
    outage.back()
    engine.run(outage.until(w.all_read))
    assert w.counters().points == N
    assert audit(w.store, "m") == []


class Unconfirmed(MemorySource):
    """A source whose identity cannot be confirmed at times."""

    unconfirmed = False

    def begin_identity_check(self):
        pass

    def confirm_identity(self):
        if self.unconfirmed:
            raise BrokerUnreachableError("nobody confirms it")


def test_records_that_wait_are_forgotten_where_the_source_is_opened_again():
    outage = Outage()
    w = outage.world
    sources = []

    def open_source():
        sources.append(Unconfirmed(w.records, topic="t", partitions=2))
        return sources[-1]

    def fail_the_next_commit():
        sources[-1].unconfirmed = True
        w.store.set_paused("m", paused=True)  # while paused, a commit that no broker confirms opens another source

    def resume():
        outage.back()
        w.store.set_paused("m", paused=False)

    def all_read():
        w.clock.advance(0.01)
        return w.counters_or_none() is not None and w.counters().records >= N

    options = dataclasses.replace(OPTIONS, checkpoint_every=1.0)
    engine = outage.engine(open_source, options)
    engine.run(outage.until(all_read, fail_the_next_commit, *[nothing] * 10, resume))
    assert len(sources) == 2, "it was opened again while records waited"
    assert w.counters().points == N
    assert audit(w.store, "m") == []


def test_a_promotion_waits_for_the_registry():
    outage = Outage()
    w = outage.world
    outage.engine().run(outage.until(w.all_read, outage.back))
    number = w.store.snapshots("m")[-1].id
    engine = outage.engine()
    w.store.request_promotion("m", Promotion(number, skip=False))
    away, looks = [], []

    def promoted():
        looks.append(engine.context.heartbeat.ready())
        assert len(looks) < 1000, "it waits for ever"
        if looks[-1] == (False, AWAY):
            away.append(w.store.snapshot("m").reason)
            if len(away) == 50:
                outage.back()
        return w.store.control_requests("m").promotion is None

    engine.run(StopAfter(promoted, w.clock))
    assert len(away) >= 50
    assert "promoted" not in away
    assert outage.alarms() == 1
    assert w.store.snapshot("m").reason == "promoted"
    assert w.counters().points == N


def test_assignments_wait_for_the_registry_and_each_record_gets_one():
    store, ledger = open_store("memory://"), Ledger()
    published(store, {"kind": "memory"})
    registry = SchemaRegistryInMemory(SCHEMAS)
    registry.away = True
    values = [frame(1, f"[{i}, 0]") for i in range(20)]
    assigner = Assigner(
        "m",
        "out",
        open_source=lambda: Confirming.from_values([values]),
        open_writer=ledger.open,
        codec=make_codec(SPEC.codec, CodecResources(registry)),
        store=store,
        options=AssignOptions(max_snapshot_age=0.0, commit_interval=0.0),
    )

    def all_assigned():
        registry.away = registry.lookups < 3
        return len(ledger.records) >= len(values)

    until(assigner, all_assigned)
    assert registry.lookups >= 3
    assert [json.loads(r.value)["offset"] for r in ledger.records] == list(range(20))
    assert (assigner.counts.records, assigner.counts.assigned) == (20, 20)
