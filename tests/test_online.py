import copy
import math
import pickle

import numpy as np
import pandas as pd
import polars as pl
import pytest

import naive
import streamkm
from streamkm import OnlineKMeans
from streamkm.errors import DataError, NotReadyError, SettingsError, StateError
from streamkm.kernels.assign import assign, assign_accumulate, extent, largest, pack_centroids
from streamkm.kernels.coreset import calibrate, sample_rows, thin, threshold
from streamkm.kernels.decay import decay_by_position, decay_by_time, half_power, lost_share, pieces
from streamkm.kernels.kd_order import order_by_kd_tree
from streamkm.kernels.outliers import mask_within, squared_distances_from, widest_gap
from streamkm.kernels.random import draw, draw_by_blocks, sum_blocks, uniform
from streamkm.kernels.reductions import differences, evenly_spaced_rows, weighted_sum, weighted_total
from streamkm.kernels.representatives import pick_representatives
from streamkm.kernels.search import (
    lay_columns,
    lloyd_on_columns,
    local_search,
    nearest_two,
    remove_centroids,
    squared_distances_to,
)
from streamkm.kernels.seed import kmeans_plus_plus
from streamkm.kernels.update import learn_batch, lloyd, mean_square, starved
from streamkm.models import compile_kernels
from streamkm.state import ModelState


def blobs(n, d=3, k=5, *, seed=0, spread=0.5):
    rng = np.random.default_rng(seed)
    centers = rng.uniform(-20, 20, (k, d))
    return centers[rng.integers(0, k, n)] + rng.normal(0, spread, (n, d))


def batches(X, size=100):
    return [X[i : i + size] for i in range(0, len(X), size)]


def fitted(X, k=5, **arguments):
    model = OnlineKMeans(k, **arguments)
    for batch in batches(X):
        model.learn_many(batch)
    return model


def hash_of(model):
    return model.state().to_bytes()


def cost(X, centers):
    return naive.assign(X, centers)[1].sum()


# Learning


def test_it_finds_the_clusters_of_a_stream():
    X = blobs(3000)
    model = fitted(X)
    assert cost(X, model.centers_) / len(X) < 1.05 * 3 * 0.25
    np.testing.assert_allclose(model.spreads_, math.sqrt(3 * 0.25), rtol=0.1)
    assert model.weights_.sum() == pytest.approx(3000)
    assert model.n_seen == 3000


def test_equal_batches_and_seeds_give_equal_states_and_another_seed_another():
    X = blobs(1000)
    assert hash_of(fitted(X)) == hash_of(fitted(X))
    assert hash_of(fitted(X)) != hash_of(fitted(X, seed=1))


def test_each_batch_does_exactly_what_the_naive_twin_does():
    X = blobs(600)
    model = fitted(X[:100], half_life=4000.0)
    for batch in batches(X[100:300]):  # no re-solve is due so early
        stats = np.array(model.state().arrays["stats"])
        weights = naive.decay_by_position(np.ones(100), 4000.0)
        centers, stats = naive.learn_batch(
            batch, weights, 2.0 ** (-100 / 4000), model.centers_, stats, batch_weight=100.0
        )
        model.learn_many(batch)
        np.testing.assert_allclose(model.centers_, centers, rtol=1e-12)
        np.testing.assert_allclose(model.state().arrays["stats"], stats, rtol=1e-12)


def test_without_decay_one_centroid_is_the_mean_of_all_points():
    X = blobs(1234, d=1)
    model = fitted(X, k=1)
    np.testing.assert_allclose(model.centers_, X.mean(axis=0, keepdims=True), rtol=1e-12)
    assert model.weights_.tolist() == [1234.0]


def test_the_rate_of_a_centroid_is_its_share_of_the_batch_in_its_weight():
    model = OnlineKMeans(2, warmup=4)
    model.learn_many([[0.0], [2.0], [100.0], [102.0]])
    order = np.argsort(model.centers_[:, 0])
    assert model.centers_[order].ravel().tolist() == [1.0, 101.0]
    model.learn_many([[4.0], [7.0]])
    # w = 2 + 2; rate 2 / 4; 1 + (5.5 - 1) / 2
    assert model.centers_[order].ravel().tolist() == [3.25, 101.0]
    assert model.weights_[order].tolist() == [4.0, 2.0]
    assert (model.cost_, model.n_evaluated_) == (3.0**2 + 6.0**2, 2.0)


