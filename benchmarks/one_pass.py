"""How good one pass is: `OnlineKMeans` against batch K-Means, `partial_fit` and river, side by side.

    python benchmarks/one_pass.py [--data FOLDER] [--reference FILE] [--seeds 10] [--sections quality,drift]

quality      Streams in the order of their file, in batches of 4096, one thread each. A ratio is the cost of the
             published centroids on all rows over that of the best of ten Lloyd runs. `pass` is the points/s of the
             pass, all scheduled re-solves included, over `partial_fit`'s in the same run, its turn and ours taking
             turns; `incl` counts the publication at the end too, which is as much work as hundreds of thousands of
             points; `long` is `incl` with the file repeated to 600,000 rows.
drift        Half-lives after an abrupt change until the live centroids cost at most 5 % more than the new optimum.
ids          Share of fixed rows that keep their id from one publication to the next, and events, on shuffled rows.
determinism  Hashes of states: run again, restored four times in mid-stream, with one thread and with two.

Best-of-ten costs take minutes: they are kept in the file given by --reference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from one_pass_sets import Case, Rows, cases

from streamkm import OnlineKMeans
from streamkm.state import ModelState

BATCH = 4096
LONG = 600_000
MEAN_GOAL, WORST_GOAL = 1.010, 1.046


def batches(X: Rows, size: int = BATCH) -> list[Rows]:
    return [X[i : i + size] for i in range(0, len(X), size)]


def inertia(X: Rows, centroids: Rows) -> float:
    """Sum of squared distances to the nearest centroid; direct differences, in blocks."""
    total = 0.0
    for block in batches(np.ascontiguousarray(X), 2048):
        nearest = np.full(len(block), np.inf)
        for c in centroids:
            difference = block - c
            np.minimum(nearest, np.einsum("ij,ij->i", difference, difference), out=nearest)
        total += float(nearest.sum())
    return total


def best_of_ten(name: str, X: Rows, k: int, file: Path | None) -> float:
    from sklearn.cluster import KMeans

    known = json.loads(file.read_text()) if file is not None and file.exists() else {}
    key = f"{name}:{k}"
    if key not in known:
        runs = (KMeans(k, n_init=1, max_iter=300, tol=1e-6, random_state=s).fit(X) for s in range(10))
        known[key] = min(inertia(X, r.cluster_centers_) for r in runs)
        if file is not None:
            file.write_text(json.dumps(known, indent=1))
    return float(known[key])


def ours(parts: list[Rows], k: int, seed: int) -> tuple[float, float, OnlineKMeans]:
    """Seconds of the pass, seconds with the publication, and the model."""
    model = OnlineKMeans(k, seed=seed)
    start = time.perf_counter()
    for X in parts:
        model.learn_many(X)
    learned = time.perf_counter() - start
    model.publish()
    return learned, time.perf_counter() - start, model


def partial_fit(parts: list[Rows], k: int, seed: int) -> tuple[float, Rows]:
    from sklearn.cluster import MiniBatchKMeans

    model = MiniBatchKMeans(k, batch_size=BATCH, random_state=seed)
    start = time.perf_counter()
    for X in parts:
        model.partial_fit(X)
    return time.perf_counter() - start, model.cluster_centers_


def river_pass(X: Rows, k: int, rows: int) -> float:
    """Ratio-free cost of river's KMeans after the first rows, the way a river user would run it."""
    from river import cluster

    model = cluster.KMeans(k, seed=0)
    for x in X[:rows].tolist():
        model.learn_one(dict(enumerate(x)))
    return inertia(X, np.array([[c[t] for t in range(X.shape[1])] for c in model.centers.values()]))


