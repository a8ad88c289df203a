import json
from collections import Counter

import numpy as np
import pytest

from lineage_world import World, hexagon, solve
from streamkm.errors import StateError
from streamkm.models.lineage.tracker import REPRESENTATIVES, LineageTracker
from streamkm.models.weighted_rows import masses, nearest, pick_representatives, separation
from streamkm.state import ModelEvent


def follow(world, steps, lineage=None):
    """(ids, events) of each publication."""
    lineage = lineage or LineageTracker()
    published = []
    for n, centers, *shares in steps:
        arguments, decay = world.run(n, centers, shares=shares[0] if shares else None)
        published.append(lineage.publish(*arguments, **decay))
    return published


def events_of(published):
    return [e for _, events in published for e in events]


def kinds(published):
    return Counter(e.kind for e in events_of(published))


# Scripted worlds


@pytest.mark.parametrize("seed", range(20))
def test_a_stationary_world_keeps_its_ids_and_has_no_events(seed):
    world = World(seed, 6, half_life=(None, 2000, 8000, 32000)[seed % 4])
    published = follow(world, [(4096, hexagon(seed))] * 30)
    assert events_of(published) == []
    assert {tuple(sorted(ids.tolist())) for ids, _ in published} == {tuple(range(6))}


@pytest.mark.parametrize("seed", range(3))
def test_overlapping_clusters_have_no_events_without_decay(seed):
    centers = np.random.default_rng(seed).uniform(-3, 3, (6, 2))
    assert events_of(follow(World(seed, 6, margin=0.03), [(4096, centers)] * 30)) == []


@pytest.mark.parametrize("half_life", [2000, 8000])
@pytest.mark.parametrize("seed", range(3))
def test_a_cluster_that_moves_slowly_keeps_its_id_and_drifts(seed, half_life):
    start = hexagon(seed)
    end = start.copy()
    end[3] += [-8.0, 0.0]
    steps = [(4096, start)] * 3
    steps += [(4096, lambda p, t=t: start + (end - start) * (t + p) / 20) for t in range(20)]
    published = follow(World(seed, 6, half_life), [*steps, *[(4096, end)] * 3])
    assert kinds(published) == {"drift": 2}
    assert len({e.before for e in events_of(published)}) == 1
    assert all(set(ids.tolist()) == set(range(6)) for ids, _ in published)


def moving_together(seed):
    """B moves into A while D falls in two."""
    start = hexagon(seed)

    def at(t):
        centers, u = np.vstack([start, start[3:4]]), min(1.0, t / 8)
        centers[1] += (start[0] - start[1]) * u
        centers[3] += np.array([-6.0, 6.0]) * u
        centers[6] += np.array([-6.0, -6.0]) * u
        return centers

    shares = np.array([2, 2, 2, 1, 2, 2, 1]) / 12
    moving = [(8192, lambda p, t=t: at(t + p), shares) for t in range(8)]
    return [*[(8192, at(0), shares)] * 4, *moving, *[(8192, at(8), shares)] * 6]


@pytest.mark.parametrize("half_life", [2000, 8000])
@pytest.mark.parametrize("seed", range(4))
def test_a_merge_and_a_split_are_reported_as_such(seed, half_life):
    published = follow(World(seed, 6, half_life), moving_together(seed))
    assert kinds(published) == {"merge": 1, "split": 1, "drift": 1}
    events = {e.kind: e for e in events_of(published)}
    assert len(events["merge"].before) == 2
    assert set(events["merge"].after) < set(events["merge"].before)
    assert len(events["split"].after) == 2
    assert set(events["split"].before) < set(events["split"].after)
    assert events["drift"].before[0] in events["merge"].before


@pytest.mark.parametrize("half_life", [2000, 8000, 32000])
@pytest.mark.parametrize("seed", range(4))
def test_a_death_and_a_birth_are_reported_as_such_although_k_means_fuses_others_meanwhile(seed, half_life):
    before = hexagon(seed)
    after = before.copy()
    after[5] = [0.0, 60.0]
    world = World(seed, 6, half_life)
    published = follow(world, [*[(8192, before)] * 4, *[(8192, after)] * 22])
    assert [e.kind for e in events_of(published)] == ["birth", "death"]
    birth, death = events_of(published)
    assert birth.after == (6,)
    assert birth.detail["share"] > 0
    assert set(published[-1][0].tolist()) == set(range(7)) - set(death.before)


