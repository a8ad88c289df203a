# ruff: noqa: ARG002, ARG003 -- the contract names the arguments
"""The engine runs any learner that keeps the contract, not only `OnlineKMeans`."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from streamkm.errors import SettingsError, StateError
from streamkm.models import spec as models
from streamkm.models.evaluation import Evaluation
from streamkm.models.k_selection import k_profile
from streamkm.state import ModelState, Publication
from test_engine import SPEC, N, World


class MeanLearner:
    """One cluster: the mean of all points."""

    distance = "euclidean"
    k_ = 1
    n_outliers_ = 0
    warmup_ = None

    def __init__(self, n_clusters, start=0.0):
        self.n_clusters, self.start = n_clusters, start
        self.sums, self.n_seen, self.cost_, self.n_evaluated_ = np.zeros(2), 0, 0.0, 0.0
        self.published_, self.prepared_ = None, False
        self.ids_ = np.zeros(1, np.int64)

    def learn_many(self, X, weights=None, times=None):
        self.sums = self.sums + X.sum(axis=0)
        self.n_seen += len(X)
        self.cost_ += float(((X - self.sums / self.n_seen) ** 2).sum())
        self.n_evaluated_ += len(X)

    def cap_clock(self, limit):
        """It has no clock."""

    def prepare(self):
        self.prepared_ = True

    def publish(self, *, as_is=False):
        self.prepared_ = False
        mean = self.start + self.sums / self.n_seen
        one = np.ones(1)
        self.published_ = Publication(
            self.ids_, mean[np.newaxis], one * self.n_seen, one, self.ids_, np.ones(2), None, self.n_seen
        )
        return self.published_

    def state(self):
        params = {"n": self.n_seen, "cost": self.cost_, "start": self.start}
        return ModelState("MeanLearner", 1, params, {"sums": self.sums})

    @classmethod
    def from_state(cls, state):
        model = cls(1, state.params["start"])
        model.sums, model.n_seen, model.cost_ = state.arrays["sums"], state.params["n"], state.params["cost"]
        model.n_evaluated_ = float(model.n_seen)
        return model

    @classmethod
    def from_snapshot(cls, arguments, snapshot, rows, weights, clock=None):
        model = cls(**arguments)
        model.n_seen, model.sums = snapshot.n_points, snapshot.centroids[0] * snapshot.n_points
        return model

    def evaluate(self):
        return Evaluation(0.0, 0.0, None, None)

    def deferred_k_profile(self, k_max=20, k_min=2):
        return lambda: k_profile(np.arange(40.0).reshape(20, 2), k_max=3)


@pytest.fixture
def spec(monkeypatch):
    monkeypatch.setitem(models.LEARNERS, "MeanLearner", MeanLearner)
    return dataclasses.replace(SPEC, n_clusters=1, learner={"kind": "MeanLearner"})


def test_the_engine_learns_publishes_resumes_and_replays_any_learner(spec):
    w = World()
    w.records, rest = w.records[: N // 2], w.records[N // 2 :]
    w.engine(spec=spec).run(w.until_all_read())
    w.records = w.records + rest
    w.engine(spec=spec).run(w.until_all_read())
    last = w.store.snapshot("m")
    points = np.concatenate([batch.points for batch in decoded(w)])
    assert last.n_points == len(points) == N
    np.testing.assert_allclose(last.centroids, points.mean(axis=0)[np.newaxis], rtol=1e-12)
    assert w.verify(spec)


def test_a_kind_of_model_that_is_not_known_is_named(spec):
    unknown = dataclasses.replace(spec, learner={"kind": "OracleKMeans"})
    with pytest.raises(SettingsError, match="no kind of model 'OracleKMeans'"):
        models.new_learner(unknown)
    with pytest.raises(StateError, match="unknown kind of model, OracleKMeans"):
        models.restore_learner(ModelState("OracleKMeans", 1, {}, {}))


def decoded(w):
    codec = w.engine().context.codec
    source = w.source()
    source.seek(source.beginning())
    while records := source.poll(0.0, 100):
        yield from map(codec.decode, records)
