"""Fits of any size: bitwise equal in memory, out of core and after a kill, within the memory limit."""

import json
import multiprocessing
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import fit_process
from streamkm.errors import DataError, SettingsError, StateError
from streamkm.models.exact.estimator import ExactKMeans
from streamkm.recompute import fitting
from streamkm.recompute.fitting import FitProgress, fit_points
from streamkm.recompute.pointfile import PointFile

pytestmark = pytest.mark.filterwarnings("ignore:the fit had not converged")

LITTLE = 1 << 20


def blobs(n, d, k, seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-1, 1, (k, d))
    return centres[rng.integers(0, k, n)] + rng.normal(0, spread, (n, d))


def write(path, X, weights=None):
    with PointFile.create(path, [f"x{t}" for t in range(X.shape[1])], X.dtype) as file:
        for start in range(0, len(X), 7777):
            file.append(X[start : start + 7777], None if weights is None else weights[start : start + 7777])
        file.finish()
    return PointFile.open(path)


def assert_same(fitted, model, n):
    assert (fitted.centroids == model.cluster_centers_).all()
    assert (fitted.labels(0, n) == model.labels_).all()
    assert fitted.inertia == model.inertia_
    assert fitted.n_iter == model.n_iter_
    for ours, theirs in zip(fitted.trace, model.trace_, strict=True):
        assert (ours.centroids == theirs.centroids).all()
        assert (ours.sizes == theirs.sizes).all()
        assert (ours.inertia, ours.moved) == (theirs.inertia, theirs.moved)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d", "k", "offset"), [(60_000, 3, 20, 0.0), (40_000, 2, 9, 1e6), (30_000, 20, 5, 0.0)])
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_a_fit_out_of_core_is_that_in_memory_bit_for_bit(tmp_path, dtype, weighted, n, d, k, offset, init):
    X = (blobs(n, d, k, seed=d) + offset).astype(dtype)
    X[n // 3 : n // 2] = X[0]  # with many copies
    weights = np.random.default_rng(1).integers(0, 4, n).astype(float) if weighted else None
    file = write(tmp_path / "p", X, weights)
    settings = {"n_clusters": k, "init": init, "max_iter": 12, "trace": True}
    model = ExactKMeans(**settings, random_state=3, n_threads=1).fit(X, sample_weight=weights)
    assert_same(fit_points(file, **settings, seed=3, memory=LITTLE, n_threads=3), model, n)
    assert_same(fit_points(file, **settings, seed=3, memory=2 * LITTLE, n_threads=1), model, n)
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("memory", [None, LITTLE])
def test_restarts_and_stopping_are_those_of_the_model(tmp_path, memory):
    X = blobs(50_000, 2, 12, spread=0.05).astype(np.float32)
    settings = {"n_clusters": 12, "init": "random", "n_init": 3, "tol": 1e-2, "trace": True}
    model = ExactKMeans(**settings, random_state=0).fit(X)
    fitted = fit_points(X, **settings, seed=0, memory=memory)
    assert_same(fitted, model, len(X))
    assert fitted.stopped == "tol"
    assert fit_points(X, n_clusters=12, init=X[:12], max_iter=2, memory=memory).stopped == "max_iter"
    done = fit_points(X, n_clusters=2, init=X[:2], memory=memory)
    assert done.stopped == "labels"
    assert done.trace == ()


@pytest.mark.parametrize("memory", [None, LITTLE])
def test_empty_clusters_get_the_farthest_points_out_of_core_too(memory):
    X = np.round(blobs(50_000, 2, 5), 1).astype(np.float32)  # many distances are equal
    start = np.concatenate([X[:9], [[1e3, 1e3], [2e3, 2e3], [3e3, 3e3]]])
    model = ExactKMeans(12, init=start, max_iter=3, trace=True).fit(X)
    assert_same(fit_points(X, n_clusters=12, init=start, max_iter=3, trace=True, memory=memory), model, len(X))


def test_sizes_spreads_labels_and_distances_are_those_of_the_points():
    X, weights = blobs(30_000, 3, 7), np.random.default_rng(0).random(30_000)
    fitted = fit_points(X, n_clusters=7, weights=weights, memory=LITTLE)
    labels, distances = fitted.assign(0, len(X))
    squares = ((X - fitted.centroids[labels]) ** 2).sum(axis=1)
    np.testing.assert_allclose(distances, np.sqrt(squares), rtol=1e-12)
    np.testing.assert_allclose(fitted.sizes, np.bincount(labels, weights, 7), rtol=1e-12)
    np.testing.assert_allclose(fitted.spreads**2 * fitted.sizes, np.bincount(labels, weights * squares, 7), rtol=1e-12)
    assert fitted.inertia == pytest.approx((squares * weights).sum(), rel=1e-12)
    assert (fitted.labels(100, 200) == labels[100:200]).all()
    assert (fitted.distances(29_990, 40_000) == distances[29_990:]).all()
    assert len(fitted.labels(5, 5)) == 0


@pytest.mark.parametrize("memory", [None, LITTLE])
def test_progress_agrees_with_the_trace(memory):
    X, told = blobs(40_000, 3, 15).astype(np.float32), []
    fitted = fit_points(X, n_clusters=15, n_init=2, memory=memory, trace=True, on_progress=told.append)
    again: list[FitProgress] = []
    fit_points(X, n_clusters=15, n_init=2, memory=memory, on_progress=again.append)
    assert [(p.run, p.iteration, p.moved, p.rows_read) for p in told] == [
        (p.run, p.iteration, p.moved, p.rows_read) for p in again
    ]
    np.testing.assert_allclose([p.inertia for p in again], [p.inertia for p in told], rtol=1e-9)
    runs = [[p for p in told if p.run == run] for run in (0, 1)]
    assert [p.iteration for p in runs[0]] == list(range(1, len(runs[0]) + 1))
    kept = min(runs, key=lambda run: run[-1].inertia)
    assert [(p.inertia, p.moved) for p in kept] == [(s.inertia, s.moved) for s in fitted.trace]


def test_no_iteration_reads_a_point_twice_and_late_ones_skip_most(tmp_path):
    told: list[FitProgress] = []
    file = write(tmp_path / "p", blobs(60_000, 2, 12, spread=0.05).astype(np.float32))
    fit_points(file, n_clusters=12, max_iter=400, memory=LITTLE, on_progress=told.append)
    assert told[-1].moved == 0
    assert all(p.rows_read <= 60_000 for p in told[:-1])
    assert told[-1].rows_read <= 120_000  # the last iteration and the pass that confirms it
    assert sum(p.rows_read for p in told) < 0.5 * 60_000 * len(told)


LIMITED = """
import json, sys
import numpy as np
from streamkm.recompute.fitting import fit_points
from streamkm.recompute.pointfile import PointFile
path, memory, start = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
fit_points(np.random.default_rng(0).random((20_000, 8), np.float32), n_clusters=10, max_iter=2).labels(0, 10)
def most():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
before = most()
file = PointFile.open(path)
fitted = fit_points(file, n_clusters=10, init=start, max_iter=3, memory=memory)
for at in range(0, len(file), 100_000):
    fitted.assign(at, at + 100_000)
print(most() - before)
"""


def test_memory_stays_within_the_limit(tmp_path):
    X = np.random.default_rng(0).random((1_500_000, 8), np.float32)
    write(tmp_path / "p", X)
    arguments = [str(tmp_path / "p"), str(8 * LITTLE), json.dumps(X[:10].tolist())]
    done = subprocess.run([sys.executable, "-c", LIMITED, *arguments], capture_output=True, text=True, check=True)
    # 48 MB of points, a sorted copy of them, and 20 MB of labels and bounds do not count. What counts: the limit, the
    # memory for results, and pages that Linux maps around the requested ones.
    assert float(done.stdout) < 45


@pytest.fixture(scope="module")
def processes():
    """Processes that start quickly: they are forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["streamkm.recompute.fitting"])
    return context


def test_a_killed_fit_goes_on_and_ends_with_the_same_bits(tmp_path, processes):
    path = tmp_path / "p"
    write(path, blobs(50_000, 2, 25).astype(np.float32))

    def run(checkpoint, kill_after=None):
        """Messages of the process, and its result if it was not killed."""
        ours, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=fit_process.fit, args=(theirs, path, checkpoint, LITTLE))
        process.start()
        theirs.close()
        told = []
        with ours:
            while kill_after is None or len(told) < kill_after:
                told.append(ours.recv())
                if told[-1][0] == "done":
                    break
            else:
                process.kill()
            process.join()
        assert process.exitcode == (0 if kill_after is None else -signal.SIGKILL)
        process.close()
        return told

    *steps, end = run(tmp_path / "undisturbed")
    for kill_after in (2, 21, 18, 19):
        told = run(tmp_path / "checkpoint", kill_after)
        at = steps.index(told[0])
        assert told == steps[at : at + kill_after]
    assert told[-1][0] == 2  # so that every run was killed once
    *rest, last = run(tmp_path / "checkpoint")
    assert rest == steps[len(steps) - len(rest) :]
    assert len(rest) < len(steps) / 2
    assert last == end
    *rest, last = run(tmp_path / "checkpoint")  # a completed fit returns the same result
    assert len(rest) == 1
    assert last == end


def test_a_fit_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_INTERVAL_SECONDS", 0.0)
    X, checkpoint = blobs(9000, 3, 10), tmp_path / "checkpoint"
    whole = fit_points(X, n_clusters=10, trace=True)
    assert whole.n_iter > 4

    def interrupt(progress):
        if progress.iteration == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_points(X, n_clusters=10, trace=True, on_progress=interrupt, checkpoint=checkpoint)
    told = []
    fitted = fit_points(X, n_clusters=10, trace=True, on_progress=told.append, checkpoint=checkpoint)
    assert told[0].iteration == 3
    assert [s.inertia for s in fitted.trace] == [s.inertia for s in whole.trace]
    assert (fitted.centroids == whole.centroids).all()


@pytest.mark.parametrize(
    "change", [{"n_clusters": 3}, {"seed": 1}, {"tol": 0.1}, {"max_iter": 5}, {"init": "random"}, {"weights": True}]
)
def test_a_checkpoint_of_another_fit_is_rejected(tmp_path, change):
    X, checkpoint = blobs(500, 2, 4), tmp_path / "checkpoint"
    fit_points(X, n_clusters=4, checkpoint=checkpoint)
    changed = {"n_clusters": 4, **change}
    if "weights" in changed:
        changed["weights"] = np.arange(500.0)
    with pytest.raises(StateError, match="other points or settings"):
        fit_points(X, **changed, checkpoint=checkpoint)
    with pytest.raises(StateError, match="other points or settings"):
        fit_points(X + 1, n_clusters=4, checkpoint=checkpoint)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_an_invalid_checkpoint_is_rejected(tmp_path, share):
    X, checkpoint = blobs(500, 2, 4), tmp_path / "checkpoint"
    fit_points(X, n_clusters=4, checkpoint=checkpoint)
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(StateError, match="not a checkpoint") as caught:
        fit_points(X, n_clusters=4, checkpoint=checkpoint)
    assert caught.value.hint == "Delete it to start again"


def test_a_full_disk_is_an_error_and_not_a_crash(tmp_path):
    file = write(tmp_path / "p", blobs(60_000, 4, 4))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LITTLE // 2, before[1]))
    try:
        with pytest.raises(SettingsError, match="cannot create a file"):
            fit_points(file, n_clusters=4, memory=LITTLE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("X", "settings", "error", "message"),
    [
        (np.ones((3, 2)), {}, DataError, "n_samples=3 should be >= n_clusters=4"),
        (np.ones((0, 2)), {}, DataError, "n_samples=0"),
        (np.array([[1.0, np.nan]] * 9), {}, DataError, "not finite"),
        (np.array([[1.0, -1e200]] * 9), {}, DataError, "beyond the maximum of 1e\\+140"),
        (np.ones((9, 2), int), {}, DataError, "float32 or float64"),
        (np.ones(9), {}, DataError, "float32 or float64"),
        (np.ones((9, 2)), {"weights": np.ones(3)}, DataError, "sample_weight"),
        (np.ones((9, 2)), {"weights": np.zeros(9)}, DataError, "zero for all"),
        (np.ones((9, 2)), {"n_clusters": 0}, SettingsError, "n_clusters"),
        (np.ones((9, 2)), {"init": [[1.0, 2.0]]}, SettingsError, "shape of the initial centers"),
        (np.ones((9, 2)), {"memory": 1000}, SettingsError, "memory must be at least"),
        (np.ones((9, 2)), {"n_threads": 0}, SettingsError, "n_threads"),
        (np.ones((9, 2)), {"seed": -1}, SettingsError, "seed"),
    ],
)
def test_invalid_arguments_are_rejected(X, settings, error, message):
    with pytest.raises(error, match=message):
        fit_points(X, **{"n_clusters": 4, **settings})


def test_an_empty_file_is_rejected(tmp_path: Path):
    with pytest.raises(DataError, match="n_samples=0"):
        fit_points(write(tmp_path / "p", np.empty((0, 2))), n_clusters=1)
