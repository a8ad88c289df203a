"""Publications, re-solves beside the stream, drift, ids: what the coreset does for the model."""

import copy
import hashlib
import multiprocessing
import pickle
import threading

import numba
import numpy as np
import pytest
from scipy.spatial.distance import cdist

from streamkm import OnlineKMeans
from streamkm.errors import NotReadyError
from streamkm.models import clusters
from streamkm.models.background import Task, Worker
from streamkm.models.resolve import solve
from streamkm.state import ModelState


def nearest(X, centroids):
    squared = cdist(X, centroids, "sqeuclidean")
    return squared.argmin(axis=1), squared.min(axis=1)


def squared_distances(X, centroids):
    return nearest(X, centroids)[1]


def world(n, k=6, d=3, *, seed=0, spread=1.0, wide=20.0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-wide, wide, (k, d))[rng.integers(0, k, n)] + rng.normal(0, spread, (n, d))


def hash_of(model):
    return hashlib.sha256(model.state().to_bytes()).hexdigest()


def learn(X, *, batch=500, k=6, publish_every=0, restore_at=(), **arguments):
    model = OnlineKMeans(k, **arguments)
    for i in range(0, len(X), batch):
        if i // batch in restore_at:
            model = OnlineKMeans.from_state(ModelState.from_bytes(model.state().to_bytes()))
        model.learn_many(X[i : i + batch])
        if publish_every and i // batch % publish_every == publish_every - 1:
            model.publish()
    return model


def cost(X, centroids):
    return squared_distances(X, centroids).sum()


# As good as batch


def test_clusters_that_the_first_rows_do_not_have_are_found():
    X = world(30_000, 8)
    labels = squared_distances(X, X[:1]).argsort()  # the nearest to one point come first
    X = X[labels]
    model = learn(X, k=8)
    assert cost(X[::10], model.publish().centroids) / len(X[::10]) < 1.05 * 3


def test_a_publication_is_no_worse_than_the_live_centroids():
    X = world(20_000, 6, spread=6.0)
    model = learn(X)
    live = cost(X, model.centers_)
    published = model.publish()
    assert cost(X, published.centroids) <= live * 1.002
    np.testing.assert_array_equal(published.centroids, model.centers_)
    np.testing.assert_array_equal(published.ids, model.ids_)
    assert published.weights.sum() == pytest.approx(20_000)
    assert published.n_seen == 20_000
    spread = np.sqrt(cost(X, published.centroids) / len(X))
    assert np.sqrt((published.weights * published.spreads**2).sum() / 20_000) == pytest.approx(spread, rel=0.03)


def test_the_coreset_is_bounded_and_has_the_exact_mass():
    model = learn(world(40_000), coreset_size=1000, half_life=5000.0)
    coreset = model.coreset_
    assert len(coreset) <= 1000
    assert coreset.weights_.sum() == pytest.approx(model.weights_.sum(), rel=1e-9)
    assert coreset.weights_.sum() == pytest.approx((2.0 ** (-np.arange(40_000) / 5000)).sum(), rel=1e-9)


def test_a_state_is_compact():
    state = learn(world(40_000), publish_every=20).state()
    assert len(state.to_bytes()) < 8000 * (3 + 1.5) * 8 + 300_000


# Two views


def test_predictions_use_what_was_published_and_the_live_centroids_until_then():
    X = world(5000)
    model = learn(X)
    with pytest.raises(NotReadyError, match="nothing was published"):
        model.predict_many(X, view="published")
    np.testing.assert_array_equal(model.predict_many(X), model.predict_many(X, view="live"))
    assert model.published_ is None
    published = model.publish()
    assert model.published_ is published
    before = model.assign(X)
    model.learn_many(world(5000, seed=1) + 9.0)
    for now, then in zip(model.assign(X), before, strict=True):
        np.testing.assert_array_equal(now, then)
    labels, squared = nearest(X, published.centroids)
    np.testing.assert_array_equal(before[0], published.ids[labels])
    np.testing.assert_allclose(before[1], np.sqrt(squared), rtol=1e-9)
    assert (model.assign(X, view="live")[1] != before[1]).any()
    x = dict(zip("abc", X[0].tolist(), strict=True))
    model.feature_names = ("a", "b", "c")
    assert model.predict_one(x) == before[0][0]
    assert set(model.centers) == set(published.ids.tolist())


