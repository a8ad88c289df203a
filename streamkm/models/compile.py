"""Ahead-of-time compilation of the models' kernels into numba's cache."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from streamkm.models.compile_notice import reduced_gc
from streamkm.models.metric import Metric
from streamkm.models.online import OnlineKMeans
from streamkm.models.resolve import ResolveProblem, full_effort, solve
from streamkm.models.validation import frozen

COMPILING_SECONDS = 4.0
"""Upper limit of the duration of `compile_kernels` if the cache is filled."""


def compile_kernels(dtypes: Sequence[DTypeLike] = (np.float32, np.float64)) -> float:
    """Run every kernel of the models once, so that numba's cache on disk contains them.

    Parameters
    ----------
    dtypes
        Types of the input: float32, float64 or both.

    Returns
    -------
    float
        Duration in seconds: 20 to 45 if nothing was compiled before, about 1 if everything was.
    """
    start = time.perf_counter()
    with reduced_gc():
        _run_all(dtypes)
    return time.perf_counter() - start


def _run_all(dtypes: Sequence[DTypeLike]) -> None:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(400, 2))
    points[::7] *= 1e9  # such a range requires float64
    for dtype in dtypes:
        for X in (np.repeat(points, 6, axis=0), rng.normal(size=(2400, 2))):
            model = OnlineKMeans(2, warmup=32, coreset_size=64, outliers="keep")
            for batch in np.array_split(X.astype(dtype), 12):
                model.learn_many(batch)
            model.learn_many(X[:1].astype(dtype))
            model.publish()
            model.evaluate()
            model.k_profile(3)
            model.predict_many(X.astype(dtype))
            model.predict_many((X + 1e9).astype(dtype))
        spiked = np.concatenate([rng.normal(size=(2000, 2)), [[1e9, 1e9]]]).astype(dtype)
        model = OnlineKMeans(2)
        model.learn_many(spiked)
        model.learn_many(spiked)
    for unit in ("points", "seconds"):
        model = OnlineKMeans(2, half_life=1.0, half_life_unit=unit)
        for _ in range(2):
            model.learn_many(points, times=0.0)
    X, metric = rng.normal(size=(400, 2)), Metric.raw(2)
    for mean in (0.0, 1.0):  # in float64, and in float32
        problem = ResolveProblem(frozen(X), frozen(np.ones(400)), X[:2].copy(), 2, np.zeros(2), metric, mean, 0.0, 0)
        solve(problem, full_effort(0.0, 2))
