"""The nearest centroids against a loop over plain numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamkm.kernels import nearest as kernel
from streamkm.kernels.nearest import find_nearest, nearest, scores

COORDINATES = st.one_of(
    st.integers(-3, 3).map(float),
    st.floats(-1e6, 1e6),
    st.sampled_from([1e200, -1e200, 1.7e308, -1.7e308, 1e-200]),
)


def naive(centroids, point):
    """Distances to each centroid, by a function that neither overflows nor underflows."""
    return [math.dist(c, point) for c in centroids.tolist()]


@st.composite
def worlds(draw):
    d, k, n = draw(st.integers(1, 4)), draw(st.integers(1, 6)), draw(st.integers(0, 9))
    arrays = [draw(hnp.arrays(np.float64, (rows, d), elements=COORDINATES)) for rows in (k, n)]
    return arrays[0], np.asfortranarray(arrays[1]) if draw(st.booleans()) else arrays[1]


def close(found, true):
    # Squares below the least double vanish, so distances below 1e-150 may be returned as zero.
    return found == true or math.isclose(found, true, rel_tol=1e-12, abs_tol=1e-150)


@given(worlds())
def test_the_nearest_the_second_and_all_distances_are_the_naive_ones(world):
    centroids, points = world
    found = find_nearest(centroids, points, second=True, all_distances=True)
    plain = nearest(centroids, points)
    assert found.first.tolist() == plain[0].tolist()
    assert found.distance.tolist() == plain[1].tolist()
    for i, point in enumerate(points):
        true = naive(centroids, point)
        assert all(map(close, found.all_distances[i].tolist(), true))
        assert close(found.distance[i], min(true))
        assert close(true[found.first[i]], min(true))
        if len(centroids) == 1:
            assert (found.second[i], found.second_distance[i]) == (-1, math.inf)
        else:
            others = true[: found.first[i]] + true[found.first[i] + 1 :]
            assert found.second[i] != found.first[i]
            assert close(found.second_distance[i], min(others))
            assert close(true[found.second[i]], min(others))


@pytest.mark.parametrize("block", [1, 7, 64])
def test_blocks_change_nothing(monkeypatch, block):
    rng = np.random.default_rng(3)
    centroids, points = rng.normal(size=(5, 3)), rng.normal(size=(101, 3))
    points[::7] *= 1e200
    whole = find_nearest(centroids, points, second=True, all_distances=True)
    monkeypatch.setattr(kernel, "BLOCK_SIZE", block)
    for one, other in zip(whole, find_nearest(centroids, points, second=True, all_distances=True), strict=True):
        np.testing.assert_array_equal(one, other)


def test_equal_centroids_are_at_equal_distances_and_the_first_is_taken():
    rng = np.random.default_rng(0)
    centroid, points = rng.normal(size=(1, 7)), rng.normal(size=(1000, 7))
    found = find_nearest(np.repeat(centroid, 3, axis=0), points, second=True, all_distances=True)
    assert not found.first.any()
    assert (found.second == 1).all()
    assert (found.all_distances == found.distance[:, None]).all()
    assert (found.second_distance == found.distance).all()


@pytest.mark.parametrize("weights", [[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
@pytest.mark.parametrize("spreads", [[3.0, 0.5, 0.0], [0.0, 0.0, 0.0]])
def test_scores_are_multiples_of_the_spread_of_the_cluster_or_of_all_points(spreads, weights):
    mass = sum(weights)
    overall = math.sqrt(sum(w * s * s for w, s in zip(weights, spreads, strict=True)) / mass) if mass else 0.0
    distances, ids = np.array([0.0, 6.0, 1.5, 0.0, 2.0]), np.array([0, 0, 1, 2, 2])
    expected = []
    for distance, j in zip(distances.tolist(), ids.tolist(), strict=True):
        unit = spreads[j] or overall
        expected.append(0.0 if distance == 0.0 else distance / unit if unit else math.inf)
    assert scores(distances, ids, np.array(spreads), np.array(weights)).tolist() == expected
