"""What checkpoints cost: the whole job with one each second beside the same with one each minute, on each store.

All four read the same topic from its beginning to its end, each in a process of its own, and take turns; what counts is
the ratio within a round. Snapshots come every ten seconds in all of them.

    python benchmarks/commits.py --records 10000000 --postgres postgresql://user:password@host/database
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from throughput import fill, streamkm

SECOND, MINUTE = 1.0, 60.0
EXPECTED = 0.95


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--postgres", metavar="URL", help="a database whose tables may be used; without it SQLite only")
    parser.add_argument("--bootstrap", help="a broker to use; a local one is started if not given")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--every", type=float, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.every:
        print(streamkm(a.bootstrap, a.records, a.postgres, a.every))
        return
    stores = {"sqlite": None, **({"postgres": a.postgres} if a.postgres else {})}
    rates = {(name, every): [] for name in stores for every in (SECOND, MINUTE)}
    with contextlib.ExitStack() as stack:
        if not a.bootstrap:
            from streamkm.broker import LocalBroker

            a.bootstrap = stack.enter_context(LocalBroker()).bootstrap
            print(f"producing {a.records:,} JSON points", flush=True)
            fill(a.bootstrap, a.records)
        for turn in range(a.rounds):
            for name, every in sorted(rates, reverse=turn % 2 == 1):
                rates[name, every].append(rate(a, stores[name], every))
                print(f"  {name:<9} each {every:>4.0f} s{rates[name, every][-1]:>12,.0f} records/s", flush=True)
    ratios = {name: [s / m for s, m in zip(rates[name, SECOND], rates[name, MINUTE], strict=True)] for name in stores}
    for name, found in ratios.items():
        shown = ", ".join(f"{r:.2f}" for r in sorted(found))
        print(f"{name:<9} each second / each minute: {statistics.median(found):.3f} ({shown}; expected {EXPECTED})")
    if a.json:
        told = {name: {str(every): rates[name, every] for every in (SECOND, MINUTE)} for name in stores}
        a.json.write_text(json.dumps({"records": a.records, "rates": told, "ratios": ratios}, indent=2))


def rate(a, url, every):
    """Records a second of one run in a process of its own."""
    command = [sys.executable, __file__, "--every", str(every), "--bootstrap", a.bootstrap, "--records", str(a.records)]
    done = subprocess.run(
        command + (["--postgres", url] if url else []),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout)


if __name__ == "__main__":
    main()
