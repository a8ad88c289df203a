"""Kernels on data as people have them: equal values everywhere. Whole numbers, so that the naive twins agree exactly.

Whatever reorders, picks or sums rows must neither lose one nor have one twice.
"""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import naive
import naive_choice
import naive_exact
from strategies import common_rows, common_weights
from streamkm import Coreset
from streamkm.kernels.coreset import CALIBRATED, UNSAMPLED, calibrate, sample_rows, thin
from streamkm.kernels.exact import layout
from streamkm.kernels.kd_order import order_by_kd_tree
from streamkm.kernels.outliers import squared_distances_from, widest_gap
from streamkm.kernels.random import DRAW_BLOCK_ROWS, draw, draw_by_blocks, sum_blocks
from streamkm.kernels.reductions import evenly_spaced_rows
from streamkm.kernels.representatives import pick_representatives
from streamkm.kernels.search import lay_columns, lloyd_on_columns, local_search, nearest_two, remove_centroids
from streamkm.kernels.seed import kmeans_plus_plus
from streamkm.kernels.silhouette import simplified_silhouette
from streamkm.kernels.update import learn_batch, lloyd
from streamkm.models.exact import kd_order
from streamkm.models.exact.kd_order import sort_by_kd_tree
from streamkm.models.exact.storage import Storage
from streamkm.models.exact.threads import ThreadTeam
from streamkm.models.metric import quantile
from streamkm.models.validation import ONES, frozen
from streamkm.models.weighted_rows import masses

FIRST_IS_LARGE = np.array([[5.0], *[[0.0]] * 32])
"""The pivot of its k-d tree is its lowest value, and the first row is not."""

PLAIN = settings(deadline=None, max_examples=60)


