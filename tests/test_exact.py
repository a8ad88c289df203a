"""The exact algorithm: right to the last label, whatever the order, the threads, the type, the offset and the scale."""

import pickle
import warnings
from pathlib import Path

import joblib
import numba
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import naive_exact as naive
from strategies import common_rows
from streamkm.errors import DataError, SettingsError
from streamkm.models.compile_notice import log_compilation
from streamkm.models.exact import points as exact_points
from streamkm.models.exact.estimator import ExactKMeans

pytestmark = pytest.mark.filterwarnings("ignore:the fit had not converged")

EXAMPLE = Path(__file__).parents[1] / "examples" / "worked-example.csv"


def blobs(n, d, k, seed=0, spread=0.3):
    rng = np.random.default_rng(seed)
    centres = rng.uniform(-1, 1, (k, d))
    return centres[rng.integers(0, k, n)] + rng.normal(0, spread, (n, d))


def nearest_share(X, model):
    """Share of labels that are the nearest centroid, by float64 brute force; equally near ones count."""
    squares = np.stack([((X.astype(float) - c) ** 2).sum(axis=1) for c in model.cluster_centers_], axis=1)
    return (squares[np.arange(len(X)), model.labels_] <= squares.min(axis=1) * (1 + 1e-14)).mean()


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of neighbours even for a few rows."""
    monkeypatch.setattr(exact_points, "_MIN_BLOCK_ROWS", 1)
    monkeypatch.setattr(exact_points, "_MIN_BLOCK_CENTROIDS", 1)
    monkeypatch.setattr(exact_points, "BLOCK_ROWS", 32)


def test_the_worked_example_takes_the_true_steps():
    points = pl.read_csv(EXAMPLE)
    model = ExactKMeans(2, init=[[4], [10]], trace=True).fit(points)
    assert [tuple(s.centroids.ravel()) for s in model.trace_] == [(4, 10), (3, 18), (4.75, 19.6), (7, 25)]
    assert [s.moved for s in model.trace_] == [9, 1, 2, 0]
    assert [s.sizes.tolist() for s in model.trace_] == [[3, 6], [4, 5], [6, 3], [6, 3]]
    assert model.trace_[-1].inertia == model.inertia_ == 150
    assert model.labels_.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 1]
    assert model.n_iter_ == 4


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1e7, 1), (1e7, 1e3), (0, 1e25), (0, 1e-25), (-3e6, 1e-2)])
@pytest.mark.parametrize("k", [3, 20])
def test_every_label_is_the_nearest_centroid_in_float64(dtype, offset, scale, k):
    X = ((blobs(9000, 4, k) + offset) * scale).astype(dtype)
    model = ExactKMeans(k, init=X[:k], max_iter=40).fit(X)
    assert nearest_share(X, model) == 1
    means = np.stack([X[model.labels_ == j].astype(float).mean(axis=0) for j in range(k)])
    if model.n_iter_ < 40:
        np.testing.assert_allclose(model.cluster_centers_, means, rtol=1e-12)


@pytest.mark.parametrize("tol", [0.0, 1e-3, 0.1])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (40, 1, 3), (130, 3, 7), (200, 9, 5), (150, 37, 6)])
def test_a_fit_is_the_naive_one(n, d, k, tol):
    X = blobs(n, d, k, seed=n)
    weights = np.random.default_rng(n).integers(0, 4, n).astype(float) if n > 1 else np.ones(1)
    for w in (None, weights):
        model = ExactKMeans(k, init=X[:k], tol=tol).fit(X, sample_weight=w)
        centroids, labels, n_iter = naive.lloyd(X, X[:k], weights=w, tol=tol)
        assert model.n_iter_ == n_iter
        np.testing.assert_array_equal(model.labels_, labels)
        np.testing.assert_allclose(model.cluster_centers_, centroids, rtol=1e-13, atol=1e-14)


def test_a_fit_in_blocks_is_the_naive_one(small_blocks):
    X = blobs(700, 3, 9)
    model = ExactKMeans(9, init=X[:9]).fit(X)
    centroids, labels, n_iter = naive.lloyd(X, X[:9])
    assert model.n_iter_ == n_iter
    np.testing.assert_array_equal(model.labels_, labels)
    np.testing.assert_allclose(model.cluster_centers_, centroids, rtol=1e-13, atol=1e-14)


@settings(deadline=None, max_examples=60)
@given(data=st.data(), dtype=st.sampled_from([np.float32, np.float64]))
def test_the_first_of_equally_near_centroids_wins(data, dtype):
    shape = data.draw(st.tuples(st.integers(4, 60), st.integers(1, 3)))
    X = data.draw(hnp.arrays(dtype, shape, elements=st.integers(-3, 3)) | common_rows(60, 3, 4)).astype(dtype)
    k = data.draw(st.integers(1, 4))
    model = ExactKMeans(k, init=X[:k], max_iter=5).fit(X)
    np.testing.assert_array_equal(model.labels_, naive.relabel_rows(X, model.cluster_centers_))
    np.testing.assert_array_equal(model.predict(X), model.labels_)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("d", "k"), [(3, 30), (20, 12)])
def test_the_result_depends_neither_on_threads_nor_on_the_order_of_rows(dtype, d, k):
    X = blobs(20_000, d, k).astype(dtype)
    order = np.random.default_rng(0).permutation(len(X))
    one = ExactKMeans(k, init=X[:k], n_threads=1).fit(X)
    three = ExactKMeans(k, init=X[:k], n_threads=3).fit(X[order])
    assert (one.cluster_centers_ == three.cluster_centers_).all()
    assert (one.labels_[order] == three.labels_).all()
    assert one.n_iter_ == three.n_iter_ > 5
    assert one.inertia_ == three.inertia_


def test_compiling_is_logged_and_loading_is_not(caplog):
    caplog.set_level("INFO")
    fresh = numba.njit(lambda x: x + 1)
    for expected in (["compiling the exact algorithm, once on this machine: takes about ten seconds", "compiled"], []):
        caplog.clear()
        with log_compilation():
            fresh(1)
        assert [message.split(",")[0] for message in caplog.messages] == [e.split(",")[0] for e in expected]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_change_nothing(dtype, monkeypatch):
    X = blobs(20_000, 3, 30).astype(dtype)
    blocks = ExactKMeans(30, init=X[:30]).fit(X)
    monkeypatch.setattr(exact_points, "_MAX_BLOCK_DIMENSIONS", 0)
    rows = ExactKMeans(30, init=X[:30]).fit(X)
    assert (blocks.cluster_centers_ == rows.cluster_centers_).all()
    assert (blocks.labels_ == rows.labels_).all()
    assert blocks.n_iter_ == rows.n_iter_
    assert blocks.inertia_ == rows.inertia_


@pytest.mark.parametrize("d", [4, 20])
def test_a_fit_is_scikit_learns(d):
    X = blobs(9000, d, 12, spread=0.2)
    ours = ExactKMeans(12, init=X[:12]).fit(X)
    theirs = KMeans(12, init=X[:12], n_init=1, tol=0, max_iter=300).fit(X)
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-10)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_a_weight_counts_like_equal_points(init):
    X = blobs(200, 2, 5)
    weights = np.random.default_rng(1).integers(0, 5, 200)
    weighted = ExactKMeans(5, init=init, random_state=3).fit(X, sample_weight=weights)
    repeated = ExactKMeans(5, init=init, random_state=3).fit(np.repeat(X, weights, axis=0))
    if init != "k-means||":  # which draws every point by itself
        np.testing.assert_allclose(weighted.cluster_centers_, repeated.cluster_centers_, rtol=1e-12)
    again = ExactKMeans(5, init=weighted.cluster_centers_).fit(np.repeat(X, weights, axis=0))
    np.testing.assert_allclose(again.cluster_centers_, weighted.cluster_centers_, rtol=1e-12)
    assert again.inertia_ == pytest.approx(weighted.inertia_, rel=1e-12)


def test_weights_may_have_any_scale():
    X, w = blobs(300, 2, 4), np.random.default_rng(0).uniform(0.5, 2, 300)
    one = ExactKMeans(4, init=X[:4]).fit(X, sample_weight=w)
    other = ExactKMeans(4, init=X[:4]).fit(X, sample_weight=w * 2.0**70)
    assert (one.cluster_centers_ == other.cluster_centers_).all()
    assert one.inertia_ * 2.0**70 == other.inertia_


def test_empty_clusters_get_the_farthest_points():
    X = np.array([[0.0], [1.0], [2.0], [50.0], [100.0]])
    model = ExactKMeans(3, init=[[1.0], [-1e6], [-2e6]], trace=True).fit(X)
    assert model.trace_[1].centroids.ravel().tolist() == [1, 100, 50]
    assert model.labels_.tolist() == [0, 0, 0, 2, 1]


def test_empty_clusters_in_blocks_get_the_farthest_points(small_blocks):
    X = blobs(500, 2, 6)
    start = np.concatenate([X[:5], [[1e3, 1e3], [2e3, 2e3]]])
    model = ExactKMeans(7, init=start).fit(X)
    centroids, labels, n_iter = naive.lloyd(X, start)
    np.testing.assert_array_equal(model.labels_, labels)
    np.testing.assert_allclose(model.cluster_centers_, centroids, rtol=1e-12)
    assert model.n_iter_ == n_iter


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_fewer_different_points_than_clusters_are_no_error(init):
    X = np.repeat([[0.0, 1.0], [5.0, 5.0]], 20, axis=0)
    model = ExactKMeans(4, init=init, random_state=0).fit(X)
    assert model.inertia_ == 0
    assert len(set(model.labels_.tolist())) == 2


def test_clusters_with_points_move_even_if_there_are_too_few_points_for_the_others():
    model = ExactKMeans(3, init=[[1.0], [100.0], [200.0]]).fit([[1.0], [1.0], [5.0]])
    assert sorted(model.cluster_centers_.ravel().tolist()) == [1, 5, 200]
    assert model.inertia_ == 0


@pytest.mark.parametrize("n", [500, 12_000])
def test_starts_are_different_points_and_the_same_for_a_seed(n):
    X = np.round(blobs(n, 2, 10), 1)
    for init in ("k-means++", "k-means||", "random"):
        one, two = (ExactKMeans(10, init=init, max_iter=1, trace=True, random_state=5).fit(X) for _ in range(2))
        start = one.trace_[0].centroids
        assert (start == two.trace_[0].centroids).all()
        assert len(np.unique(start, axis=0)) == 10
        assert {tuple(s) for s in start} <= {tuple(x) for x in X}


@pytest.mark.parametrize("n", [2000, 12_000])
def test_careful_starts_cost_less_than_random_ones(n):
    X = blobs(n, 3, 25, spread=0.03)

    def cost(init):
        return np.mean([ExactKMeans(25, init=init, max_iter=1, random_state=s).fit(X).inertia_ for s in range(5)])

    assert cost("k-means++") < 0.5 * cost("random")
    assert cost("k-means||") < 0.5 * cost("random")


def test_the_best_of_several_runs_is_kept():
    X = blobs(600, 2, 12, spread=0.05)
    rng = np.random.RandomState(0)
    single = [ExactKMeans(12, init="random", random_state=rng).fit(X).inertia_ for _ in range(4)]
    assert ExactKMeans(12, init="random", n_init=4, random_state=0).fit(X).inertia_ == min(single)


def test_no_iteration_raises_the_cost_and_sizes_add_up():
    X = blobs(3000, 2, 10)
    model = ExactKMeans(10, init="random", random_state=2, trace=True).fit(X)
    costs = [s.inertia for s in model.trace_]
    assert len(costs) == model.n_iter_
    assert costs == sorted(costs, reverse=True)
    assert all(s.sizes.sum() == 3000 for s in model.trace_)


def test_input_is_not_changed_and_may_be_read_only_or_in_any_layout():
    X = blobs(400, 3, 4).astype(np.float32)
    X.flags.writeable = False
    start = X[:4].copy()
    plain = ExactKMeans(4, init=start).fit(X)
    assert (start == X[:4]).all()
    for other in (np.asfortranarray(X), X.astype(">f4"), X[:, ::-1][:, ::-1], np.repeat(X, 2, axis=0)[::2]):
        assert (ExactKMeans(4, init=start).fit(other).labels_ == plain.labels_).all()


def test_integers_and_lists_are_numbers_too():
    assert ExactKMeans(2, init=[[0], [9]]).fit_predict([[1], [2], [8], [9]]).tolist() == [0, 0, 1, 1]
    assert ExactKMeans(2, init=[[0], [9]]).fit(np.array([[1], [8]], np.int64)).cluster_centers_.dtype == float


class OnlyArrow:
    """A table that offers nothing but Arrow's C stream."""

    def __init__(self, frame):
        self.frame = frame

    def __arrow_c_stream__(self, requested_schema=None):
        return self.frame.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("table", [pd.DataFrame, pl.DataFrame, lambda columns: OnlyArrow(pl.DataFrame(columns))])
