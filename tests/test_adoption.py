"""Whether solutions and moves are worth it."""

import numpy as np
import pytest

from streamkm.models.acceptance import HOLD_VARIANCES, CoresetFit, match_clusters, sampling_gain, shrink_moves
from streamkm.models.centroids import LiveCentroids
from streamkm.models.metric import Metric
from streamkm.models.weighted_rows import moved_share


def live(centroids, weights, costs, ids=None):
    stats = np.stack([weights, costs, np.zeros(len(weights))], axis=1).astype(float)
    made = LiveCentroids.start(np.array(centroids, float), stats, Metric.raw(len(centroids[0])))
    if ids is not None:
        made.ids = np.array(ids)
    return made


@pytest.fixture
def blobs():
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 20, (8, 3))
    return centers, lambda n: centers[rng.integers(0, 8, n)] + rng.normal(size=(n, 3))


def test_what_fitting_a_sample_saves_on_it_is_mostly_within_noise(blobs):
    centers, draw = blobs
    within = []
    for _ in range(20):
        rows, weights = draw(800), np.full(800, 500.0)
        guide = live(centers, np.full(8, 5e4), np.full(8, 1.5e5))
        old = CoresetFit.of(rows, weights, centers, guide, guide.metric)
        new = CoresetFit.of(rows, weights, centers, guide, guide.metric, steps=20)
        assert 0.0 < 1.0 - new.cost / old.cost < 1.5 * sampling_gain(new, old, weights) < 0.05
        within.append(1.0 - new.cost / old.cost < sampling_gain(new, old, weights))
    assert sum(within) >= 15


def test_what_is_truly_better_is_beyond_noise(blobs):
    centers, draw = blobs
    rows, weights = draw(800), np.full(800, 500.0)
    guide = live(centers, np.full(8, 5e4), np.full(8, 1.5e5))
    fused = centers.copy()
    fused[0] = centers[1] + 0.5
    old, new = (CoresetFit.of(rows, weights, c, guide, guide.metric) for c in (fused, centers))
    assert 1.0 - new.cost / old.cost > 2.0 * sampling_gain(new, old, weights)
    assert sampling_gain(new, new, weights) < 0.02


def test_without_cost_there_is_no_sampling_gain():
    rows = np.zeros((4, 1))
    guide = live([[0.0]], [4.0], [0.0])
    fit = CoresetFit.of(rows, np.ones(4), guide.centroids, guide, guide.metric)
    assert sampling_gain(fit, fit, np.ones(4)) == 0.0


def test_a_published_centroid_stays_within_noise_and_follows_beyond_it():
    published = live([[0.0], [100.0], [200.0]], [1e4] * 3, [1e4] * 3)
    noise = np.sqrt(HOLD_VARIANCES / 1e4)
    moves = np.array([0.9 * noise, 3.0 * noise, 5.0])
    now = live(published.centroids + moves[:, np.newaxis], [1e4] * 3, [1e4] * 3)
    went = (shrink_moves(published, now) - published.centroids)[:, 0]
    assert went[0] == 0.0
    assert 0.0 < went[1] < moves[1]
    assert went[2] == pytest.approx(5.0, abs=0.01)


def test_a_centroid_whose_cluster_was_replaced_is_not_held():
    published = live([[0.0], [100.0]], [1e4] * 2, [1e4] * 2)
    now = live([[1e-3], [100.001]], [1e4] * 2, [1e4] * 2, ids=[0, 7])
    np.testing.assert_array_equal(shrink_moves(published, now), [[0.0], [100.001]])


def test_directions_stay_directions():
    published = live([[1.0, 0.0], [0.0, 1.0]], [10.0] * 2, [1.0] * 2)
    angle = 0.4
    now = live([[np.cos(angle), np.sin(angle)], [0.0, 1.0]], [10.0] * 2, [1.0] * 2)
    now.metric = Metric.raw(2, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(shrink_moves(published, now), axis=1), 1.0)


def test_the_moved_share_counts_mass_and_not_the_order_of_clusters():
    old, weights = np.array([0, 0, 1, 1, 2], np.int32), np.array([1.0, 1.0, 2.0, 2.0, 4.0])
    assert moved_share(old, np.array([2, 2, 0, 0, 1], np.int32), weights, 3) == 0.0
    assert moved_share(old, np.array([0, 1, 1, 1, 2], np.int32), weights, 3) == pytest.approx(0.1)
    assert moved_share(old, old, np.zeros(5), 3) == 0.0


def test_matched_clusters_keep_their_order_and_replaced_ones_are_named():
    order, replaced = match_clusters(np.array([[0.0, 5.0, 0.0], [5.0, 0.0, 0.0], [4.0, 0.0, 1.0]]))
    assert order.tolist() == [1, 0, 2]
    assert replaced.tolist() == []
    order, replaced = match_clusters(np.array([[5.0, 5.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 3.0]]))
    assert len(replaced) == 1
