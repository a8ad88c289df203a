import inspect

import numpy as np
import pytest

import naive_choice
from streamkm import OnlineKMeans
from streamkm.errors import DataError, SettingsError
from streamkm.kernels import silhouette as kernels
from streamkm.kernels.silhouette import simplified_silhouette
from streamkm.models import k_selection
from streamkm.models.density_valleys import has_valley, inlier_mask, jitter_discrete_fields, multimodal_fields
from streamkm.models.k_selection import k_profile
from streamkm.models.validation import ONES, frozen
from worlds import WORLDS


def blobs(seed, k, d, n=3000, apart=10.0, shares=None):
    rng = np.random.default_rng(seed)
    centers = []
    while len(centers) < k:
        c = rng.uniform(-1.0, 1.0, d) * apart * k ** (1 / d)
        if all(np.linalg.norm(c - other) >= apart for other in centers):
            centers.append(c)
    return np.array(centers)[rng.choice(k, n, p=shares)] + rng.normal(size=(n, d))


def test_every_public_kernel_of_choice_has_a_naive_twin_that_shares_no_code_with_it():
    names = {
        name
        for name, value in vars(kernels).items()
        if getattr(value, "__module__", "") == kernels.__name__ and not name.startswith("_")
    }
    assert names
    assert names <= set(vars(naive_choice))
    assert "streamkm" not in inspect.getsource(naive_choice)


@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 2), (50, 3, 4), (200, 8, 13)])
def test_the_simplified_silhouette_is_the_naive_one(n, d, k):
    rng = np.random.default_rng(0)
    rows, weights, centroids = frozen(rng.normal(size=(n, d))), rng.integers(0, 3, n) + 0.0, rng.normal(size=(k, d))
    scatter = np.empty((k, 2))
    for given, used in ((frozen(weights), weights), (ONES, np.ones(n))):
        expected, expected_scatter = naive_choice.simplified_silhouette(rows, used, centroids)
        assert simplified_silhouette(rows, given, centroids, scatter) == pytest.approx(expected, abs=1e-12)
        np.testing.assert_allclose(scatter, expected_scatter, atol=1e-9)


def test_rows_on_two_centroids_at_once_have_silhouette_zero():
    rows = frozen(np.zeros((3, 2)))
    assert simplified_silhouette(rows, ONES, np.zeros((2, 2)), np.empty((2, 2))) == 0.0


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("k", "make"),
    [
        (2, lambda s: blobs(s, 2, 2)),
        (5, lambda s: blobs(s, 5, 8)),
        (12, lambda s: blobs(s, 12, 6)),
        (4, lambda s: blobs(s, 4, 2, apart=4.5)),
        (5, lambda s: blobs(s, 5, 2, shares=[0.5, 0.25, 0.15, 0.06, 0.04])),
        (1, lambda s: np.random.default_rng(s).normal(size=(2000, 3))),
        (1, lambda s: np.random.default_rng(s).uniform(size=(2000, 2))),
        (1, lambda s: np.random.default_rng(s).normal(size=(2000, 4)) * [100.0, 10.0, 1.0, 0.1]),
    ],
    ids=["two", "five", "twelve", "overlapping", "unequal", "one-blob", "one-box", "one-pancake"],
)
def test_the_k_that_the_data_were_made_with_is_suggested(k, make, seed):
    profile = k_profile(make(seed), seed=seed)
    assert profile.suggested == k, profile.reason
    assert ("one cluster:" in profile.reason) == (k == 1)


SILENT = {"three, 1 % spikes", "five cities, large amount", "five cities, small amount", "five cities, standard units"}
"""Worlds in which a few rows, or the tail of a field that tells nothing, outweigh what k-means is asked for."""


@pytest.mark.parametrize("name", WORLDS)
def test_in_every_world_the_right_number_is_suggested_or_where_criteria_disagree_none(name):
    k, make = WORLDS[name]
    profile = k_profile(make(np.random.default_rng(1), 1500), k_max=12)
    assert profile.suggested == k or (name in SILENT and profile.suggested is None), profile.reason
    assert profile.likeliest in ({k} if profile.suggested else range(2, 13))
    assert ("no clear number" in profile.reason) == (profile.suggested is None)


@pytest.mark.parametrize("name", ["five cities, large amount", "five cities, small amount", "one log-normal cluster"])
def test_a_stream_is_never_told_a_wrong_number_whatever_runs(name):
    k, make = WORLDS[name]
    model = OnlineKMeans(3, seed=1)
    for batch in np.array_split(make(np.random.default_rng(2), 20_000), 20):
        model.learn_many(batch)
    assert model.k_profile(12).suggested in {k, None}


def test_where_another_unit_would_show_clusters_the_reason_says_so():
    profile = k_profile(WORLDS["five cities, large amount"][1](np.random.default_rng(0), 1500), k_max=8)
    assert "in other units (--scale)" in profile.reason


def test_one_cluster_less_merges_the_two_that_cost_least():
    rows = frozen(np.array([[0.0], [0.1], [4.0], [5.0], [50.0], [50.2]]))
    solver = k_selection._Solver(rows, ONES, np.array([0], np.uint64))
    assert np.sort(solver.one_less(rows[[0, 2, 3, 4]]), axis=None).tolist() == [0.0, 4.5, 50.0]