def test_a_half_life_in_points_halves_what_was_learned_before():
    model = OnlineKMeans(1, warmup=4, half_life=2)
    q = 2.0**-0.5
    model.learn_many([[0.0]] * 4)
    four = 1 + q + 0.5 + q**3
    assert model.weights_[0] == pytest.approx(four)
    model.learn_many([[8.0], [8.0]])
    assert model.weights_[0] == pytest.approx(four / 2 + 1 + q)
    assert model.centers_[0, 0] == pytest.approx(8 * (1 + q) / (four / 2 + 1 + q))
    model.learn_many([[8.0]])
    assert model.weights_[0] == pytest.approx((four / 2 + 1 + q) * q + 1)


def test_decay_acts_on_the_warm_up_buffer_too():
    model = OnlineKMeans(1, warmup=4, half_life=2)
    model.learn_many([[0.0], [0.0]])
    model.learn_many([[9.0], [9.0]])
    assert model.weights_[0] == pytest.approx(1.5 * (1 + 2.0**-0.5))
    assert model.centers_[0, 0] == pytest.approx(6.0)


def test_event_time_decays_by_how_far_it_moves_on():
    model = OnlineKMeans(1, warmup=2, half_life=60, half_life_unit="seconds")
    model.learn_many([[0.0], [0.0]], times=[1000.0, 940.0])
    assert model.weights_.tolist() == [1.5]
    model.learn_many([[4.0]], times=1060.0)
    assert model.weights_.tolist() == [1.75]
    assert model.centers_[0, 0] == pytest.approx(4 / 1.75)


def test_late_records_count_by_their_own_age_and_do_not_move_time_back():
    model = OnlineKMeans(1, warmup=1, half_life=60, half_life_unit="seconds")
    model.learn_many([[0.0]], times=[1000.0])
    model.learn_many([[0.0]], times=[940.0])
    assert model.weights_.tolist() == [1.5]
    model.learn_many([[0.0]] * 3, times=[1000.0, 880.0, math.nan])
    assert model.weights_.tolist() == [3.75]
    model.learn_many([[0.0]], times=math.nan)
    assert model.weights_.tolist() == [4.75]
    model.learn_many([[0.0], [0.0]], times=[1060.0, 940.0])
    assert model.weights_.tolist() == [4.75 / 2 + 1.25]


def test_a_gap_of_a_day_decays_as_a_day():
    model = OnlineKMeans(1, warmup=1, half_life=3600, half_life_unit="seconds")
    model.learn_many(np.zeros((1024, 1)), times=0.0)
    model.learn_many([[1.0]], times=86400.0)
    assert model.weights_.tolist() == [1024 * 2.0**-24 + 1]


@pytest.mark.parametrize("seconds", [1e6, 1e9, 1e300])
def test_a_gap_that_underflows_forgets_everything_and_gives_no_nan(seconds):
    X = blobs(300)
    model = OnlineKMeans(5, half_life=1, half_life_unit="seconds")
    model.learn_many(X, times=0.0)
    model.learn_many(X[:2], times=seconds)
    assert np.isfinite(model.centers_).all()
    assert np.isfinite(model.spreads_).all()
    assert model.weights_.sum() == pytest.approx(2.0)


def test_a_half_life_in_seconds_needs_times():
    model = OnlineKMeans(2, half_life=5, half_life_unit="seconds")
    with pytest.raises(DataError, match="event times are missing"):
        model.learn_many(blobs(10))
    assert model.n_seen == 0


# Weights


@pytest.mark.parametrize("half_life", [None, 2000.0])
def test_a_row_weight_equals_repetition(half_life):
    X = blobs(600, k=7)
    weights = np.random.default_rng(1).integers(0, 4, 600)
    weighted, repeated = OnlineKMeans(5, half_life=half_life), OnlineKMeans(5, half_life=half_life)
    for i in range(0, 600, 200):
        x, w = X[i : i + 200], weights[i : i + 200]
        weighted.learn_many(x, weights=w)
        repeated.learn_many(np.repeat(x, w, axis=0))
        np.testing.assert_allclose(weighted.centers_, repeated.centers_, rtol=1e-9)
        np.testing.assert_allclose(weighted.weights_, repeated.weights_, rtol=1e-9)
        np.testing.assert_allclose(weighted.spreads_, repeated.spreads_, rtol=1e-6)
    assert weighted.cost_ == pytest.approx(repeated.cost_)
    assert weighted.n_evaluated_ == repeated.n_evaluated_


