"""Fit a file of points that is larger than the memory it may use, and the same points in memory: bits, time, residency.

Each fit runs in a process of its own; what is resident is the largest that the kernel saw of it, mapped pages included.
To aim at, with 50 million points of 8 float32 (1.6 GB) and ``--memory 512``: under 700 MB resident, at most 3 times as
long as in memory, and the same centroids to the bit.

Example::

    python benchmarks/out_of_core.py --rows 50000000 --memory 512 --folder scratch
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

D = 8
CLUSTERS = 64
BLOCK = 1 << 20


def make(path: Path, rows: int, spread: float) -> None:
    """Write points around 64 centres."""
    from streamkm.recompute.pointfile import PointFile

    rng = np.random.default_rng(8)
    centres = rng.uniform(-1.0, 1.0, (CLUSTERS, D)).astype(np.float32)
    with PointFile.create(path, [f"x{t}" for t in range(D)]) as file:
        for start in range(0, rows, BLOCK):
            m = min(BLOCK, rows - start)
            noise = rng.standard_normal((m, D), np.float32) * np.float32(spread)
            file.append(centres[rng.integers(0, CLUSTERS, m)] + noise)
        file.finish()


def fit(pipe: Connection, path: Path, memory: int | None, args: argparse.Namespace) -> None:
    """Fit once, and say how it went."""
    from streamkm.recompute.fitting import FitProgress, fit_points
    from streamkm.recompute.pointfile import PointFile

    steps: list[tuple[float, int]] = []

    def on_progress(progress: FitProgress) -> None:
        steps.append((time.perf_counter(), progress.rows_read))

    fit_points(np.random.default_rng(0).random((20_000, D), np.float32), n_clusters=args.k, max_iter=2)  # compile
    at_start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with PointFile.open(path) as file:
        source: Any = file
        if memory is None:
            source = np.array(file.points)
            file.close()
        begin = time.perf_counter()
        done = fit_points(
            source,
            n_clusters=args.k,
            init=args.init,
            max_iter=args.iterations,
            memory=memory,
            n_threads=args.threads,
            on_progress=on_progress,
        )
        seconds = time.perf_counter() - begin
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send(
        {
            "seconds": round(seconds, 2),
            "to_first_iteration": round(steps[0][0] - begin, 2),
            "seconds_per_iteration": round((steps[-1][0] - steps[0][0]) / max(1, len(steps) - 1), 3),
            "iterations": done.n_iter,
            "stopped": done.stopped,
            "resident_MB": usage.ru_maxrss // 1024,
            "resident_MB_before": at_start // 1024,
            "rows_read": [rows for _, rows in steps],
            "result": hashlib.sha256(done.centroids.tobytes() + np.float64(done.inertia).tobytes()).hexdigest()[:16],
        }
    )


def run(path: Path, memory: int | None, args: argparse.Namespace) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=fit, args=(theirs, path, memory, args))
    process.start()
    theirs.close()
    try:
        result: dict[str, Any] = ours.recv()
    finally:
        process.join()
    name = "in memory" if memory is None else f"{memory >> 20} MB"
    print(f"{name:>10}: {json.dumps(result)}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--memory", type=int, default=512, help="MB")
    parser.add_argument("--k", type=int, default=CLUSTERS)
    parser.add_argument("--init", default="k-means++")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--spread", type=float, default=0.15, help="of points around their centres")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="takes three times the points")
    parser.add_argument("--json", type=Path, help="write results here")
    args = parser.parse_args()
    path = args.folder / f"points-{args.rows}-{args.spread}.skm"
    if not path.exists():
        make(path, args.rows, args.spread)
    print(f"{args.rows} x {D} float32, {path.stat().st_size / 1e9:.2f} GB, k {args.k}, {args.threads} threads")
    results = {"out of core": run(path, args.memory << 20, args), "in memory": run(path, None, args)}
    outside, inside = results["out of core"], results["in memory"]
    print(f"time: {outside['seconds'] / inside['seconds']:.2f} of that in memory")
    print(f"same bits: {outside['result'] == inside['result']}")
    if args.json is not None:
        args.json.write_text(json.dumps({"rows": args.rows, "memory_MB": args.memory, **results}, indent=2))


if __name__ == "__main__":
    main()