def quality(case: Case, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    X = case.load()
    found = []
    for k in case.ks:
        reference = best_of_ten(case.name, X, k, arguments.reference)
        parts = batches(X)
        ours(parts, k, 0)  # compiles
        ratios, theirs, speeds, whole, rows = [], [], [], [], 0
        for seed in range(arguments.seeds):
            learned, seconds, model = ours(parts, k, seed)
            peer_seconds, peer = partial_fit(parts, k, seed)
            assert model.published_ is not None
            ratios.append(inertia(X, model.published_.centroids) / reference)
            theirs.append(inertia(X, peer) / reference)
            speeds.append(peer_seconds / learned)
            whole.append(peer_seconds / seconds)
            rows = max(rows, len(model.coreset_))
        long = []
        if arguments.long:
            many = parts * -(-LONG // len(X))
            for seed in range(arguments.long):
                _, seconds, _ = ours(many, k, seed)
                long.append(partial_fit(many, k, seed)[0] / seconds)
        row = {
            "set": case.name,
            "k": k,
            "rows": len(X),
            "mean": statistics.mean(ratios),
            "worst": max(ratios),
            "peer": statistics.mean(theirs),
            "pass": statistics.median(speeds),
            "incl": statistics.median(whole),
            "long": statistics.median(long) if long else None,
            "coreset": rows,
            "river": river_pass(X, k, arguments.river) / reference if arguments.river else None,
        }
        found.append(row)
        print(f"{case.name:<12} {k:>4} {len(X):>8,} {row['mean']:>8.4f} {row['worst']:>8.4f} ", end="")
        print(
            f"{row['peer']:>9.3f} {row['river'] or float('nan'):>8.2f} {row['pass']:>6.2f} {row['incl']:>6.2f} ", end=""
        )
        print(f"{row['long'] or float('nan'):>6.2f} {row['coreset']:>8}", flush=True)
    return found


def section_quality(arguments: argparse.Namespace) -> bool:
    print(f"{'set':<12} {'k':>4} {'rows':>8} {'mean':>8} {'worst':>8} {'part.fit':>9} {'river':>8} ", end="")
    print(f"{'pass':>6} {'incl':>6} {'long':>6} {'coreset':>8}")
    rows = [row for case in arguments.cases for row in quality(case, arguments)]
    mean, worst = statistics.mean(r["mean"] for r in rows), max(r["worst"] for r in rows)
    print(f"mean over sets {mean:.4f} (goal {MEAN_GOAL}), worst run {worst:.4f} (goal {WORST_GOAL})")
    arguments.report["quality"] = rows
    small = all(r["coreset"] <= max(8000, 200 * r["k"]) for r in rows)
    return mean <= MEAN_GOAL and worst <= WORST_GOAL and small


def section_drift(arguments: argparse.Namespace) -> bool:
    """An abrupt change of everything, as hard as it gets: ten clusters elsewhere."""
    n, d, k, batch = 200_000, 5, 10, 1024
    good = True
    print(f"{'on_drift':<10} {'half-life':>10} {'half-lives until within 5 %':>30}")
    for half_life in (10_000.0, 50_000.0):
        for on_drift, goal in (("resolve", 7.0), ("forget", 1.0)):
            times = []
            for seed in range(min(5, arguments.seeds)):
                rng = np.random.default_rng(seed)
                before, after = (
                    rng.normal(0, 8, (k, d))[rng.integers(0, k, m)] + rng.normal(size=(m, d))
                    for m in (n, int(goal * half_life) + n // 2)
                )
                optimum = ours(batches(after, batch), k, seed)[2].publish().centroids
                target = 1.05 * inertia(after, optimum)
                model = OnlineKMeans(k, half_life=half_life, on_drift=on_drift, seed=seed)
                for X in batches(before, batch):
                    model.learn_many(X)
                learned, reached = 0, float("inf")
                for X in batches(after, batch):
                    model.learn_many(X)
                    learned += len(X)
                    if learned % (4 * batch) == 0 and inertia(after[::16], model.centers_) * 16 <= target:
                        reached = learned / half_life
                        break
                times.append(reached)
            good &= max(times) <= goal
            print(
                f"{on_drift:<10} {half_life:>10,.0f} {statistics.median(times):>14.2f} median, {max(times):.2f} worst"
            )
    return good


def section_ids(arguments: argparse.Namespace) -> bool:
    good = True
    print(f"{'set':<12} {'k':>4} {'half-life':>10} {'rows that keep their id':>24} {'least':>7} {'events':>7}")
    for case in arguments.cases:
        X = np.random.default_rng(0).permutation(case.load())
        fixed = X[:20_000]
        stream = np.concatenate([np.random.default_rng(s).permutation(X) for s in range(-(-614_400 // len(X)))])
        for k in case.ks:
            for half_life in (None, 40_000.0):
                model = OnlineKMeans(k, half_life=half_life)
                kept, events, before = [], 0, None
                for at in range(0, 614_400, 20_480):
                    for part in batches(stream[at : at + 20_480]):
                        model.learn_many(part)
                    events += len(model.publish().events)
                    labels = model.predict_many(fixed)
                    if before is not None:
                        kept.append(float((labels == before).mean()))
                    before = labels
                good &= statistics.mean(kept) >= 0.99 and not events
                print(f"{case.name:<12} {k:>4} {half_life or 0:>10,.0f} {statistics.mean(kept):>24.4f} ", end="")
                print(f"{min(kept):>7.3f} {events:>7}", flush=True)
    return good


def section_determinism(arguments: argparse.Namespace) -> bool:
    import numba

    def learn(X: Rows, restore_every: int = 0, *, threads: int = 1) -> str:
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
        model = OnlineKMeans(8, half_life=50_000)
        parts = batches(X)
        for i, part in enumerate(parts):
            if restore_every and i % restore_every == restore_every - 1:
                model = OnlineKMeans.from_state(ModelState.from_bytes(model.state().to_bytes()))
            model.learn_many(part)
            if i % 16 == 15:
                model.publish()
        return hashlib.sha256(model.state().to_bytes()).hexdigest()

    good = True
    for case in arguments.cases:
        X = case.load()[:200_000]
        quarter = max(2, len(batches(X)) // 5)
        hashes = {learn(X), learn(X), learn(X, quarter), learn(X, threads=2)}
        good &= len(hashes) == 1
        print(f"{case.name:<12} {'equal' if len(hashes) == 1 else 'DIFFERENT'}  {min(hashes)[:16]}", flush=True)
    return good


SECTIONS = {
    "quality": section_quality,
    "drift": section_drift,
    "ids": section_ids,
    "determinism": section_determinism,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = os.environ.get("STREAMKM_DATA")
    parser.add_argument("--data", type=Path, default=Path(data) if data else None, metavar="FOLDER")
    parser.add_argument("--reference", type=Path, metavar="FILE", help="where best-of-ten costs are kept")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--long", type=int, default=3, help="repetitions on streams of 600,000 rows; 0: none")
    parser.add_argument("--river", type=int, default=20_000, help="rows that river learns; 0: none")
    parser.add_argument("--sets", default="", help="names, separated by commas; all if empty")
    parser.add_argument("--sections", default=",".join(SECTIONS))
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    wanted = set(filter(None, arguments.sets.split(",")))
    arguments.cases = [c for c in cases(arguments.data) if not wanted or c.name in wanted]
    arguments.report = {}
    good = True
    for name in arguments.sections.split(","):
        print(f"== {name}")
        good &= SECTIONS[name](arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(arguments.report, indent=1))
    print("all goals reached" if good else "a goal was missed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
