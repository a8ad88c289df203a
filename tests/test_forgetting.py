"""`on_drift="forget"`: fast after a change, and no harm where a stream is merely ordered."""

import numpy as np
import pytest

from streamkm import ExactKMeans, OnlineKMeans
from streamkm.models.clusters import Clusters
from streamkm.models.schedule import FORGET_FACTOR


@pytest.fixture
def forgotten(monkeypatch):
    """The factors of each forgetting."""
    seen, forget = [], Clusters._forget

    def note(self, factor):
        seen.append(factor)
        forget(self, factor)

    monkeypatch.setattr(Clusters, "_forget", note)
    return seen


def around(centres, labels, seed):
    return centres[labels] + np.random.default_rng(seed).normal(size=(len(labels), centres.shape[1]))


def learned(X, k, batch, half_life, on_drift="forget", seed=0):
    model = OnlineKMeans(k, half_life=half_life, on_drift=on_drift, outliers="keep", seed=seed)
    for i in range(0, len(X), batch):
        model.learn_many(X[i : i + batch])
    return model


def cost(X, centroids, weights=None):
    squared = np.concatenate(
        [((x[:, None] - centroids) ** 2).sum(axis=2).min(axis=1) for x in np.array_split(X, 1 + len(X) // 1000)]
    )
    return float(squared.sum() if weights is None else weights @ squared)


# Rows per turn: one as long as a batch, one across them, one that a batch has several of, one beyond memory.
@pytest.mark.parametrize(
    ("k", "turn", "batch", "seed"),
    [
        (100, 400, 400, 1),
        (100, 400, 400, 3),
        (100, 400, 150, 2),
        (10, 400, 400, 1),
        (20, 400, 2048, 4),
        (3, 6000, 500, 5),
    ],
)
@pytest.mark.parametrize("half_lives", [10, 0])
def test_a_stream_ordered_by_cluster_costs_at_most_half_more_than_weighted_lloyd(k, turn, batch, seed, half_lives):
    n, turns = 40_000, 40_000 // turn
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 30, (turns, 4))
    X = around(centres, np.repeat(np.arange(turns), turn)[:n], seed)
    half_life = n / half_lives if half_lives else None
    weights = 2.0 ** (-np.arange(len(X))[::-1] / half_life) if half_life else np.ones(len(X))
    start = centres[-k:] if k <= turns else np.concatenate([centres, X[: k - turns]])
    best = min(
        ExactKMeans(k, init=init, random_state=0, n_init=1).fit(X, sample_weight=weights).inertia_
        for init in (start, "k-means++")
    )
    published = learned(X, k, batch, half_life, seed=seed).publish()
    assert cost(X, published.centroids, weights) <= 1.5 * best


@pytest.mark.parametrize("batch", [64, 512, 1024])
def test_after_an_abrupt_change_it_recovers_before_a_model_that_does_not_forget(batch, forgotten):
    rng = np.random.default_rng(0)
    worlds, half_life = rng.normal(0, 8, (3, 6, 4)), 4000.0
    models = {drift: OnlineKMeans(6, half_life=half_life, on_drift=drift) for drift in ("forget", "resolve")}
    for number, centres in enumerate(worlds):
        held_out = around(centres, rng.integers(0, 6, 2000), 90)
        enough = 1.05 * cost(held_out, centres)
        needed = dict.fromkeys(models, np.inf)
        X = around(centres, rng.integers(0, 6, 14_000), number)
        for drift, model in models.items():
            for i in range(0, len(X), batch):
                model.learn_many(X[i : i + batch])
                good = model.warmup_ is None and cost(held_out, model.centers_) <= enough
                needed[drift] = min(needed[drift], i + batch) if good else np.inf
        if number:
            assert needed["forget"] <= 2.0 * half_life
            assert needed["forget"] < 0.6 * needed["resolve"]
        assert forgotten == [FORGET_FACTOR] * number


def test_a_stream_with_centroids_enough_for_all_its_turns_forgets_nothing(forgotten):
    centres = np.random.default_rng(0).normal(0, 30, (20, 3))
    for batch in (300, 1000):
        learned(around(centres, np.repeat(np.arange(20), 2000), 1), 20, batch, 4000.0)
    assert not forgotten


def test_a_stream_that_takes_turns_faster_than_it_forgets_forgets_once_at_most(forgotten):
    centres = np.random.default_rng(0).normal(0, 30, (100, 4))
    learned(around(centres, np.repeat(np.arange(100), 300), 1), 5, 300, 3000.0)
    assert len(forgotten) <= 1


def test_forgetting_survives_a_restore_before_it_is_decided():
    rng = np.random.default_rng(0)
    before, after = rng.normal(0, 8, (2, 6, 4))
    X = np.concatenate([around(before, rng.integers(0, 6, 12_000), 1), around(after, rng.integers(0, 6, 6000), 2)])
    straight = learned(X, 6, 500, 4000.0)
    stopped = learned(X[:0], 6, 500, 4000.0)
    for i in range(0, len(X), 500):
        stopped.learn_many(X[i : i + 500])
        stopped = OnlineKMeans.from_state(stopped.state())
    assert stopped.state().to_bytes() == straight.state().to_bytes()
    assert straight.weights_.sum() < 6000