def test_tables_of_any_kind_are_read_with_their_names(table):
    X = blobs(100, 2, 3)
    model = ExactKMeans(3, init=X[:3])
    labels = model.fit_predict(table({"lat": X[:, 0], "lon": X[:, 1]}))
    assert model.feature_names_in_.tolist() == ["lat", "lon"]
    np.testing.assert_array_equal(labels, ExactKMeans(3, init=X[:3]).fit_predict(X))
    with pytest.raises(DataError, match="feature names"):
        model.predict(table({"lat": X[:, 0], "height": X[:, 1]}))


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_output_can_be_a_frame(library):
    X = pd.DataFrame(blobs(50, 2, 3), columns=["a", "b"])
    model = ExactKMeans(3, random_state=0).set_output(transform=library).fit(X)
    out = model.transform(X)
    assert (
        list(out.columns) == model.get_feature_names_out().tolist() == ["exactkmeans0", "exactkmeans1", "exactkmeans2"]
    )


def test_answers_agree_with_the_fit():
    X = blobs(9000, 3, 9).astype(np.float32)
    model = ExactKMeans(9, random_state=0).fit(X)
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    np.testing.assert_array_equal(model.predict(X[:10]), model.labels_[:10])
    np.testing.assert_allclose(model.transform(X[:50]), naive.all_distances(X[:50], model.cluster_centers_), rtol=1e-6)
    assert model.transform(X).dtype == np.float32
    assert model.score(X) == pytest.approx(-model.inertia_, rel=1e-12)
    weights = np.arange(9000) % 3
    assert model.score(X, sample_weight=weights) == pytest.approx(
        -(weights * naive.assigned_squares(X, model.labels_, model.cluster_centers_)).sum(), rel=1e-9
    )


