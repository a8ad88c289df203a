"""What a snapshot says about points: their clusters, distances and outlier scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import DataError
from streamkm.kernels.nearest import look, nearest, scores
from streamkm.state import Snapshot

__all__ = ["Assignment", "assign", "nearest"]


class Assignment(NamedTuple):
    """What a snapshot says about n points.

    Attributes
    ----------
    ids, distances, scores
        (n,): stable ids of the nearest clusters, distances to their centroids, and these in spreads of the cluster.
    second_ids, second_distances
        (n,): the same of the second nearest, -1 and NaN for a model of one cluster; None if not asked for.
    every
        (n, k): distance to each cluster, in the order of the snapshot's; None if not asked for.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]
    scores: NDArray[np.float64]
    second_ids: NDArray[np.int64] | None = None
    second_distances: NDArray[np.float64] | None = None
    every: NDArray[np.float64] | None = None


def assign(s: Snapshot, points: NDArray[np.float64], *, second: bool = False, every: bool = False) -> Assignment:
    """Find the cluster of each point, by the snapshot's way to measure distances.

    Parameters
    ----------
    points
        (n, d), finite.
    second, every
        What is wanted besides.

    Raises
    ------
    DataError
        A point is all zeros, so it has no direction for the cosine distance to compare.
    """
    if s.distance == "cosine":
        length = np.linalg.norm(points, axis=1)
        if not length.all():
            where = f"points[{int(np.argmin(length))}]"
            raise DataError("all values are zero: no direction to compare", where=where)
        points = points / length[:, None]
    if not (s.factors == 1.0).all():
        points = points * s.factors
    found = look(s.centroids * s.factors, points, second=second, every=every)
    judged = scores(found.distance, found.first, s.spreads, s.weights)
    second_ids = second_distances = None
    if found.second is not None and found.second_distance is not None:
        there = found.second >= 0
        second_ids = np.where(there, s.ids[found.second], -1)
        second_distances = np.where(there, found.second_distance, np.nan)
    return Assignment(s.ids[found.first], found.distance, judged, second_ids, second_distances, found.every)
