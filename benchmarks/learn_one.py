"""Points per second of ``learn_one`` against river's ``KMeans``, side by side in one run.

    python benchmarks/learn_one.py [--reps 41] [--json FILE]

Both learn the same points in short turns, in an order that alternates, and a ratio is taken within a repetition, so
that a busy moment of the machine meets both; the table shows medians. Nobody's first points are timed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

GOAL_AT, GOAL = (8, 16), 3.0
TURN = 500


def points(d: int, k: int, n: int) -> list[dict[str, float]]:
    rng = np.random.default_rng(0)
    X = rng.normal(0, 2, (k, d))[rng.integers(0, k, n)] + rng.normal(size=(n, d))
    return [{f"x{t}": v for t, v in enumerate(x)} for x in X.tolist()]


def compare(d: int, k: int, reps: int) -> dict[str, Any]:
    """One row of the table."""
    from river import cluster

    from streamkm import OnlineKMeans

    stream = points(d, k, 4000)
    models = {"ours": OnlineKMeans(k), "river": cluster.KMeans(k, seed=0)}
    for model in models.values():
        for x in stream:
            model.learn_one(x)
    times: dict[str, list[float]] = {name: [] for name in models}
    for r in range(reps):
        turn = stream[r * TURN % len(stream) :][:TURN]
        for name in sorted(models, reverse=r % 2 == 1):
            learn = models[name].learn_one
            start = time.perf_counter()
            for x in turn:
                learn(x)
            times[name].append((time.perf_counter() - start) / len(turn))
    ratio = statistics.median(r / o for r, o in zip(times["river"], times["ours"], strict=True))
    micros = {name: statistics.median(t) * 1e6 for name, t in times.items()}
    return {"d": d, "k": k, "microseconds": micros, "times_river": ratio}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reps", type=int, default=41)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    rows = []
    print(f"{'d':>4} {'k':>4} {'ours us':>9} {'river us':>9} {'x river':>8} {'goal':>5}")
    for d, k in ((2, 4), (8, 16), (32, 64)):
        row = compare(d, k, arguments.reps)
        goal = GOAL if (d, k) == GOAL_AT else None
        rows.append(row | {"goal": goal, "reached": goal is None or row["times_river"] >= goal})
        us = row["microseconds"]
        print(f"{d:>4} {k:>4} {us['ours']:>9.1f} {us['river']:>9.1f} {row['times_river']:>8.2f} {goal or '':>5}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"reps": arguments.reps, "rows": rows}, indent=1))
    return 0 if all(row["reached"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
