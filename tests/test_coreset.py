import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans

from streamkm import Coreset
from streamkm.errors import DataError, NotReadyError, SettingsError, StateError
from streamkm.state import ModelState


def blobs(n, d=3, k=5, *, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-20, 20, (k, d))[rng.integers(0, k, n)] + rng.normal(size=(n, d))


def summary(X, *, batch=1000, **arguments):
    coreset = Coreset(5, **arguments)
    for i in range(0, len(X), batch):
        coreset.learn_many(X[i : i + batch])
    return coreset


def cost(X, centroids):
    return cdist(X, centroids, "sqeuclidean").min(axis=1).sum()


def test_mass_and_mean_are_exact_and_rows_are_bounded():
    X = blobs(30_000)
    coreset = summary(X, size=1000)
    assert len(coreset) <= 1000
    assert coreset.weights_.sum() == pytest.approx(30_000, rel=1e-12)
    np.testing.assert_allclose(coreset.weights_ @ coreset.rows_ / 30_000, X.mean(axis=0), rtol=1e-10)


def test_its_cost_of_any_centroids_is_about_that_of_all_rows():
    X = blobs(30_000)
    coreset = summary(X, size=1000)
    for seed in range(5):
        centroids = np.random.default_rng(seed).uniform(-20, 20, (5, 3))
        found = coreset.weights_ @ cdist(coreset.rows_, centroids, "sqeuclidean").min(axis=1)
        assert found == pytest.approx(cost(X, centroids), rel=0.1)


@pytest.mark.parametrize("k", [1, 5, 7])
def test_its_solution_is_about_as_good_as_that_of_all_rows(k):
    X = blobs(20_000, seed=3)
    best = KMeans(k, n_init=5, random_state=0).fit(X[::7]).inertia_
    centroids = summary(X, size=1000).solve(k)
    assert centroids.shape == (k, 3)
    assert cost(X[::7], centroids) < 1.05 * best


def test_as_long_as_all_rows_fit_it_is_the_rows():
    X = blobs(500)
    coreset = summary(X)
    np.testing.assert_array_equal(coreset.rows_, X)
    assert (coreset.weights_ == 1.0).all()


def test_a_weight_is_a_repetition():
    X = blobs(12_000)
    weights = np.random.default_rng(1).integers(0, 4, 12_000).astype(float)
    coreset = Coreset(5, size=400)
    for i in range(0, 12_000, 1000):
        coreset.learn_many(X[i : i + 1000], weights[i : i + 1000])
    assert coreset.weights_.sum() == pytest.approx(weights.sum(), rel=1e-12)
    np.testing.assert_allclose(coreset.weights_ @ coreset.rows_, weights @ X, rtol=1e-9)


def test_huge_and_zero_weights_stay_finite():
    X = blobs(3000)
    coreset = Coreset(5, size=200)
    for weight in (0.0, 1e100, 1e-100):
        coreset.learn_many(X, np.full(3000, weight))
    assert np.isfinite(coreset.rows_).all()
    assert coreset.weights_.sum() == pytest.approx(3e103)


def test_equal_batches_and_seeds_give_equal_coresets_and_another_seed_another():
    X = blobs(10_000)
    assert summary(X, size=400).state().to_bytes() == summary(X, size=400).state().to_bytes()
    assert summary(X, size=400).state().to_bytes() != summary(X, size=400, seed=1).state().to_bytes()


@pytest.mark.parametrize("stop", [0, 1, 3, 8])
def test_stopping_and_going_on_gives_the_same_bits(stop):
    X = blobs(10_000)
    straight, stopped = Coreset(5, size=400), Coreset(5, size=400)
    for i in range(10):
        if i == stop:
            stopped = Coreset.from_state(ModelState.from_bytes(stopped.state().to_bytes()))
        for coreset in (straight, stopped):
            coreset.learn_many(X[1000 * i : 1000 * (i + 1)])
    assert straight.state().to_bytes() == stopped.state().to_bytes()


def test_looking_changes_nothing():
    coreset = summary(blobs(5000), size=400)
    before = coreset.state().to_bytes()
    coreset.rows_[:] = 0
    coreset.weights_[:] = 0
    coreset.solve(3)
    Coreset.merge([coreset, coreset])
    assert coreset.state().to_bytes() == before


def test_merged_parts_have_the_mass_and_the_mean_of_the_whole():
    X = np.concatenate([blobs(8000, seed=1), blobs(8000, seed=2) + 5.0])
    parts = [summary(x, size=500, seed=i) for i, x in enumerate(np.array_split(X, 4))]
    whole = Coreset.merge(parts)
    assert len(whole) <= 500
    assert whole.weights_.sum() == pytest.approx(16_000, rel=1e-12)
    np.testing.assert_allclose(whole.weights_ @ whole.rows_ / 16_000, X.mean(axis=0), rtol=1e-9)
    assert cost(X[::5], whole.solve(10)) < 1.1 * cost(X[::5], summary(X, size=1000).solve(10))
    whole.learn_many(X[:1000])
    assert whole.weights_.sum() == pytest.approx(17_000, rel=1e-12)


def test_merging_nothing_or_rows_of_different_lengths_is_refused():
    with pytest.raises(DataError, match="no coresets"):
        Coreset.merge([])
    with pytest.raises(DataError, match="different lengths"):
        Coreset.merge([summary(blobs(50)), summary(blobs(50, d=2))])
    assert len(Coreset.merge([Coreset(3), Coreset(3)])) == 0


def test_constant_data_stay_one_point():
    coreset = summary(np.full((5000, 2), 7.0), size=200)
    assert np.unique(coreset.rows_).tolist() == [7.0]
    assert coreset.weights_.sum() == pytest.approx(5000)
    assert np.unique(coreset.solve(3)).tolist() == [7.0]


def test_an_offset_and_a_unit_cost_no_accuracy():
    X = np.round(blobs(8000) * 1024) / 1024
    plain = np.sort(summary(X, size=400).solve(5), axis=0)
    np.testing.assert_allclose(np.sort(summary(X + 2.0**23, size=400).solve(5) - 2.0**23, axis=0), plain, atol=1e-6)
    for unit in (2.0**-80, 2.0**80):
        np.testing.assert_allclose(np.sort(summary(X * unit, size=400).solve(5) / unit, axis=0), plain, rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_learned_is_refused_by_name_and_nothing_is_learned(bad):
    coreset = Coreset(2)
    X = np.zeros((5, 2))
    X[3, 1] = bad
    with pytest.raises(DataError, match="row 3, column 1"):
        coreset.learn_many(X)
    assert len(coreset) == 0
    with pytest.raises(NotReadyError):
        coreset.solve()


@pytest.mark.parametrize("arguments", [{"n_clusters": 0}, {"n_clusters": 4, "size": 63}, {"seed": -1}])
def test_a_setting_out_of_range_is_refused(arguments):
    with pytest.raises(SettingsError):
        Coreset(**arguments)


def test_a_state_that_cannot_be_restored_is_refused():
    state = summary(blobs(3000), size=400).state()
    with pytest.raises(StateError, match="OnlineKMeans"):
        Coreset.from_state(ModelState("OnlineKMeans", 1, state.params, state.arrays))
    for name in state.arrays:
        arrays = {key: value for key, value in state.arrays.items() if key != name}
        if name == "centroids":
            continue  # without them it is one that still takes all rows
        with pytest.raises(StateError, match=name):
            Coreset.from_state(ModelState("Coreset", 1, state.params, arrays))
