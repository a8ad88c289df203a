"""Each kernel of the exact algorithm against its naive twin."""

import importlib
import inspect
from fractions import Fraction

import numpy as np
import pytest

import naive_exact as naive
from streamkm.kernels._jit import jit
from streamkm.kernels.exact import distances, layout, relabel, seeding
from streamkm.kernels.exact import sums as exact_sums
from streamkm.kernels.exact.simd import GROUP, LANES, below, changed_lanes, gather, lowest_bit, to_float32, two_nearest
from streamkm.kernels.groups import plain
from streamkm.models.exact import kd_order
from streamkm.models.exact import points as exact_points
from streamkm.models.exact import storage as exact_storage
from streamkm.models.exact import threads as exact_threads
from streamkm.models.exact.assign import BlockAssigner, RowAssigner
from streamkm.models.exact.core import Frame, Sums
from streamkm.models.exact.kd_order import sort_by_kd_tree
from streamkm.models.exact.points import prepare
from streamkm.models.exact.storage import Storage
from streamkm.models.exact.threads import ThreadTeam
from streamkm.models.validation import frozen

MODULES = ["blocks", "distances", "layout", "relabel", "rows", "seeding", "simd", "sums"]
NONE = frozen(np.empty(0))


@pytest.mark.parametrize("module", MODULES)
def test_every_public_kernel_has_a_naive_twin_of_its_name(module):
    home = importlib.import_module(f"streamkm.kernels.exact.{module}")
    names = {
        name
        for name, value in vars(home).items()
        if callable(value)
        and not isinstance(value, type)  # groups of arguments
        and not name.startswith("_")
        and getattr(value, "__module__", "") == home.__name__
    }
    assert names
    assert names <= {name for name, value in vars(naive).items() if callable(value)}


def test_naive_twins_share_no_code_with_the_kernels():
    assert "streamkm" not in inspect.getsource(naive)


@jit()
def run_two_nearest(block, centroids32, chosen, out, n_groups, relative, absolute):
    two_nearest(block, centroids32, chosen, out, n_groups, block.shape[0], np.float32(relative), np.float32(absolute))


@jit()
def run_gather(rows, picked, first, block):
    gather(rows, picked, first, block, rows.shape[1])


@jit()
def run_unsettled(found, labels, picked, first):
    return changed_lanes(found, labels, picked, first)


@jit()
def run_below(values, start, limit):
    return below(values, start, np.float32(limit))


@jit()
def run_lowest_bit(mask):
    return lowest_bit(mask)


@pytest.mark.instructions
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 13, 64])
def test_rows_come_into_lanes(d):
    rng = np.random.default_rng(d)
    rows, picked = rng.random((50, d), dtype=np.float32), rng.integers(0, 50, LANES + 3).astype(np.uint32)
    block = np.full((d, LANES), np.nan, np.float32)
    run_gather(rows, picked, 3, block)
    assert (block == naive.gather(rows, picked[3:])).all()