def test_zero_and_huge_weights_stay_finite():
    X = blobs(400)
    model = OnlineKMeans(5)
    model.learn_many(X[:100], weights=np.zeros(100))
    assert model.weights_.sum() == 0.0
    model.learn_many(X[100:200], weights=np.full(100, 1e100))
    model.learn_many(X[200:], weights=np.full(200, 1e-100))
    assert np.isfinite(model.centers_).all()
    assert model.weights_.sum() == pytest.approx(1e102)


# Warm-up


def test_before_there_are_centroids_it_says_how_far_it_is():
    model = OnlineKMeans(5)
    assert model.warmup_ == (0, 100)
    model.learn_many(blobs(30))
    assert model.warmup_ == (30, 100)
    for ask in (lambda: model.centers_, lambda: model.weights_, lambda: model.ids_, lambda: model.spreads_):
        with pytest.raises(NotReadyError, match="30 of 100"):
            ask()
    with pytest.raises(NotReadyError, match="70 more points"):
        model.predict_many(blobs(3))
    assert model.predict_one({"0": 1.0, "1": 1.0, "2": 1.0}) == -1
    assert model.centers == {}
    model.learn_many(blobs(70))
    assert model.warmup_ is None
    assert model.weights_.sum() == 100
    assert (model.cost_, model.n_evaluated_) == (0.0, 0.0)


@pytest.mark.parametrize(("k", "need"), [(1, 20), (8, 160), (50, 1000), (256, 1024), (400, 1600)])
def test_the_warm_up_needs_four_rows_a_cluster_and_twenty_up_to_a_thousand(k, need):
    assert OnlineKMeans(k).warmup_ == (0, need)
    assert OnlineKMeans(k, warmup=k).warmup_ == (0, k)


def test_the_first_batch_counts_every_row_once_however_large_it_is():
    X = blobs(1_000_000, d=2)
    model = OnlineKMeans(5)
    model.learn_many(X)
    assert model.weights_.sum() == pytest.approx(1_000_000)
    assert model.n_seen == 1_000_000
    assert cost(X[:2000], model.centers_) / 2000 < 1.05 * 2 * 0.25
    model.learn_many(X)
    assert model.weights_.sum() == pytest.approx(2_000_000)


def test_batches_of_one_row_learn_as_well():
    X = blobs(600)
    model = OnlineKMeans(5)
    for x in X:
        model.learn_many(x[np.newaxis])
    assert model.weights_.sum() == 600
    assert cost(X, model.centers_) / len(X) < 1.1 * 3 * 0.25


# Empty and starved clusters


@pytest.mark.parametrize("distinct", [1, 3])
@pytest.mark.parametrize("half_life", [None, 10.0])
def test_fewer_distinct_points_than_clusters_stay_finite(distinct, half_life):
    X = np.repeat(np.arange(distinct, dtype=float)[:, np.newaxis] * 7 + 1e6, 100, axis=0)
    model = OnlineKMeans(5, half_life=half_life)
    for _ in range(5):
        model.learn_many(X)
    assert np.isfinite(model.centers_).all()
    assert np.isfinite(model.weights_).all()
    there = model.weights_ > 1e-12
    if half_life is None:
        assert there.sum() == distinct
        assert model.ids_.tolist() == [0, 1, 2, 3, 4]
    assert np.unique(model.centers_[there]).tolist() == np.unique(X).tolist()


def test_a_cluster_that_never_had_a_point_gets_one_when_there_are_points_for_it():
    model = OnlineKMeans(3, warmup=3)
    model.learn_many([[0.0], [0.0], [100.0]])
    assert sorted(model.weights_) == [0.0, 1.0, 2.0]
    rng = np.random.default_rng(0)
    for i in range(10):
        model.learn_many(rng.choice([0.0, 100.0, 150.0], (20, 1)) + rng.normal(size=(20, 1)))
        assert model.weights_.sum() == 3 + 20 * (i + 1)
    np.testing.assert_allclose(np.sort(model.centers_.ravel()), [0, 100, 150], atol=5)
    assert sorted(model.ids_)[:2] != [0, 1] or max(model.ids_) == 3
    assert len(set(model.ids_.tolist())) == 3


