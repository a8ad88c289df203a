"""Compiling what the models need before somebody waits for it."""

from __future__ import annotations

import time

import numpy as np

from streamkm.models.online import OnlineKMeans

COMPILING_SECONDS = 4.0
"""`compile_kernels` takes less than this when the kernels were compiled before."""


def compile_kernels() -> float:
    """Run every kernel of the models once for float32 and float64 input, so that numba's cache on disk holds them.

    Returns
    -------
    float
        Seconds it took: about ten when nothing was compiled, less than one when all was.
    """
    start = time.perf_counter()
    points = np.random.default_rng(0).normal(size=(64, 2))
    for dtype in (np.float32, np.float64):
        for offset in (0.0, 1e9):  # far from the centroids points are compared in float64
            model = OnlineKMeans(2, warmup=32)
            model.learn_many(points.astype(dtype))
            batch = (points + offset).astype(dtype)
            model.predict_many(batch)
            model.learn_many(batch)
    return time.perf_counter() - start
