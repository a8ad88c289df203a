"""Prediction with given centroids: labels exactly as by float64 comparison, and distances to assigned centroids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.distances import assigned_squares
from streamkm.kernels.exact.sums import Real
from streamkm.models.exact.assign import first_assignment
from streamkm.models.exact.core import Sums
from streamkm.models.exact.points import prepare
from streamkm.models.exact.threads import ThreadTeam
from streamkm.models.validation import frozen


def nearest_labels(array: Real, centroids: NDArray[np.float64], team: ThreadTeam) -> NDArray[np.int32]:
    """Find the nearest centroid of each point, the lowest index of several equally near ones.

    Parameters
    ----------
    array
        (n, d) C-contiguous, finite.
    centroids
        (k, d).
    team
        Threads to use.
    """
    points = prepare(array, None, 1)  # 1 cluster: no blocks, making them takes longer than one pass
    no_sums = Sums.zeros(team.n_threads, 0, centroids.shape[1])
    return first_assignment(points, no_sums, team, centroids, points.working(centroids)).labels


def assigned_distances(
    array: Real, labels: NDArray[np.int32], centroids: NDArray[np.float64], team: ThreadTeam
) -> NDArray[np.float64]:
    """Compute the distance of each point to its assigned centroid.

    Parameters
    ----------
    array
        (n, d) C-contiguous, finite.
    labels
        (n,) index of the assigned centroid.
    centroids
        (k, d).
    team
        Threads to use.
    """
    scale = scale_for(array, centroids)
    squares = np.empty(len(array))
    costs = np.zeros((team.n_threads, len(centroids), 3), np.int64)
    readable = frozen(array)

    def work(part: int, parts: int) -> None:
        assigned_squares(
            (part, parts, 0, len(array)), readable, labels, centroids, scale, np.empty(0), 1.0, squares, costs[part]
        )

    team.share(work, array.size + 4.0 * len(array))
    distances: NDArray[np.float64] = np.sqrt(squares) / scale
    return distances


def scale_for(array: Real, centroids: NDArray[np.float64]) -> float:
    """Power of two with which squared differences of points (n, d) and centroids (k, d) neither over- nor underflow."""
    size = max(float(array.max()), -float(array.min()), float(np.abs(centroids).max())) if array.size else 1.0
    return float(2.0 ** -np.clip(np.frexp(size)[1], -1000, 1000))
