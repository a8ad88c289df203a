"""Time exact K-Means beside its peers: same points, same start, float32, to convergence (tol = 0).

Each engine runs in a process of its own, so that no thread pool is in another's way, and they take turns. Shown are
medians, how many times as long each peer takes, what share of labels a float64 brute force over the returned centroids
confirms, and the relative difference of the cost. The ratio to aim at: scikit-learn's lloyd at least 6 (geometric
mean) and nowhere below 1.3; the best peer of each row at least 5 and nowhere below 1.

Peers that are not installed are left out: ``pip install faiss-cpu scikit-learn-intelex mlpack``; china.jpg needs
``pillow``. ELKI's exponion and shallot, which use one thread whatever is asked for, need a JDK (17 or later) and, with
``--elki``, a folder of jars from Maven Central: ``io.github.elki-project:elki-clustering:0.8.0``,
``io.github.elki-project:elki-core-dbids-int:0.8.0`` and what they depend on (``mvn dependency:copy-dependencies`` in a
project with these two dependencies).

Example::

    python benchmarks/exact.py --data 10_cover.npz --threads 1,2 --json exact.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import multiprocessing
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from exact_data import NAMES, Points, load, start
from exact_elki import elki, missing

# centroids, labels, iterations; then the seconds it took, of an engine that takes the time itself
Result = tuple[Any, Any, int] | tuple[Any, Any, int, float]
Run = Callable[[Points, Points, int], Result]

MAX_ITER = 3000
ENGINES = {
    "streamkm": "streamkm",
    "lloyd": "sklearn",
    "elkan": "sklearn",
    "intelex": "sklearnex",
    "faiss": "faiss",
    "mlpack": "mlpack",
    "elki-exponion": None,  # no module of Python: Java
    "elki-shallot": None,
}


def _streamkm(threads: int) -> Run:
    from streamkm.models.exact.estimator import ExactKMeans

    def run(X: Points, C: Points, iterations: int) -> Result:  # noqa: ARG001
        m = ExactKMeans(len(C), init=C, max_iter=MAX_ITER, n_threads=threads).fit(X)
        return m.cluster_centers_, m.labels_, m.n_iter_

    return run


def _compile(X: Points, C: Points) -> None:
    """Two iterations, from scattered and from equal starts: all kernels that a fit may come to need."""
    from streamkm.models.exact.estimator import ExactKMeans

    for init in (C, np.repeat(C[:1], len(C), axis=0)):
        ExactKMeans(len(C), init=init, max_iter=2).fit(X)


def _sklearn(algorithm: str) -> Run:
    from sklearn.cluster import KMeans

    def run(X: Points, C: Points, iterations: int) -> Result:  # noqa: ARG001
        m = KMeans(len(C), init=C, n_init=1, max_iter=MAX_ITER, tol=0, algorithm=algorithm).fit(X)
        return m.cluster_centers_, m.labels_, m.n_iter_

    return run


def _intelex() -> Run:
    from sklearnex.cluster import KMeans

    def run(X: Points, C: Points, iterations: int) -> Result:  # noqa: ARG001
        m = KMeans(len(C), init=C, n_init=1, max_iter=MAX_ITER, tol=0, algorithm="lloyd").fit(X)
        return m.cluster_centers_, m.labels_, m.n_iter_

    return run


def _faiss(threads: int) -> Run:
    import faiss

    faiss.omp_set_num_threads(threads)

    def run(X: Points, C: Points, iterations: int) -> Result:  # it has no test of convergence: it gets our count
        m = faiss.Kmeans(
            X.shape[1], len(C), niter=iterations, max_points_per_centroid=len(X), min_points_per_centroid=1
        )
        m.train(X, init_centroids=C)
        return m.centroids, m.index.search(X, 1)[1].ravel(), iterations

    return run


def _mlpack() -> Run:
    import mlpack

    def run(X: Points, C: Points, iterations: int) -> Result:  # noqa: ARG001
        m = mlpack.kmeans(
            input_=X,
            clusters=len(C),
            initial_centroids=C,
            algorithm="hamerly",
            max_iterations=MAX_ITER,
            labels_only=True,
        )
        return m["centroid"], m["output"].ravel().astype(int), 0

    return run


def engine(name: str, threads: int) -> Run:
    if name == "streamkm":
        return _streamkm(threads)
    if name == "faiss":
        return _faiss(threads)
    if name.startswith("elki-"):
        return elki(name.removeprefix("elki-"), Path(os.environ["STREAMKM_ELKI"]), MAX_ITER)
    return {"intelex": _intelex, "mlpack": _mlpack}.get(name, lambda: _sklearn(name))()


def serve(pipe: Connection, name: str, row: str, cover: Path | None, threads: int) -> None:
    """Run one engine on one data set whenever the parent asks."""
    warnings.filterwarnings("ignore")
    X, k = load(row, cover)
    C = start(X, k)
    run = engine(name, threads)
    if name == "streamkm":
        _compile(X, C)
    # Wake thread pools; ELKI takes its points with the first call, and warms up on them.
    run(X if name.startswith("elki-") else X[: 20 * k].copy(), C, 3)
    pipe.send(None)
    while (iterations := pipe.recv()) is not None:
        begin = time.perf_counter()
        centroids, labels, n_iter, *own = run(X, C, iterations)
        took = own[0] if own else time.perf_counter() - begin
        pipe.send((took, np.asarray(centroids, float), np.asarray(labels), n_iter))


@contextmanager
def started(names: list[str], row: str, cover: Path | None, threads: int) -> Iterator[dict[str, Connection]]:
    """Start a process for each engine."""
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for name in names:
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, name, row, cover, threads), daemon=True))
        processes[-1].start()
        theirs.close()  # or an engine that fails would be waited for
        pipes[name].recv()
    try:
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.send(None)
        for process in processes:
            process.join()


def judge(X: Points, centroids: Any, labels: Any) -> tuple[float, float]:
    """Brute force in float64: the share of labels that are nearest (equally near ones too), and the cost."""
    good, cost = 0, 0.0
    for at in range(0, len(X), 20_000):
        x = X[at : at + 20_000].astype(float)
        squares = np.stack([((x - c) ** 2).sum(axis=1) for c in centroids], axis=1)
        own = squares[np.arange(len(x)), labels[at : at + 20_000]]
        good += int((own <= squares.min(axis=1) * (1 + 1e-14)).sum())
        cost += float(own.sum())
    return good / len(X), cost


def measure(
    row: str, names: list[str], cover: Path | None, threads: int, repeats: int, budget: float
) -> dict[str, Any]:
    X, k = load(row, cover)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    answers: dict[str, dict[str, Any]] = {}
    iterations = 0
    with started(names, row, cover, threads) as pipes:
        for _ in range(repeats):
            for name in names:
                if sum(seconds[name]) > budget:
                    continue
                pipes[name].send(iterations)
                took, centroids, labels, n_iter = pipes[name].recv()
                iterations = iterations or n_iter
                seconds[name].append(took)
                if name not in answers:
                    certified, cost = judge(X, centroids, labels)
                    answers[name] = {"certified": certified, "cost": cost, "n_iter": n_iter}
    for name in names:
        answers[name]["seconds"] = statistics.median(seconds[name])
        answers[name]["runs"] = len(seconds[name])
    return {"row": row, "n": len(X), "d": X.shape[1], "k": k, "threads": threads, "engines": answers}


def show(result: dict[str, Any]) -> None:
    ours = result["engines"]["streamkm"]
    print(f"\n{result['row']}: {result['n']} x {result['d']}, k {result['k']}, {result['threads']} thread(s)")
    print("                 seconds  iterations  ratio  ratio/it  certified  relative cost")
    for name, a in result["engines"].items():
        ratio = a["seconds"] / ours["seconds"]
        each = ratio * ours["n_iter"] / a["n_iter"] if a["n_iter"] else math.nan
        cost = a["cost"] / ours["cost"] - 1
        print(
            f"  {name:13s}{a['seconds']:9.4f}  {a['n_iter'] or '':>10}  {ratio:5.2f}  {each:8.2f}"
            f"  {a['certified']:9.6f}  {cost:+.1e}",
            flush=True,
        )


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means and worst rows, against lloyd and against the best peer of each row."""
    ratios: dict[str, list[float]] = {"lloyd": [], "best peer": []}
    for result in results:
        times = {name: a["seconds"] for name, a in result["engines"].items()}
        ours = times.pop("streamkm")
        if "lloyd" in times:
            ratios["lloyd"].append(times["lloyd"] / ours)
        if times:
            ratios["best peer"].append(min(times.values()) / ours)
    return {
        name: {"geometric mean": round(statistics.geometric_mean(r), 2), "lowest": round(min(r), 2), "rows": len(r)}
        for name, r in ratios.items()
        if r
    }