def test_scikit_learn_takes_it_for_its_own():
    results = check_estimator(ExactKMeans(), on_skip=None)
    assert len(results) > 40
    # its check of array API input skips itself unless an environment variable was set before scipy was imported
    assert {r["check_name"] for r in results if r["status"] != "passed"} <= {"check_array_api_input"}


def test_it_works_in_pipelines_searches_pickles_and_clones(tmp_path):
    X = blobs(300, 2, 4)
    search = GridSearchCV(
        make_pipeline(StandardScaler(), ExactKMeans(random_state=0)), {"exactkmeans__n_clusters": [2, 4]}
    )
    assert search.fit(X).best_params_ == {"exactkmeans__n_clusters": 4}
    model = ExactKMeans(4, random_state=0).fit(X)
    joblib.dump(model, tmp_path / "model.joblib")
    for restored in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):  # noqa: S301
        np.testing.assert_array_equal(restored.predict(X), model.labels_)
        np.testing.assert_array_equal(restored.transform(X), model.transform(X))
    assert clone(model).get_params() == model.get_params()


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.empty((0, 2)), "0 sample"),
        (np.ones((3, 2)), "n_samples=3 should be >= n_clusters=4"),
        (np.array([[1.0, np.nan]] * 9), "NaN"),
        (np.array([[1.0, np.inf]] * 9), "infinity"),
        (np.array([["a", "b"]] * 9), "could not convert"),
        (np.ones(9), "Expected 2D"),
        (np.ones((9, 0)), "0 feature"),
        (pl.DataFrame({"x": ["one"] * 9}), "could not convert"),
        (pl.DataFrame({"x": [None, *range(9)]}), "NaN"),
    ],
)
def test_points_that_no_model_can_take_are_refused(X, message):
    with pytest.raises(DataError, match=message):
        ExactKMeans(4).fit(X)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"n_clusters": 0}, "n_clusters must be an integer of at least 1, not 0"),
        ({"n_clusters": 2.5}, "n_clusters must be"),
        ({"n_clusters": True}, "n_clusters must be"),
        ({"n_init": 0}, "n_init must be"),
        ({"max_iter": 0}, "max_iter must be"),
        ({"n_threads": 0}, "n_threads must be"),
        ({"tol": -1.0}, "tol must be"),
        ({"tol": float("nan")}, "tol must be"),
        ({"init": "forgy"}, "init must be one of k-means\\+\\+"),
        ({"init": [[1.0], [2.0]]}, "shape of the initial centers"),
        ({"init": [["a", "b"], ["c", "d"]]}, "cannot be read as numbers"),
        ({"init": [[1.0, np.nan], [2.0, 1.0]]}, "not finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings_, message):
    with pytest.raises(SettingsError, match=message):
        ExactKMeans(**{"n_clusters": 2, **settings_}).fit(np.arange(20.0).reshape(10, 2))


@pytest.mark.parametrize("weights", [[1.0], [-1.0] * 10, [np.nan] * 10, [0.0] * 10, ["a"] * 10])
def test_weights_that_no_model_can_take_are_refused(weights):
    with pytest.raises(DataError, match="sample_weight"):
        ExactKMeans(2).fit(np.arange(20.0).reshape(10, 2), sample_weight=weights)


@pytest.mark.parametrize("value", [1e141, -1e160, 1.7e308])
def test_values_whose_squares_overflow_are_refused(value):
    X = np.arange(20.0).reshape(10, 2)
    model = ExactKMeans(2).fit(X)
    X[3, 1] = value
    for asked in (ExactKMeans(2).fit, model.predict, model.transform, model.score):
        with pytest.raises(DataError, match=r"row 3, column 1: is .* beyond the largest value taken"):
            asked(X)


def test_answers_need_a_fit_and_the_same_columns():
    X = np.arange(20.0).reshape(10, 2)
    with pytest.raises(NotFittedError):
        ExactKMeans(2).predict(X)
    with pytest.raises(DataError, match="2 features"):
        ExactKMeans(2).fit(X).predict(X[:, :1])


def test_a_fit_that_ends_at_the_limit_of_iterations_warns_as_scikit_learn_does():
    X = np.random.default_rng(0).normal(size=(500, 2))
    with pytest.warns(ConvergenceWarning, match="not converged after 2 iterations.*raise max_iter"):
        ExactKMeans(12, init=X[:12], max_iter=2).fit(X)
    with warnings.catch_warnings(action="error"):
        ExactKMeans(12, init=X[:12]).fit(X)
