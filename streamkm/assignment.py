"""Assignment of points to the clusters of a snapshot: ids, distances and outlier scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import DataError
from streamkm.kernels.nearest import find_nearest, nearest, scores
from streamkm.state import Snapshot

__all__ = ["Assignment", "assign", "nearest"]


class Assignment(NamedTuple):
    """Clusters of n points.

    Attributes
    ----------
    ids, distances, scores
        (n,) each: stable ids of the nearest clusters, distances to their centroids, and distances in spreads of the
        cluster.
    second_ids, second_distances
        (n,) each: ids and distances of the second nearest, -1 and NaN if there is only one cluster; None if not
        requested.
    all_distances
        (n, k): distances to all clusters, in the snapshot's order; None if not requested.
    """

    ids: NDArray[np.int64]
    distances: NDArray[np.float64]
    scores: NDArray[np.float64]
    second_ids: NDArray[np.int64] | None = None
    second_distances: NDArray[np.float64] | None = None
    all_distances: NDArray[np.float64] | None = None


def assign(
    s: Snapshot, points: NDArray[np.float64], *, second: bool = False, all_distances: bool = False
) -> Assignment:
    """Find the cluster of each point, with the snapshot's metric.

    Parameters
    ----------
    points
        (n, d), finite.
    second, all_distances
        Whether to compute the second nearest cluster, and the distances to all clusters.

    Raises
    ------
    DataError
        A point is all zeros, which has no direction for the cosine distance.
    """
    if s.distance == "cosine":
        length = np.linalg.norm(points, axis=1)
        if not length.all():
            where = f"points[{int(np.argmin(length))}]"
            raise DataError("all values are zero: no direction to compare", where=where)
        points = points / length[:, None]
    if not (s.factors == 1.0).all():
        points = points * s.factors
    found = find_nearest(s.centroids * s.factors, points, second=second, all_distances=all_distances)
    scores_found = scores(found.distance, found.first, s.spreads, s.weights)
    second_ids = second_distances = None
    if found.second is not None and found.second_distance is not None:
        there = found.second >= 0
        second_ids = np.where(there, s.ids[found.second], -1)
        second_distances = np.where(there, found.second_distance, np.nan)
    return Assignment(
        s.ids[found.first], found.distance, scores_found, second_ids, second_distances, found.all_distances
    )
