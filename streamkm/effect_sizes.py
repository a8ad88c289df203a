"""How much each cluster differs from all points, field by field: what the page, the tables and the client show.

**The definition.** The difference of a centroid to the mean of all points, over the standard deviation of points within
their clusters (the root of the mean of the clusters' variances, each by its weight), as in Cohen's d. Noise shows about
nothing, however few the clusters are, and a field that tells clusters apart shows how clearly it does. To divide by the
deviation between centroids instead would show noise as large as anything else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]

LIMIT = 1000.0
"""Where points of a cluster are all equal a difference has no measure: none is told as larger than this."""

_ROUNDING = 64 * np.finfo(np.float64).eps
"""Differences below this share of the values are how sums are rounded."""


def differences(centroids: Reals, weights: Reals, deviations: Reals | None) -> Reals:
    """How many standard deviations within clusters each centroid is above the mean of all points.

    Parameters
    ----------
    centroids
        (k, d).
    weights
        (k,): of the points of each cluster.
    deviations
        (k, d): standard deviation of the points of each cluster by field; None if nothing is known.

    Returns
    -------
    differences
        (k, d), from ``-LIMIT`` to ``LIMIT``; NaN where it is not known.
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
    """Places of the fields that differ most between some clusters and all points, as many as wanted, in their order.

    Parameters
    ----------
    found
        (k, d): what `differences` gives. Fields about which nothing is known come last.
    most
        How many are wanted.
    """
    largest = np.max(np.nan_to_num(np.abs(found), nan=-1.0), axis=0, initial=-1.0)
    return sorted(np.argsort(-largest, kind="stable")[: max(0, most)].tolist())
