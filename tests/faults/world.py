"""One round: a topic that is written, a model that learns it, processes that own it, and the final count.

What the topic holds is told by `Tally`, a consumer of its own that reads every committed record while the round goes
on; what the model counted is told by the store. Nothing is taken from what the writer believes to have written.
"""

from __future__ import annotations

import contextlib
import json
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import kafka
import kafka.errors
import numpy as np

from processes import Program, run
from streamkm.broker import LocalBroker
from streamkm.errors import NotFoundError, StoreUnavailableError
from streamkm.state import Progress
from streamkm.stores import Store, open_store
from waiting import PATIENCE, pauses

KILLED_LIVE = Path(__file__).with_name("killed_live.py")
MODEL = "m"
LEASE = 2.0
ENDS = (None, 0, -signal.SIGKILL, -signal.SIGTERM)
"""Allowed exit statuses: SIGTERM ends a process that has not yet installed its handler."""
NO_STORE = 5
"""Exit status after a commit that waited for longer than the lease; an orchestrator restarts the process."""
RATE = 500  # records per second: more than a round needs; each costs the writer, the broker and two readers

POISON = (
    b"not json",
    b'{"a": 1, "b": ',
    b'{"a": NaN, "b": 1}',
    b'{"a": 1}',
    b'{"a": 1, "b": "two"}',
    b'{"a": 1e400, "b": 1}',
    b"\xff\xfe\x00",
    b"",
    b'{"a": 1, "b": 2, "note": "' + b"x" * 3000 + b'"}',
)


def good(rng: random.Random) -> bytes:
    """A point around one of three centres."""
    x, y = rng.choice([(0, 0), (10, 0), (0, 10)])
    return json.dumps({"a": x + rng.gauss(0, 1), "b": y + rng.gauss(0, 1)}).encode()


def kind_of(value: bytes | None) -> str:
    """The expected kind of a record, without the codec of streamkm."""
    if value is None:
        return "tombstones"
    if len(value) > 2000:
        return "bad"
    try:
        point = json.loads(value)
        numbers = [point[field] for field in "ab"]
    except (ValueError, TypeError, KeyError):
        return "bad"
    sound = all(isinstance(number, int | float) and np.isfinite(number) for number in numbers)
    return "points" if sound else "bad"