def test_a_publication_cannot_be_changed_and_stays_what_it_was():
    model = learn(world(3000))
    published = model.publish()
    arrays = published.ids, published.centroids, published.weights, published.spreads
    kept = [a.copy() for a in arrays]
    model.learn_many(world(3000, seed=5))
    model.publish()
    for array, copied in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, copied)
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_before_there_are_centroids_there_is_nothing_to_publish():
    model = OnlineKMeans(3)
    for ask in (model.publish, model.resolve, lambda: model.coreset_, lambda: model.outlier_score([[1.0]])):
        with pytest.raises(NotReadyError, match="warming up"):
            ask()
    assert model.published_ is None
    assert (model.n_outliers_, len(model.outliers_)) == (0, 0)


def test_a_publication_survives_its_state():
    model = learn(world(9000), publish_every=6)
    again = OnlineKMeans.from_state(model.state())
    for name in ("ids", "centroids", "weights", "spreads"):
        np.testing.assert_array_equal(getattr(model.published_, name), getattr(again.published_, name))
    assert again.published_.events == model.published_.events
    assert (again.published_.n_seen, again.published_.detail) == (model.published_.n_seen, model.published_.detail)
    np.testing.assert_array_equal(model.predict_many(world(100)), again.predict_many(world(100)))


# Determinism


@pytest.fixture(scope="module")
def ordered():
    X = world(24_000, 8, seed=2)
    X[12_000:] += 15.0
    return np.concatenate([X[np.argsort(X[:, 0])[:8000]], X])


SETTINGS = [
    {},
    {"half_life": 3000.0, "on_drift": "forget"},
    {"scale": "standard", "half_life": 8000.0},
    {"scale": "robust"},
    {"distance": "cosine"},
]


@pytest.mark.parametrize("arguments", SETTINGS, ids=str)
def test_four_restores_in_mid_stream_change_no_bit(ordered, arguments):
    straight = learn(ordered, publish_every=13, **arguments)
    assert hash_of(learn(ordered, publish_every=13, **arguments)) == hash_of(straight)
    for restore_at in ((1, 9, 20, 33), (2, 3, 40, 60)):
        assert hash_of(learn(ordered, publish_every=13, restore_at=restore_at, **arguments)) == hash_of(straight)


def test_asking_for_the_state_changes_nothing_while_a_solution_is_pending(ordered):
    watched, plain, pending = OnlineKMeans(8), OnlineKMeans(8), 0
    for i in range(0, len(ordered), 250):
        for model in (watched, plain):
            model.learn_many(ordered[i : i + 250])
        pending += watched.state().params["clusters"]["pending"] is not None if i >= 500 else 0
    assert pending > 0
    assert hash_of(watched) == hash_of(plain)


@pytest.mark.parametrize("when", ["at once", "at last", "late"])
def test_it_does_not_matter_when_the_work_in_the_background_is_done(ordered, monkeypatch, when):
    straight = learn(ordered)

    class Odd(Worker):
        def submit(self, work):
            task = Task(work)
            if when == "at once":
                task.run()
            elif when == "late":
                threading.Timer(0.01, task.run).start()
            return task

    monkeypatch.setattr(clusters, "WORKER", Odd())
    assert hash_of(learn(ordered)) == hash_of(straight)


def test_the_number_of_threads_changes_no_bit(ordered):
    hashes = set()
    before = numba.get_num_threads()
    for threads in {1, min(2, numba.config.NUMBA_NUM_THREADS)}:
        numba.set_num_threads(threads)
        hashes.add(hash_of(learn(ordered, publish_every=20)))
    numba.set_num_threads(before)
    assert len(hashes) == 1


def test_copies_in_mid_stream_go_the_same_way(ordered):
    straight, model = OnlineKMeans(8), OnlineKMeans(8)
    for i in range(0, len(ordered), 500):
        straight.learn_many(ordered[i : i + 500])
        model.learn_many(ordered[i : i + 500])
        model = pickle.loads(pickle.dumps(model)) if i % 1000 else copy.deepcopy(model)  # noqa: S301
    assert hash_of(model) == hash_of(straight)


def _hash_in_a_fork(model, X, results):
    model.learn_many(X)
    results.put(hash_of(model))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_goes_the_same_way(ordered):
    model = OnlineKMeans(8)
    model.learn_many(ordered[:3000])
    model.learn_many(ordered[3000:5000])
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_hash_in_a_fork, args=(model, ordered[5000:], results))
    child.start()
    found = results.get(timeout=60)
    child.join()
    model.learn_many(ordered[5000:])
    assert found == hash_of(model)


def test_all_models_share_one_daemon_thread(ordered):
    for _ in range(3):
        learn(ordered[:8000])
    threads = [t for t in threading.enumerate() if t.name == "streamkm"]
    assert len(threads) == 1
    assert threads[0].daemon


