"""Memory of a consumer that reads records which become a thousand times what they are on the wire.

A topic gets a few hundred kilobytes of batches, compressed by zstd, whose valid records are nearly a megabyte of JSON
each, most of it white space; another gets one batch of 340 records of more than 256 MiB in all. `streamkm live` learns
them, and the program prints its peak memory; the base is the same consumer on as many records as in the first topic,
without the white space.

    python benchmarks/bounded.py --json FILE
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import kafka

from streamkm.broker import LocalBroker
from streamkm.errors import NotFoundError
from streamkm.stores import open_store

GOAL = 1.5
SMALL_BATCH = 30
LARGE_BATCH, LARGE_SIZE = 340, 800_000
"""Records of the large batch, more than 256 MiB in all, and bytes of each record."""


def fill(bootstrap: str, data: Path, topic: str, records: int, size: int, batch: int) -> list[int]:
    """Write records of `size` bytes in batches of `batch` records; returns the bytes of each batch on disk."""
    with contextlib.closing(
        kafka.KafkaProducer(
            bootstrap_servers=bootstrap,
            compression_type="zstd",
            linger_ms=60_000,  # `flush` ends a batch
            batch_size=2 * batch * max(size, 1000),
            max_request_size=512 << 20,
        )
    ) as producer:
        for i in range(records):
            text = f'{{"x": {i % 7}, "y": {100 * (i % 2)}'.encode()
            producer.send(topic, text.ljust(max(len(text), size - 1)) + b"}", partition=0)
            if i % batch == batch - 1:
                producer.flush(60)
        producer.flush(60)
    (log,) = data.rglob(f"{topic}-0/*.log")
    return batches(log.read_bytes())


def batches(log: bytes) -> list[int]:
    """Bytes of each record batch of a log segment."""
    found, at = [], 0
    while at + 12 <= len(log) and (length := struct.unpack_from(">i", log, at + 8)[0]):
        found.append(12 + length)
        at += found[-1]
    return found


def peak(bootstrap: str, topic: str, records: int, folder: Path) -> tuple[float, float]:
    """Peak resident MB of a consumer that learns all records, and the seconds it took."""
    url = f"sqlite:///{folder}/{topic}.db"
    command = ["live", "m", "--store", url, "--bootstrap", bootstrap, "--topic", topic, "--fields", "x,y", "--k", "2"]
    with (folder / f"{topic}.log").open("w") as log:
        started = time.monotonic()
        child = subprocess.Popen([sys.executable, "-m", "consumers", *command], stderr=log)
        try:
            while counted(url) < records:
                if child.poll() is not None:
                    raise SystemExit(Path(log.name).read_text())
                time.sleep(0.2)
            took = time.monotonic() - started
            status = Path(f"/proc/{child.pid}/status").read_text()
        finally:
            child.terminate()
            child.wait(30)
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1000, took


def counted(url: str) -> int:
    """Records that a model has read."""
    with contextlib.closing(open_store(url)) as store, contextlib.suppress(NotFoundError):
        progress = store.model("m").progress
        return progress.counters.records if progress is not None else 0
    return 0


def main() -> None:
    """Print, and write, the ratio of the two peaks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--size", type=int, default=900_000, help="bytes of a record")
    parser.add_argument("--json", type=Path)
    a = parser.parse_args()
    os.environ["PYTHONUNBUFFERED"] = "1"
    with tempfile.TemporaryDirectory() as name, LocalBroker(data_dir=Path(name) / "kafka") as broker:
        folder, peaks = Path(name), {}
        for topic, records, size, batch in (
            ("base", a.records, 0, SMALL_BATCH),
            ("dense", a.records, a.size, SMALL_BATCH),
            ("one-batch", LARGE_BATCH, LARGE_SIZE, LARGE_BATCH),
        ):
            with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
                configs = {"max.message.bytes": str(64 << 20)}
                spec = {"num_partitions": 1, "replication_factor": 1, "configs": configs}
                admin.create_topics({topic: spec}, wait_for_metadata=True)
            wire = fill(broker.bootstrap, Path(name), topic, records, size, batch)
            peaks[topic], took = peak(broker.bootstrap, topic, records, folder)
            written = f"{records} records in {len(wire)} batches, {sum(wire) / 1e3:.0f} kB"
            print(f"{topic}: {written}: peak {peaks[topic]:.0f} MB, {took:.1f} s", flush=True)
    ratios = {topic: peaks[topic] / peaks["base"] for topic in ("dense", "one-batch")}
    print(", ".join(f"{topic} {ratio:.2f}" for topic, ratio in ratios.items()), f"times the base (goal: {GOAL})")
    if a.json:
        a.json.write_text(json.dumps({"ratios": ratios, "goals": dict.fromkeys(ratios, GOAL)}))


if __name__ == "__main__":
    main()
