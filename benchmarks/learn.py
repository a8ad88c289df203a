"""Points per second of ``learn_many`` against scikit-learn's ``partial_fit`` and river, side by side in one run.

    python benchmarks/learn.py [--reps 9] [--json FILE]

Batches of 4096 points, one thread each; scikit-learn also with two. Every repetition gives the same batches to each of
them in turn, in an order that rotates, and a ratio is taken within a repetition, so that a busy moment of the machine
meets both sides; the table shows medians. river learns one point at a time and is so much slower that a few of them do.
Nobody's first pass is timed: it compiles, seeds and allocates.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

BATCH = 4096
SCENARIOS = ((8, 16), (32, 64), (128, 256))
GOALS = {(8, 16): 3.0, (32, 64): 1.8, (128, 256): 1.8}
RIVER_GOAL = 500.0


def stream(d: int, k: int, dtype: str, n_batches: int) -> list[np.ndarray]:
    """Overlapping blobs of unequal size."""
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 2, (k, d))
    shares = rng.dirichlet(np.full(k, 2.0))
    labels = rng.choice(k, BATCH * n_batches, p=shares)
    X = (centers[labels] + rng.normal(size=(len(labels), d))).astype(dtype)
    return [np.ascontiguousarray(X[i : i + BATCH]) for i in range(0, len(X), BATCH)]


def clock(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def river_rate(X: np.ndarray, k: int, seconds: float) -> float:
    from river import cluster

    model = cluster.KMeans(k, seed=0)
    points = [dict(enumerate(x)) for x in X.tolist()]
    model.learn_one(points[0])
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        model.learn_one(points[n % len(points)])
        n += 1
    return n / (time.perf_counter() - start)


def compare(d: int, k: int, dtype: str, reps: int, n_batches: int) -> dict[str, Any]:
    """One row of the table."""
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    from streamkm import OnlineKMeans

    batches = stream(d, k, dtype, n_batches)
    ours = OnlineKMeans(k)
    peers = {threads: MiniBatchKMeans(k, batch_size=BATCH, n_init=1, random_state=0) for threads in (1, 2)}

    def learn() -> None:
        for X in batches:
            ours.learn_many(X)

    def partial_fit(threads: int) -> None:
        with threadpool_limits(threads):
            for X in batches:
                peers[threads].partial_fit(X)

    work = {"ours": learn, "sklearn": lambda: partial_fit(1), "sklearn2": lambda: partial_fit(2)}
    for w in work.values():
        w()
    names = list(work)
    times: dict[str, list[float]] = {name: [] for name in names}
    for r in range(reps):
        for name in names[r % 3 :] + names[: r % 3]:
            times[name].append(clock(work[name]))
    n = BATCH * n_batches
    rate = {name: n / statistics.median(t) for name, t in times.items()}
    ratio = {
        name: statistics.median(p / o for p, o in zip(times[name], times["ours"], strict=True))
        for name in ("sklearn", "sklearn2")
    }
    river = river_rate(batches[0], k, seconds=1.0)
    held_out = stream(d, k, dtype, n_batches + 1)[-1]
    inertia = {
        "ours": float((ours.assign(held_out)[1] ** 2).mean()),
        "sklearn": -float(peers[1].score(held_out)) / len(held_out),
    }
    return {
        "d": d,
        "k": k,
        "dtype": dtype,
        "points_per_second": {**rate, "river": river},
        "times_sklearn": ratio["sklearn"],
        "times_sklearn_2_threads": ratio["sklearn2"],
        "times_river": rate["ours"] / river,
        "held_out_inertia": inertia,
        "goal": GOALS[d, k],
        "reached": ratio["sklearn"] >= GOALS[d, k] and rate["ours"] / river >= RIVER_GOAL,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    print(f"{'d':>4} {'k':>4} {'input':>8} {'ours/s':>12} {'sklearn/s':>11} {'2 thr/s':>11} {'river/s':>9} ", end="")
    print(f"{'x sklearn':>10} {'goal':>5} {'x 2 thr':>8} {'x river':>8} {'inertia ours/sklearn':>21}")
    rows = []
    for d, k in SCENARIOS:
        for dtype in ("float32", "float64"):
            row = compare(d, k, dtype, arguments.reps, n_batches=max(4, 32 * 8 // d))
            rows.append(row)
            rate, inertia = row["points_per_second"], row["held_out_inertia"]
            print(f"{d:>4} {k:>4} {dtype:>8} {rate['ours']:>12,.0f} {rate['sklearn']:>11,.0f} ", end="")
            print(f"{rate['sklearn2']:>11,.0f} {rate['river']:>9,.0f} {row['times_sklearn']:>10.2f} ", end="")
            print(f"{row['goal']:>5} {row['times_sklearn_2_threads']:>8.2f} {row['times_river']:>8,.0f} ", end="")
            print(f"{inertia['ours'] / inertia['sklearn']:>21.3f}", flush=True)
    if arguments.json:
        versions = {name: __import__(name).__version__ for name in ("numpy", "numba", "sklearn", "river")}
        machine = {
            "machine": platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **versions,
        }
        arguments.json.write_text(
            json.dumps({"batch": BATCH, "reps": arguments.reps, "on": machine, "rows": rows}, indent=1)
        )
    return 0 if all(row["reached"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
