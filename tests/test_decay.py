"""Half-lives: what is learned of a record depends on its own age, never on how records were cut into batches."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import naive
from streamkm import OnlineKMeans
from streamkm.kernels.decay import MAX_AGE, decay_by_position, decay_by_time, half_power, lost_share, pieces
from streamkm.kernels.reductions import weighted_total
from streamkm.models.validation import frozen

NONE = frozen(np.empty(0))
WEIGHTS = st.lists(st.sampled_from([0.0, 1.0, 1.0, 3.0, 0.25]), max_size=40)
TIMES = st.sampled_from([math.nan, -86_400.0, 0.0, 5.0, 5.0, 7.5, 1e9, 1.7e9, 1.7e9 + 0.001])


@given(st.floats(0.0, 1074.0))
def test_half_power_is_exact_to_a_unit_in_the_last_place(age):
    assert half_power(age) == pytest.approx(2.0**-age, rel=4.5e-16, abs=5e-324)


def test_whole_half_lives_are_powers_of_two_and_at_last_nothing_is_left():
    assert [half_power(float(n)) for n in range(1075)] == [2.0**-n for n in range(1075)]
    assert [half_power(age) for age in (MAX_AGE, 1e300, math.inf)] == [0.0] * 3


@given(WEIGHTS, st.sampled_from([0.5, 7.0, 1e9]))
def test_a_row_counts_by_the_weight_that_came_after_it(weights, half_life):
    out = np.empty(len(weights))
    assert decay_by_position(frozen(np.array(weights)), half_life, out) == pytest.approx(sum(weights))
    np.testing.assert_allclose(out, naive.decay_by_position(weights, half_life), rtol=1e-12, atol=1e-300)
    if weights:
        plain = np.empty(len(weights))
        assert decay_by_position(NONE, half_life, plain) == len(weights)
        np.testing.assert_allclose(plain, naive.decay_by_position([1.0] * len(weights), half_life), rtol=1e-12)


@given(st.lists(TIMES, max_size=40), st.sampled_from([math.nan, 3.0, 1.7e9]), st.sampled_from([0.5, 600.0]))
def test_a_row_counts_by_how_long_its_time_lies_before_the_newest(times, clock, half_life):
    out = np.empty(len(times))
    newest = decay_by_time(NONE, frozen(np.array(times, float)), clock, half_life, out)
    known = [t for t in (clock, *times) if not math.isnan(t)]
    assert math.isnan(newest) if not known else newest == max(known)
    expected = naive.decay_by_time([1.0] * len(times), times, half_life, None if math.isnan(clock) else clock)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-300)


@given(st.floats(0.0, 30.0))
def test_what_is_lost_is_accurate_for_small_ages_too(age):
    assert lost_share(age) == pytest.approx(naive.lost_share(age), rel=1e-15, abs=0.0)


@given(st.lists(st.sampled_from([1.0, 2.0, 0.0, 5.0]), min_size=1, max_size=60), st.integers(1, 9), st.booleans())
def test_pieces_end_after_a_share_of_a_half_life(advances, least, timed):
    stops = np.empty(len(advances), np.int64)
    row_weights, times = (NONE, np.cumsum(advances)) if timed else (np.array(advances), NONE)
    n = pieces(frozen(row_weights), frozen(times), 0.0, 4.0, 0.5, least, stops)
    assert stops[:n].tolist() == naive.pieces(advances, 2.0, least)
    if timed:  # without a clock, the first time is where it begins
        n = pieces(frozen(row_weights), frozen(times), math.nan, 4.0, 0.5, least, stops)
        assert stops[:n].tolist() == naive.pieces([0.0, *advances[1:]], 2.0, least)


@given(st.lists(st.floats(0.0, 9.0), max_size=9), st.booleans())
def test_a_weighted_total_is_the_sum_of_products(values, weighted):
    weights = np.arange(len(values)) / 3.0
    total = weighted_total(np.array(values), frozen(weights) if weighted else NONE)
    assert total == pytest.approx(naive.weighted_total(values, weights if weighted else np.ones(len(values))))


def drifting(n=30_240):
    """2.8 records a second for three hours: two clusters that move 100 units and stay 60 apart."""
    rng = np.random.default_rng(0)
    times = 1.76e9 + np.arange(n) / 2.8
    x = np.where(rng.random(n) < 0.5, 0.0, 60.0) + 100 * np.arange(n) / n + rng.normal(0, 1, n)
    return x[:, None], times


def learned(X, size, weights=None, times=None, **settings):
    model = OnlineKMeans(2, **settings)
    for a in range(0, len(X), size):
        part = slice(a, a + size)
        model.learn_many(
            X[part], None if weights is None else weights[part], times=None if times is None else times[part]
        )
    return model


@pytest.mark.large
@pytest.mark.parametrize("size", [50, 8192, 30_240])
@pytest.mark.parametrize(("unit", "half_life"), [("seconds", 600.0), ("points", 1680.0)])
def test_a_backlog_read_in_large_batches_gives_the_same_clusters(size, unit, half_life):
    X, times = drifting()
    weights = 2.0 ** (-(times[-1] - times) / 600.0)
    low = X.ravel() < 50 + 100 * np.arange(len(X)) / len(X)
    model = learned(X, size, times=times, half_life=half_life, half_life_unit=unit)
    for centers, masses in (
        (model.centers_, model.weights_),
        (p := model.publish(), None) and (p.centroids, p.weights),
    ):
        order = np.argsort(centers.ravel())
        assert masses.sum() == pytest.approx(weights.sum(), rel=1e-9)
        np.testing.assert_allclose(masses[order], [weights[low].sum(), weights[~low].sum()], rtol=0.02)
        expected = [
            np.average(X[low].ravel(), weights=weights[low]),
            np.average(X[~low].ravel(), weights=weights[~low]),
        ]
        np.testing.assert_allclose(centers.ravel()[order], expected, atol=1.0)
    assert model.coreset_.weights_.sum() == pytest.approx(weights.sum(), rel=1e-9)


@pytest.mark.large
@pytest.mark.parametrize("size", [1, 7, 1000, 4000])
def test_late_and_undated_records_and_weights_do_not_depend_on_batches(size):
    rng = np.random.default_rng(1)
    n = 4000
    X = rng.integers(0, 5, (n, 2)).astype(float)
    times = np.arange(n) - rng.choice([0.0, 0.0, 300.0], n)
    times[rng.random(n) < 0.1] = math.nan
    weights = rng.choice([0.0, 1.0, 2.0], n)
    model = learned(X, size, weights, times, half_life=500.0, half_life_unit="seconds")
    expected = naive.decay_by_time(weights, times, 500.0).sum()
    assert model.weights_.sum() == pytest.approx(expected, rel=1e-9)
    assert model.publish().weights.sum() == pytest.approx(expected, rel=1e-9)


@pytest.mark.large
def test_inertia_counts_every_point_alike():
    X, times = drifting(9000)
    X -= 100 * np.arange(9000)[:, np.newaxis] / 9000
    for size in (100, 3000):
        model = learned(X, size, times=times, half_life=60.0, half_life_unit="seconds")
        assert model.n_evaluated_ == len(X) - size
        assert model.cost_ / model.n_evaluated_ == pytest.approx(1.0, rel=0.2)


@pytest.mark.large
def test_a_clock_beyond_a_limit_is_capped():
    X, times = drifting(6000)
    model = learned(
        X, 1000, times=np.where(np.arange(6000) == 900, times + 2e9, times), half_life=60.0, half_life_unit="seconds"
    )
    assert model.weights_.sum() == pytest.approx(1.0)
    model.cap_clock(times[-1])
    model.learn_many(X[:1000], times=times[-1])
    assert model.weights_.sum() == pytest.approx(1001.0)