@pytest.mark.parametrize("half_life", [2000, 8000])
def test_one_cluster_more_than_k_is_a_birth_and_a_merge(half_life):
    before = hexagon(0)
    published = follow(World(0, 6, half_life), [*[(8192, before)] * 4, *[(8192, [*before, [0.0, 60.0]])] * 8])
    assert kinds(published) == {"birth": 1, "merge": 1}


def test_with_one_centroid_more_a_cluster_splits_and_with_one_less_two_merge():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(c, 1, (500, 2)) for c in hexagon(0)])
    weights, lineage = np.ones(len(rows)), LineageTracker()
    events = []
    for t in range(30):
        k = 6 if 6 <= t < 18 else 5
        centroids = solve(rows, weights, k, None, np.random.default_rng(t))
        events += lineage.publish(centroids, rows, weights, 3000.0, decay=0.9)[1]
    assert [e.kind for e in events] == ["split", "merge"]


# Hysteresis


@pytest.mark.parametrize("period", [1, 2])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_alternating_between_two_solutions_is_no_event_and_ids_come_back(period, decay):
    rng = np.random.default_rng(0)
    angle, radius = rng.uniform(0, 2 * np.pi, 2000), np.sqrt(rng.uniform(0, 1, 2000))
    disc = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    rows = np.concatenate([disc, rng.normal([20, 0], 0.5, (550, 2)), rng.normal([24, 0], 0.5, (450, 2))])
    one = np.array([[0.4, 0.0], [-0.4, 0.0], [20.0, 0.0], [24.0, 0.0]])
    thirds = 2 * np.pi / 3 * np.arange(3)
    other = np.concatenate([0.5 * np.stack([np.cos(thirds), np.sin(thirds)], axis=1), [[22.0, 0.0]]])
    lineage, mass, seen = LineageTracker(), 3000.0, {0: set(), 1: set()}
    for t in range(30):
        which = t // period % 2
        ids, events = lineage.publish(other if which else one, rows, np.ones(3000), mass, decay=decay)
        mass += 100.0 if decay == 1.0 else 0.0
        assert events == ()
        seen[which].add(tuple(ids.tolist()))
    assert len(seen[0]) == len(seen[1]) == 1
    assert lineage.next_id == 5


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_points_that_are_the_same_and_cut_otherwise_for_good_are_no_event(decay):
    rng = np.random.default_rng(1)
    one = np.array([[0.0, 0.0], [3.0, 0.0], [40.0, 0.0]])
    other = np.array([[1.5, 0.0], [40.0, -3.0], [40.0, 3.0]])
    lineage, mass, seen = LineageTracker(), 4000.0, set()
    for t in range(60):
        middles = np.array([[0.0, 0.0], [3.0, 0.0], [40.0, 3.0], [40.0, -3.0]])
        rows = np.concatenate([rng.normal(c, 0.6, (1000, 2)) for c in middles])
        ids, events = lineage.publish(other if t >= 5 else one, rows, np.ones(4000), mass, decay=decay)
        mass *= 1.1 if decay == 1.0 else 1.0
        assert events == ()
        seen.add(tuple(ids.tolist()))
    assert len(seen) == 2


# Ids


def test_first_ids_count_from_zero_and_an_order_of_centroids_means_nothing():
    rows = np.concatenate([np.random.default_rng(0).normal(c, 1, (50, 2)) for c in hexagon(0)])
    weights, lineage, centers = np.ones(len(rows)), LineageTracker(), hexagon(0)
    assert lineage.publish(centers, rows, weights, 300.0)[0].tolist() == [0, 1, 2, 3, 4, 5]
    order = np.array([3, 1, 5, 0, 2, 4])
    assert lineage.publish(centers[order], rows, weights, 300.0) == (pytest.approx(order), ())


