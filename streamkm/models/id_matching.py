"""Matching of cluster ids between two solutions, by the points that they share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

MIN_SHARED = 0.5
"""Minimum overlap for passing an id on, as a share of the smaller of the two clusters."""


def inherit_ids(ids: NDArray[np.int64], common: NDArray[np.float64]) -> NDArray[np.int64]:
    """(k,) ids of new clusters: the id of the old one with the greatest overlap, or a new id.

    Parameters
    ----------
    ids
        (m,): ids of the old clusters.
    common
        (m, k): weight of the rows that old cluster i and new cluster j share.
    """
    old, new = common.sum(axis=1), common.sum(axis=0)
    found = np.full(common.shape[1], -1, np.int64)
    for i, j in zip(*linear_sum_assignment(-common), strict=True):
        if common[i, j] > 0.0 and common[i, j] >= MIN_SHARED * min(old[i], new[j]):
            found[j] = ids[i]
    fresh = found < 0
    found[fresh] = int(ids.max(initial=-1)) + 1 + np.arange(int(fresh.sum()))
    return found
