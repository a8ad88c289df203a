"""Naive twins of the kernels that judge a choice of k."""

import numpy as np


def simplified_silhouette(rows, row_weights, centroids):
    """(weighted mean, scatter)."""
    scatter = np.zeros((len(centroids), 2))
    total = 0.0
    for x, w in zip(rows, row_weights, strict=True):
        distances = [float(np.linalg.norm(x - c)) for c in centroids]
        a, b = sorted(distances)[:2]
        own = distances.index(a)
        scatter[own] += w, w * a
        total += w * ((b - a) / b if b > 0 else 0.0)
    return (total / row_weights.sum() if row_weights.sum() > 0 else 0.0), scatter