def test_ids_that_the_caller_took_go_to_the_clusters_it_took_them_for_and_none_is_given_twice():
    rows = np.array([[0.0], [10.0]])
    lineage = LineageTracker()
    lineage.publish(rows, rows, np.ones(2), 200.0)
    taken = lineage.new_id()
    assert taken == 2
    here = np.array([[0.0], [10.0], [50.0]])
    ids, events = lineage.publish(here, here, np.ones(3), 300.0, decay=0.1, current_ids=np.array([0, 1, taken]))
    assert ids.tolist() == [0, 1, 2]
    assert events == (ModelEvent("birth", (), (2,), {"share": pytest.approx(1 / 3)}),)
    ids, _ = lineage.publish(np.array([[0.0], [90.0], [50.0]]), np.array([[0.0], [90.0], [50.0]]), np.ones(3), 990.0)
    assert ids.tolist() == [0, 3, 2]


def test_a_handful_of_points_is_no_birth():
    rows = np.array([[0.0], [10.0]])
    for mass, expected in ((40.0, []), (400.0, ["birth"])):
        lineage = LineageTracker()
        lineage.publish(rows, rows, np.array([9.0, 1.0]), mass)
        here = np.array([[0.0], [10.0], [50.0]])
        ids, events = lineage.publish(here, here, np.array([8.0, 1.0, 1.0]), mass)
        assert (ids.tolist(), [e.kind for e in events]) == ([0, 1, 2], expected)


def test_current_ids_that_were_published_before_are_not_taken_for_new():
    here = np.array([[0.0], [10.0]])
    lineage = LineageTracker()
    lineage.publish(here, here, np.ones(2), 2.0)
    ids, _ = lineage.publish(here[::-1], here, np.ones(2), 3.0, current_ids=np.array([0, 1]))
    assert ids.tolist() == [1, 0]


def test_a_cluster_that_grows_a_hundredfold_keeps_its_id():
    rng = np.random.default_rng(0)
    large, small = rng.normal(0, 1, (990, 2)), rng.normal(20, 1, (10, 2))
    lineage, centers = LineageTracker(), np.array([[0.0, 0], [20, 20]])
    lineage.publish(centers, np.concatenate([large, small]), np.ones(1000), 1000.0)
    more = np.concatenate([large, rng.normal(20, 1, (5000, 2))])
    assert lineage.publish(centers, more, np.ones(len(more)), 6000.0) == (pytest.approx([0, 1]), ())


def test_empty_clusters_keep_their_ids_and_are_no_events():
    rows = np.repeat([[0.0], [5.0]], 20, axis=0)
    lineage, centers = LineageTracker(), np.array([[0.0], [5.0], [5.0], [5.0]])
    for mass in (40.0, 80.0, 400.0):
        ids, events = lineage.publish(centers, rows, np.ones(40), mass)
        assert (sorted(ids.tolist()), events) == ([0, 1, 2, 3], ())
    more = np.concatenate([rows, np.repeat([[30.0]], 40, axis=0)])
    ids, events = lineage.publish(np.array([[0.0], [5.0], [5.0], [30.0]]), more, np.ones(80), 900.0)
    assert [e.kind for e in events] == ["birth"]
    assert events[0].after == (4,)
    assert ids[3] == 4


def test_one_cluster_of_equal_rows_keeps_its_id():
    rows = np.ones((5, 3))
    lineage = LineageTracker()
    for mass in (5.0, 10.0, 50.0):
        assert lineage.publish(rows[:1], rows, np.ones(5), mass) == (pytest.approx([0]), ())


def test_without_a_row_that_has_weight_centroids_stand_for_themselves():
    centers = np.array([[0.0], [5.0]])
    lineage = LineageTracker()
    for _ in range(2):
        assert lineage.publish(centers, np.empty((0, 1)), np.empty(0), 0.0) == (pytest.approx([0, 1]), ())


def test_a_change_of_scale_is_followed():
    world, lineage, factors = World(0, 6, 8000), LineageTracker(), np.array([1000.0, 0.5])
    for t in range(6):
        (centroids, rows, weights, mass), decay = world.run(4096, hexagon(0))
        if t == 3:
            lineage.rescale(factors)
        scale = factors if t >= 3 else 1.0
        ids, events = lineage.publish(centroids * scale, rows * scale, weights, mass, **decay)
        assert (sorted(ids.tolist()), events) == (list(range(6)), ())