class Feed(threading.Thread):
    """Writes points, bad records, tombstones and transactions until stopped; survives broker outages."""

    def __init__(self, bootstrap: str, topic: str, seed: int) -> None:
        super().__init__(daemon=True)
        self.bootstrap, self.topic = bootstrap, topic
        self.rng, self.enough, self.acknowledged = random.Random(seed), threading.Event(), 0

    def run(self) -> None:
        while not self.enough.is_set():
            with contextlib.suppress(kafka.errors.KafkaError, AssertionError):
                self._write()

    def _write(self) -> None:
        common = {"bootstrap_servers": self.bootstrap, "linger_ms": 5, "metadata_max_age_ms": 1000}
        name = f"{self.topic}-{self.rng.random()}"
        with (
            contextlib.closing(kafka.KafkaProducer(**common)) as plain,
            contextlib.closing(kafka.KafkaProducer(transactional_id=name, **common)) as bound,
        ):
            bound.init_transactions()
            while not self.enough.is_set():
                sent = [self._send(plain) for _ in range(RATE // 20)]
                plain.flush(10)
                self.acknowledged += sum(future.succeeded() for future in sent)
                if self.rng.random() < 0.3:
                    bound.begin_transaction()
                    for _ in range(self.rng.randrange(1, 30)):
                        self._send(bound)
                    bound.flush(10)
                    bound.commit_transaction() if self.rng.random() < 0.5 else bound.abort_transaction()
                self.enough.wait(0.05)

    def _send(self, producer: kafka.KafkaProducer) -> Any:
        chance, value = self.rng.random(), None
        if chance > 0.03:
            value = self.rng.choice(POISON) if chance < 0.06 else good(self.rng)
        partitions = sorted(producer.partitions_for(self.topic))  # partitions may have been added
        return producer.send(self.topic, value, key=b"k", partition=self.rng.choice(partitions))


class Tally(threading.Thread):
    """Counts the committed records of the topic, by kind."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.bootstrap, self.topic = bootstrap, topic
        self.kinds: Counter[str] = Counter()
        self.at: dict[kafka.TopicPartition, int] = {}
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.is_set():
            with contextlib.suppress(kafka.errors.KafkaError):
                self._read()

    def _read(self) -> None:
        consumer = kafka.KafkaConsumer(
            bootstrap_servers=self.bootstrap,
            isolation_level="read_committed",
            enable_auto_commit=False,
            metadata_max_age_ms=1000,
        )
        with contextlib.closing(consumer):
            while not self.done.is_set():
                partitions = [
                    kafka.TopicPartition(self.topic, p) for p in consumer.partitions_for_topic(self.topic) or ()
                ]
                if set(partitions) != consumer.assignment():
                    consumer.assign(partitions)
                    for tp in partitions:
                        consumer.seek(tp, self.at.setdefault(tp, 0))
                for records in consumer.poll(200, max_records=5000).values():
                    self.kinds.update(kind_of(record.value) for record in records)
                self.at |= {tp: consumer.position(tp) for tp in partitions}


class World:
    """The processes and services of a round.

    Parameters
    ----------
    broker
        A Kafka of its own, which may be killed.
    url
        A store of its own.
    folder
        For logs.
    rng
        Decides everything.
    server
        The database server, if there is one that may be restarted.
    """

    def __init__(self, broker: LocalBroker, url: str, folder: Path, rng: random.Random, server: Any = None) -> None:
        self.broker, self.url, self.folder, self.rng, self.server = broker, url, folder, rng, server
        self.topic = f"faults-{rng.getrandbits(48):x}"
        self.programs: list[Program] = []
        self.seen: list[Progress] = []
        self.epochs: dict[int, str] = {}
        self.partitions, self.trimmed = 2, False
        self.takeovers: list[float] = []
        self.ends = set(ENDS)
        self.feed, self.tally = (
            Feed(broker.bootstrap, self.topic, rng.getrandbits(32)),
            Tally(broker.bootstrap, self.topic),
        )

    def __enter__(self) -> Self:
        self.broker.create_topic(self.topic, self.partitions)
        self.feed.start()
        self.tally.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.feed.enough.set()
        self.tally.done.set()
        for program in self.programs:
            if program.popen.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    program.signal(signal.SIGCONT)
                program.kill()

    def start(self, **fault: str) -> Program:
        """Start another consumer of the model."""
        arguments = (
            "live", MODEL, "--bootstrap", self.broker.bootstrap, "--topic", self.topic, "--fields", "a,b", "--k", "3",
            "--store", self.url, "--lease", f"{LEASE}s", "--checkpoint-every", "100ms", "--snapshot-every", "1s",
            "--batch", "200", "--max-bad-ratio", "1", "--max-record-bytes", "2000",
        )  # fmt: skip
        log = self.folder / f"live-{len(self.programs)}.log"
        program = Program(log, *arguments, env=fault, script=KILLED_LIVE)
        self.programs.append(program)
        return program

    def alive(self) -> list[Program]:
        """Running processes."""
        return [p for p in self.programs if p.popen.poll() is None]

    def look(self) -> Progress | None:
        """The state of the store, checked against all previous states."""
        with (
            contextlib.suppress(NotFoundError, StoreUnavailableError),
            contextlib.closing(open_store(self.url)) as store,
        ):
            info = store.model(MODEL)
            if info.lease is not None and info.lease.owner:
                owner = self.epochs.setdefault(info.lease.epoch, info.lease.owner)
                assert owner == info.lease.owner, f"two owners of epoch {info.lease.epoch}"
            if info.progress is not None:
                if self.seen:
                    _assert_follows(self.seen[-1], info.progress)
                self.seen.append(info.progress)
            return info.progress
        return None

    def owner(self) -> Program:
        """The process that holds the lease."""
        found: list[Program] = []

        def known() -> bool:
            with contextlib.suppress(StoreUnavailableError), contextlib.closing(open_store(self.url)) as store:
                lease = store.model(MODEL).lease
                name = lease.owner if lease is not None else ""
                found[:] = [p for p in self.alive() if f":{p.popen.pid}:" in name]
            return bool(found)

        self.until(known, "nobody owns the model")
        return found[0]

    def records(self) -> int:
        """Records that the model has counted."""
        progress = self.look()
        return progress.counters.records if progress else 0

    def until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait for a condition; returns the seconds. Processes that were not killed must still run."""
        began, pause = time.monotonic(), pauses()
        while not condition():
            for program in self.programs:
                status = program.popen.poll()
                assert status in self.ends, f"left with {status}:\n{program.output()[-3000:]}"
            if NO_STORE in self.ends and not self.alive():
                self.start()
            if time.monotonic() - began > PATIENCE:
                logs = "\n".join(p.output()[-3000:] for p in self.programs)
                raise AssertionError(f"{what}: not within {PATIENCE:g} s\n{logs}")
            time.sleep(next(pause))
        return time.monotonic() - began

    def progress(self, records: int = 300) -> float:
        """Wait until this number of further records is counted; returns the seconds."""
        target = self.records() + records
        return self.until(lambda: self.records() >= target, "no progress")

    def settle(self) -> None:
        """Stop writing, and wait until the model has counted all records."""
        self.feed.enough.set()
        self.feed.join(PATIENCE)
        with contextlib.closing(kafka.KafkaConsumer(bootstrap_servers=self.broker.bootstrap)) as consumer:
            count = len(consumer.partitions_for_topic(self.topic))
            end = consumer.end_offsets([kafka.TopicPartition(self.topic, p) for p in range(count)])
        self.until(lambda: all(self.tally.at.get(tp, 0) >= at for tp, at in end.items()), "the tally is not at the end")
        self.tally.done.set()
        self.tally.join(PATIENCE)

        def counted() -> bool:
            progress = self.look()
            at = {} if progress is None else {(tp.topic, tp.partition): to for tp, to in progress.position.items()}
            return all(at.get((tp.topic, tp.partition), 0) >= to for tp, to in end.items())

        self.until(counted, f"the model is not at the end ({end})")

    def close(self) -> None:
        """Stop all processes by SIGTERM."""
        for program in self.alive():
            assert program.leave() in ENDS, program.output()[-3000:]

    def check(self) -> dict[str, int]:
        """Compare the counts of the model with those of the topic; returns the counts."""
        with contextlib.closing(open_store(self.url)) as store:
            return self._check(store)

    def _check(self, store: Store) -> dict[str, int]:
        progress, last = store.model(MODEL).progress, store.snapshot(MODEL)
        assert progress is not None
        counters = progress.counters
        counts = {"points": counters.points, "bad": counters.bad, "tombstones": counters.tombstones}
        assert counts == {kind: self.tally.kinds[kind] for kind in counts}, "lost or twice"
        assert counters.records >= self.feed.acknowledged, "the broker lost what it acknowledged"
        # Sums of float64 weights in another order.
        assert abs(float(last.weights.sum()) / counters.points - 1.0) < 1e-9
        assert last.n_points == counters.points
        kept = store.newest_quarantined(MODEL, limit=10**9)
        assert len({(b.record.partition, b.record.offset) for b in kept}) == len(kept) == counters.bad
        # One owner per epoch, epochs and numbers in order.
        found = sorted(store.snapshots(MODEL, limit=10**6), key=lambda s: s.id)
        owners: dict[int, set[str]] = {}
        for snapshot in found:
            owners.setdefault(snapshot.detail["epoch"], set()).add(snapshot.detail["owner"])
        assert all(len(names) == 1 for names in owners.values()), owners
        epochs = [s.detail["epoch"] for s in found]
        assert epochs == sorted(epochs)
        assert [s.commit_seq for s in found] == sorted({s.commit_seq for s in found})
        return {**counts, "snapshots": len(found), "epochs": max(epochs)}

    def verify(self) -> None:
        """Verify the newest snapshot bit for bit, or check that missing records are reported."""
        result = run("verify", MODEL, "--store", self.url, "--bootstrap", self.broker.bootstrap)
        said = result.stdout + result.stderr
        if self.trimmed:
            assert result.returncode not in (0, 9), said
            assert self.topic in said, "the error must name what can no longer be read"
        else:
            assert result.returncode == 0, said


def _assert_follows(before: Progress, after: Progress) -> None:
    assert after.commit_seq >= before.commit_seq, "commits went back"
    assert all(after.position.get(tp, -1) >= at for tp, at in before.position.items()), "offsets went back"
    if after.commit_seq == before.commit_seq:
        assert after == before, f"commit {after.commit_seq} was written twice"