@pytest.mark.instructions
@pytest.mark.parametrize("d", [1, 2, 7, 40])
@pytest.mark.parametrize("k", [1, 2, 4, 5, 11])
def test_the_nearest_of_some_centroids_and_its_margin_are_the_naive_ones(d, k):
    rng = np.random.default_rng(100 * d + k)
    block, centroids = rng.normal(size=(d, LANES)).astype(np.float32), rng.normal(size=(20, d))
    centroids32 = np.empty((21, d), np.float32)
    to_float32(centroids, centroids32)
    assert (centroids32 == np.array(naive.to_float32(centroids))).all()
    some = np.sort(rng.choice(20, k, replace=False)).astype(np.int32)
    chosen = np.append(some, np.full(GROUP, 20, np.int32))
    out = np.empty((2, LANES), np.float32)
    slack = np.empty(3)
    relabel.rounding(centroids, 5.0, slack)
    run_two_nearest(block, centroids32, chosen, out, -(-k // GROUP), slack[0], slack[1])
    for p in range(LANES):
        winner, lead = naive.two_nearest(block[:, p], centroids[some])
        if lead > 1e-4:
            assert out[1].view(np.int32)[p] == some[winner]
        assert out[0, p] <= lead  # never more than the truth: that is what the rounding error is for
        assert out[0, p] > (1e17 if k == 1 else lead - 1e-4 - 1e-5 * lead)


@pytest.mark.instructions
def test_lanes_with_another_label_or_no_margin_are_changed():
    rng = np.random.default_rng(0)
    found = np.empty((2, LANES), np.float32)
    labels, picked = rng.integers(0, 3, 50).astype(np.int32), rng.integers(0, 50, LANES + 3).astype(np.uint32)
    for _ in range(20):
        found[0] = rng.choice([-1.0, 0.0, 1e-30, 2.0, np.nan], LANES, p=[0.1, 0.1, 0.3, 0.4, 0.1])
        found[1].view(np.int32)[:] = rng.integers(0, 3, LANES)
        assert run_unsettled(found, labels, picked, 3) == naive.changed_lanes(found, labels, picked[3:])


@pytest.mark.instructions
def test_numbers_below_a_limit_are_the_bits_of_a_mask():
    values = np.random.default_rng(0).random(100, dtype=np.float32)
    for start in (0, 7, 68):
        mask = run_below(values, start, 0.5)
        assert mask == naive.below(values, start, np.float32(0.5))
        assert run_lowest_bit(mask) == naive.lowest_bit(mask)


def test_rounding_bounds_are_the_naive_ones():
    centroids = np.random.default_rng(0).normal(size=(7, 3))
    slack, centroids32, counters = np.empty(3), np.empty((8, 3), np.float32), np.ones((2, 3), np.int64)
    relabel.begin_pass(centroids, 2.0, slack, centroids32, counters)
    expected, narrow_ones = naive.begin_pass(centroids, 2.0)
    np.testing.assert_allclose(slack, expected, rtol=1e-12)
    assert (centroids32 == np.array(narrow_ones)).all()
    assert not counters.any()


@pytest.mark.instructions
@pytest.mark.parametrize("d", [1, 3, 4, 5, 8, 11])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sums_are_exact_integers_in_any_order(dtype, d):
    rng = np.random.default_rng(0)
    X, origin = frozen(rng.normal(size=(60, d)).astype(dtype)), np.full(d, 0.25)
    weights = rng.random(60)
    sums = np.zeros((2, 2, d + 1), np.int64)
    for i in rng.permutation(60):
        exact_sums.add_row(X, i, origin, 0.125 * weights[i], weights[i], sums, 1)
    twin = np.array([naive.add_row(X[i], origin, 0.125 * weights[i], weights[i]) for i in range(60)], object).sum(
        axis=0
    )
    assert [int(h) * 2**31 + int(w) for h, w in zip(sums[1, 0], sums[1, 1], strict=True)] == twin.tolist()
    for i in range(60):
        exact_sums.add_row(X, i, origin, -0.125 * weights[i], -weights[i], sums, 1)
    assert not sums.any()
    distances.sum_rows(X, origin, 0.125, sums)
    twin = naive.sum_rows(X, origin, 0.125)
    assert [int(h) * 2**31 + int(w) for h, w in zip(sums[0, 0], sums[0, 1], strict=True)] == twin


def test_a_relocated_row_leaves_one_sum_and_joins_the_other():
    X, origin = frozen(np.array([[0.5, 0.25]])), np.zeros(2)
    sums, counts = np.zeros((2, 2, 3), np.int64), np.array([3, 0])
    distances.relocate(X, 0, origin, 0.5, 0.5, sums, counts, 0, 1)
    joined = [int(h) * 2**31 + int(w) for h, w in zip(sums[1, 0], sums[1, 1], strict=True)]
    assert joined == naive.relocate(X[0], origin, 0.5, 0.5)
    assert (sums[0] == -sums[1]).all()
    assert counts.tolist() == [2, 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_centroids_move_to_exact_means(weighted):
    rng = np.random.default_rng(3)
    X, labels, k = rng.normal(size=(200, 3)) * 4, rng.integers(0, 6, 200), 7
    weights = rng.random(200) if weighted else np.ones(200)
    sums = Sums.zeros(2, k, 3)
    raw = frozen(X)
    for i, j in enumerate(labels):
        exact_sums.add_row(raw, i, np.zeros(3), weights[i] / 32, weights[i], sums.limbs[i % 2], j)
        sums.counts[i % 2, j] += 1
    start = rng.normal(size=(k, 3))
    moved, image, drift = start.copy(), start / 32, np.empty(k)
    frame = Frame(np.zeros(3), 1 / 32, 1 / 32, 1.0, 1.0)
    arguments = plain(sums), plain(frame), moved, image, drift
    assert exact_sums.move_centroids(*arguments, may_stay=False) == -1
    assert (moved == start).all()
    largest = exact_sums.move_centroids(*arguments, may_stay=True)
    expected = naive.move_centroids(X, weights, labels, start)
    np.testing.assert_allclose(moved, expected, rtol=1e-14, atol=1e-15)
    assert (moved[6] == start[6]).all()
    steps = np.sqrt(((expected - start) ** 2).sum(axis=1))
    assert largest == pytest.approx(steps.max())
    assert (drift >= steps / 32 * (1 - 1e-15)).all()
    assert drift == pytest.approx(steps / 32)
    there, at_rest = [a[:6].copy() for a in (moved, image)], np.ones(6)
    arguments = plain(Sums(*(a[:, :6].copy() for a in sums))), plain(frame), *there, at_rest
    assert exact_sums.move_centroids(*arguments, may_stay=False) == 0.0
    assert not at_rest.any()


@pytest.mark.parametrize("k", [1, 2, 9])
def test_moves_add_up_to_what_margins_can_lose(k):
    rng = np.random.default_rng(k)
    drift, before = rng.random(k), rng.random(k + 1)
    moved = before.copy()
    exact_sums.add_moves(drift, moved)
    np.testing.assert_allclose(moved, naive.add_moves(drift, before), rtol=1e-11)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("assigner", [RowAssigner, BlockAssigner])
def test_labels_stay_the_naive_ones_while_centroids_move(dtype, assigner, monkeypatch):
    monkeypatch.setattr(exact_points, "BLOCK_ROWS", 16)
    rng = np.random.default_rng(7)
    X = np.round(rng.normal(size=(300, 3)), 1).astype(dtype)  # rounded, so that some are equally near
    raw = np.round(rng.normal(size=(10, 3)), 1)
    points = prepare(X, None, 10, blocks=True)
    working = points.working(raw)
    keeper = assigner(points, Sums.zeros(1, 10, 3), ThreadTeam(1), raw, working)
    keeper.label(force=True)
    for step in (0.3, 0.3, 0.01, 0.0, 0.001, 1.0, 0.1, 0.02, 0.0, 0.3):
        twin = naive.relabel_rows(X, raw)
        np.testing.assert_array_equal(points.original_labels(keeper.labels), twin)
        assert keeper.sums.counts[0].tolist() == np.bincount(twin, minlength=10).tolist()
        moved = raw + rng.normal(size=raw.shape) * step * (rng.random((10, 1)) < 0.5)
        drift = np.sqrt(((points.working(moved) - points.working(raw)) ** 2).sum(axis=1)) * (1 + 1e-12) + 1e-14
        raw[:], working[:] = moved, points.working(moved)
        keeper.centroids_moved(drift)
        keeper.label(force=False)


@pytest.mark.parametrize("assigner", [RowAssigner, BlockAssigner])
def test_rows_far_from_all_but_one_centroid_and_rows_without_weight_have_the_naive_labels(assigner, monkeypatch):
    monkeypatch.setattr(exact_points, "BLOCK_ROWS", 16)
    rng = np.random.default_rng(8)
    middles = 100.0 * np.arange(5)[:, None] * [1.0, 1.0]
    X = np.round(np.repeat(middles, 40, axis=0) + rng.normal(size=(200, 2)), 1)
    weights = (rng.random(200) < 0.8) * 1.0
    raw = middles[[0, 1, 2, 3, 4, 0]]  # the first and the last are equally near
    points = prepare(X, weights, 6, blocks=True)
    working = points.working(raw)
    keeper = assigner(points, Sums.zeros(1, 6, 2), ThreadTeam(1), raw, working)
    for step, force in ((0.0, True), (0.0, True), (0.5, False), (0.0, False), (60.0, False), (0.5, False)):
        keeper.label(force=force)
        twin = naive.relabel_rows(X, raw)
        np.testing.assert_array_equal(points.original_labels(keeper.labels), twin)
        assert keeper.sums.counts[0].tolist() == np.bincount(twin, weights, minlength=6).tolist()
        moved = raw + rng.normal(size=raw.shape) * step
        drift = np.sqrt(((points.working(moved) - points.working(raw)) ** 2).sum(axis=1)) * (1 + 1e-12) + 1e-14
        raw[:], working[:] = moved, points.working(moved)
        keeper.centroids_moved(drift)


def test_the_nearest_of_some_centroids_in_float64_is_the_naive_one():
    rng = np.random.default_rng(0)
    X, centroids = frozen(rng.integers(-2, 3, (50, 2)).astype(float)), rng.integers(-2, 3, (9, 2)).astype(float)
    everyone = np.arange(9).astype(np.int32)
    found = [relabel.exact_nearest(X, i, centroids, 0.5, everyone, 9) for i in range(50)]
    assert found == [naive.exact_nearest(x, centroids) for x in X]


@pytest.mark.parametrize("n", [1, 100, pytest.param(5000, marks=pytest.mark.large)])
def test_ordered_rows_are_the_same_rows_in_blocks_of_neighbours(n):
    rng = np.random.default_rng(n)
    X = rng.random((n, 3), dtype=np.float32)
    X[n // 2 :] = np.round(X[n // 2 :], 1)  # with many copies
    rows = X.copy()
    ordered = sort_by_kd_tree(rows, None, np.empty(0), 32, ThreadTeam(1), Storage())
    offsets = ordered.offsets
    assert sorted(ordered.permutation.tolist()) == list(range(n))
    assert (rows == X[ordered.permutation]).all()
    assert offsets[0] == 0
    assert offsets[-1] == n
    assert 0 < np.diff(offsets).min() <= np.diff(offsets).max() <= 48
    n_blocks = len(offsets) - 1
    ends = np.append(offsets[:-1:4], n)
    boxes, radii = np.empty((n_blocks + len(ends) - 1, 3, 3), np.float32), np.empty(n_blocks + len(ends) - 1)
    layout.bound_blocks(frozen(rows), offsets, boxes[:n_blocks], radii[:n_blocks])
    layout.bound_regions(n_blocks, 4, boxes, radii)
    for g, (low, high) in enumerate(naive.bound_regions(rows, ends)):
        at = n_blocks + g
        np.testing.assert_allclose(boxes[at, :2], [low, high], rtol=1e-6, atol=1e-6)
        assert (boxes[at, 0] <= low).all()
        assert (boxes[at, 1] >= high).all()
        far = np.sqrt(((rows[ends[g] : ends[g + 1]].astype(float) - boxes[at, 2]) ** 2).sum(axis=1)).max()
        assert far <= radii[at] <= np.sqrt(((high - low) ** 2).sum()) / 2 * 1.001 + 1e-6
    radii = radii[:n_blocks]
    for b, (low, high) in enumerate(naive.bound_blocks(rows, offsets)):
        assert (boxes[b, 0] <= low).all()
        assert (boxes[b, 1] >= high).all()
        np.testing.assert_allclose(boxes[b, :2], [low, high], rtol=1e-6, atol=1e-6)
        far = np.sqrt(((rows[offsets[b] : offsets[b + 1]].astype(float) - boxes[b, 2]) ** 2).sum(axis=1)).max()
        assert far <= radii[b] <= far * 1.001 + 1e-6
    if n == 5000:
        assert np.median(radii) < 0.25


@pytest.mark.parametrize(
    ("n", "levels"),
    [(3, 1), (600, 3), *(pytest.param(*size, marks=pytest.mark.large) for size in ((40_000, 4), (70_001, 9)))],
)
def test_a_node_is_split_by_the_medians_of_a_sample(n, levels):
    rng = np.random.default_rng(n)
    X = frozen((rng.random((n + 10, 3)) * [1, 5, 2]).astype(np.float32))
    axes, cuts = np.zeros(1 << levels, np.uint32), np.zeros(1 << levels, np.float32)
    sample = X[10 :: max(1, n // (32 << levels))].copy()
    layout.split_sample(sample, levels, axes, cuts)
    assert (axes[1], cuts[1]) == naive.split_sample(sample)
    leaves, counts = np.empty(n, np.uint16), np.zeros(1 << levels, np.int64)
    layout.find_leaves(X, 10, n + 10, levels, axes, cuts, leaves, counts)
    assert leaves.tolist() == naive.find_leaves(X[10:], levels, axes, cuts)
    assert counts.tolist() == np.bincount(leaves, minlength=1 << levels).tolist()
    assert counts.max() < 3 * n / len(counts)
    moved, cursors = np.empty_like(X), 10 + np.cumsum(counts) - counts
    layout.move_rows(X.view(np.int32), moved.view(np.int32), 10, n + 10, leaves, cursors)
    assert (moved[10:] == naive.move_rows(X[10:], leaves)).all()
    assert (cursors == 10 + np.cumsum(counts)).all()


@pytest.mark.large
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_order_is_the_same_out_of_core_and_with_threads_and_all_that_belongs_to_rows_has_it(
    dtype, weighted, monkeypatch
):
    monkeypatch.setattr(exact_threads, "_MIN_PARALLEL_NS", 0.0)  # however small, every pass is shared
    monkeypatch.setattr(kd_order, "_LEVELS", 4)  # several stages: nodes that do not fit into memory, and such that do
    rng = np.random.default_rng(4)
    X = rng.random((60_000, 3)).astype(dtype)
    X[20_000:50_000] = X[0]  # more copies than fit into memory
    rows, weights = X.astype(np.float32), rng.random(60_000) if weighted else np.empty(0)
    found = []
    for threads, storage in ((1, Storage()), (3, Storage()), (1, Storage(1 << 20)), (2, Storage(1 << 20))):
        mine = storage.allocate(X.shape, np.float32)
        mine[:] = rows
        ordered = sort_by_kd_tree(mine, X if dtype == np.float64 else None, weights, 32, ThreadTeam(threads), storage)
        found.append((mine, ordered.permutation, ordered.weights, ordered.offsets, ordered.raw))
        assert sorted(ordered.permutation.tolist()) == list(range(60_000))
        assert (mine == rows[ordered.permutation]).all()
        assert (ordered.weights == weights[ordered.permutation]).all() if weighted else not len(ordered.weights)
        assert (ordered.raw is None) if dtype == np.float32 else (ordered.raw == X[ordered.permutation]).all()
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert (one is None and other is None) or (one == other).all()


def test_rows_of_one_value_make_blocks_too():
    offsets = sort_by_kd_tree(np.ones((500, 2), np.float32), None, np.empty(0), 32, ThreadTeam(1), Storage()).offsets
    assert np.diff(offsets).max() <= 48


def test_rows_for_two_blocks_are_split_between_neighbours():
    rows = np.random.default_rng(0).permutation(64).astype(np.float32)[:, np.newaxis]
    offsets = sort_by_kd_tree(rows, None, np.empty(0), 32, ThreadTeam(1), Storage()).offsets
    lower, upper = sorted(np.split(rows.ravel(), offsets[1:-1].tolist()), key=min)
    assert max(lower) < min(upper)


def test_points_far_from_zero_are_centred_and_others_taken_as_they_are():
    X = np.random.default_rng(0).normal(size=(1000, 2))
    for offset in (0.0, 1e6):
        points = prepare(X + offset, None, 3)
        np.testing.assert_allclose(points.frame.origin, offset + X.mean(axis=0), atol=1e-3)
        assert 0.4 < np.abs(points.rows).max() <= 1.0
    given = X.astype(np.float32)
    points = prepare(given, None, 3)
    assert np.shares_memory(points.rows, given)
    assert (points.frame.unit, points.frame.origin.tolist()) == (1.0, [0.0, 0.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_working_coordinates_are_the_naive_ones(dtype):
    X, rows = (np.random.default_rng(0).normal(size=(20, 3)) + 1e6).astype(dtype), np.empty((20, 3), np.float32)
    layout.to_working(frozen(X), np.full(3, 1e6), 0.25, rows)
    assert (rows == naive.to_working(X, 1e6, 0.25)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ranges_distances_and_costs_are_the_naive_ones(dtype):
    rng = np.random.default_rng(1)
    X, centroids = frozen(rng.normal(size=(50, 4)).astype(dtype)), rng.normal(size=(6, 4))
    labels, weights = rng.integers(0, 6, 50).astype(np.int32), rng.random(50)
    low, high = np.empty(4), np.empty(4)
    layout.column_ranges(X, low, high)
    assert ([low, high] == naive.column_ranges(X)).all()
    squares, costs, out = np.empty(40), np.zeros((6, 3), np.int64), np.empty((50, 6))
    distances.assigned_squares((0, 1, 10, 50), X, labels, centroids, 0.5, frozen(weights), 2.0**-7, squares, costs)
    twin = naive.assigned_squares(X, labels, centroids)
    np.testing.assert_allclose(squares, twin[10:] / 4, rtol=1e-13)
    alone = np.zeros_like(costs)
    distances.assigned_squares((0, 1, 10, 50), X, labels, centroids, 0.5, frozen(weights), 2.0**-7, np.empty(0), alone)
    assert (alone == costs).all()
    summed = np.bincount(labels[10:], (twin * weights)[10:], 6) / 4
    for (high, middle, low), expected in zip(costs.tolist(), summed, strict=True):
        assert ((high << 62) + (middle << 31) + low) / 2**93 * 2**7 == pytest.approx(expected, rel=1e-13)
    distances.all_distances(0, 1, X, centroids, 0.5, out)
    np.testing.assert_allclose(out, naive.all_distances(X, centroids), rtol=1e-13)


@pytest.mark.parametrize("weighted", [False, True])
def test_candidates_are_evaluated_by_the_cost_that_remains(weighted, monkeypatch):
    monkeypatch.setattr(exact_points, "BLOCK_ROWS", 16)
    rng = np.random.default_rng(2)
    X, weights = rng.normal(size=(400, 2)).astype(np.float32), rng.random(400) * (rng.random(400) < 0.9)
    points = prepare(X, weights if weighted else None, 8, blocks=True)
    n_blocks = len(points.offsets) - 1
    nearest, most, costs = np.full(400, 3e38, np.float32), np.full(n_blocks, 3e38, np.float32), np.zeros(n_blocks)

    def call(candidates, trial):
        seeding.evaluate_candidates(
            (0, 1, 0, n_blocks), points.rows, points.weights, points.offsets, points.boxes, candidates,
            nearest, most, costs, trial,
        )  # fmt: skip

    shares = points.weights if weighted else np.ones(400)
    for row in (3, 70, 200):
        call(points.rows[row : row + 1].copy(), np.empty((0, 0)))
    candidates = points.rows[[5, 100, 300]]
    trial = np.empty((n_blocks, 3))
    call(candidates, trial)
    np.testing.assert_allclose(
        trial.sum(axis=0), naive.evaluate_candidates(points.rows, shares, nearest, candidates), rtol=1e-5
    )
    by_row = nearest * shares
    for share in (0.0, 0.1, 0.5, 0.9, 0.999):
        target = share * costs.sum()
        found = seeding.draw_by_cost(points.weights, points.offsets, nearest, costs, target)
        assert abs(found - naive.draw_by_cost(by_row, target)) <= 1
        assert by_row[found] > 0
    beyond = seeding.draw_by_cost(points.weights, points.offsets, nearest, costs, 2 * costs.sum())  # by rounding
    assert beyond == np.flatnonzero(by_row)[-1]
    assert seeding.draw_by_cost(points.weights, points.offsets, nearest * 0, costs * 0, 0.0) == -1
    assert naive.draw_by_cost([0.0], 0.0) == -1


def test_arrays_of_more_than_a_share_of_the_memory_are_in_files():
    limit = 1 << 20
    share = limit // exact_storage._MAPPED_DIVISOR
    for size, in_file in ((share, False), (share + 1, True)):
        array = Storage(limit).allocate((size,), np.uint8, fill=7)
        assert (array == 7).all()
        while isinstance(array, np.ndarray) and array.base is not None:
            array = array.base
        assert isinstance(array, np.ndarray) != in_file


def test_a_sum_of_thirds_is_a_third_of_the_sum():
    third = Fraction(naive.add_row([1 / 3], [0.0], 1.0, 1.0)[0], 2**62)
    assert abs(third - Fraction(1, 3)) < Fraction(1, 2**54)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 2, 100])
def test_a_thread_team_divides_a_range_without_gaps(threads, n):
    seen = []
    with ThreadTeam(threads) as team:
        team.divide(5, 5 + n, lambda part, first, last: seen.append((part, first, last)), 1e9)
    assert [row for _, first, last in sorted(seen) for row in range(first, last)] == list(range(5, 5 + n))
    assert all(first < last for _, first, last in seen)
    assert len({part for part, _, _ in seen}) == min(threads, n)


@pytest.mark.large
def test_points_are_prepared_alike_by_any_number_of_threads():
    X = np.random.default_rng(0).normal(size=(400_000, 3)) + 1e4
    found = []
    for threads in (1, 3):
        with ThreadTeam(threads) as team:
            found.append(prepare(X, None, 10, team))
    for name in ("rows", "raw", "permutation", "offsets", "boxes", "radii"):
        np.testing.assert_array_equal(getattr(found[0], name), getattr(found[1], name))
    for one, other in zip(found[0].frame, found[1].frame, strict=True):
        np.testing.assert_array_equal(one, other)