def test_a_cluster_that_the_stream_left_starts_anew_under_a_new_id():
    rng = np.random.default_rng(0)

    def stream(centers, n):
        return rng.choice(centers, (n, 1)) + rng.normal(size=(n, 1))

    model = OnlineKMeans(2, half_life=50)
    model.learn_many(stream([0.0, 1000.0], 200))
    gone = int(model.ids_[np.argmax(model.centers_)])
    for _ in range(60):
        model.learn_many(stream([0.0, 30.0], 50))
    np.testing.assert_allclose(np.sort(model.centers_.ravel()), [0, 30], atol=3)
    assert gone not in model.ids_
    assert max(model.ids_) == 2


def test_a_small_cluster_that_gets_a_point_now_and_then_is_never_touched():
    rng = np.random.default_rng(0)
    model = OnlineKMeans(3, half_life=2000)
    model.learn_many(
        np.concatenate([rng.normal(0, 1, (500, 2)), rng.normal(50, 1, (500, 2)), rng.normal(-90, 1, (2, 2))])
    )
    for i in range(100):
        X = np.concatenate([rng.normal(0, 1, (250, 2)), rng.normal(50, 1, (250, 2))])
        model.learn_many(X if i % 8 else np.concatenate([X, rng.normal(-90, 1, (1, 2))]))
    assert model.ids_.tolist() == [0, 1, 2]
    np.testing.assert_allclose(np.sort(model.centers_[:, 0]), [-90, 0, 50], atol=2)


def test_without_decay_a_small_cluster_is_kept_for_ever():
    rng = np.random.default_rng(0)
    model = OnlineKMeans(2, warmup=3, outliers="keep")
    model.learn_many([[0.0], [1.0], [1e6]])
    for _ in range(20):
        model.learn_many(rng.normal(size=(200_000, 1)))
    assert model.ids_.tolist() == [0, 1]
    assert sorted(model.weights_.tolist()) == pytest.approx([1.0, 4_000_002.0])


# Numbers


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_huge_and_tiny_units_change_nothing_but_the_unit(unit, dtype):
    X = blobs(1000)
    scaled, plain = fitted((X * unit).astype(dtype)), fitted(X)
    np.testing.assert_allclose(scaled.centers_ / unit, plain.centers_, rtol=1e-5)
    np.testing.assert_allclose(scaled.spreads_ / unit, plain.spreads_, rtol=1e-4)


def test_a_power_of_two_as_unit_changes_no_bit():
    X = blobs(1000)
    np.testing.assert_array_equal(fitted(X * 2.0**80).centers_, fitted(X).centers_ * 2.0**80)
    np.testing.assert_array_equal(fitted(X * 2.0**-80).centers_, fitted(X).centers_ * 2.0**-80)


def test_an_offset_costs_no_accuracy():
    X = np.round(blobs(2000) * 1024) / 1024  # exact after adding 1e7
    plain, shifted = fitted(X), fitted(X + 1e7)
    np.testing.assert_allclose(shifted.centers_ - 1e7, plain.centers_, atol=1e-6)
    np.testing.assert_allclose(shifted.spreads_, plain.spreads_, rtol=1e-6)
    np.testing.assert_array_equal(shifted.predict_many(X + 1e7), plain.predict_many(X))


def test_clusters_are_separated_that_float32_would_merge():
    rng = np.random.default_rng(0)
    truth = np.array([[0.0, 0], [0, 0.4], [1e7, 1e7], [1e7, 1e7 + 0.4]])
    X = truth[rng.integers(0, 4, 4000)] + rng.normal(0, 0.01, (4000, 2))
    model = fitted(X, k=4)
    nearest, squared = naive.assign(truth, model.centers_)
    assert sorted(nearest) == [0, 1, 2, 3]
    assert np.sqrt(squared.max()) < 0.01
    np.testing.assert_allclose(model.spreads_, 0.01 * math.sqrt(2), rtol=0.2)
    np.testing.assert_array_equal(model.predict_many(X), model.ids_[naive.assign(X, model.centers_)[0]])


