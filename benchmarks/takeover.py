"""How long a model stands still when its owner goes: killed or ended beside a standby, or ended and started again.

Real processes, a real broker, records all the time. The clock starts with the signal (with the new process where one is
started again) and stops when the store has more records than before: learned and committed, not merely connected.

    python benchmarks/takeover.py --rounds 10 --lease 2
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from soak import FIELDS, TOPIC, K
from throughput import PARTITIONS

MODEL, RATE = "takeover", 2000


class Owners:
    """Processes that want to own the model."""

    def __init__(self, folder, bootstrap, url, lease):
        self.folder, self.url, self.started = folder, url, 0
        self.command = [
            sys.executable, "-m", "consumers", "live", MODEL, "--bootstrap", bootstrap, "--topic", TOPIC, "--fields",
            ",".join(FIELDS), "--k", str(K), "--store", url, "--lease", f"{lease}s", "--checkpoint-every", "100ms",
        ]  # fmt: skip

    def start(self):
        self.started += 1
        log = Path(self.folder, f"{self.started}.log")
        with log.open("w") as out:
            return subprocess.Popen(self.command, stdout=out, stderr=out), log

    def standby(self):
        process, log = self.start()
        wait(lambda: "standing by" in log.read_text(), log)
        return process

    def records(self):
        from streamkm.errors import NotFoundError
        from streamkm.stores import open_store

        with contextlib.suppress(NotFoundError), contextlib.closing(open_store(self.url)) as store:
            progress = store.model(MODEL).progress
            return progress.counters.records if progress else 0
        return 0

    def next_commit(self):
        before = self.records()
        wait(lambda: self.records() > before)


def wait(condition, log=None):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, log.read_text() if log else "nothing came"
        time.sleep(0.01)


def rounds(owners, n):
    """Seconds of each kind."""
    took = {"killed, beside a standby": [], "ended, beside a standby": [], "ended and started again": []}
    owner = owners.start()[0]
    owners.next_commit()
    for _ in range(n):
        for kind, number in (("killed", signal.SIGKILL), ("ended", signal.SIGTERM)):
            standby = owners.standby()
            began = time.monotonic()
            owner.send_signal(number)
            owner.wait(30)
            owners.next_commit()
            took[f"{kind}, beside a standby"].append(time.monotonic() - began)
            owner = standby
        owner.send_signal(signal.SIGTERM)
        owner.wait(30)
        began = time.monotonic()
        owner = owners.start()[0]
        owners.next_commit()
        took["ended and started again"].append(time.monotonic() - began)
    owner.terminate()
    owner.wait(30)
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lease", type=float, default=2.0, help="seconds")
    parser.add_argument("--store", help="URL of a store; an SQLite file of its own if not given")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    a = parser.parse_args()

    from streamkm.broker import LocalBroker

    with LocalBroker() as broker, tempfile.TemporaryDirectory() as folder:
        broker.create_topic(TOPIC, PARTITIONS)
        feed = Path(__file__).with_name("soak.py")
        command = [sys.executable, str(feed), "--feed", broker.bootstrap, "--rate", str(RATE), "--minutes", "600"]
        writer = subprocess.Popen(command)
        try:
            took = rounds(Owners(folder, broker.bootstrap, a.store or f"sqlite:///{folder}/s.db", a.lease), a.rounds)
        finally:
            writer.kill()
    for kind, seconds in took.items():
        print(f"{kind:<26} median {statistics.median(seconds):.2f} s, worst {max(seconds):.2f} s")
    print(f"lease {a.lease:g} s")
    if a.json:
        a.json.write_text(json.dumps({"lease": a.lease, "seconds": took}, indent=2))


if __name__ == "__main__":
    main()
