import numpy as np
import pytest

import naive
from streamkm.kernels.coreset import CALIBRATED, UNSAMPLED, calibrate, sample_rows, thin, threshold
from streamkm.kernels.kd_order import order_by_kd_tree
from streamkm.kernels.outliers import mask_within, squared_distances_from, widest_gap
from streamkm.kernels.representatives import pick_representatives
from streamkm.kernels.search import (
    lay_columns,
    lloyd_on_columns,
    local_search,
    nearest_two,
    remove_centroids,
    squared_distances_to,
)
from streamkm.models.validation import ONES, frozen

SHAPES = [(1, 1, 1), (40, 2, 3), (300, 5, 7), (130, 9, 20)]
TYPES = [np.float32, np.float64]


def problem(n, d, k, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) + 3.0 * rng.integers(0, 3, (n, 1))
    return rows, rng.integers(1, 4, n).astype(float), rng.normal(size=(k, d)) * 2


def buffer(capacity, d):
    return np.empty((capacity, d)), np.empty(capacity), np.empty(capacity, np.int32)


def columns_of(rows, dtype=np.float64, origin=0.0, scale=1.0):
    d = rows.shape[1]
    columns = np.empty((d, -(-len(rows) // 64) * 64), dtype)
    lay_columns(frozen(rows), np.full(d, origin), np.full(d, scale), columns)
    return columns


def batch_of(rows, weights, centroids, origin):
    labels, squared, totals = naive.assign_accumulate(rows, weights, origin, centroids)
    stats = np.column_stack([totals[:, -2:], np.zeros(len(totals))])
    return labels.astype(np.int32), squared, totals, stats


# Admission


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("size", [5.0, 30.0, 1e6])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_rows_are_sampled_as_the_naive_twin_samples_them(n, d, k, size, weighted):
    rows, weights, centroids = problem(n, d, k)
    weights = weights if weighted else np.ones(n)
    batch_origin, origin = centroids.mean(axis=0), np.full(d, 0.7)
    labels, squared, totals, stats = batch_of(rows, weights, centroids, batch_origin)
    out_rows, out_weights, strata = buffer(n + 20, d)
    sums, rng = np.zeros((k, d + 1)), np.array([5], np.uint64)
    filled = sample_rows(
        frozen(rows),
        frozen(weights) if weighted else ONES,
        (labels, squared, totals, batch_origin),
        stats,
        origin,
        size,
        2.0,
        0,
        (out_rows, out_weights, strata, sums),
        rng,
    )
    expected = naive.sample_rows(rows, weights, labels, squared, stats, origin, size, 2.0, 5)
    assert filled == len(expected[0]) <= max(n, size + 2)
    np.testing.assert_array_equal(out_rows[:filled], expected[0].reshape(-1, d))
    np.testing.assert_allclose(out_weights[:filled], expected[1], rtol=1e-12)
    np.testing.assert_array_equal(strata[:filled], expected[2])
    np.testing.assert_allclose(sums, expected[3], atol=1e-9)
    assert int(rng[0]) == expected[4]


def test_a_row_of_weight_zero_is_never_sampled():
    rows, _, centroids = problem(50, 2, 3)
    weights = np.zeros(50)
    weights[:5] = 1.0
    labels, squared, totals, stats = batch_of(rows, weights, centroids, np.zeros(2))
    out_rows, out_weights, strata = buffer(200, 2)
    filled = sample_rows(
        frozen(rows), frozen(weights), (labels, squared, totals, np.zeros(2)), stats, np.zeros(2), 100.0, 1.0, 0,
        (out_rows, out_weights, strata, np.zeros((3, 3))), np.array([1], np.uint64),
    )  # fmt: skip
    assert {tuple(r) for r in out_rows[:filled]} <= {tuple(r) for r in rows[:5]}


# Calibration


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_calibration_gives_each_stratum_its_exact_mass_and_mean(n, d, k):
    rows, weights, _ = problem(n, d, k)
    rng = np.random.default_rng(1)
    origin, sums = np.full(d, 0.3), rng.uniform(1, 2, (k + 2, d + 1))
    sums[-1] = 0.0  # a stratum of which nothing is left
    strata = rng.integers(-1, k + 2, n).astype(np.int32)
    strata[strata == k] = 0  # a stratum of which nothing was sampled
    out_rows, out_weights, out_strata = buffer(n + k + 2, d)
    out_rows[:n], out_weights[:n], out_strata[:n] = rows, weights, strata
    filled = calibrate(0, n, out_rows, out_weights, out_strata, origin, totals := sums.copy())
    expected = naive.calibrate(rows, weights, strata, origin, sums)
    np.testing.assert_allclose(out_rows[:filled], expected[0], rtol=1e-12)
    np.testing.assert_allclose(out_weights[:filled], expected[1], rtol=1e-12)
    assert (out_strata[:filled] == CALIBRATED).all()
    assert not totals.any()
    certain = weights[strata == UNSAMPLED].sum()
    assert out_weights[:filled].sum() == pytest.approx(certain + sums[:, -1].sum())


def test_rows_before_the_first_are_not_calibrated_again():
    rows, weights, strata = buffer(4, 1)
    rows[:2], weights[:2], strata[:2] = [[1.0], [2.0]], 1.0, [CALIBRATED, 0]
    filled = calibrate(1, 2, rows, weights, strata, np.zeros(1), np.array([[12.0, 4.0]]))
    assert rows[:filled].tolist() == [[1.0], [3.0]]
    assert weights[:filled].tolist() == [1.0, 4.0]


# Thinning


@pytest.mark.parametrize("size", [1.0, 10.0, 37.5])
def test_the_threshold_makes_the_chances_sum_to_the_size(size):
    scores = np.random.default_rng(0).exponential(size=100) ** 4
    factor = threshold(scores, size)
    assert np.minimum(1.0, scores * factor).sum() == pytest.approx(size)
    assert factor == pytest.approx(naive.threshold(scores, size), rel=1e-6)
    assert threshold(np.zeros(3), 2.0) == 0.0


@pytest.mark.parametrize("share", [0.2, 0.7])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES[1:])
def test_thinning_keeps_the_naive_rows(n, d, k, share):
    rows, weights, centroids = problem(n, d, k)
    labels, squared = naive.assign(rows, centroids)
    size, origin, rng = float(int(share * n)), np.full(d, 0.1), np.array([11], np.uint64)
    out_rows, out_weights = np.empty((int(size) + 2 * k + 8, d)), np.empty(int(size) + 2 * k + 8)
    seen = frozen(rows), frozen(weights), labels.astype(np.int32), squared
    filled = thin(seen, frozen(np.ones(d)), k, size, origin, rng, out_rows, out_weights)
    order = np.argsort(labels, kind="stable")
    for j in range(k):
        begin, end = (labels < j).sum(), (labels <= j).sum()
        order_by_kd_tree(columns_of(rows), order[begin:end])
    expected = naive.thin(labels, squared, k, size, rows, weights, origin, 11, order)
    np.testing.assert_allclose(out_rows[:filled], expected[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(out_weights[:filled], expected[1], rtol=1e-9)
    assert int(rng[0]) == expected[2]
    assert out_weights[:filled].sum() == pytest.approx(weights.sum())
    np.testing.assert_allclose(out_weights[:filled] @ out_rows[:filled], weights @ rows)
    assert filled <= size + k + 1


@pytest.mark.parametrize("share", [0.7, 3.0, 40.0, 1e6])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES[1:])
def test_representatives_are_the_naive_ones(n, d, k, share):
    rows, weights, centroids = problem(n, d, k)
    labels, squared = naive.assign(rows, centroids)
    weights[::7] = 0.0
    kept, picked = np.empty(n, np.int64), np.empty(n)
    m = pick_representatives(frozen(weights), labels.astype(np.int32), squared, k, share, kept, picked)
    expected = naive.pick_representatives(weights, labels, squared, k, share)
    assert kept[:m].tolist() == expected[0]
    np.testing.assert_allclose(picked[:m], expected[1])


def length(path):
    return np.linalg.norm(np.diff(path, axis=0), axis=1).sum()


@pytest.mark.parametrize(("n", "d"), [(1000, 1), (1000, 2), (1000, 4)])
def test_rows_are_ordered_from_neighbour_to_neighbour(n, d):
    rows = np.random.default_rng(0).normal(size=(n + 2, d))
    order = np.arange(n + 2)
    order_by_kd_tree(columns_of(rows), order[1:-1])
    assert (order[0], order[-1]) == (0, n + 1)
    assert order[1:-1].tolist() == naive.order_by_kd_tree(rows, range(1, n + 1))
    assert length(rows[order]) < [0.1, 0.4, 0.8][d // 2] * length(rows)


def test_equal_rows_can_be_ordered():
    order = np.arange(1000)
    order_by_kd_tree(columns_of(np.zeros((1000, 2))), order)
    order_by_kd_tree(columns_of(np.repeat(np.eye(2), 500, axis=0)), order)
    assert sorted(order.tolist()) == list(range(1000))
    assert {frozenset((order[:500] < 500).tolist()), frozenset((order[500:] < 500).tolist())} == {
        frozenset({True}),
        frozenset({False}),
    }


# Local search


@pytest.mark.instructions
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_columns_and_nearest_pairs_are_the_naive_ones(n, d, k, dtype):
    rows, _, centroids = problem(n, d, k)
    columns = columns_of(rows, dtype)
    tolerance = 1e-4 if dtype == np.float32 else 1e-12
    moved = columns_of(rows, dtype, 0.5, 2.0)
    np.testing.assert_allclose(moved, naive.lay_columns(rows, np.full(d, 0.5), np.full(d, 2.0)), rtol=1e-6, atol=1e-6)
    squares = np.empty(columns.shape[1], dtype)
    squared_distances_to(columns, centroids[0], squares)
    np.testing.assert_allclose(squares[:n], naive.squared_distances_to(rows, centroids[0]), rtol=tolerance)
    padded = columns.shape[1]
    first, second = np.empty(padded, np.int32), np.empty(padded, np.int32)
    near, far = np.empty(padded, dtype), np.empty(padded, dtype)
    nearest_two(columns, centroids, first, near, second, far)
    expected = naive.nearest_two(rows, centroids)
    for found, known in zip((first, near, second, far), expected, strict=True):
        np.testing.assert_allclose(found[:n], known if k > 1 or known is not expected[2] else 0, rtol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("max_iter", [0, 1, 3, 50])
def test_lloyd_on_columns_ends_where_lloyd_does(n, d, k, max_iter, spherical, dtype):
    rows, weights, centroids = problem(n, d, k)
    expected, expected_cost = naive.lloyd_on_columns(rows, weights, centroids, max_iter, 1e-9, spherical=spherical)
    cost = lloyd_on_columns(
        frozen(rows), frozen(weights), columns_of(rows, dtype), spherical, centroids, max_iter, 1e-9
    )
    np.testing.assert_allclose(centroids, expected, rtol=1e-9, atol=1e-9)
    assert cost == pytest.approx(expected_cost, rel=1e-5 if dtype == np.float32 else 1e-9)


def test_a_cluster_that_heavy_rows_leave_is_not_left_with_their_rounding():
    rows = np.array([[-4.0], [4.0], [0.5], [-7.0], [7.0]])
    weights = np.array([1.0, 1.0, 1e-12, 100.0, 100.0])
    centroids, spherical = np.array([[0.0], [-9.0], [9.0]]), False
    expected, _ = naive.lloyd_on_columns(rows, weights, centroids, 5, 0.0)
    lloyd_on_columns(frozen(rows), frozen(weights), columns_of(rows), spherical, centroids, 5, 0.0)
    np.testing.assert_allclose(centroids, expected, rtol=1e-12)
    assert centroids[0, 0] == pytest.approx(0.5)


@pytest.mark.parametrize("least_gain", [0.0, 0.05])
@pytest.mark.parametrize(("n", "d", "k"), [(40, 2, 3), (130, 5, 6), (60, 3, 1)])
def test_local_search_makes_the_naive_swaps(n, d, k, least_gain):
    rows, weights, centroids = problem(n, d, k)
    rng = np.array([3], np.uint64)
    expected = naive.local_search(rows, weights, 12, least_gain, centroids, 3)
    swaps = local_search(frozen(rows), frozen(weights), columns_of(rows), 12, least_gain, centroids, rng)
    assert swaps == expected[1]
    np.testing.assert_array_equal(centroids, expected[0])
    assert int(rng[0]) == expected[2]


@pytest.mark.parametrize("price", [0.0, 30.0])
@pytest.mark.parametrize(("n", "d", "m", "k"), [(40, 2, 3, 2), (130, 5, 12, 6), (60, 3, 5, 1), (8, 1, 4, 3)])
def test_removal_drops_the_naive_centroids(n, d, m, k, price):
    rows, weights, centroids = problem(n, d, m)
    kept, prices = np.empty((k, d)), price * np.arange(m)
    remove_centroids(frozen(weights), columns_of(rows), centroids, prices, kept)
    np.testing.assert_array_equal(kept, naive.remove_centroids(rows, weights, centroids, prices, k))


def test_local_search_stops_when_there_is_nothing_to_save():
    rows = np.repeat([[1.0, 2.0]], 10, axis=0)
    centroids = rows[:2].copy()
    assert local_search(rows, np.ones(10), columns_of(rows), 5, 0.0, centroids, np.array([0], np.uint64)) == 0


# Outliers


@pytest.mark.parametrize("dtype", TYPES)
def test_rows_within_a_limit_are_the_naive_ones(dtype):
    X = np.random.default_rng(0).normal(size=(200, 4)).astype(dtype)
    middle, factors = np.full(4, 0.2), np.array([1.0, 2.0, 0.5, 1.0])
    inside = np.empty(200, bool)
    count = mask_within(frozen(X), middle, factors, 4.0, inside)
    np.testing.assert_array_equal(inside, naive.mask_within(X, middle, factors, 4.0))
    assert count == inside.sum()
    squares = np.empty(200)
    rows = frozen(X.astype(float))
    squared_distances_from(rows, middle, factors, squares)
    np.testing.assert_allclose(squares, naive.squared_distances_from(rows, middle, factors))


@pytest.mark.parametrize("seed", range(20))
def test_the_widest_gap_of_the_tail_is_the_naive_one(seed):
    rng = np.random.default_rng(seed)
    bulk = rng.exponential(size=1000)
    far = 10.0 ** rng.uniform(0, 9, rng.integers(0, 8))
    squares, weights = np.concatenate([bulk, far]), rng.integers(1, 4, 1000 + len(far)).astype(float)
    expected = naive.widest_gap(squares, weights, 0.005, 100.0)
    assert widest_gap(squares, weights, 0.005, 100.0) == pytest.approx(expected)


def test_a_gap_must_be_wide_and_far_out():
    bulk = np.linspace(1, 2, 1000)
    for far, found in (
        ([150.0, 1e4, 2e4], False),
        ([250.0, 1e4, 2e4], True),
        ([199.0], False),
        ([1e6] * 6, False),
        ([1e6] * 5, True),
        ([1e-300], False),
        ([1e300], True),
    ):
        limit = widest_gap(np.concatenate([bulk, far]), np.ones(1000 + len(far)), 0.005, 100.0)
        assert (limit < np.inf) == found
    assert widest_gap(np.concatenate([np.zeros(1000), [1.0]]), np.ones(1001), 0.005, 100.0) == np.inf
    assert widest_gap(np.ones(10), np.ones(10), 0.005, 100.0) == np.inf
    # Most rows at distance zero hide no spike among the others.
    assert widest_gap(np.concatenate([np.zeros(9000), bulk, [1e6]]), np.ones(10_001), 0.005, 100.0) < np.inf