@pytest.mark.parametrize(
    "convert",
    [
        lambda X: X.astype(np.float32),
        lambda X: X.astype(np.int16),
        lambda X: X.astype(np.int64),
        lambda X: X.astype(">f8"),
        np.asfortranarray,
        lambda X: np.repeat(X, 2, axis=1)[:, ::2],
        lambda X: np.repeat(X, 2, axis=0)[::2],
        lambda X: X.tolist(),
        lambda X: X.astype(object),
        lambda X: np.frombuffer(b"\0" + X.tobytes(), np.uint8)[1:].view(np.float64).reshape(X.shape),
        pd.DataFrame,
        pl.DataFrame,
    ],
    ids=[
        "float32",
        "int16",
        "int64",
        "big-endian",
        "fortran",
        "columns",
        "rows",
        "list",
        "object",
        "unaligned",
        "pd",
        "pl",
    ],
)
def test_any_type_and_layout_of_the_same_numbers_gives_the_same_model(convert):
    X = np.round(blobs(600))
    expected = fitted(X[:200])
    expected.learn_many(X)
    model = fitted(X[:200])
    before = len(learn_batch.signatures)
    model.learn_many(convert(X))
    assert len(learn_batch.signatures) <= before + (1 if np.asarray(convert(X)).dtype == np.float32 else 0)
    np.testing.assert_allclose(model.centers_, expected.centers_, rtol=1e-12)
    np.testing.assert_array_equal(model.predict_many(convert(X)), expected.predict_many(X))


def test_booleans_are_zeros_and_ones():
    X = np.random.default_rng(0).random((300, 3)) > 0.5
    np.testing.assert_array_equal(fitted(X).centers_, fitted(X.astype(float)).centers_)


def test_input_is_never_written_to_and_may_be_read_only():
    X, weights, times = blobs(500), np.ones(500), np.arange(500.0)
    for a in (X, weights, times):
        a.flags.writeable = False
    model = OnlineKMeans(5, half_life=9, half_life_unit="seconds")
    model.learn_many(X, weights=weights, times=times)
    model.learn_many(X, weights=weights, times=times + 1)
    model.predict_many(X)
    writable = X.copy()
    model.learn_many(writable, times=0.0)
    np.testing.assert_array_equal(writable, X)
    assert writable.flags.writeable


KERNELS = (
    *(
        lloyd_on_columns,
        differences,
        pick_representatives,
        draw_by_blocks,
        evenly_spaced_rows,
        weighted_sum,
        order_by_kd_tree,
        sum_blocks,
    ),
    *(
        sample_rows,
        assign,
        assign_accumulate,
        calibrate,
        draw,
        extent,
        kmeans_plus_plus,
        largest,
        lay_columns,
        learn_batch,
    ),
    *(
        lloyd,
        local_search,
        mean_square,
        nearest_two,
        pack_centroids,
        remove_centroids,
        squared_distances_to,
        starved,
        thin,
    ),
    *(squared_distances_from, threshold, uniform, widest_gap, mask_within),
    *(decay_by_position, decay_by_time, half_power, lost_share, pieces, weighted_total),
)


def test_compiling_in_advance_leaves_nothing_to_compile():
    compile_kernels()
    before = {kernel: len(kernel.signatures) for kernel in KERNELS}
    for dtype in (np.float32, np.float64):
        for half_life, unit in ((None, "points"), (500.0, "points"), (500.0, "seconds")):
            model = OnlineKMeans(5, half_life=half_life, half_life_unit=unit, coreset_size=100, scale="standard")
            for batch in batches(blobs(3000).astype(dtype)):
                model.learn_many(batch, times=0.0)
            model.learn_many(np.full((10, 3), 1e9, dtype), weights=np.ones(10), times=np.zeros(10))
            model.learn_many(np.full((100, 3), 1e9, dtype), weights=np.ones(100), times=1.0)
            model.publish()
            model.predict_many(np.full((10, 3), -1e9, dtype))
            model.learn_one(dict.fromkeys("abc", 1.0), time=2.0)
    assert before == {kernel: len(kernel.signatures) for kernel in before}
    assert before[learn_batch] <= 4


# Asking


def test_prediction_gives_the_id_and_the_distance_of_the_nearest_centroid():
    X = blobs(500)
    model = fitted(X)
    ids, distances = model.assign(X)
    labels, squared = naive.assign(X, model.centers_)
    np.testing.assert_array_equal(ids, model.ids_[labels])
    assert ids.dtype == np.int64
    np.testing.assert_allclose(distances, np.sqrt(squared), rtol=1e-12)
    assert model.predict_many(X[:0]).shape == (0,)


