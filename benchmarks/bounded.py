"""Memory of a consumer that reads records which become a thousand times what they are on the wire.

A topic gets a few hundred kilobytes of batches, compressed by zstd, whose valid records are nearly a megabyte of JSON
each, most of it white space. `streamkm live` learns them, and after each run this says what it took at most; the base
is the same consumer on as many records without the white space.

    python benchmarks/bounded.py --json FILE
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
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


def fill(bootstrap: str, data: Path, topic: str, records: int, size: int) -> int:
    """Write records of `size` bytes; the compressed bytes of the topic."""
    with contextlib.closing(
        kafka.KafkaProducer(
            bootstrap_servers=bootstrap,
            compression_type="zstd",
            linger_ms=1000,
            batch_size=64 << 20,
            max_request_size=256 << 20,
        )
    ) as producer:
        for i in range(records):
            text = f'{{"x": {i % 7}, "y": {100 * (i % 2)}'.encode()
            producer.send(topic, text.ljust(max(len(text), size - 1)) + b"}", partition=0)
            if i % 30 == 29:
                producer.flush(60)
        producer.flush(60)
    return sum(log.stat().st_size for log in data.rglob(f"{topic}-0/*.log"))


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
        for topic, size in (("base", 0), ("dense", a.size)):
            with contextlib.closing(kafka.KafkaAdminClient(bootstrap_servers=broker.bootstrap)) as admin:
                configs = {"max.message.bytes": str(64 << 20)}
                spec = {"num_partitions": 1, "replication_factor": 1, "configs": configs}
                admin.create_topics({topic: spec}, wait_for_metadata=True)
            wire = fill(broker.bootstrap, Path(name), topic, a.records, size)
            peaks[topic], took = peak(broker.bootstrap, topic, a.records, folder)
            print(f"{topic}: {a.records} records, {wire / 1e3:.0f} kB: peak {peaks[topic]:.0f} MB, {took:.1f} s")
    ratio = peaks["dense"] / peaks["base"]
    print(f"{ratio:.2f} times the base (goal: {GOAL})")
    if a.json:
        a.json.write_text(json.dumps({"ratios": {"peak": ratio}, "goals": {"peak": GOAL}}))


if __name__ == "__main__":
    main()
