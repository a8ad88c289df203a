"""Ahead-of-time compilation of the exact algorithm's kernels; separate because it imports scikit-learn."""

from __future__ import annotations

import time

import numpy as np

from streamkm.models.compile_notice import reduced_gc
from streamkm.models.exact.estimator import ExactKMeans
from streamkm.models.exact.runs import INIT_METHODS


def compile_exact() -> float:
    """Run every kernel of the exact algorithm once: with block and row bounds, and from every initialization.

    Returns
    -------
    float
        Duration in seconds: 20 to 40 if nothing was compiled before.
    """
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    with reduced_gc():
        for d in (2, 48):  # blocks are used in few dimensions only
            X = 20.0 * rng.normal(size=(8, d))[rng.integers(8, size=4000)] + rng.normal(size=(4000, d))
            for init in INIT_METHODS:
                for dtype in (np.float32, np.float64):
                    model = ExactKMeans(8, init=init, random_state=0).fit(
                        X.astype(dtype), sample_weight=rng.random(4000)
                    )
                    model.predict(X[:9].astype(dtype))
    return time.perf_counter() - start
