"""OnlineKMeans as a citizen of river: river's own checks, and those with data that river does not run on clusterers."""

import inspect
import pickle
from pathlib import Path

import numpy as np
import pytest
from river import base, checks, cluster, compose, datasets, drift, evaluate, metrics, preprocessing, stream
from river.checks import common

from streamkm import OnlineKMeans
from streamkm.errors import DataError

MODEL = OnlineKMeans(3)
CHECKS = [c for c in checks.yield_checks(MODEL) if c.__name__ not in MODEL._unit_test_skips()]

# River gives a clusterer no data, so its checks with data never run for one. These do not apply: they want a y, a
# transformer, a wrapper, or `debug_one`.
OTHERS = {
    "check_debug_one",
    "check_transform_one",
    "check_predict_many_matches_predict_one",
    "check_learn_many_matches_learn_one",
    "check_predict_proba_many_matches_predict_proba_one",
    "check_transform_many_matches_transform_one",
}
WITH_DATA = [
    check
    for name, check in inspect.getmembers(common, inspect.isfunction)
    if name.startswith("check_") and "dataset" in inspect.signature(check).parameters
    if name not in OTHERS | MODEL._unit_test_skips()
]


class Shuttle:
    """River's own data without labels, in stream order; can be gone through again."""

    def __init__(self, n):
        columns = np.loadtxt(river_data("shuttle.csv.gz"), delimiter=",", skiprows=1, max_rows=n)
        self.points = [dict(zip("abcdefghi", x, strict=True)) for x in columns[:, :9].tolist()]

    def __iter__(self):
        return iter([(x, None) for x in self.points])


def river_data(name):
    return Path(datasets.__file__).with_name(name)


def phishing():
    return list(datasets.Phishing().take(1000))


def constant():
    return [({"a": 1.0, "b": 2.0}, None)] * 400


DATA = {"phishing": phishing, "shuttle": lambda: Shuttle(1500), "constant": constant}
MODELS = {
    "model": lambda: OnlineKMeans(3),
    "decay": lambda: OnlineKMeans(3, half_life=50.0),
    "pipeline": lambda: preprocessing.StandardScaler() | OnlineKMeans(3),
}


def test_river_has_checks_for_it():
    assert len(CHECKS) >= 10
    assert isinstance(MODEL, base.Clusterer)


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.__name__)
def test_it_passes_rivers_checks(check):
    check(MODEL.clone())


def test_checks_with_data_are_there():
    assert len(WITH_DATA) >= 9
    assert {name for name, _ in inspect.getmembers(common, inspect.isfunction)} >= OTHERS


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("check", WITH_DATA, ids=lambda c: c.__name__)
def test_it_passes_rivers_checks_with_data(check, data):
    check(MODEL.clone(), dataset=DATA[data]())


@pytest.mark.parametrize(
    "check",
    [c for c in WITH_DATA if c is not common.check_shuffle_features_no_impact],  # it cannot seed a pipeline
    ids=lambda c: c.__name__,
)
def test_a_pipeline_with_it_passes_them_too(check):
    check(MODELS["pipeline"](), dataset=phishing())


# River's checks of questions leave clusterers out, as their tables of methods do not name any.


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("make", MODELS)
def test_asking_changes_neither_the_point_nor_the_model(make, data):
    model = MODELS[make]()
    for n, (x, _) in enumerate(DATA[data]()):
        model.learn_one(x)
        if n % 100 == 99:
            before, given = pickle.dumps(model), dict(x)
            model.predict_one(x)
            assert pickle.dumps(model) == before
            assert x == given


@pytest.mark.parametrize("make", MODELS)
def test_a_model_that_has_seen_nothing_answers(make):
    assert MODELS[make]().predict_one({"a": 1.0, "b": 2.0}) == -1


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("make", MODELS)
def test_a_pickled_model_goes_on_as_the_original(make, data):
    model = MODELS[make]()
    points = [x for x, _ in DATA[data]()]
    for x in points[:300]:
        model.learn_one(x)
    other = pickle.loads(pickle.dumps(model))  # noqa: S301 -- our own bytes
    for x in points[300:400]:
        assert other.predict_one(x) == model.predict_one(x)
        model.learn_one(x)
        other.learn_one(x)


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


def blobs_of_three():
    """Three far clusters of three columns of unequal units, shuffled."""
    X = np.random.default_rng(0).normal(size=(600, 3)) + np.repeat(np.eye(3) * 50, [250, 200, 150], axis=0)
    rows = np.random.default_rng(1).permutation(X * [1.0, 1000.0, 0.001])
    return stream.iter_array(rows, feature_names=["a", "b", "c"])


def test_it_works_in_a_pipeline_under_progressive_validation():
    model = preprocessing.StandardScaler() | OnlineKMeans(3)
    score = evaluate.progressive_val_score(((x, None) for x, _ in blobs_of_three()), model, metrics.Silhouette())
    assert 0 < score.get() < 1


def test_progressive_validation_scores_it_no_worse_than_rivers_own_k_means():
    scores = []
    for model in (OnlineKMeans(3, warmup=20), cluster.KMeans(3, seed=0)):
        pipeline = preprocessing.StandardScaler() | model
        score = evaluate.progressive_val_score(((x, None) for x, _ in blobs_of_three()), pipeline, metrics.Silhouette())
        scores.append(score.get())
    assert scores[0] <= scores[1]  # river's silhouette is better the smaller it is


def test_it_works_behind_a_union_of_transformers_and_a_choice_of_fields():
    model = compose.Select("a", "b") | (
        preprocessing.StandardScaler() + (compose.Select("a") | compose.Prefixer("raw_"))
    )
    model |= OnlineKMeans(3)
    for x, _ in blobs_of_three():
        model.learn_one(x)
    assert model["OnlineKMeans"].n_features == 3
    assert model.predict_one({"a": 50.0, "b": 0.0, "c": 7.0}) in model["OnlineKMeans"].ids_


@pytest.mark.parametrize(
    "alarm",
    [drift.ADWIN(), drift.PageHinkley(delta=1.0, threshold=500.0), drift.KSWIN(alpha=1e-6, seed=0)],
    ids=lambda detector: type(detector).__name__,
)
def test_rivers_drift_detectors_take_its_cost_and_find_where_the_stream_jumps(alarm):
    rng = np.random.default_rng(0)
    model, alarm, found = OnlineKMeans(3, warmup=50), alarm.clone(), []
    centers = np.eye(3) * 20
    for t in range(2000):
        x = centers[t % 3] + rng.normal(size=3) + (60.0 if t >= 1200 else 0.0)
        before = model.cost_
        model.learn_one(dict(zip("abc", x.tolist(), strict=True)))
        if t >= 100:
            alarm.update(model.cost_ - before)
            if alarm.drift_detected:
                found.append(t)
    assert found
    assert any(1200 <= t < 1400 for t in found)
    assert sum(t < 1200 for t in found) <= 1