# What is remembered


def test_a_lineage_restored_at_any_publication_goes_on_as_if_nothing_had_happened():
    world, whole, parts = World(1, 6, 8000), LineageTracker(), LineageTracker()
    for n, centers, shares in moving_together(1):
        (centroids, rows, weights, mass), decay = world.run(n, centers, shares=shares)
        expected = whole.publish(centroids, rows, weights, mass, **decay)
        ids, events = parts.publish(centroids, rows, weights, mass, **decay)
        np.testing.assert_array_equal(ids, expected[0])
        assert events == expected[1]
        parts = LineageTracker.from_parts(json.loads(json.dumps(parts.params())), parts.arrays())
        assert parts.params() == whole.params()
        for name, array in whole.arrays().items():
            np.testing.assert_array_equal(parts.arrays()[name], array)


def test_a_damaged_state_is_refused():
    lineage = LineageTracker()
    centers = np.array([[0.0], [5.0]])
    lineage.publish(centers, centers, np.ones(2), 2.0)
    for name in ("digest", "lives_spreads", "lives_anchors"):
        with pytest.raises(StateError, match="shape"):
            LineageTracker.from_parts(lineage.params(), lineage.arrays() | {name: np.ones((7, 3))})


def test_a_lineage_before_its_first_publication_has_no_ids_and_can_be_saved():
    lineage = LineageTracker.from_parts(LineageTracker().params(), LineageTracker().arrays())
    assert lineage.ids.tolist() == []
    assert lineage.new_id() == 0


def test_memory_is_bounded_by_k():
    rng, lineage = np.random.default_rng(0), LineageTracker()
    for _ in range(40):  # other random centroids each time: the worst there can be
        rows = rng.normal(size=(6000, 3))
        lineage.publish(rng.normal(size=(8, 3)), rows, np.ones(6000), 6000.0, decay=0.97)
        arrays = lineage.arrays()
        assert len(arrays["resting_ids"]) <= 8
        assert len(arrays["digest"]) <= REPRESENTATIVES + 8
    assert len(set(lineage.ids.tolist())) == 8


# Populations


def test_representatives_keep_the_mass_of_each_cluster_and_its_far_rows():
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(0, 1, (9000, 2)), rng.normal(30, 1, (50, 2)), [[9.0, -9.0]]])
    weights = rng.uniform(0.5, 2.0, len(rows))
    centers = np.array([[0.0, 0], [30, 30]])
    few, picked = pick_representatives(rows, weights, *nearest(rows, centers), 2, 500)
    assert 250 < len(few) <= 502
    labels, _ = nearest(few, centers)
    np.testing.assert_allclose(masses(labels, picked, 2), masses(nearest(rows, centers)[0], weights, 2))
    assert [9.0, -9.0] in few.tolist()
    np.testing.assert_allclose(picked @ few / picked.sum(), weights @ rows / weights.sum(), atol=0.15)


def test_representatives_of_few_rows_are_these_rows():
    rows = np.random.default_rng(0).normal(size=(20, 2))
    few, picked = pick_representatives(rows, np.ones(20), *nearest(rows, rows[:3]), 3, 500)
    np.testing.assert_array_equal(few, rows)
    np.testing.assert_allclose(picked, 1.0)


def test_two_clusters_are_separated_and_two_halves_of_one_are_not():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(4000, 3))
    two = one + np.array([3.0, 3.0, 3.0]) * rng.integers(0, 2, (4000, 1))
    assert separation(one, np.ones(4000), one[:, 0] > 0) == pytest.approx(1.32, abs=0.05)
    assert separation(two, np.ones(4000), two.sum(axis=1) > 4.5) > 2.0
    assert separation(np.array([[0.0], [1.0]]), np.ones(2), np.array([True, False])) == np.inf
    assert separation(one, np.ones(4000), np.zeros(4000, bool)) == 0.0
    assert separation(np.zeros((2, 1)), np.ones(2), np.array([True, False])) == 0.0


def test_an_event_survives_json():
    event = ModelEvent("split", (1,), (1, 4), {"share": 0.5})
    assert ModelEvent.from_json(json.loads(json.dumps(event.to_json()))) == event
