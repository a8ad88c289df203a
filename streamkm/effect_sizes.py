"""Effect sizes: how much each cluster differs from all points, by field; shown by the page, the tables and the client.

The effect size is the difference of a centroid to the mean of all points, divided by the standard deviation within
clusters (the root of the weighted mean of the clusters' variances), as in Cohen's d. It is near zero for noise, however
few the clusters are, and large for fields that separate clusters. Division by the standard deviation between centroids
would make noise as large as any other difference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

LIMIT = 1000.0
"""Limit of an effect size: without it, differences of clusters of equal points would be infinite."""

_ROUNDING = 64 * np.finfo(np.float64).eps
"""Differences below this share of the values are rounding errors."""


def differences(centroids: Reals, weights: Reals, deviations: Reals | None) -> Reals:
    """Difference of each centroid to the mean of all points, in standard deviations within clusters.

    Parameters
    ----------
    centroids
        (k, d).
    weights
        (k,): weight of the points of each cluster.
    deviations
        (k, d): standard deviation of the points of each cluster by field; None if unknown.

    Returns
    -------
    differences
        (k, d), from ``-LIMIT`` to ``LIMIT``; NaN if unknown.
    """
    total = float(weights.sum())
    if deviations is None or not len(weights) or not 0.0 < total < np.inf:
        return np.full(centroids.shape, np.nan)
    share = weights / total
    with np.errstate(all="ignore"):
        mean = share @ centroids
        within = np.sqrt(share @ np.square(deviations))
        above = centroids - mean
        size = np.abs(above)
        found = np.sign(above) * np.minimum(size / within, LIMIT)
        found[size <= _ROUNDING * np.maximum(np.abs(centroids), np.abs(mean))] = 0.0
        unknown = ~(np.isfinite(within) & np.isfinite(above))
    found[unknown] = np.nan
    return found


def most_distinctive(found: Reals, most: int) -> list[int]:
    """Indices, ascending, of the fields that differ most between some cluster and all points.

    Parameters
    ----------
    found
        (k, d): effect sizes from `differences`. Fields with unknown ones come last.
    most
        Maximum number of fields.
    """
    largest = np.max(np.nan_to_num(np.abs(found), nan=-1.0), axis=0, initial=-1.0)
    return sorted(np.argsort(-largest, kind="stable")[: max(0, most)].tolist())
