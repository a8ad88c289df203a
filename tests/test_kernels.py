import importlib
import inspect

import numpy as np
import pytest

import naive
from streamkm.kernels.assign import assign, assign_accumulate, extent, largest, pack_centroids
from streamkm.kernels.random import DRAW_BLOCK_ROWS, draw, draw_by_blocks, sum_blocks, uniform
from streamkm.kernels.reductions import differences, evenly_spaced_rows, weighted_sum
from streamkm.kernels.search import lay_columns
from streamkm.kernels.seed import kmeans_plus_plus
from streamkm.kernels.update import learn_batch, lloyd, mean_square, starved, to_unit_length
from streamkm.models.validation import ONES, frozen

SHAPES = [(1, 1, 1), (1, 3, 2), (15, 2, 7), (16, 4, 6), (17, 5, 12), (200, 7, 13), (130, 40, 30)]
TYPES = [np.float32, np.float64]


def packed(k, d, dtype):
    return np.empty((-(-k // 6), d, 6), dtype)


def problem(n, d, k, dtype=np.float64, *, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    X = (rng.normal(size=(n, d)) * rng.uniform(0.1, 3, d) + offset).astype(dtype)
    centroids = rng.normal(size=(k, d)) * 2 + offset
    return frozen(X), rng.integers(0, 4, n).astype(float), centroids


def columns_of(rows, origin=0.0, scale=1.0):
    columns = np.empty((rows.shape[1], -(-len(rows) // 64) * 64))
    lay_columns(frozen(rows), np.zeros(rows.shape[1]) + origin, np.full(rows.shape[1], scale), columns)
    return columns


def run_assign(X, centroids, tile, *, scale=1.0, factors=ONES):
    n, k, d = len(X), *centroids.shape
    origin = centroids.mean(axis=0)
    scales = np.full(d, scale) * (factors if len(factors) else 1.0)
    buffer, labels, squared = packed(k, d, tile), np.empty(n, np.int32), np.empty(n)
    pack_centroids(centroids, origin, scales, buffer)
    assign(X, origin, scales, factors, buffer, centroids, labels, squared)
    return labels, squared


def some_factors(d):
    return frozen(np.random.default_rng(9).uniform(0.1, 5.0, d))


def public_kernels(module):
    for name, value in vars(importlib.import_module(f"streamkm.kernels.{module}")).items():
        own = getattr(value, "__module__", "") == f"streamkm.kernels.{module}"
        if own and callable(value) and not inspect.isclass(value) and not name.startswith("_"):
            yield name


@pytest.mark.parametrize(
    "module",
    [
        "assign",
        "coreset",
        "decay",
        "decode.record_batch",
        "kd_order",
        "outliers",
        "random",
        "reductions",
        "representatives",
        "search",
        "seed",
        "update",
    ],
)
def test_every_public_kernel_has_a_naive_twin_of_its_name(module):
    names = set(public_kernels(module))
    assert names
    assert names <= {name for name, value in vars(naive).items() if callable(value)}


def test_naive_twins_share_no_code_with_the_kernels():
    assert "streamkm" not in inspect.getsource(naive)


def test_random_numbers_are_those_of_splitmix64():
    rng, state = np.array([12345], np.uint64), 12345
    for _ in range(100):
        expected, state = naive.uniform(state)
        assert uniform(rng) == expected
    assert int(rng[0]) == state


def test_splitmix64_gives_the_published_sequence():
    rng = np.array([1234567], np.uint64)
    assert uniform(rng) == (6457827717110365317 >> 11) * 2.0**-53
    assert uniform(rng) == (3203168211198807973 >> 11) * 2.0**-53


def test_a_row_is_drawn_as_the_naive_twin_draws_it():
    gen = np.random.default_rng(1)
    rng, state = np.array([7], np.uint64), 7
    for _ in range(200):
        weights, distances = gen.integers(0, 3, 20).astype(float), gen.integers(0, 5, 20).astype(float)
        expected, state = naive.draw(weights, distances, state)
        assert draw(weights, distances, rng) == expected
        assert int(rng[0]) == state
    assert draw(ONES, np.zeros(5), rng) == -1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", [1, 128, 129, 1000])
@pytest.mark.parametrize("weighted", [True, False])
def test_a_row_is_drawn_from_blocks_as_from_all(n, dtype, weighted):
    gen = np.random.default_rng(n)
    rng, state = np.array([7], np.uint64), 7
    sums = np.empty(-(-n // DRAW_BLOCK_ROWS))
    for _ in range(50):
        weights, distances = gen.integers(0, 3, n).astype(float), gen.integers(0, 5, n).astype(dtype)
        weights = weights if weighted else np.ones(n)
        given = weights if weighted else ONES
        expected_sums, expected_total = naive.sum_blocks(weights, distances, DRAW_BLOCK_ROWS)
        assert sum_blocks(given, distances, sums) == pytest.approx(expected_total)
        np.testing.assert_allclose(sums, expected_sums)
        expected, state = naive.draw_by_blocks(weights, distances, state)
        assert draw_by_blocks(given, distances, sums, rng) == expected
        assert int(rng[0]) == state
    assert sum_blocks(ONES, np.zeros(n, dtype), sums) == 0.0
    assert draw_by_blocks(ONES, np.zeros(n, dtype), sums, rng) == -1


@pytest.mark.parametrize("dtype", TYPES)
def test_the_largest_value_is_found_and_nothing_that_is_not_finite_hides(dtype):
    values = np.random.default_rng(0).normal(size=1001).astype(dtype)
    assert largest(frozen(values)) == naive.largest(values)
    assert largest(frozen(values[:0])) == 0.0
    for position in (0, 500, 1000):
        for bad in (np.nan, -np.nan, np.inf, -np.inf):
            broken = values.copy()
            broken[position] = bad
            assert not np.isfinite(largest(frozen(broken)))


@pytest.mark.parametrize("dtype", TYPES)
def test_the_extent_is_the_naive_one(dtype):
    X, _, centroids = problem(50, 4, 3, dtype, offset=100.0)
    for factors in (np.ones(4), some_factors(4)):
        assert extent(X, centroids[0], factors) == pytest.approx(naive.extent(X, centroids[0], factors), rel=1e-12)


def test_packed_centroids_are_the_naive_ones_with_infinity_where_there_is_none():
    _, _, centroids = problem(1, 5, 8)
    buffer = packed(8, 5, np.float64)
    for scale in (np.full(5, 0.25), some_factors(5)):
        pack_centroids(centroids, centroids[1], scale, buffer)
        np.testing.assert_array_equal(buffer, naive.pack_centroids(centroids, centroids[1], scale))


@pytest.mark.parametrize("tile", TYPES)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_labels_and_distances_are_the_naive_ones(n, d, k, dtype, tile, offset):
    X, _, centroids = problem(n, d, k, dtype, offset=offset)
    labels, squared = run_assign(X, centroids, tile)
    expected_labels, expected = naive.assign(X, centroids)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_allclose(squared, expected, rtol=1e-12)
    labels, squared = run_assign(X, centroids, tile, factors=some_factors(d))
    expected_labels, expected = naive.assign(X, centroids, some_factors(d))
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_allclose(squared, expected, rtol=1e-12)


@pytest.mark.instructions
@pytest.mark.parametrize("tile", TYPES)
def test_the_lowest_index_wins_ties(tile):
    X = frozen(np.random.default_rng(0).normal(size=(100, 3)))
    centroids = np.repeat(np.array([[5.0, 5, 5], [0, 0, 0], [0, 0, 0]]), 7, axis=0)
    labels, _ = run_assign(X, centroids, tile)
    assert set(labels.tolist()) <= {0, 7}
    halfway = frozen(np.array([[1.0], [3.0]]))
    assert run_assign(halfway, np.array([[4.0], [2.0], [0.0]]), tile)[0].tolist() == [1, 0]


@pytest.mark.parametrize("unit", [1e-25, 1.0, 1e25])
def test_a_power_of_two_scale_keeps_huge_and_tiny_units_apart(unit):
    X, _, centroids = problem(100, 3, 9)
    expected, _ = naive.assign(X, centroids)
    scale = 2.0 ** -np.frexp(10 * unit)[1]
    labels, squared = run_assign(frozen(X * unit), centroids * unit, np.float32, scale=scale)
    np.testing.assert_array_equal(labels, expected)
    assert np.isfinite(squared).all()
    assert (squared > 0).all()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_what_each_cluster_gets_is_the_naive_sum(n, d, k, dtype, weighted, scaled):
    X, weights, centroids = problem(n, d, k, dtype, offset=50.0)
    origin = centroids.mean(axis=0)
    buffer, labels, squared, totals = packed(k, d, np.float32), np.empty(n, np.int32), np.empty(n), np.empty((k, d + 2))
    factors = some_factors(d) if scaled else ONES
    scale = some_factors(d) * 0.5 if scaled else np.ones(d)
    pack_centroids(centroids, origin, scale, buffer)
    row_weights = frozen(weights) if weighted else ONES
    assign_accumulate(X, row_weights, origin, scale, factors, buffer, centroids, labels, squared, totals)
    expected = naive.assign_accumulate(
        X, weights if weighted else np.ones(n), origin, centroids, some_factors(d) if scaled else 1.0
    )
    np.testing.assert_array_equal(labels, expected[0])
    np.testing.assert_allclose(squared, expected[1], rtol=1e-12)
    np.testing.assert_allclose(totals, expected[2], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_a_batch_moves_centroids_and_stats_as_the_naive_updates_do(n, d, k, decay, spherical):
    X, weights, centroids = problem(n, d, k)
    stats = np.random.default_rng(2).uniform(0, 9, (k, 3))
    batch_weight = 2.0 * weights.sum()
    expected_centroids, expected_stats = naive.learn_batch(
        X, weights, decay, centroids, stats, batch_weight=batch_weight, spherical=spherical
    )
    before = X.copy()
    origin = centroids.mean(axis=0)
    labels, squared, totals = np.empty(n, np.int32), np.empty(n), np.empty((k, d + 2))
    expected_totals = naive.assign_accumulate(X, weights, origin.copy(), centroids)[2]
    cost, points, total_cost, mass, idle = learn_batch(
        X,
        frozen(weights),
        batch_weight,
        decay,
        (np.ones(d), ONES, packed(k, d, np.float32)),
        spherical,
        origin,
        centroids,
        stats,
        (labels, squared, totals, np.empty(d)),
    )
    np.testing.assert_allclose(totals, expected_totals, rtol=1e-10, atol=1e-10)
    assert (total_cost, mass) == pytest.approx((stats[:, 1].sum(), stats[:, 0].sum()))
    assert idle == stats[:, 2].max()
    np.testing.assert_allclose(centroids, expected_centroids, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(stats, expected_stats, rtol=1e-10)
    assert points == weights.sum()
    assert cost == pytest.approx((weights * squared).sum())
    np.testing.assert_array_equal(X, before)
    if stats[:, 0].sum() > 0:
        np.testing.assert_allclose(origin, np.average(centroids, axis=0, weights=stats[:, 0]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("max_iter", [0, 1, 3, 50])
def test_lloyd_ends_where_the_naive_one_does(n, d, k, max_iter, spherical):
    rows, weights, centroids = problem(n, d, k)
    expected, expected_labels, expected_cost = naive.lloyd(
        rows, weights, centroids, max_iter, 1e-9, spherical=spherical
    )
    labels, squared, totals = np.empty(n, np.int32), np.empty(n), np.empty((k, d + 2))
    cost = lloyd(
        rows,
        frozen(weights),
        (np.ones(d), ONES, packed(k, d, np.float64)),
        spherical,
        centroids,
        max_iter,
        1e-9,
        (labels, squared, totals, rows.mean(axis=0)),
    )
    np.testing.assert_allclose(centroids, expected, rtol=1e-9, atol=1e-9)
    assert cost == pytest.approx((weights * squared).sum())
    np.testing.assert_array_equal(labels, expected_labels)
    assert cost == pytest.approx(expected_cost)
    assert totals[:, d].sum() == pytest.approx(weights.sum())


@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("n_candidates", [1, 4])
def test_seeding_chooses_the_naive_rows(n, d, k, n_candidates):
    rows, weights, centroids = problem(n, d, k)
    rng = np.array([3], np.uint64)
    expected, state = naive.kmeans_plus_plus(rows, weights, k, n_candidates, 3)
    kmeans_plus_plus(rows, frozen(weights), columns_of(rows, rows.mean(axis=0), 0.5), n_candidates, rng, centroids)
    np.testing.assert_array_equal(centroids, expected)
    assert int(rng[0]) == state


def test_seeding_a_weighted_row_chooses_what_its_copies_would():
    rows, weights, centroids = problem(60, 3, 8)
    copies = np.repeat(rows, weights.astype(int), axis=0)
    other = centroids.copy()
    kmeans_plus_plus(rows, frozen(weights), columns_of(rows), 3, np.array([5], np.uint64), centroids)
    kmeans_plus_plus(frozen(copies), ONES, columns_of(copies), 3, np.array([5], np.uint64), other)
    np.testing.assert_array_equal(centroids, other)


def test_the_mean_square_is_the_naive_one_and_zero_without_weight():
    stats = np.random.default_rng(0).uniform(size=(5, 3))
    assert mean_square(stats) == pytest.approx(naive.mean_square(stats))
    assert mean_square(np.zeros((5, 3))) == naive.mean_square(np.zeros((5, 3))) == 0.0


def test_rows_are_scaled_to_length_one_and_zeros_have_no_direction():
    rows = np.array([[3.0, 4.0], [0.0, 0.0], [1e-200, 1e-200], [1e300, -1e300], [0.0, -2.0]])
    expected = naive.to_unit_length(rows)
    to_unit_length(rows)
    np.testing.assert_allclose(rows, expected, rtol=1e-15)


def test_a_starved_cluster_is_one_that_forgot_its_points_and_gets_none():
    stats = np.array([[1e6, 1.0, 0.0], [0.5, 1.0, 500.0], [0.5, 1.0, 50.0], [0.0, 0.0, 500.0]])
    for share, idle, expected in ((1e-6, 100, 1), (0.0, 100, 3), (1e-6, 1000, -1), (1e-7, 100, 3)):
        assert starved(stats, share, idle) == naive.starved(stats, share, idle) == expected


@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 2), (4, 1), (33, 5), (200, 8)])
def test_sums_and_differences_of_rows_are_the_naive_ones(n, d):
    rng = np.random.default_rng(n)
    rows, weights, origin, factors = rng.normal(size=(n, d)), rng.uniform(size=n), rng.normal(size=d), some_factors(d)
    total, moved = np.full(d, 9.0), np.full((n, d), 9.0)
    weighted_sum(frozen(rows), frozen(weights), total)
    np.testing.assert_allclose(total, naive.weighted_sum(rows, weights), atol=1e-12)
    differences(frozen(rows), origin, factors, moved)
    np.testing.assert_array_equal(moved, naive.differences(rows, origin, factors))


@pytest.mark.parametrize("weights", [[2.0], [1.0] * 40, [0.0, 3, 0, 0, 5, 1, 1, 0], [1e-9, 1e9, 1.0]])
@pytest.mark.parametrize("count", [1, 3, 16])
def test_evenly_spaced_rows_are_the_naive_ones(weights, count):
    places = np.empty(count, np.int64)
    evenly_spaced_rows(frozen(np.array(weights)), places)
    assert places.tolist() == naive.evenly_spaced_rows(weights, count)