def columns_of(rows):
    columns = np.empty((rows.shape[1], -(-len(rows) // 64) * 64))
    lay_columns(frozen(rows), np.zeros(rows.shape[1]), np.ones(rows.shape[1]), columns)
    return columns


@st.composite
def problems(draw, max_rows=120, max_columns=3):
    """(rows, weights, centroids); centroids are some of the rows, maybe twice."""
    rows = draw(common_rows(max_rows, max_columns))
    weights = draw(common_weights(len(rows)))
    chosen = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=6))
    return rows, weights, np.ascontiguousarray(rows[chosen])


def test_one_large_row_before_equal_ones_is_kept():
    order = np.arange(33)
    order_by_kd_tree(columns_of(FIRST_IS_LARGE), order)
    assert order.tolist() == [*range(1, 33), 0]


@PLAIN
@given(common_rows())
@example(FIRST_IS_LARGE)
def test_rows_ordered_by_a_kd_tree_are_a_permutation(rows):
    order = np.arange(len(rows))
    order_by_kd_tree(columns_of(rows), order)
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert order.tolist() == naive.order_by_kd_tree(rows, range(len(rows)))


@PLAIN
@given(common_rows(max_columns=1), st.data())
def test_selecting_a_median_is_a_permutation(rows, data):
    keys, index = rows[:, 0].astype(np.float32), np.arange(len(rows))
    start = data.draw(st.integers(0, len(rows) - 1))
    stop = data.draw(st.integers(start + 1, len(rows)))
    half = start + (stop - start) // 2
    before = keys.copy()
    layout._select_median(keys, index, start, stop, half)
    assert sorted(index[start:stop].tolist()) == list(range(start, stop))
    assert index[:start].tolist() == list(range(start))
    assert index[stop:].tolist() == list(range(stop, len(rows)))
    assert (keys == before[index]).all()
    assert keys[half] == np.sort(before[start:stop])[half - start]
    assert (keys[start:half] <= keys[half]).all()
    assert (keys[half:stop] >= keys[half]).all()


@PLAIN
@given(common_rows(), st.integers(1, 4))
def test_rows_moved_to_the_leaves_of_a_tree_are_a_permutation(rows, levels):
    X = frozen(rows.astype(np.float32))
    n, parts = len(rows), 1 << levels
    axes, cuts = np.zeros(parts, np.uint32), np.zeros(parts, np.float32)
    layout.split_sample(X, levels, axes, cuts)
    leaves, counts = np.empty(n, np.uint16), np.zeros(parts, np.int64)
    layout.find_leaves(X, 0, n, levels, axes, cuts, leaves, counts)
    assert leaves.tolist() == naive_exact.find_leaves(X, levels, axes, cuts)
    assert counts.tolist() == np.bincount(leaves, minlength=parts).tolist()
    places, moved = np.arange(n, dtype=np.int32), np.full(n, -1, np.int32)
    cursors = np.cumsum(counts) - counts
    layout.move_rows(places[:, None], moved[:, None], 0, n, leaves, cursors)
    assert moved.tolist() == naive_exact.move_rows(places, leaves).tolist()


@PLAIN
@given(common_rows(), st.sampled_from([2, 8, 32]), st.booleans())
def test_points_sorted_by_a_kd_tree_are_a_permutation(rows, block, small):
    given_rows, weights = rows.astype(np.float32), np.arange(1.0, len(rows) + 1)
    mine = given_rows.copy()
    found = sort_by_kd_tree(mine, rows, weights, block, ThreadTeam(1), Storage(1 << 14 if small else None))
    assert sorted(found.permutation.tolist()) == list(range(len(rows)))
    assert (mine == given_rows[found.permutation]).all()
    assert (found.raw == rows[found.permutation]).all()
    assert (found.weights == weights[found.permutation]).all()
    assert found.offsets[0] == 0
    assert found.offsets[-1] == len(rows)
    assert 0 < np.diff(found.offsets).min() <= np.diff(found.offsets).max() <= block + block // 2


@pytest.mark.large
def test_points_of_few_values_are_sorted_in_several_stages(monkeypatch):
    monkeypatch.setattr(kd_order, "_LEVELS", 2)
    rng = np.random.default_rng(0)
    for rows in (rng.integers(1, 6, (5000, 3)), np.minimum(rng.zipf(1.8, (5000, 2)), 2**20)):
        mine = rows.astype(np.float32)
        found = sort_by_kd_tree(mine, None, np.empty(0), 8, ThreadTeam(1), Storage())
        assert sorted(found.permutation.tolist()) == list(range(5000))
        assert (mine == rows[found.permutation]).all()


# Mass


def thinned(rows, weights, centroids, size, near):
    k, d = centroids.shape
    labels, squared = naive.assign(rows, centroids)
    kept, kept_weights = np.empty((size + 2 * k + 8, d)), np.empty(size + 2 * k + 8)
    seen = frozen(rows), frozen(weights), labels.astype(np.int32), squared
    rng = np.array([11], np.uint64)
    n = thin(seen, frozen(np.ones(d)) if near else ONES, k, float(size), rows[0], rng, kept, kept_weights)
    return labels, kept[:n], kept_weights[:n]


@PLAIN
@given(problems(), st.sampled_from([0.1, 0.5, 0.9]), st.booleans())
@example((FIRST_IS_LARGE, np.ones(33), np.zeros((1, 1))), 0.5, True)  # noqa: FBT003 -- by position
def test_thinning_keeps_the_mass_and_the_mean(problem, share, near):
    rows, weights, centroids = problem
    _, kept, kept_weights = thinned(rows, weights, centroids, max(1, int(share * len(rows))), near)
    assert kept_weights.sum() == pytest.approx(weights.sum(), rel=1e-9)
    reach = np.abs(rows).max()
    np.testing.assert_allclose(kept_weights @ kept, weights @ rows, rtol=1e-9, atol=1e-9 * reach * weights.sum())
    assert (kept_weights >= 0.0).all()


@pytest.mark.parametrize("room", [0, 1, 3])
def test_without_room_for_its_rows_a_sample_still_has_the_mass(room):
    rows, weights = np.arange(40.0).reshape(20, 2), np.ones(20)
    labels, squared = (np.arange(20) % 4).astype(np.int32), np.ones(20)
    out, out_weights = np.empty((4 + room, 2)), np.empty(4 + room)
    rng = np.array([3], np.uint64)
    seen = frozen(rows), frozen(weights), labels, squared
    n = thin(seen, ONES, 4, 19.0, rows[0], rng, out, out_weights)
    assert n <= 4 + room
    assert out_weights[:n].sum() == pytest.approx(20.0, rel=1e-12)


@PLAIN
@given(problems(), st.sampled_from([3.0, 20.0, 1e9]), st.sampled_from([0, 2, 1000]), st.sampled_from([1.0, 2.0**30]))
def test_what_is_sampled_and_calibrated_has_the_mass_and_the_mean(problem, size, room, inflation):
    rows, weights, centroids = problem
    k, d = centroids.shape
    labels, squared, totals = naive.assign_accumulate(rows, weights, np.zeros(d), centroids)
    stats = np.column_stack([totals[:, -2:], np.zeros(k)])
    capacity = room + k
    out, out_weights, strata = np.empty((capacity, d)), np.empty(capacity), np.empty(capacity, np.int32)
    sums, rng, origin = np.zeros((k, d + 1)), np.array([5], np.uint64), rows[0].copy()
    filled = sample_rows(
        frozen(rows), frozen(weights), (labels.astype(np.int32), squared, totals, np.zeros(d)), stats, origin, size,
        inflation, 0, (out[:room], out_weights[:room], strata[:room], sums), rng,
    )  # fmt: skip
    certain = out_weights[:filled][strata[:filled] == UNSAMPLED].sum()
    mass = weights.sum() * inflation
    assert certain + sums[:, -1].sum() == pytest.approx(mass, rel=1e-9)
    assert (sums[:, -1] >= 0.0).all()
    n = calibrate(0, filled, out, out_weights, strata, origin, sums)
    assert out_weights[:n].sum() == pytest.approx(mass, rel=1e-9)
    reach = np.abs(rows).max()
    np.testing.assert_allclose(out_weights[:n] @ out[:n], inflation * weights @ rows, atol=1e-9 * reach * mass)


@PLAIN
@given(problems(), st.integers(2, 5))
def test_calibration_of_rows_with_ties_is_the_naive_one(problem, step):
    rows, weights, centroids = problem
    (n, d), k = rows.shape, len(centroids)
    labels, _ = naive.assign(rows, centroids)
    sums = np.array([[*(weights[at] @ rows[at]), weights[at].sum()] for at in (labels == j for j in range(k))])
    few = np.arange(n) % step == 0
    m = few.sum()
    out, out_weights, strata = np.zeros((m + k, d)), np.zeros(m + k), np.full(m + k, CALIBRATED, np.int32)
    out[:m], out_weights[:m], strata[:m] = rows[few], step * weights[few] + 1.0, labels[few]
    expected = naive.calibrate(out[:m], out_weights[:m], strata[:m], np.zeros(d), sums)
    filled = calibrate(0, m, out, out_weights, strata, np.zeros(d), sums.copy())
    there = out_weights[:filled] > 0.0
    reach = max(1.0, np.abs(rows).max())
    np.testing.assert_allclose(out_weights[:filled], expected[1], rtol=1e-9)
    np.testing.assert_allclose(out[:filled][there], expected[0][there], rtol=1e-6, atol=1e-9 * reach)


def test_a_value_that_most_rows_share_stays_and_flags_get_their_mass():
    rows = np.array([[0.0, 7.0], [0.0, 7.0], [0.0, 7.0], [1.0, 7.0]])
    weights, strata = np.full(6, 10.0), np.full(6, 0, np.int32)
    out = np.vstack([rows, np.zeros((2, 2))])
    calibrate(0, 4, out, weights, strata, np.zeros(2), np.array([[8.0, 280.0, 40.0]]))
    np.testing.assert_allclose(out[:4], rows)
    np.testing.assert_allclose(weights[:4], [32 / 3, 32 / 3, 32 / 3, 8.0])
    assert (out[:3] == rows[:3]).all()


def test_light_rows_beside_heavy_ones_stay_where_they_are():
    rows, weights = np.array([[0.0], *[[1.0]] * 50]), np.array([2.0**56, *[1.0] * 50])
    labels, squared, totals = naive.assign_accumulate(rows, weights, np.zeros(1), np.zeros((1, 1)))
    stats = np.column_stack([totals[:, -2:], np.zeros(1)])
    out, out_weights, strata = np.empty((9, 1)), np.empty(9), np.empty(9, np.int32)
    sums, zeros, rng = np.zeros((1, 2)), np.zeros(1), np.array([5], np.uint64)
    filled = sample_rows(
        frozen(rows), frozen(weights), (labels.astype(np.int32), squared, totals, zeros), stats, zeros, 4.0, 1.0, 0,
        (out, out_weights, strata, sums), rng,
    )  # fmt: skip
    n = calibrate(0, filled, out, out_weights, strata, zeros, sums)
    light = out[:n, 0] > 0.0
    assert out[:n, 0][light] == pytest.approx(1.0)
    assert out_weights[:n][light].sum() == pytest.approx(50.0)
    assert out_weights[:n][~light].sum() == 2.0**56


@PLAIN
@given(problems(), st.sampled_from([1.0, 3.0, 40.0]))
def test_representatives_have_the_mass_of_each_cluster(problem, share):
    rows, weights, centroids = problem
    k = len(centroids)
    labels, squared = naive.assign(rows, centroids)
    kept, picked = np.empty(len(rows), np.int64), np.empty(len(rows))
    n = pick_representatives(frozen(weights), labels.astype(np.int32), squared, k, share, kept, picked)
    assert len(set(kept[:n].tolist())) == n
    had, has = masses(labels, weights, k), masses(labels[kept[:n]], picked[:n], k)
    np.testing.assert_allclose(has, had, rtol=1e-9)


@PLAIN
@given(common_rows(), st.data())
def test_a_coreset_has_the_mass_and_the_mean_of_all_it_learned(rows, data):
    coreset = Coreset(2, size=32, seed=data.draw(st.integers(0, 9)))
    weights = data.draw(common_weights(len(rows)))
    step = data.draw(st.sampled_from([1, 7, 50, 1000]))
    for i in range(0, len(rows), step):
        coreset.learn_many(rows[i : i + step], weights[i : i + step])
        assert coreset.weights_.sum() == pytest.approx(weights[: i + step].sum(), rel=1e-9)
    reach = np.abs(rows).max()
    np.testing.assert_allclose(
        coreset.weights_ @ coreset.rows_, weights @ rows, rtol=1e-9, atol=1e-9 * reach * weights.sum()
    )
    assert len(coreset) <= 32
    merged = Coreset.merge([coreset, coreset])
    assert merged.weights_.sum() == pytest.approx(2.0 * weights.sum(), rel=1e-9)


# Ties


@PLAIN
@given(problems())
def test_the_nearest_two_of_rows_with_ties_are_the_naive_ones(problem):
    rows, _, centroids = problem
    n, padded = len(rows), -(-len(rows) // 64) * 64
    first, second = np.empty(padded, np.int32), np.empty(padded, np.int32)
    near, far = np.empty(padded), np.empty(padded)
    nearest_two(columns_of(rows), centroids, first, near, second, far)
    expected = naive.nearest_two(rows, centroids)
    assert first[:n].tolist() == expected[0].tolist()
    assert near[:n].tolist() == expected[1].tolist()
    assert far[:n].tolist() == expected[3].tolist()
    if len(centroids) > 1:
        assert second[:n].tolist() == expected[2].tolist()


@PLAIN
@given(problems())
def test_a_batch_with_ties_and_one_iteration_of_lloyd_are_the_naive_ones(problem):
    rows, weights, centroids = problem
    n, (k, d) = len(rows), centroids.shape
    stats = np.tile([3.0, 1.0, 0.0], (k, 1))
    packed, ones = np.empty((-(-k // 6), d, 6)), np.ones(d)
    labels, squared, totals = np.empty(n, np.int32), np.empty(n), np.empty((k, d + 2))
    expected, expected_stats = naive.learn_batch(rows, weights, 0.5, centroids, stats)
    moved, kept_stats = centroids.copy(), stats.copy()
    learn_batch(
        frozen(rows), frozen(weights), weights.sum(), 0.5, (ones, ONES, packed), False, np.zeros(d),  # noqa: FBT003
        moved, kept_stats, (labels, squared, totals, np.empty(d)),
    )  # fmt: skip
    naive_labels = naive.assign(rows, centroids)[0]
    assert labels.tolist() == naive_labels.tolist()
    np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(kept_stats, expected_stats, rtol=1e-9)
    assert kept_stats[:, 0].sum() == pytest.approx(0.5 * 3.0 * k + weights.sum(), rel=1e-12)
    after, _, cost = naive.lloyd(rows, weights, centroids, 1, 0.0)
    moved = centroids.copy()
    found = lloyd(
        frozen(rows), frozen(weights), (ones, ONES, packed), False, moved, 1, 0.0,  # noqa: FBT003
        (labels, squared, totals, np.zeros(d)),
    )  # fmt: skip
    np.testing.assert_allclose(moved, after, rtol=1e-9, atol=1e-9)
    assert found == pytest.approx(cost, rel=1e-9, abs=1e-9)
    assert totals[:, d].sum() == pytest.approx(weights.sum(), rel=1e-12)
    moved = centroids.copy()
    found = lloyd_on_columns(frozen(rows), frozen(weights), columns_of(rows), False, moved, 1, 0.0)  # noqa: FBT003
    np.testing.assert_allclose(moved, after, rtol=1e-9, atol=1e-9)
    assert found == pytest.approx(cost, rel=1e-9, abs=1e-9)


@PLAIN
@given(problems(max_rows=40), st.integers(0, 2**32))
def test_seeds_swaps_and_removed_centroids_are_the_naive_ones_in_spite_of_ties(problem, seed):
    rows, _, centroids = problem
    weights = np.ones(len(rows))
    k, d = centroids.shape
    rng, found = np.array([seed], np.uint64), np.empty((k + 1, d))
    kmeans_plus_plus(frozen(rows), frozen(weights), columns_of(rows), 2, rng, found)
    expected, state = naive.kmeans_plus_plus(rows, weights, k + 1, 2, seed)
    assert found.tolist() == expected.tolist()
    assert int(rng[0]) == state
    kept = np.empty((k, d))
    remove_centroids(frozen(weights), columns_of(rows), found.copy(), np.zeros(k + 1), kept)
    assert kept.tolist() == naive.remove_centroids(rows, weights, found, np.zeros(k + 1), k).tolist()
    rng, swapped = np.array([seed], np.uint64), centroids.copy()
    swaps = local_search(frozen(rows), frozen(weights), columns_of(rows), 4, 0.0, swapped, rng)
    expected, naive_swaps, state = naive.local_search(rows, weights, 4, 0.0, centroids, seed)
    assert swapped.tolist() == expected.tolist()
    assert (swaps, int(rng[0])) == (naive_swaps, state)


@PLAIN
@given(problems(), st.integers(0, 2**32))
def test_draws_evenly_spaced_rows_quantiles_and_gaps_are_the_naive_ones(problem, seed):
    rows, weights, centroids = problem
    weights = np.floor(np.minimum(weights, 2.0**20))
    weights[0] += 1.0
    squares = np.empty(len(rows))
    squared_distances_from(frozen(rows), centroids[0], np.ones(rows.shape[1]), squares)
    assert squares.tolist() == naive.squared_distances_from(rows, centroids[0], 1.0).tolist()
    sums, rng = np.empty(-(-len(rows) // DRAW_BLOCK_ROWS)), np.array([seed], np.uint64)
    sum_blocks(frozen(weights), squares, sums)
    expected, state = naive.draw(weights, squares, seed)
    assert draw(frozen(weights), squares, rng.copy()) == expected
    assert draw_by_blocks(frozen(weights), squares, sums, rng) == expected
    assert int(rng[0]) == state
    places = np.empty(16, np.int64)
    evenly_spaced_rows(frozen(weights), places)
    assert places.tolist() == naive.evenly_spaced_rows(weights, 16)
    assert widest_gap(squares, weights, 0.005, 100.0) == pytest.approx(naive.widest_gap(squares, weights, 0.005, 100.0))
    repeated = np.repeat(rows, np.minimum(weights, 5.0).astype(int), axis=0)
    for share in (0.25, 0.5, 0.75):
        at = max(0, -int(-share * len(repeated) // 1) - 1)
        found = quantile(rows, np.minimum(weights, 5.0), share)
        assert found.tolist() == np.sort(repeated, axis=0)[at].tolist()


@PLAIN
@given(problems())
def test_the_silhouette_of_rows_with_ties_is_the_naive_one(problem):
    rows, weights, centroids = problem
    centroids = np.concatenate([centroids, rows[:1]])
    scatter = np.empty((len(centroids), 2))
    found = simplified_silhouette(frozen(rows), frozen(weights), centroids, scatter)
    expected, expected_scatter = naive_choice.simplified_silhouette(rows, weights, centroids)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)
    np.testing.assert_allclose(scatter, expected_scatter, rtol=1e-9, atol=1e-12)
    assert scatter[:, 0].sum() == pytest.approx(weights.sum(), rel=1e-12)
