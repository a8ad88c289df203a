"""Ledger of the weight that each model of a test has learned; every publication is compared with it."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from streamkm import OnlineKMeans
from streamkm.models.clusters import Clusters

NAME, FORGOT = "_ledger_of_the_tests", "_forgot_of_the_tests"

EXACT = 1e-9
"""Maximum relative error of the sum of weights of a publication, by rounding."""


class Ledger:
    """Adds up weights record by record.

    Parameters
    ----------
    weight
        What was learned before.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.clock = -np.inf

    def learned(self, model: OnlineKMeans, n: int, weights: object, times: object) -> None:
        """Add a batch: the age of a record is the weight after it, or the time to the newest."""
        weights = np.broadcast_to(np.asarray(1.0 if weights is None else weights, float), (n,))
        ages, older, half_life = np.zeros(n), 0.0, model.half_life or np.inf
        if model.half_life is not None and model.half_life_unit == "points":
            older = float(weights.sum())
            ages = older - np.cumsum(weights)
            # A row of weight 3 counts as three consecutive rows.
            weights = np.expm1(-weights / half_life * np.log(2.0)) / np.expm1(-np.log(2.0) / half_life)
        elif model.half_life is not None:
            times = np.broadcast_to(np.asarray(times, float), (n,))
            clocks = np.fmax.accumulate([self.clock, *times])
            newest = clocks[-1]
            if np.isfinite(newest):
                older = newest - self.clock if np.isfinite(self.clock) else 0.0
                happened = np.where(np.isnan(times), clocks[1:], times)
                ages = newest - np.where(np.isfinite(happened), happened, newest)
        self.weight *= 2.0 ** (-older / half_life)
        self.weight += float(weights @ 2.0 ** (-ages / half_life))

    def check(self, model: OnlineKMeans, weights: np.ndarray) -> None:
        """Compare a publication; the missing weight must be that of outliers."""
        assert (weights >= 0.0).all()
        found = float(weights.sum()) + _left_out(model)
        assert found == pytest.approx(self.weight, rel=EXACT), "the weights of a publication are not those learned"


def _left_out(model: OnlineKMeans) -> float:
    rule = model._rule
    return 0.0 if rule is None else rule._mass


def _masses(clusters: Clusters) -> list[float]:
    left_out = 0.0 if clusters.rule is None else clusters.rule._mass
    return [float(clusters.live.weights.sum()), float(clusters.coreset.weights_.sum()), left_out]


def of(model: OnlineKMeans) -> Ledger:
    """The ledger of a model; that of a restored model starts with its own weight."""
    if NAME not in vars(model):
        had = model._buffered()[1] if model._clusters is None else model.weights_
        setattr(model, NAME, Ledger(float(had.sum()) + _left_out(model)))
    ledger = vars(model)[NAME]
    ledger.clock = -np.inf if model._decay.clock is None else model._decay.clock
    return ledger


@pytest.fixture(scope="session", autouse=True)
def _weights_are_those_learned():
    """Keep a ledger for all models of a test session, and compare each publication with it."""
    learn, publish, forget = OnlineKMeans._learn, OnlineKMeans.publish, Clusters._forget

    @functools.wraps(learn)
    def learn_and_enter(self, X, names, weights, times):
        ledger = of(self)
        learn(self, X, names, weights, times)
        ledger.learned(self, len(X), weights, times)
        if self._clusters is not None and vars(self._clusters).pop(FORGOT, False):
            del vars(self)[NAME]  # in the middle of a batch: the ledger starts again

    @functools.wraps(forget)
    def forget_and_tell(self, factor):
        before = _masses(self)
        forget(self, factor)
        assert _masses(self) == pytest.approx([factor * mass for mass in before], rel=EXACT)
        vars(self)[FORGOT] = True

    @functools.wraps(publish)
    def publish_and_compare(self, **options):
        ledger = of(self)
        publication = publish(self, **options)
        ledger.check(self, publication.weights)
        return publication

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OnlineKMeans, "_learn", learn_and_enter)
        patch.setattr(OnlineKMeans, "publish", publish_and_compare)
        patch.setattr(Clusters, "_forget", forget_and_tell)
        yield
