"""Units, directions and outliers."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from streamkm import OnlineKMeans
from streamkm.errors import DataError
from streamkm.models.metric import quantile, quartile_ranges, standard_deviations


def nearest(X, centroids):
    squared = cdist(X, centroids, "sqeuclidean")
    return squared.argmin(axis=1), squared.min(axis=1)


def squared_distances(X, centroids):
    return nearest(X, centroids)[1]


def mixed(n, *, seed=0):
    """Four clusters that only a dimension of tiny unit tells apart in pairs."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n)
    X = np.column_stack([1e6 * (labels % 2), 1e-3 * (labels // 2)]) + rng.normal(size=(n, 2)) * [5e4, 5e-5]
    return X, labels


def learn(X, k=4, *, batch=500, **arguments):
    model = OnlineKMeans(k, **arguments)
    for i in range(0, len(X), batch):
        model.learn_many(X[i : i + batch])
    return model


def purity(labels, ids):
    return sum(np.bincount(labels[ids == i]).max() for i in np.unique(ids)) / len(labels)


# Scale


@pytest.mark.parametrize("scale", ["standard", "robust"])
def test_dimensions_of_any_unit_count_alike(scale):
    X, labels = mixed(12_000)
    assert purity(labels, learn(X).predict_many(X)) < 0.9
    model = learn(X, scale=scale)
    published = model.publish()
    assert purity(labels, model.predict_many(X)) > 0.999
    np.testing.assert_allclose(sorted(published.centroids[:, 0]), [0, 0, 1e6, 1e6], atol=1e4)
    np.testing.assert_allclose(sorted(published.centroids[:, 1]), [0, 0, 1e-3, 1e-3], atol=1e-5)
    assert published.weights.sum() == pytest.approx(12_000)


@pytest.mark.parametrize("scale", ["standard", "robust"])
def test_changing_the_units_of_the_input_changes_the_units_of_the_result_only(scale):
    X, _ = mixed(6000)
    units = np.array([2.0**-30, 2.0**50])
    plain, other = learn(X, scale=scale), learn(X * units, scale=scale)
    np.testing.assert_allclose(other.publish().centroids / units, plain.publish().centroids, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(other.predict_many(X * units), plain.predict_many(X))
    np.testing.assert_allclose(other.assign(X * units)[1], plain.assign(X)[1], rtol=1e-6)


def test_the_scale_follows_the_data_at_a_re_solve():
    X, _ = mixed(20_000)
    X[4000:] *= [1.0, 100.0]
    model = learn(X, scale="standard", half_life=2000.0)
    model.publish()
    factors = model._ready().live.metric.factors
    np.testing.assert_allclose(1.0 / factors, X[-4000:].std(axis=0), rtol=0.05)


def test_published_clusters_stay_where_they_are_when_the_scale_changes():
    X, _ = mixed(20_000)
    X[4000:] *= [1.0, 100.0]
    model = learn(X[:4000], scale="standard", half_life=2000.0)
    model.publish()
    clusters = model._ready()
    factors, rows = clusters.live.metric.factors, clusters.lineage._rows.copy()
    for batch in np.array_split(X[4000:], 32):
        model.learn_many(batch)
    again = clusters.live.metric.factors
    assert again[1] < 0.1 * factors[1]
    np.testing.assert_allclose(clusters.lineage._rows / again, rows / factors, rtol=1e-9)


def test_a_dimension_that_does_not_vary_is_harmless():
    X, labels = mixed(4000)
    for scale in ("standard", "robust"):
        model = learn(np.column_stack([X, np.full(4000, 5e7)]), scale=scale)
        assert purity(labels, model.predict_many(np.column_stack([X, np.full(4000, 5e7)]))) > 0.999


def test_spreads_and_distances_are_in_units_of_the_scale():
    X, labels = mixed(12_000)
    model = learn(X, scale="standard")
    model.publish()
    within = np.array([X[labels == j].std(axis=0) for j in range(4)]).mean(axis=0) / X.std(axis=0)
    expected = np.sqrt((within**2).sum())
    np.testing.assert_allclose(model.published_.spreads, expected, rtol=0.1)
    assert np.sqrt((model.assign(X)[1] ** 2).mean()) == pytest.approx(expected, rel=0.1)


def test_deviations_and_quartiles_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    rows, weights = rng.normal(size=(400, 3)) * [1, 1e-30, 1e30], rng.integers(1, 5, 400).astype(float)
    repeated = np.repeat(rows, weights.astype(int), axis=0)
    np.testing.assert_allclose(standard_deviations(rows, weights), repeated.std(axis=0), rtol=1e-9)
    low, high = np.quantile(repeated, [0.25, 0.75], axis=0, method="inverted_cdf")
    np.testing.assert_allclose(quartile_ranges(rows, weights), (high - low) / 1.3489795003921634, rtol=1e-9)
    np.testing.assert_array_equal(quantile(rows, weights, 0.25), low)
    mostly_zero = np.zeros((100, 1))
    mostly_zero[0] = 10.0
    mostly_zero[1:4] = [[4.0], [-3.0], [1e9]]
    assert quartile_ranges(mostly_zero, np.ones(100)).tolist() == [4.0]
    assert quartile_ranges(np.full((5, 2), 3.0), np.ones(5)).tolist() == [1.0, 1.0]
    assert standard_deviations(np.full((5, 2), 3.0), np.ones(5)).tolist() == [1.0, 1.0]


def rare_flags(rng, n):
    return (rng.random((n, 4)) < [0.5, 0.01, 0.001, 0.3]).astype(float)


def mostly_zero(rng, n):
    return (rng.poisson(4, (n, 3)) * (rng.random((n, 3)) < 0.1)).astype(float)


def inflated(zeros, tail):
    def make(rng, n):
        return rng.lognormal(3, tail, (n, 3)) * (rng.random((n, 3)) >= zeros)

    return make


def counts(rng, n):
    return np.minimum(rng.zipf(1.6, (n, 3)), 1e7).astype(float)


def ratings(rng, n):
    return rng.choice(5, (n, 3), p=[0.05, 0.05, 0.1, 0.38, 0.42]) + 1.0


def blocks(rng, n):
    return np.repeat(rng.normal(size=(n // 100, 3)), 100, axis=0)


def heavy(rng, n):
    return rng.standard_t(1.5, (n, 3))


@pytest.mark.parametrize(
    ("make", "most"),
    [
        *((inflated(zeros, tail), most) for zeros in (0.76, 0.85, 0.95) for tail, most in ((0.5, 1.1), (2.5, 2.2))),
        (inflated(0.4, 2.5), 2.0),
        (counts, 1.6),
        (ratings, 1.01),
        (blocks, 1.1),
        (heavy, 1.1),
    ],
)
def test_robust_units_are_those_of_all_rows(make, most):
    X = make(np.random.default_rng(1), 40_000)
    true = quartile_ranges(X, np.ones(len(X)))
    found = 1.0 / learn(X, 8, batch=2000, scale="robust").publish().factors
    assert np.exp(np.abs(np.log(found / true))).max() < most


def test_the_unit_of_a_column_half_of_which_is_one_value_does_not_leap_as_others_get_rare():
    values = np.linspace(5.0, 15.0, 1001)[:, np.newaxis]
    shares = [0.51, 0.6, 0.74, 0.749, 0.751, 0.76, 0.9, 0.999]
    weights = [np.array([share, *[(1.0 - share) / 1001] * 1001]) for share in shares]
    rows = np.concatenate([[[0.0]], values])
    assert [quartile_ranges(rows, w).tolist() for w in weights] == [[pytest.approx(10.0, abs=0.02)]] * len(shares)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("make", [rare_flags, mostly_zero])
def test_units_of_columns_most_of_which_is_one_value_are_those_of_all_rows(make, seed):
    X = make(np.random.default_rng(seed), 20_000)
    weights = np.ones(len(X))
    for scale, units in (("robust", quartile_ranges(X, weights)), ("standard", standard_deviations(X, weights))):
        model = OnlineKMeans(8, scale=scale)
        for batch in np.split(X, 20):
            model.learn_many(batch)
        np.testing.assert_allclose(model.publish().factors, 1.0 / units, rtol=0.1)
        assert model.n_outliers_ == 0


def test_a_spike_in_a_column_of_zeros_is_an_outlier():
    X = mostly_zero(np.random.default_rng(0), 20_000)
    X[9000] = 1e6
    model = OnlineKMeans(8, scale="robust")
    for batch in np.split(X, 20):
        model.learn_many(batch)
    np.testing.assert_allclose(model.publish().factors, 1.0 / quartile_ranges(X, np.ones(len(X))), rtol=0.1)
    assert model.n_outliers_ == 1


# Cosine


def directions(n, seed=0):
    rng = np.random.default_rng(seed)
    ways = np.array([[1.0, 0, 0], [0, 1, 0], [0.6, 0.6, 0.5]])
    labels = rng.integers(0, 3, n)
    return (ways[labels] + rng.normal(0, 0.05, (n, 3))) * rng.lognormal(0, 2, (n, 1)), labels


def test_the_cosine_distance_sees_directions_only():
    X, labels = directions(6000)
    model = learn(X, 3, distance="cosine")
    published = model.publish()
    assert purity(labels, model.predict_many(X)) > 0.999
    np.testing.assert_allclose(np.linalg.norm(published.centroids, axis=1), 1.0)
    np.testing.assert_allclose(np.linalg.norm(model.centers_, axis=1), 1.0)
    np.testing.assert_array_equal(model.predict_many(X * 1e9), model.predict_many(X))
    chord = np.sqrt(squared_distances(X / np.linalg.norm(X, axis=1, keepdims=True), published.centroids))
    np.testing.assert_allclose(model.assign(X)[1], chord, rtol=1e-9)


def test_a_row_without_direction_is_refused_by_name():
    X, _ = directions(500)
    model = learn(X, 3, distance="cosine")
    X[7] = 0.0
    before = model.state().to_bytes()
    with pytest.raises(DataError, match=r"row 7.*zero.*no direction"):
        model.learn_many(X)
    with pytest.raises(DataError, match="row 7"):
        model.predict_many(X)
    assert model.state().to_bytes() == before


# Outliers


def spiked(n, share=0.001, *, seed=0, far=1e6):
    rng = np.random.default_rng(seed)
    X = rng.normal(0, 5, (5, 3))[rng.integers(0, 5, n)] + rng.normal(size=(n, 3))
    bad = rng.random(n) < share
    X[bad] = rng.uniform(-far, far, (bad.sum(), 3))
    return X, bad


def test_spikes_are_counted_and_shown_and_kept_out_of_the_centroids():
    X, bad = spiked(40_000)
    model = learn(X, 5)
    centroids = model.publish().centroids
    clean = X[~bad]
    assert squared_distances(clean, centroids).mean() < 1.05 * 3
    assert squared_distances(clean, learn(X, 5, outliers="keep").publish().centroids).mean() > 2 * 3
    assert 0.9 * bad.sum() <= model.n_outliers_ <= bad.sum()
    assert len(model.outliers_) <= 256
    assert {tuple(x) for x in model.outliers_} <= {tuple(x) for x in X[bad]}
    assert model.published_.weights.sum() == pytest.approx(40_000 - model.n_outliers_, abs=1.0)
    assert model.n_seen == 40_000
    assert model.cost_ / model.n_evaluated_ < 100 or model.n_outliers_ < bad.sum()


@pytest.mark.parametrize("scale", ["none", "standard", "robust"])
def test_clean_data_have_no_outliers(scale):
    rng = np.random.default_rng(0)
    for X in (
        rng.normal(size=(20_000, 2)),
        rng.standard_t(3, size=(20_000, 2)),
        rng.integers(0, 2, (20_000, 6)).astype(float),
        (rng.random((20_000, 3)) < 0.002).astype(float),
        np.full((5000, 2), 3.0),
        mixed(20_000)[0],
        rng.lognormal(0, 1, (20_000, 2)),
    ):
        assert learn(X, scale=scale).n_outliers_ == 0


def test_a_new_far_cluster_is_no_outlier_for_long():
    X, bad = spiked(20_000)
    model = learn(X, 5)
    assert model.n_outliers_ > 0
    X, rng = X[~bad], np.random.default_rng(1)
    for _ in range(60):
        far = rng.normal(0, 1, (100, 3)) + 5e4
        near = X[rng.integers(0, len(X), 400)]
        model.learn_many(np.concatenate([far, near]))
    centroids = model.publish().centroids
    assert np.linalg.norm(centroids - 5e4, axis=1).min() < 100
    assert model.weights_.max() > 3000


def test_the_outlier_score_is_the_distance_in_spreads_of_the_cluster():
    X, _ = spiked(20_000, share=0.0)
    model = learn(X, 5)
    published = model.publish()
    scores = model.outlier_score(X)
    labels, squared = nearest(X, published.centroids)
    np.testing.assert_allclose(scores, np.sqrt(squared) / published.spreads[labels], rtol=1e-9)
    assert np.sqrt((scores**2).mean()) == pytest.approx(1.0, abs=0.05)
    assert model.outlier_score([[1e6, 0.0, 0.0]])[0] > 1e4
    constant = learn(np.full((500, 2), 2.0), 3)
    assert constant.outlier_score([[2.0, 2.0], [3.0, 2.0]]).tolist() == [0.0, np.inf]