def test_an_error_in_the_background_is_raised_where_the_result_is_due():
    task = Worker().submit(lambda: 1 // 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            task.result()


# Drift


def centred(n, centres, seed):
    rng = np.random.default_rng(seed)
    return centres[rng.integers(0, len(centres), n)] + rng.normal(size=(n, centres.shape[1]))


@pytest.mark.parametrize(("on_drift", "half_lives"), [("resolve", 7.0), ("forget", 1.0)])
def test_after_an_abrupt_change_it_recovers_within_half_lives(on_drift, half_lives):
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 8, (6, 4)), rng.normal(0, 8, (6, 4))
    half_life = 4000.0
    model = learn(centred(20_000, before, 1), batch=512, half_life=half_life, on_drift=on_drift)
    model = learn_on(model, centred(int(half_lives * half_life), after, 2))
    held_out = centred(4000, after, 3)
    assert cost(held_out, model.centers_) <= 1.05 * cost(held_out, after)


def learn_on(model, X, batch=512):
    for i in range(0, len(X), batch):
        model.learn_many(X[i : i + batch])
    return model


def test_without_a_rule_for_drift_the_past_weighs_on():
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 8, (6, 4)), rng.normal(0, 8, (6, 4))
    found = {}
    for on_drift in ("ignore", "forget"):
        model = learn_on(learn(centred(20_000, before, 1), on_drift=on_drift), centred(4000, after, 2))
        found[on_drift] = cost(centred(4000, after, 3), model.centers_)
    assert found["forget"] < 0.5 * found["ignore"]


# Ids


def test_on_stationary_data_rows_keep_their_ids_and_nothing_happens():
    X = world(60_000, 6, spread=5.0)
    fixed = X[::30]
    for half_life in (None, 8000.0):
        model, kept, labels = OnlineKMeans(6, half_life=half_life), [], None
        for i in range(0, len(X), 500):
            model.learn_many(X[i : i + 500])
            if i % 3000 == 2500:
                published = model.publish()
                assert published.events == ()
                before, labels = labels, model.predict_many(fixed)
                if before is not None:
                    kept.append((before == labels).mean())
        assert np.mean(kept) >= 0.99


def test_a_cluster_keeps_its_id_while_others_change():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0], [20, 0], [0, 20]])
    model = learn(centred(6000, centres, 0), k=3, half_life=2000.0)
    first = model.publish()
    own = {tuple(c.round(-1)): i for c, i in zip(first.centroids, first.ids, strict=True)}
    moved = np.array([[0.0, 0], [20, 0], [80, 80]])
    model = learn_on(model, centred(12_000, moved, 1))
    second = model.publish()
    now = {tuple(c.round(-1)): i for c, i in zip(second.centroids, second.ids, strict=True)}
    assert now[0.0, 0.0] == own[0.0, 0.0]
    assert now[20.0, 0.0] == own[20.0, 0.0]
    assert now[80.0, 80.0] not in own.values()
    np.testing.assert_array_equal(second.ids, model.ids_)
    kinds = {e.kind for e in second.events}
    assert "birth" in kinds
    assert rng is not None


def test_live_ids_never_come_back_as_another_cluster():
    model, owners = OnlineKMeans(4, half_life=1000.0), set()
    for seed in range(5):
        model = learn_on(model, world(4000, 4, seed=seed))
        ids = model.publish().ids.tolist()
        assert len(set(ids)) == 4
        owners |= set(ids)
    assert len(owners) > 4
    assert model._ready().live.next_id > max(owners)


# Publishing beside the learning


def test_what_was_prepared_is_published_wherever_the_work_was_done():
    X = world(20_000, spread=4.0)

    def publish_late(*, save):
        model = learn(X[:12_000])
        model.prepare()
        if save:
            model = OnlineKMeans.from_state(ModelState.from_bytes(model.state().to_bytes()))
        learn_on(model, X[12_000:])
        return hash_of(model), model.publish(), hash_of(model)

    before, first, after = publish_late(save=False)
    again, second, at_last = publish_late(save=True)
    assert (before, after) == (again, at_last)
    np.testing.assert_array_equal(first.centroids, second.centroids)
    assert first.weights.sum() == pytest.approx(20_000)
    assert first.n_seen == 20_000


def test_a_late_publication_is_about_as_good_as_one_at_once():
    X = world(30_000, 8, spread=4.0)
    late, at_once = learn(X[:25_000], k=8), learn(X, k=8)
    late.prepare()
    learn_on(late, X[25_000:])
    assert cost(X, late.publish().centroids) <= 1.01 * cost(X, at_once.publish().centroids)


