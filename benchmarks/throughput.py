"""Records a second of the whole job: the same topic of JSON points, read by a bare client, by two scripts, and by us.

Every contender is a process of its own, reads the topic from its beginning to its end, and is timed from its first
record to its last, start-up and compilation apart. They take turns, and what counts is the ratio within a round.

    python benchmarks/throughput.py --records 1000000 --rounds 3
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

D, K = 8, 16
TOPIC, PARTITIONS = "points", 3
FIELDS = tuple(f"x{i}" for i in range(D))
RIVER_RECORDS = 20_000  # one by one it would take minutes
CLIENT = {  # the same generous client settings for everybody
    "auto_offset_reset": "earliest",
    "enable_auto_commit": False,
    "max_poll_records": 8192,
    "fetch_max_bytes": 64 << 20,
    "max_partition_fetch_bytes": 8 << 20,
}
EXPECTED = {"bare": 0.85, "river": 5.0, "scikit-learn": 1.5}


def consumer(bootstrap):
    import kafka

    c = kafka.KafkaConsumer(bootstrap_servers=bootstrap, **CLIENT)
    tps = [kafka.TopicPartition(TOPIC, p) for p in range(PARTITIONS)]
    c.assign(tps)
    c.seek_to_beginning()
    return c


def polls(bootstrap, n, clock):
    """Values of the polls until n records came; the clock starts with the first."""
    c = consumer(bootstrap)
    seen = 0
    while seen < n:
        for records in c.poll(timeout_ms=1000).values():
            if not seen:
                clock.append(time.perf_counter())
            seen += len(records)
            yield records
    c.close()


def bare(bootstrap, n):
    clock = []
    read = sum(map(len, polls(bootstrap, n, clock)))
    return read / (time.perf_counter() - clock[0])


def river(bootstrap, n):
    import orjson
    from river.cluster import KMeans

    model, done = KMeans(n_clusters=K, seed=0), 0
    n, clock = min(n, RIVER_RECORDS), []
    for records in polls(bootstrap, n, clock):
        for r in records:
            model.learn_one(orjson.loads(r.value))
            done += 1
            if done == n:
                return n / (time.perf_counter() - clock[0])
    raise AssertionError("the topic ended early")


def scikit_learn(bootstrap, n):
    import orjson
    from sklearn.cluster import MiniBatchKMeans

    model, rows, clock = MiniBatchKMeans(n_clusters=K, random_state=0), [], []
    for records in polls(bootstrap, n, clock):
        for r in records:
            o = orjson.loads(r.value)
            rows.append([o[f] for f in FIELDS])
        if len(rows) >= 4096:
            model.partial_fit(np.array(rows))
            rows = []
    if rows:
        model.partial_fit(np.array(rows))
    return n / (time.perf_counter() - clock[0])


def streamkm(bootstrap, n, url=None, checkpoint_every=1.0):
    from streamkm.codecs import make_codec
    from streamkm.connectors import KafkaSource
    from streamkm.engine import Engine, EngineOptions
    from streamkm.models import compile_kernels
    from streamkm.state import CodecSpec, ModelSpec
    from streamkm.stores import open_store

    compile_kernels([np.float64])  # before the clock starts
    codec_spec = CodecSpec("json", FIELDS)
    codec = make_codec(codec_spec)
    source = KafkaSource.connect(bootstrap, TOPIC, group_id="bench")
    source.seek(dict.fromkeys(source.partitions(), 0))
    while not (polled := source.poll(1.0, 512)):
        pass
    for part in polled:
        codec.decode(part)
    identity = source.identity()
    source.close()
    clock = FirstRecord()
    name = f"bench-{os.getpid()}"
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(open_store(url or f"sqlite:///{folder}/s.db")) as store,
    ):
        engine = Engine(
            ModelSpec(name, FIELDS, K, identity, {"kind": "OnlineKMeans", "seed": 0}, codec_spec),
            open_source=lambda: clock.watch(KafkaSource.connect(bootstrap, TOPIC, group_id="bench"), n),
            codec=codec,
            store=store,
            options=EngineOptions(checkpoint_every=checkpoint_every, snapshot_every=10.0),
        )
        engine.run(clock)
        seconds = time.perf_counter() - clock.started
        assert abs(store.snapshot(name).weights.sum() - n) < 1e-6
        store.delete(name)
    return n / seconds


class FirstRecord:
    """Starts the clock with the first record and asks to stop after the last: a stop request for the engine."""

    def __init__(self):
        self.started, self.seen, self.n = None, 0, 0

    def watch(self, source, n):
        self.n, poll = n, source.poll

        def counted(timeout, most):
            polled = poll(timeout, most)
            if polled and self.started is None:
                self.started = time.perf_counter()
            self.seen += sum(map(len, polled))
            return polled

        source.poll = counted
        return source

    def is_set(self):
        return self.seen >= self.n > 0

    def wait(self, timeout):
        time.sleep(timeout)
        return self.is_set()


CONTENDERS = {"bare": bare, "river": river, "scikit-learn": scikit_learn, "streamkm": streamkm}


def fill(bootstrap, n):
    """Produce n JSON points around K centres."""
    import kafka
    import orjson
    from kafka.admin import KafkaAdminClient, NewTopic

    with contextlib.closing(KafkaAdminClient(bootstrap_servers=bootstrap)) as admin:
        admin.create_topics([NewTopic(TOPIC, num_partitions=PARTITIONS, replication_factor=1)])
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(K, D)) * 10
    producer = kafka.KafkaProducer(
        bootstrap_servers=bootstrap, linger_ms=20, batch_size=1 << 18, acks=1, enable_idempotence=False
    )
    for start in range(0, n, 10_000):
        m = min(10_000, n - start)
        rows = np.round(centres[rng.integers(K, size=m)] + rng.normal(size=(m, D)), 6)
        for i, row in enumerate(rows.tolist()):
            producer.send(TOPIC, orjson.dumps(dict(zip(FIELDS, row, strict=True))), partition=(start + i) % PARTITIONS)
    producer.flush()
    producer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bootstrap", help="a broker to use; a local one is started if not given")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.contender:
        print(CONTENDERS[a.contender](a.bootstrap, a.records))
        return
    with contextlib.ExitStack() as stack:
        if not a.bootstrap:
            from streamkm.broker import LocalBroker

            a.bootstrap = stack.enter_context(LocalBroker()).bootstrap
        print(f"producing {a.records:,} JSON points, d = {D}", flush=True)
        fill(a.bootstrap, a.records)
        rates = {name: [] for name in CONTENDERS}
        for _ in range(a.rounds):
            for name in CONTENDERS:
                command = [
                    sys.executable,
                    __file__,
                    "--contender",
                    name,
                    "--bootstrap",
                    a.bootstrap,
                    "--records",
                    str(a.records),
                ]
                done = subprocess.run(
                    command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
                )
                rates[name].append(float(done.stdout))
                print(f"  {name:<14}{rates[name][-1]:>12,.0f} records/s", flush=True)
    print(f"\n{'':<14}{'records/s':>12}{'streamkm is':>14}{'expected':>10}")
    ratios = {n: [s / r for s, r in zip(rates["streamkm"], rates[n], strict=True)] for n in CONTENDERS}
    for name in CONTENDERS:
        wanted = f">= {EXPECTED[name]}" if name in EXPECTED else ""
        print(
            f"{name:<14}{statistics.median(rates[name]):>12,.0f}{statistics.median(ratios[name]):>13.2f}x{wanted:>10}"
        )
    if a.json:
        a.json.write_text(json.dumps({"records": a.records, "rates": rates, "ratios": ratios}, indent=2))


if __name__ == "__main__":
    main()
