"""The core of the exact algorithm gives the same bits however the points are divided."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import naive_exact as naive
from streamkm.kernels.groups import plain
from streamkm.models.exact.assign import first_assignment
from streamkm.models.exact.core import Sums, choose_frame, move_centroids
from streamkm.models.exact.points import arrange
from streamkm.models.exact.storage import Storage
from streamkm.models.exact.threads import ThreadTeam
from streamkm.models.validation import frozen

K = 8
KINDS = ("blobs", "ties", "constant columns", "equal rows", "far from zero", "tiny")


def rows_of(kind, n, dtype, rng):
    """(n, 3) points."""
    X = rng.normal(size=(n, 3)) + 5.0 * rng.integers(0, 4, (n, 1))
    if kind == "ties":  # many points between two centroids
        X = rng.integers(0, 4, (n, 3)) / 2.0
    elif kind == "constant columns":
        X[:, 1:] = 0.1, -7.0
    elif kind == "equal rows":
        X[:] = X[0]
    elif kind == "far from zero":
        X += 1e7
    elif kind == "tiny":
        X *= 1e-30
    return X.astype(dtype)


def summed(X, weights, frame, raw_centroids, threads):
    """Labels of some points, and their sums in a part per thread."""
    team = ThreadTeam(threads)
    points = arrange(X, weights, frame, K, team, Storage())
    sums = Sums.zeros(threads, *raw_centroids.shape)
    with team:
        step = first_assignment(points, sums, team, raw_centroids, points.working(raw_centroids))
    return points.original_labels(step.labels), sums


def moved(sums, frame, raw_centroids):
    """The centroids after one step, raw and in working coordinates, with the lengths of their moves."""
    raw, working = raw_centroids.copy(), (raw_centroids - frame.origin) * frame.unit
    drift = np.empty(len(raw))
    largest = move_centroids(plain(sums), plain(frame), raw, working, drift, True)  # noqa: FBT003 -- by position
    return raw, working, drift, largest


def merged(sums, rng):
    """Merge sums in a random order: some are stacked, some reduced to a single part before."""
    sums = list(sums)
    while len(sums) > 1:
        one, other = (sums.pop(int(rng.integers(len(sums)))) for _ in range(2))
        both = Sums(*(np.concatenate(arrays) for arrays in zip(one, other, strict=True)))
        sums.append(both.total if rng.random() < 0.5 else both)
    return sums[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**32 - 1), weighted=st.booleans(), n_cuts=st.integers(0, 12))
@example(seed=0, weighted=True, n_cuts=12)
def test_divided_points_give_the_bits_of_one_pass(kind, dtype, seed, weighted, n_cuts):
    rng = np.random.default_rng(seed)
    n = 250
    X = rows_of(kind, n, dtype, rng)
    weights = rng.choice([0.0, 0.25, 1.0, 3.7], n) if weighted else None
    frame = choose_frame(frozen(X), weights, ThreadTeam(1), Storage())
    centroids = X[rng.choice(n, K)].astype(np.float64)  # some may be equal: the others stay without points
    for _ in range(2):
        labels, sums = summed(X, weights, frame, centroids, 1)
        np.testing.assert_array_equal(labels, naive.relabel_rows(X, centroids))
        order, cuts = rng.permutation(n), np.sort(rng.integers(0, n + 1, n_cuts))
        parts = []
        for chunk in np.split(order, cuts):
            if len(chunk):
                own_weights = None if weights is None else weights[chunk]
                own_labels, own_sums = summed(X[chunk], own_weights, frame, centroids, int(rng.integers(1, 4)))
                np.testing.assert_array_equal(own_labels, labels[chunk])
                parts.append(own_sums)
        whole = merged(parts, rng)
        np.testing.assert_array_equal(whole.total.limbs, sums.total.limbs)
        np.testing.assert_array_equal(whole.total.counts, sums.total.counts)
        after = moved(sums, frame, centroids)
        for one, other in zip(moved(whole, frame, centroids), after, strict=True):
            np.testing.assert_array_equal(one, other)
        centroids = after[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_frame_depends_neither_on_order_nor_on_division(kind, dtype):
    rng = np.random.default_rng(3)
    n = 60_000
    X, weights = rows_of(kind, n, dtype, rng), rng.choice([0.0, 0.25, 3.7], n)
    frame = choose_frame(frozen(X), weights, ThreadTeam(1), Storage())
    order = rng.permutation(n)
    with ThreadTeam(3) as team:
        divided = choose_frame(frozen(X[order]), weights[order], team, Storage(memory=1 << 20))
    for one, other in zip(frame, divided, strict=True):
        np.testing.assert_array_equal(one, other)
    assert (np.abs((X - frame.origin) * frame.scale) <= 1.0).all()
    assert (weights / frame.weight_unit).max() <= 1.0