def test_preparing_does_not_wait_and_says_when_it_is_done(monkeypatch):
    worker, go = Worker(), threading.Event()
    monkeypatch.setattr(clusters, "WORKER", worker)
    model = learn(world(6000))
    assert model.prepared_
    worker.submit(go.wait)
    model.prepare()
    assert not model.prepared_
    go.set()
    published = model.publish()  # does not wait
    assert model.prepared_
    assert published.n_seen == 6000


def test_ids_are_as_old_as_their_first_publication():
    model = learn(world(5000))
    first = model.publish()
    assert first.born.tolist() == [5000] * 6
    model = learn_on(model, world(5000, seed=0))
    second = model.publish()
    born = dict(zip(second.ids.tolist(), second.born.tolist(), strict=True))
    assert all(born[i] == 5000 for i in first.ids.tolist() if i in born)
    restored = OnlineKMeans.from_state(ModelState.from_bytes(model.state().to_bytes()))
    assert restored.published_.born.tolist() == second.born.tolist()


# Choosing k


@pytest.mark.parametrize("scale", ["none", "standard"])
def test_k_is_chosen_from_the_first_rows(scale):
    rng = np.random.default_rng(1)
    corners = np.array([[0, 0], [30, 0], [0, 30], [30, 30], [60, 15]])
    X = (corners[rng.integers(0, 5, 4000)] + rng.normal(size=(4000, 2))) * [1.0, 100.0 if scale == "standard" else 1.0]
    X[7] = 1e9  # an outlier is no cluster
    model = OnlineKMeans("auto", scale=scale)
    model.learn_many(X[:1000])
    assert (model.k_, model.warmup_) == (0, (1000, 2000))
    model = OnlineKMeans.from_state(ModelState.from_bytes(model.state().to_bytes()))
    model.learn_many(X[1000:])
    assert (model.k_, model.n_clusters, len(model.centers_)) == (5, "auto", 5)
    restored = OnlineKMeans.from_state(ModelState.from_bytes(model.state().to_bytes()))
    assert hash_of(restored) == hash_of(model)
    assert restored.k_ == 5


def test_one_blob_is_one_cluster_and_rows_without_weight_are_no_more():
    X = np.random.default_rng(0).normal(size=(2000, 3))
    model = OnlineKMeans("auto")
    model.learn_many(X)
    assert model.k_ == 1
    model = OnlineKMeans("auto")
    model.learn_many(X, weights=np.zeros(2000))
    assert model.k_ == 1


# Evaluation


def test_the_evaluation_is_that_of_the_rows_that_the_coreset_represents():
    X = world(3000)
    model = learn(X, batch=3000)  # the first rows are kept as they are
    found = model.evaluate()
    squared = np.sort(cdist(X, model.centers_, "sqeuclidean"), axis=1)
    a, b = np.sqrt(squared[:, 0]), np.sqrt(squared[:, 1])
    assert found.inertia == pytest.approx(squared[:, 0].mean())
    assert found.silhouette == pytest.approx(((b - a) / np.maximum(a, b)).mean())
    assert (found.published_inertia, found.published_silhouette, found.staleness) == (None, None, 0.0)


def test_published_centroids_grow_stale_when_the_stream_moves_on():
    before = hash_of(model := learn(world(6000), half_life=2000.0))
    model.publish()
    assert model.evaluate().staleness == pytest.approx(0.0, abs=1e-9)
    published = hash_of(model)
    model.evaluate()
    model.k_profile(4)
    assert hash_of(model) == published != before
    learn_on(model, world(6000) + 10.0)
    found = model.evaluate()
    assert found.staleness > 1.0
    assert found.published_silhouette < found.silhouette
    assert found.to_json()["staleness"] == found.staleness


def test_the_coreset_suggests_the_number_of_clusters_that_there_are():
    rng = np.random.default_rng(1)
    X = np.array([[0, 0], [30, 0], [0, 30], [30, 30], [60, 15]])[rng.integers(0, 5, 30_000)] + rng.normal(
        size=(30_000, 2)
    )
    assert learn(X, k=3).k_profile(8).suggested == 5


# Solving


def test_solving_writes_to_nothing_and_depends_on_its_arguments_only(monkeypatch):
    problems = []

    def remember(problem, effort):
        problems.append((problem, effort))
        return solve(problem, effort)

    monkeypatch.setattr(clusters, "solve", remember)
    learn(world(12_000), publish_every=8)
    assert len(problems) >= 3
    for problem, effort in problems:
        arrays = [problem.rows.copy(), problem.weights.copy(), problem.live.copy()]
        first, second = solve(problem, effort), solve(problem, effort)
        np.testing.assert_array_equal(first.centroids, second.centroids)
        for before, now in zip(arrays, (problem.rows, problem.weights, problem.live), strict=True):
            np.testing.assert_array_equal(before, now)