def test_asking_changes_nothing():
    X = blobs(300)
    model = fitted(X)
    before = hash_of(model)
    model.predict_many(X * 1e9)
    model.predict_one({"a": 1, "b": 2, "c": 3})
    model.assign(pd.DataFrame(X, columns=["a", "b", "c"]))
    model.centers_[:] = 0
    model.weights_[:] = 0
    model.ids_[:] = 0
    assert hash_of(model) == before


def test_the_cost_judges_each_point_before_it_is_learned():
    X = blobs(400)
    model = fitted(X[:200], warmup=100)
    judged = model.n_evaluated_
    assert judged == 100
    expected = model.cost_
    for batch in (X[200:300], X[300:]):
        expected += cost(batch, model.centers_)
        model.learn_many(batch)
    assert model.n_evaluated_ == judged + 200
    assert model.cost_ == pytest.approx(expected)


# State


@pytest.mark.parametrize("unit", ["points", "seconds"])
@pytest.mark.parametrize("stop", range(13))
def test_stopping_and_going_on_gives_the_same_bits_as_never_having_stopped(stop, unit):
    X, times = blobs(650, k=9), np.cumsum(np.random.default_rng(3).exponential(size=650))
    straight = OnlineKMeans(5, half_life=80, half_life_unit=unit, warmup=130, seed=3)
    stopped = OnlineKMeans(5, half_life=80, half_life_unit=unit, warmup=130, seed=3)
    for i, (x, t) in enumerate(zip(batches(X, 50), batches(times, 50), strict=True)):
        if i == stop:
            stopped = OnlineKMeans.from_state(ModelState.from_bytes(hash_of(stopped)))
            assert hash_of(stopped) == hash_of(straight)
            assert stopped.warmup_ == straight.warmup_
        straight.learn_many(x, weights=np.arange(50) % 3, times=t)
        stopped.learn_many(x, weights=np.arange(50) % 3, times=t)
    assert hash_of(stopped) == hash_of(straight)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])  # noqa: S301
def test_a_copy_of_the_model_goes_its_own_way(how):
    X = blobs(400)
    model = fitted(X[:200])
    other = how(model)
    before = hash_of(model)
    other.learn_many(X[200:])
    assert hash_of(model) == before != hash_of(other)


def test_a_state_is_a_copy_that_cannot_be_written_to():
    X = blobs(400)
    for n in (50, 300):
        model = fitted(X[:n])
        state = model.state()
        before = state.to_bytes()
        model.learn_many(X)
        assert state.to_bytes() == before
        restored = OnlineKMeans.from_state(state)
        restored.learn_many(X)
        assert state.to_bytes() == before
        with pytest.raises(ValueError, match="read-only"):
            next(iter(state.arrays.values()))[0] = 1


def test_a_state_that_cannot_be_restored_is_refused():
    state = fitted(blobs(300)).state()
    with pytest.raises(StateError, match="ExactKMeans"):
        OnlineKMeans.from_state(ModelState("ExactKMeans", 2, state.params, state.arrays))
    with pytest.raises(StateError, match="Upgrade"):
        OnlineKMeans.from_state(ModelState("OnlineKMeans", 99, state.params, state.arrays))
    for name in state.params:
        params = {key: value for key, value in state.params.items() if key != name}
        with pytest.raises(StateError, match=name):
            OnlineKMeans.from_state(ModelState("OnlineKMeans", 2, params, state.arrays))
    for name in ("coreset_rng", "stats", "ids", "origin", "coreset_rows", "coreset_sums", "gap_middle"):
        arrays = {key: value for key, value in state.arrays.items() if key != name}
        with pytest.raises(StateError, match=name):
            OnlineKMeans.from_state(ModelState("OnlineKMeans", 2, state.params, arrays))
    arrays = {**state.arrays, "centroids": np.zeros((4, 3))}
    with pytest.raises(StateError, match="centroids"):
        OnlineKMeans.from_state(ModelState("OnlineKMeans", 2, state.params, arrays))