DENSE_EDGES = np.concatenate([np.linspace(-0.1, 0, 45), np.linspace(0, 1, 90), np.linspace(1, 1.1, 45)])


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (np.linspace(0, 1, 100), np.linspace(3, 4, 100), True),
        (DENSE_EDGES, DENSE_EDGES + 1.4, True),  # half as wide as what lies between the cores
        (np.linspace(0, 1, 100), np.linspace(1, 2, 100), False),
        (np.linspace(0, 1, 100), np.linspace(1.05, 30, 100), False),  # a tail
        (np.linspace(0, 1, 1000), np.linspace(3, 4, 10), False),  # too few to be a cluster
        (np.zeros(100), np.ones(100), True),
        (np.zeros(100), np.concatenate([[0.5], np.ones(100)]), True),
        (np.linspace(0, 3, 100), np.linspace(1, 4, 100), False),
        (np.zeros(0), np.ones(9), False),
    ],
)
def test_there_is_a_valley_where_fewer_points_lie_than_in_the_sparser_of_both(left, right, expected):
    assert has_valley(left, np.ones(len(left)), right, np.ones(len(right))) is expected
    # A weight says for how many points a row stands, not how certain that is.
    assert (
        has_valley(left * 1e9 + 1e12, np.full(len(left), 7.0), right * 1e9 + 1e12, np.full(len(right), 7.0)) is expected
    )


def test_far_rows_are_left_out_if_they_are_few_and_a_field_of_one_value_has_none():
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=1000), np.zeros(1000)])
    rows[:15, 0], rows[15:18, 1] = 1e6, 5.0
    assert np.flatnonzero(~inlier_mask(rows, np.ones(1000))).tolist() == list(range(15))
    weights = np.ones(1000)
    weights[:15] = 2.0
    assert inlier_mask(rows, weights).all(), "they are more than 2 %"


def test_gaps_between_values_of_discrete_fields_are_no_valleys():
    counts = np.random.default_rng(0).poisson(1.0, (3000, 2)).astype(float)
    assert multimodal_fields(counts, np.ones(3000)) != []
    assert multimodal_fields(jitter_discrete_fields(counts, 0), np.ones(3000)) == []
    assert k_profile(counts, k_max=6).suggested in {1, None}


def test_a_row_of_weight_three_counts_as_three_equal_rows():
    X = blobs(1, 4, 3, n=400)
    weights = np.random.default_rng(0).integers(0, 4, len(X))
    weighted, repeated = k_profile(X, weights, k_max=8), k_profile(np.repeat(X, weights, axis=0), k_max=8)
    assert weighted.suggested == repeated.suggested == 4
    for name in ("cost", "silhouette", "davies_bouldin", "gap", "gap_error"):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-6)


def test_equal_arguments_give_equal_profiles():
    X = blobs(0, 4, 2, n=500)
    assert k_profile(X, k_max=6, seed=3).to_json() == k_profile(X.copy(), k_max=6, seed=3).to_json()


def test_neither_a_large_offset_nor_a_tiny_unit_changes_the_suggestion():
    X = blobs(2, 5, 3, n=1000)
    for moved in (X + 1e7, X * 1e-25, X * 1e25):
        assert k_profile(moved).suggested == 5


def test_cost_never_rises_with_k_and_the_columns_are_of_one_length():
    profile = k_profile(blobs(3, 5, 2, n=1000), k_min=3, k_max=15)
    assert profile.ks == tuple(range(3, 16))
    assert (np.diff(profile.cost) <= 1e-12).all()
    for name in ("cost", "silhouette", "davies_bouldin", "gap", "gap_error"):
        assert np.isfinite(getattr(profile, name)).all()
        assert len(getattr(profile, name)) == len(profile.ks)


@pytest.mark.parametrize("distinct", [1, 3])
def test_few_distinct_rows_are_as_many_clusters(distinct):
    X = np.repeat(np.arange(distinct) ** 2.0, 20)[:, np.newaxis]
    profile = k_profile(X)
    assert profile.suggested == distinct
    assert "distinct" in profile.reason
    assert max(profile.ks) == distinct


def test_rows_without_weight_do_not_count():
    X = blobs(0, 2, 2, n=300)
    far = np.concatenate([X, [[1e9, 1e9]]])
    assert k_profile(far, [*np.ones(300), 0.0], k_max=5).to_json() == k_profile(X, np.ones(300), k_max=5).to_json()


def test_what_cannot_be_profiled_is_refused():
    with pytest.raises(DataError, match="nan"):
        k_profile([[1.0], [np.nan]])
    for rows, weights in (([[1.0]], [0.0]), (np.empty((0, 2)), None)):
        with pytest.raises(DataError, match="no row has a positive weight"):
            k_profile(rows, weights)
    for k_min, k_max in ((0, 5), (6, 5)):
        with pytest.raises(SettingsError):
            k_profile([[1.0], [2.0]], k_min=k_min, k_max=k_max)
