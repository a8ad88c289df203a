"""OnlineKMeans as a citizen of river: river's own checks, and those with data that river does not run on clusterers."""

import inspect

import numpy as np
import pytest
from river import base, checks, datasets, evaluate, metrics, preprocessing, stream
from river.checks import common

from streamkm import OnlineKMeans
from streamkm.errors import DataError

MODEL = OnlineKMeans(3)
CHECKS = [c for c in checks.yield_checks(MODEL) if c.__name__ not in MODEL._unit_test_skips()]

WITH_DATA = [
    common.check_learn_one,
    common.check_pickling,
    common.check_shuffle_features_no_impact,
    common.check_predict_one_pure,
    common.check_predict_one_before_any_learn,
    common.check_no_state_aliasing_with_input,
    common.check_clone_is_independent,
    common.check_bounded_memory_growth,
]


def points(n=400):
    return [({"a": x["lat"], "b": x["lon"]} if "lat" in x else x, y) for x, y in datasets.Phishing().take(n)]


def test_river_has_checks_for_it():
    assert len(CHECKS) >= 10
    assert isinstance(MODEL, base.Clusterer)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_it_passes_rivers_checks(check):
    check(MODEL.clone())


@pytest.mark.parametrize("check", WITH_DATA, ids=lambda c: c.__name__)
def test_it_passes_rivers_checks_with_data(check):
    check(MODEL.clone(), dataset=points())


def test_the_skipped_checks_are_those_where_fields_come_and_go():
    assert MODEL._unit_test_skips() <= {name for name, _ in inspect.getmembers(common, inspect.isfunction)}


def test_learning_one_by_one_is_learning_batches_of_one():
    X = np.random.default_rng(0).normal(size=(200, 3))
    one, many = OnlineKMeans(4, half_life=50), OnlineKMeans(4, half_life=50)
    for x in X:
        one.learn_one(dict(zip("abc", x.tolist(), strict=True)))
        many.learn_many(x[np.newaxis])
    np.testing.assert_array_equal(one.centers_, many.centers_)
    x = dict(zip("cab", (3.0, 1.0, 2.0), strict=True))
    assert one.predict_one(x) == many.predict_many([[1.0, 2.0, 3.0]])[0]
    assert isinstance(one.predict_one(x), int)


def test_weight_and_time_reach_the_model():
    model = OnlineKMeans(1, warmup=1, half_life=10, half_life_unit="seconds")
    model.learn_one({"a": 1.0}, weight=4.0, time=0.0)
    model.learn_one({"a": 4.0}, weight=2.0, time=10.0)
    assert model.weights_.tolist() == [4.0]
    assert model.centers_.tolist() == [[2.5]]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({"a": 1.0}, "field 'b': is missing"),
        ({"a": 1.0, "b": 2.0, "c": 3.0}, "field 'c': is not known"),
        ({"a": 1.0, "b": "two"}, "field 'b': 'two' is not a number"),
        ({"a": None, "b": 1.0}, "field 'a'"),
        ({"a": 1.0, "b": float("nan")}, "row 0, field 'b': is nan"),
    ],
)
def test_a_point_that_does_not_fit_is_refused_by_field(x, message):
    model = OnlineKMeans(1, warmup=1)
    model.learn_one({"a": 1.0, "b": 2.0})
    for do in (model.learn_one, model.predict_one):
        with pytest.raises(DataError, match=message):
            do(x)
    assert model.n_seen == 1


def test_names_that_are_no_strings_are_taken_as_strings():
    model = OnlineKMeans(1, warmup=1)
    model.learn_one({0: 1.0, 1: 2.0})
    model.learn_one({1: 4.0, 0: 3.0})
    assert model.centers_.tolist() == [[2.0, 3.0]]
    assert model.centers == {0: {"0": 2.0, "1": 3.0}}


def test_it_works_in_a_pipeline_under_progressive_validation():
    X = np.random.default_rng(0).normal(size=(500, 3)) + np.repeat(np.eye(3) * 50, [200, 200, 100], axis=0)
    model = preprocessing.StandardScaler() | OnlineKMeans(3)
    score = evaluate.progressive_val_score(
        (
            (x, None)
            for x, _ in stream.iter_array(np.random.default_rng(1).permutation(X), feature_names=["a", "b", "c"])
        ),
        model,
        metrics.Silhouette(),
    )
    assert 0 < score.get() < 1
