"""The axes of the map: the picture stands still while the stream does, and turns no more than it must."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from service_api import NOW
from store_checks import snapshot_of
from streamkm.service.serializers import project

NONE = np.empty((0, 3))


def snapshot(centroids, deviations=1.0, weights=None, factors=1.0):
    c = np.array(centroids, float)
    k, d = c.shape
    return replace(
        snapshot_of(1, at=NOW),
        ids=np.arange(k),
        fields=tuple(f"f{j}" for j in range(d)),
        centroids=c,
        weights=np.ones(k) if weights is None else np.array(weights, float),
        deviations=None if deviations is None else np.full((k, d), deviations),
        factors=np.full(d, factors),
    )


def turned(a, b):
    """Cosines between the old and the new first axis, and the old and the new second one."""
    a, b = np.array(a.axes), np.array(b.axes)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


SQUARE = np.array([[10.0, 10.0, 0.0], [-10.0, 10.0, 0.0], [-10.0, -10.0, 0.0], [10.0, -10.0, 0.0]])


@pytest.mark.parametrize("deviations", [1.0, None])
@pytest.mark.parametrize("seed", range(5))
def test_axes_of_a_stationary_stream_stay_though_no_component_is_larger_than_the_other(seed, deviations):
    rng = np.random.default_rng(seed)
    points = np.repeat(SQUARE, 75, axis=0) + rng.normal(size=(300, 3))
    first = project(snapshot(SQUARE, deviations), points, None)
    last = first
    for _ in range(10):
        points = SQUARE[rng.integers(0, 4, 300)] + rng.normal(size=(300, 3))
        last = project(snapshot(SQUARE + rng.normal(0, 0.1, SQUARE.shape), deviations), points, last)
    assert (turned(first, last) > 0.99).all()


def test_components_that_are_alike_lie_along_fields_so_that_a_page_that_is_loaded_anew_shows_the_same():
    rng = np.random.default_rng(0)
    found = [project(snapshot(SQUARE + rng.normal(0, 0.1, SQUARE.shape)), NONE, None) for _ in range(10)]
    for p in found:
        np.testing.assert_allclose(p.axes, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], atol=0.1)


def test_one_far_point_is_not_what_the_map_is_of():
    points = SQUARE[np.arange(300) % 4] + np.random.default_rng(0).normal(size=(300, 3))
    calm = project(snapshot(SQUARE), points, None)
    points[7] = [0.0, 0.0, 1e6]
    assert project(snapshot(SQUARE), points, None) == calm


def test_a_new_plane_is_turned_until_it_is_near_to_the_old_one():
    first = project(snapshot([[-9.0, 0, 0], [9, 0, 0], [0, 4, 0], [0, -4, 0]]), NONE, None)
    assert turned(first, first.model_copy(update={"axes": [[1.0, 0, 0], [0, 1, 0]]})) == pytest.approx([1.0, 1.0])
    # Now the third field has most of the variance, and the first one comes second.
    after = project(snapshot([[-9.0, 0, 50], [9, 0, 50], [0, 4, -50], [0, -4, -50]]), NONE, first)
    assert np.abs(after.axes[0]) == pytest.approx([1.0, 0.0, 0.0], abs=1e-9), "what is left of the old plane stays put"
    assert after.axes[0][0] > 0.0
    assert np.abs(after.axes[1]) == pytest.approx([0.0, 0.0, 1.0], abs=1e-9)
    assert after.explained[1] > after.explained[0]
    assert sum(after.explained) <= 1.0


def test_units_that_change_do_not_turn_it():
    first = project(snapshot(SQUARE), NONE, None)
    last = project(snapshot(SQUARE * 3, 3.0, factors=1 / 3), NONE, first)
    assert turned(first, last) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    "s",
    [
        snapshot([[1.0]], 0.0),
        snapshot([[1.0], [2.0]]),
        snapshot([[1.0, 2.0, 3.0]]),
        snapshot(np.zeros((2, 3)), 0.0),
        snapshot(np.full((2, 3), 1e200), 1e200),
        snapshot(np.random.default_rng(0).normal(size=(5, 900))),
        snapshot(np.zeros((2, 3)), weights=[0, 0]),
        snapshot(SQUARE, factors=0.0),
    ],
)
def test_there_are_two_axes_whatever_there_is_to_see(s):
    first = project(s, np.empty((0, len(s.fields))), None)
    for p in (first, project(s, np.empty((0, len(s.fields))), first)):
        assert np.array(p.axes).shape == (2, len(s.fields))
        assert np.isfinite(p.axes).all()
        assert np.isfinite(p.mean).all()
        assert len(p.explained) == 2
        assert 0.0 <= sum(p.explained) <= 1.0 + 1e-9
