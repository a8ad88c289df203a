"""Half an hour of a real ``streamkm live`` at a steady rate: whether its memory stays flat, and how its store grows.

A writer of its own keeps the rate; the topic keeps the last records only, as one in production would. Every few seconds
the consumer's resident memory, the store's size and the records counted are noted. In the end the mean memory of the
last third is held against the third before, and the records counted against those written.

With ``--mixed`` one record in a hundred is bad, and one in ten is of 100 kB and compresses to next to nothing. With
``--limit`` the consumer runs in a memory cgroup of this many MiB (needs the right to make one).

    python benchmarks/soak.py --minutes 30 --rate 50000
    python benchmarks/soak.py --minutes 60 --rate 50000 --mixed --limit 512
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from throughput import FIELDS, PARTITIONS, TOPIC, D, K

MODEL = "soak"
SAMPLE_SECONDS = 5.0
FLAT = 0.02
KEPT_BYTES = 256 << 20  # of each partition


def feed(bootstrap, rate, seconds):
    """Write points at a steady rate, and print how many were acknowledged."""
    import kafka
    import orjson

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(K, D)) * 10
    rows = np.round(centres[rng.integers(K, size=200_000)] + rng.normal(size=(200_000, D)), 6).tolist()
    values = [orjson.dumps(dict(zip(FIELDS, row, strict=True))) for row in rows]
    producer = kafka.KafkaProducer(
        bootstrap_servers=bootstrap, linger_ms=50, batch_size=1 << 18, acks=1, enable_idempotence=False
    )
    began, sent, last = time.monotonic(), 0, []
    while (now := time.monotonic() - began) < seconds:
        due = int(now * rate)
        last = []
        for i in range(sent, due):
            last.append(producer.send(TOPIC, values[i % len(values)], partition=i // 1000 % PARTITIONS))
        sent = due
        time.sleep(0.02)
    producer.flush()
    for future in last:
        future.get(30)
    print(sent)


BATCH, BATCHES = 1000, 40
LONG = 100_000


def mixed_batches():
    """Record batches as bytes, made once: making each anew would take more of the machine than to consume it."""
    import orjson
    from kafka.record.memory_records import MemoryRecordsBuilder

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(K, D)) * 10
    for _ in range(BATCHES):
        builder = MemoryRecordsBuilder(magic=2, compression_type=4, batch_size=1 << 30)  # zstd
        for i, row in enumerate(
            np.round(centres[rng.integers(K, size=BATCH)] + rng.normal(size=(BATCH, D)), 6).tolist()
        ):
            record = dict(zip(FIELDS, row, strict=True))
            if i % 10 == 5:
                record["note"] = "x" * LONG
            value = b"not json" if i % 100 == 0 else orjson.dumps(record)
            builder.append(int(time.time() * 1000), None, value, [])
        builder.close()
        yield bytes(builder.buffer())


def feed_mixed(bootstrap, rate, seconds):
    """Write the same batches again and again at a steady rate, and print how many records were acknowledged."""
    batches = list(mixed_batches())
    host, port = bootstrap.split(":")
    topic = struct.pack(">h", len(TOPIC)) + TOPIC.encode()
    with socket.create_connection((host, int(port))) as connection:
        answers = connection.makefile("rb")
        began, sent, unread = time.monotonic(), 0, 0
        while (now := time.monotonic() - began) < seconds:
            while sent < int(now * rate / BATCH):
                batch = batches[sent % BATCHES]
                # Produce, version 7: no client id, no transaction, acks of the leader, 30 s, one topic, one partition.
                body = struct.pack(">hhihhhii", 0, 7, sent, -1, -1, 1, 30_000, 1) + topic
                body += struct.pack(">iii", 1, sent % PARTITIONS, len(batch)) + batch
                connection.sendall(struct.pack(">i", len(body)) + body)
                sent, unread = sent + 1, unread + 1
                if unread > 8:
                    unread -= answered(answers)
            time.sleep(0.01)
        while unread:
            unread -= answered(answers)
    print(sent * BATCH)


def answered(answers):
    """Read one answer, which must not be an error."""
    (size,) = struct.unpack(">i", answers.read(4))
    body = answers.read(size)
    (length,) = struct.unpack_from(">h", body, 8)
    (error,) = struct.unpack_from(">h", body, 10 + length + 8)
    assert error == 0, f"Kafka's error {error}"
    return 1


def limited(mebibytes):
    """Make a memory cgroup of its own; give words that start a command in it, and where its peak can be read."""
    if not mebibytes:
        return [], None
    group = Path("/sys/fs/cgroup/memory", f"streamkm-soak-{os.getpid()}")
    if group.parent.is_dir():
        limit, peak = "memory.limit_in_bytes", "memory.max_usage_in_bytes"
    else:
        group = Path("/sys/fs/cgroup", group.name)
        limit, peak = "memory.max", "memory.peak"
    group.mkdir()
    (group / limit).write_text(str(mebibytes << 20))
    return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"'], group / peak


def resident(pid):
    """Resident memory of a process, MB."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def size_of(url):
    """Bytes of a store: an SQLite file with its log, or PostgreSQL's tables with their indexes."""
    from streamkm.stores import open_store
    from streamkm.stores.sql.schema import metadata

    if url.startswith("sqlite:///"):
        file = Path(url.removeprefix("sqlite:///"))
        return sum(f.stat().st_size for f in (file, file.with_name(f"{file.name}-wal")) if f.exists())
    import sqlalchemy as sa

    with contextlib.closing(open_store(url)) as store, store.engines.reader.connect() as tx:
        sizes = [sa.select(sa.func.pg_total_relation_size(name)) for name in metadata.tables]
        return sum(tx.execute(s).scalar() for s in sizes)