# Bad input


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e200])
@pytest.mark.parametrize("ready", [False, True])
def test_a_value_that_cannot_be_learned_is_named_and_nothing_is_learned(bad, ready):
    model = fitted(blobs(300)) if ready else OnlineKMeans(5)
    before = hash_of(model)
    X = blobs(40)
    X[17, 2] = bad
    with pytest.raises(DataError, match=r"row 17, column 2"):
        model.learn_many(X)
    with pytest.raises(DataError, match=r"row 17, field 'z'"):
        model.learn_many(pd.DataFrame(X, columns=["x", "y", "z"]))
    with pytest.raises(DataError, match=r"row 17, field 'z'"):
        model.learn_many(pl.DataFrame(X, schema=["x", "y", "z"]))
    if ready:
        with pytest.raises(DataError, match=r"row 17, column 2"):
            model.predict_many(X)
    assert hash_of(model) == before


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([1.0, 2.0, 3.0], r"shape is \(3,\).*reshape"),
        (np.zeros((2, 3, 1)), "shape"),
        (np.zeros((5, 4)), "4 columns, the model has 3"),
        (np.zeros((5, 0)), "no columns"),
        ([["a", "b", "c"]], "numbers"),
        ([[1.0, 2.0], [3.0]], "numbers"),
        (np.zeros((2, 3), complex), "numbers, not complex"),
        (np.zeros((2, 3), "M8[s]"), "numbers, not datetime"),
        (pd.DataFrame({"a": [1], "b": ["x"], "c": [2]}), "field 'b'"),
        (pl.DataFrame({"a": [1], "b": ["x"], "c": [2]}), "numbers"),
    ],
)
def test_what_is_not_n_points_of_d_numbers_is_refused(X, message):
    model = fitted(blobs(300))
    with pytest.raises(DataError, match=message):
        model.learn_many(X)


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_columns_are_taken_by_name(frame):
    X = blobs(600)
    model = OnlineKMeans(5)
    model.learn_many(frame({"a": X[:, 0], "b": X[:, 1], "c": X[:, 2]}))
    assert model.feature_names == ("a", "b", "c")
    shuffled = frame({"c": X[:, 2], "a": X[:, 0], "b": X[:, 1]})
    np.testing.assert_array_equal(model.predict_many(shuffled), model.predict_many(X))
    with pytest.raises(DataError, match=r"lacks the columns \['b'\]"):
        model.learn_many(frame({"a": [1.0], "c": [1.0]}))
    with pytest.raises(DataError, match=r"has the columns \['e'\]"):
        model.learn_many(frame({"a": [1.0], "b": [1.0], "c": [1.0], "e": [1.0]}))
    with pytest.raises(DataError, match=r"row 1, field 'b': is nan"):
        model.learn_many(frame({"a": [1.0, 2.0], "b": [1.0, None], "c": [1.0, 2.0]}))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.ones(4), r"shape \(4,\)"),
        ([1.0, -1.0, 1.0], "row 1: weight is -1"),
        ([1.0, 1.0, math.nan], "row 2: weight is nan"),
        ([math.inf, 1.0, 1.0], "row 0: weight is inf"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    model = OnlineKMeans(5)
    with pytest.raises(DataError, match=message):
        model.learn_many(blobs(3), weights=weights)
    assert model.n_seen == 0


@pytest.mark.parametrize(("times", "message"), [(np.ones(4), "shape"), ([0.0, math.inf, 1.0], "infinite")])
def test_bad_times_are_refused(times, message):
    model = OnlineKMeans(5, half_life=1, half_life_unit="seconds")
    with pytest.raises(DataError, match=message):
        model.learn_many(blobs(3), times=times)
    assert model.n_seen == 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"n_clusters": 0},
        {"n_clusters": 2.5},
        {"half_life": 0},
        {"half_life": -1.0},
        {"half_life": math.nan},
        {"half_life": math.inf},
        {"half_life_unit": "minutes"},
        {"warmup": 7},
        {"seed": -1},
        {"seed": 2**64},
        {"seed": 1.5},
        {"scale": "minmax"},
        {"distance": "manhattan"},
        {"scale": "robust", "distance": "cosine"},
        {"on_drift": "panic"},
        {"outliers": "drop"},
        {"coreset_size": 100.0},
    ],
)
def test_a_setting_out_of_range_is_refused_by_name(arguments):
    with pytest.raises(SettingsError, match=next(iter(arguments))):
        OnlineKMeans(**arguments)


def test_an_empty_batch_changes_nothing():
    model = fitted(blobs(300))
    before = hash_of(model)
    model.learn_many(np.empty((0, 3)))
    model.learn_many(np.empty((0, 3)), weights=[], times=[])
    assert hash_of(model) == before


def test_the_package_exports_the_model_and_nothing_it_does_not_have():
    assert "OnlineKMeans" in dir(streamkm)
    with pytest.raises(AttributeError, match="NoSuchModel"):
        _ = streamkm.NoSuchModel
