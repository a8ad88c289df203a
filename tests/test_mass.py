"""What was learned is what there is: the weights of models on data as people have them, and on none at all."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import common_rows, common_weights
from streamkm import Coreset, ExactKMeans, OnlineKMeans
from streamkm.codecs import make_codec
from streamkm.connectors import MemorySource
from streamkm.engine import Engine, EngineOptions
from streamkm.errors import DataError, NotReadyError
from streamkm.recompute.compare import compare
from streamkm.records import RawRecord, TopicPartition
from streamkm.state import CodecSpec, ModelSpec, Snapshot
from streamkm.stores import open_store
from streamkm.testing import ManualClock, StopAfter


def ratings(n, d=3, seed=0):
    return np.random.default_rng(seed).integers(1, 6, (n, d)).astype(float)


def counts(n, d=3, seed=0):
    """Long-tailed: most are 1, the largest a million."""
    return np.minimum(np.random.default_rng(seed).zipf(1.8, (n, d)), 10**6).astype(float)


@pytest.mark.parametrize("make", [ratings, counts])
@pytest.mark.parametrize("size", [None, 600])
def test_the_weights_of_a_hundred_thousand_rows_are_a_hundred_thousand(make, size):
    X = make(100_000)
    model = OnlineKMeans(8, outliers="keep", coreset_size=size)
    for batch in np.split(X, 50):
        model.learn_many(batch)
    publication = model.publish()
    assert publication.weights.sum() == pytest.approx(100_000, rel=1e-9)
    assert model.coreset_.weights_.sum() == pytest.approx(100_000, rel=1e-9)
    np.testing.assert_allclose(model.coreset_.weights_ @ model.coreset_.rows_, X.sum(axis=0), rtol=1e-9)


@pytest.mark.parametrize("make", [ratings, counts])
def test_a_live_consumer_has_learned_all_records(make):
    n, codec = 60_000, CodecSpec("json", ("a", "b", "c"), {"max_bytes": 1000})
    learner = {"kind": "OnlineKMeans", "outliers": "keep"}
    spec = ModelSpec("m", ("a", "b", "c"), 8, {"kind": "memory"}, learner, codec)
    values = [json.dumps(row).encode() for row in make(n).tolist()]
    records = [RawRecord(TopicPartition("t", i % 3), i // 3, 1_700_000_000_000, None, v) for i, v in enumerate(values)]
    clock, store = ManualClock(), open_store("memory://")

    def all_read():
        progress = store.model("m").progress if store.models() else None
        return progress is not None and progress.counters.points == n

    engine = Engine(
        spec,
        open_source=lambda: MemorySource(records, topic="t", partitions=3),
        codec=make_codec(codec),
        store=store,
        options=EngineOptions(checkpoint_every=0.0, owner="a"),
        clock=clock,
    )
    engine.run(StopAfter(all_read, clock))
    snapshot = store.snapshot("m")
    assert snapshot.n_points == n
    assert snapshot.weights.sum() == pytest.approx(n, rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(common_rows(max_rows=150), st.data())
def test_publications_of_any_data_have_the_weight_that_was_learned(rows, data):
    weights = data.draw(common_weights(len(rows)))
    distance = data.draw(st.sampled_from(["euclidean", "euclidean", "cosine"]))
    if distance == "cosine":
        rows = rows + (~rows.any(axis=1))[:, None]
    scale = "none" if distance == "cosine" else data.draw(st.sampled_from(["none", "standard", "robust"]))
    k = data.draw(st.sampled_from([1, 3, 12, "auto"]))
    model = OnlineKMeans(k, coreset_size=320, warmup=20, scale=scale, distance=distance)
    step = data.draw(st.sampled_from([7, 40, 1000]))
    for i in range(0, len(rows), step):
        model.learn_many(rows[i : i + step], weights[i : i + step])
        if model.warmup_ is None and data.draw(st.booleans()):
            model.publish()  # the books of the tests compare it
    if model.warmup_ is None:
        publication = model.publish()
        assert np.isfinite(publication.centroids).all()
        assert np.isfinite(publication.spreads).all()


DISCRETE = {
    "ratings": lambda rng, n: rng.integers(1, 6, (n, 3)),
    "flags": lambda rng, n: rng.integers(0, 2, (n, 4)),
    "rare flags": lambda rng, n: rng.random((n, 4)) < [0.5, 0.01, 0.001, 0.3],
    "counts with zeros": lambda rng, n: rng.poisson(4, (n, 3)) * (rng.random((n, 3)) < 0.1),
    "long tails": lambda rng, n: np.minimum(rng.zipf(2.5, (n, 2)), 10**6),
    "constant columns": lambda rng, n: np.column_stack([np.full(n, 7), rng.integers(0, 4, n), np.full(n, 1e9)]),
    "one point": lambda rng, n: np.full((n, 3), 3),  # noqa: ARG005
    "blocks": lambda rng, n: np.repeat(rng.integers(0, 50, (40, 2)), n // 40, axis=0),
}


@pytest.mark.parametrize("scale", ["none", "standard", "robust"])
@pytest.mark.parametrize("kind", DISCRETE)
@pytest.mark.parametrize("k", [4, 30])
def test_discrete_data_cost_about_what_lloyd_on_all_rows_does(kind, scale, k):
    n = 4000
    X = np.asarray(DISCRETE[kind](np.random.default_rng(0), n), float)
    model = OnlineKMeans(k, scale=scale, outliers="keep")
    for batch in np.split(X, 4):
        model.learn_many(batch)
    publication = model.publish()
    rows, centroids = X * publication.factors, publication.centroids * publication.factors
    best = min(ExactKMeans(k, random_state=seed).fit(rows).inertia_ for seed in range(2))
    squared = np.min([((rows - c) ** 2).sum(axis=1) for c in centroids], axis=0)
    nothing = 1e-12 * ((rows - rows.mean(axis=0)) ** 2).sum() + 1e-18 * (rows**2).sum()
    assert squared.sum() <= 1.1 * best + nothing
    assert len(np.unique(publication.ids)) == k


# Nothing has weight

ZEROS = [
    {"n_clusters": 4},
    {"n_clusters": 4, "scale": "standard"},
    {"n_clusters": 4, "scale": "robust", "outliers": "keep"},
    {"n_clusters": 4, "distance": "cosine"},
    {"n_clusters": 4, "half_life": 100.0},
    {"n_clusters": "auto"},
]


@pytest.mark.parametrize("arguments", ZEROS, ids=str)
def test_a_model_whose_rows_have_no_weight_goes_on_as_one_that_knows_nothing(arguments):
    X = ratings(2500) + 20.0 * (np.arange(2500) % 3)[:, np.newaxis] * [1, 0, 0]
    model = OnlineKMeans(**arguments)
    model.learn_many(X, np.zeros(2500))
    for publish in (model.publish, model.publish, lambda: model.publish(as_is=True)):
        publication = publish()
        assert publication.weights.sum() == 0.0
        assert np.isfinite(publication.centroids).all()
        assert not publication.events
    assert model.resolve() == "keep"
    model.prepare()
    assert model.publish().weights.sum() == 0.0
    assert len(model.coreset_) == 0
    assert model.evaluate().inertia == 0.0
    with pytest.raises(NotReadyError, match="no learned point has a weight"):
        model.k_profile()
    assert model.k_ > 1
    model = OnlineKMeans.from_state(model.state())
    first, rest = X[:1000], X[1000:]
    for rows, weights in ((first, np.zeros(1000)), (first, np.ones(1000)), (rest, np.zeros(1500))):
        model.learn_many(rows, weights)
    if "half_life" not in arguments:
        assert model.publish().weights.sum() == pytest.approx(1000)
    scaled = first if model.distance == "euclidean" else first / np.linalg.norm(first, axis=1, keepdims=True)
    best = ExactKMeans(model.k_, random_state=0).fit(scaled * model.publish().factors).inertia_ / 1000
    if model.distance == "euclidean":
        assert model.evaluate().published_inertia < 1.1 * best


def test_a_coreset_whose_rows_have_no_weight_is_empty():
    coreset = Coreset(3, size=64)
    coreset.learn_many(ratings(500), np.zeros(500))
    assert len(coreset) == len(Coreset.merge([coreset, coreset])) == 0
    with pytest.raises(NotReadyError):
        coreset.solve()
    coreset.learn_many(ratings(500))
    coreset.learn_many(ratings(500), np.zeros(500))
    assert coreset.weights_.sum() == pytest.approx(500)


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_the_exact_algorithm_refuses_rows_of_which_none_has_weight(init):
    X, weights = ratings(500), np.zeros(500)
    fitted = ExactKMeans(3, init=init, random_state=0)
    with pytest.raises(DataError, match="zero for all"):
        fitted.fit(X, sample_weight=weights)
    weights[7] = 2.0
    fitted.fit(X, sample_weight=weights)
    assert fitted.inertia_ == 0.0
    assert (fitted.cluster_centers_ == X[7]).all(axis=1).any()


def test_more_clusters_than_points_come_to_rest_where_means_are_rounded():
    X = np.asarray(DISCRETE["rare flags"](np.random.default_rng(0), 4000), float) * (1.3489795003921634, 1.0, 1.0, 1.1)
    fitted = ExactKMeans(30, random_state=0).fit(X)  # a warning, that it has not converged, would be an error
    assert fitted.n_iter_ < 20
    assert fitted.inertia_ < 1e-25
    assert len(np.unique(fitted.labels_)) >= len(np.unique(X, axis=0))


def test_snapshots_are_compared_on_rows_that_have_no_weight():
    one = Snapshot(
        "m", 1.0, "live", "stop", ("x",), np.arange(2), np.array([[0.0], [4.0]]), np.zeros(2), np.zeros(2),
        np.zeros(2, np.int64), np.ones(1), "euclidean", 0.0, 3, {},
    )  # fmt: skip
    found = compare(one, one, np.array([[0.0], [3.0], [4.0], [4.0]]), np.zeros(4))
    assert (found.changed, found.points, found.cost_a) == (0.0, 0.0, 0.25)
    assert [m.share_after for m in found.shifts] == [0.25, 0.75]