def installed(names: list[str], jars: Path | None) -> list[str]:
    """Leave out the engines that are not installed here, and say so."""
    found = []
    for name in names:
        module = ENGINES[name]
        if module is None:
            lack = missing(jars)
        else:
            lack = "" if importlib.util.find_spec(module) else f"{module} is not installed"
        if lack:
            print(f"{name} is left out: {lack}")
        else:
            found.append(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data, jars = (Path(value) if value else None for value in map(os.environ.get, ("STREAMKM_DATA", "STREAMKM_ELKI")))
    parser.add_argument("--data", type=Path, default=data, help="10_cover.npz")
    parser.add_argument(
        "--elki",
        type=Path,
        default=jars,
        help="folder of jars: elki-clustering and elki-core-dbids-int of io.github.elki-project, 0.8.0, and what they "
        "depend on",
    )
    parser.add_argument("--rows", default=",".join(NAMES), help="data sets, with commas")
    parser.add_argument("--engines", default=",".join(ENGINES), help="engines, with commas; streamkm always runs")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--budget", type=float, default=20.0, help="seconds after which an engine is not repeated")
    parser.add_argument("--json", type=Path, help="write results here")
    args = parser.parse_args()
    wanted = ["streamkm", *(e for e in args.engines.split(",") if e != "streamkm")]
    names = installed(wanted, args.elki)
    if args.elki is not None:
        os.environ["STREAMKM_ELKI"] = str(args.elki)  # for the engines' processes
    results = []
    for row in args.rows.split(","):
        if row.startswith("cover") and args.data is None:
            print(f"{row} is left out: its file is not given (--data)")
            continue
        for threads in map(int, args.threads.split(",")):
            results.append(measure(row, names, args.data, threads, args.repeats, args.budget))
            show(results[-1])
    totals = summary(results)
    for name, figures in totals.items():
        print(f"\nagainst {name}: {figures}")
    if args.json is not None:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        args.json.write_text(json.dumps({"machine": machine, "summary": totals, "results": results}, indent=2))


if __name__ == "__main__":
    main()