def sample(url, pid, began):
    """What is noted."""
    from streamkm.errors import NotFoundError
    from streamkm.stores import open_store

    records = lag = 0
    with contextlib.suppress(NotFoundError), contextlib.closing(open_store(url)) as store:
        info = store.model(MODEL)
        if info.progress:
            records, lag = info.progress.counters.records, info.progress.lag
    return {
        "at": time.monotonic() - began,
        "resident_mb": resident(pid),
        "store_mb": size_of(url) / 1e6,
        "records": records,
        "lag": lag,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=int, default=50_000, help="records a second")
    parser.add_argument("--store", help="URL of a store; an SQLite file of its own if not given")
    parser.add_argument("--json", type=Path, help="write the samples to this file")
    parser.add_argument("--mixed", action="store_true", help="bad records and long ones among the others")
    parser.add_argument("--limit", type=int, default=0, help="memory of the consumer, MiB; 0: no limit")
    parser.add_argument("--feed", help=argparse.SUPPRESS)
    a = parser.parse_args()
    seconds = 60 * a.minutes
    if a.feed:
        (feed_mixed if a.mixed else feed)(a.feed, a.rate, seconds)
        return

    from kafka.admin import KafkaAdminClient, NewTopic

    from streamkm.broker import LocalBroker

    with LocalBroker() as broker, tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
            keep = {"retention.bytes": str(KEPT_BYTES), "segment.bytes": str(KEPT_BYTES // 4)}
            admin.create_topics([NewTopic(TOPIC, num_partitions=PARTITIONS, replication_factor=1, topic_configs=keep)])
        url = a.store or f"sqlite:///{folder}/soak.db"
        enter, peak = limited(a.limit)
        log = Path(folder, "live.log").open("w")  # noqa: SIM115 - as long as the process
        live = subprocess.Popen(
            [
                *enter, sys.executable, "-m", "consumers", "live", MODEL, "--bootstrap", broker.bootstrap,
                "--topic", TOPIC, "--fields", ",".join(FIELDS), "--k", str(K), "--store", url,
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
        command = [sys.executable, __file__, "--feed", broker.bootstrap, "--rate", str(a.rate)]
        command += ["--mixed"] if a.mixed else []
        writer = subprocess.Popen([*command, "--minutes", str(a.minutes)], stdout=subprocess.PIPE, text=True)
        began, samples = time.monotonic(), []
        while writer.poll() is None:
            assert live.poll() is None, Path(folder, "live.log").read_text()[-3000:]
            samples.append(sample(url, live.pid, began))
            if len(samples) % 12 == 0:
                s = samples[-1]
                print(
                    f"{s['at'] / 60:5.1f} min  resident {s['resident_mb']:6.1f} MB  store {s['store_mb']:6.2f} MB"
                    f"  {s['records']:>12,} records  lag {s['lag']:,}",
                    flush=True,
                )
            time.sleep(SAMPLE_SECONDS)
        written = int(writer.communicate()[0])
        ended = time.monotonic()
        while (last := sample(url, live.pid, began))["records"] < written and time.monotonic() - ended < 60:
            time.sleep(0.5)
        live.send_signal(signal.SIGTERM)
        assert live.wait(60) == 0, Path(folder, "live.log").read_text()[-3000:]
        log.close()
        if peak is not None:
            print(f"peak of the cgroup, page cache included: {int(peak.read_text()) >> 20} of {a.limit} MiB")
            peak.parent.rmdir()
    means = [
        statistics.mean(s["resident_mb"] for s in samples if seconds * i / 3 <= s["at"] < seconds * (i + 1) / 3)
        for i in range(3)
    ]
    change = means[2] / means[1] - 1.0
    print(f"{written:,} written, {last['records']:,} counted, {written / seconds:,.0f} a second")
    print(f"resident, thirds: {', '.join(f'{m:.1f}' for m in means)} MB; last against the one before {change:+.2%}")
    third = [s["store_mb"] for s in samples if s["at"] >= 2 * seconds / 3]
    print(f"store: {third[0]:.2f} to {third[-1]:.2f} MB in the last third")
    if a.json:
        a.json.write_text(json.dumps({"written": written, "means_mb": means, "samples": samples}, indent=1))
    sys.exit(0 if written == last["records"] and abs(change) <= FLAT else 1)


if __name__ == "__main__":
    main()
