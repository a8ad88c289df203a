"""Centroids that follow every batch, with what each cluster remembers of its points."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.kernels._lanes import GROUP
from streamkm.kernels.assign import Real, assign, extent, largest, pack_centroids
from streamkm.kernels.random import draw
from streamkm.kernels.update import COST, WEIGHT, learn_batch, mean_square, starved
from streamkm.models.validate import frozen

# float32 resolves 2**-24 of a coordinate; distances are told apart well while the extent stays below 2**16 times the
# root mean squared distance. Beyond that points are compared in float64.
FLOAT32_RATIO = 2.0**32


class Learned(NamedTuple):
    """What learning a batch found out about it, by the centroids before it."""

    labels: NDArray[np.int32]
    """(n,): index of the nearest centroid."""
    squared: NDArray[np.float64]
    """(n,): squared distance to it."""
    cost: float
    """Weighted sum of `squared`."""
    points: float
    """Sum of the row weights."""


def power_of_two(bound: float) -> float:
    """Scale that brings `bound` into [0.5, 1); 1 for a bound of zero."""
    return math.ldexp(1.0, -max(-1000, min(1000, math.frexp(bound)[1])))


def packed_like(k: int, d: int, *, double: bool) -> Real:
    """Scratch for `pack_centroids`, of the type in which points are to be compared."""
    shape = (-(-k // GROUP), d, GROUP)
    return np.empty(shape, np.float64) if double else np.empty(shape, np.float32)


@dataclass
class LiveCentroids:
    """Centroids, and what each cluster remembers.

    Attributes
    ----------
    centroids
        (k, d) float64, raw units.
    stats
        (k, 3) float64 as in `learn_batch`: decayed weight, decayed cost, weight of others' points since an own one.
    ids
        (k,) int64, stable.
    next_id
        The first id that no cluster ever had.
    origin
        (d,) float64: a weighted mean of the centroids, around which points are compared.
    """

    centroids: NDArray[np.float64]
    stats: NDArray[np.float64]
    ids: NDArray[np.int64]
    next_id: int
    origin: NDArray[np.float64]

    @classmethod
    def start(cls, centroids: NDArray[np.float64], stats: NDArray[np.float64]) -> LiveCentroids:
        """Begin with centroids that have no history."""
        k = len(centroids)
        mass = stats[:, WEIGHT].sum()
        share = stats[:, WEIGHT] / mass if mass > 0.0 else np.full(k, 1.0 / k)
        return cls(centroids, stats, np.arange(k, dtype=np.int64), k, share @ centroids)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], k: int, d: int, next_id: int) -> LiveCentroids:
        """Undo `arrays`."""
        return cls(
            array(arrays, "centroids", np.float64, (k, d)),
            array(arrays, "stats", np.float64, (k, 3)),
            array(arrays, "ids", np.int64, (k,)),
            next_id,
            array(arrays, "origin", np.float64, (d,)),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays, by name."""
        return {name: getattr(self, name).copy() for name in ("centroids", "stats", "ids", "origin")}

    @property
    def weights(self) -> NDArray[np.float64]:
        """(k,) float64: decayed weights, a view."""
        return self.stats[:, WEIGHT]

    def learn(self, X: Real, row_weights: NDArray[np.float64], decay: float, high: float) -> Learned:
        """Learn one batch.

        Parameters
        ----------
        X
            (n, d), from `validate.points`.
        row_weights
            From `validate.row_weights`.
        decay
            Factor on what was learned before.
        high
            Largest absolute value in X, from `validate.finite`.
        """
        scale, packed = self._plan(X, high)
        labels, squared = np.empty(len(X), np.int32), np.empty(len(X))
        cost, points = learn_batch(
            X, row_weights, decay, scale, self.origin, packed, self.centroids, self.stats, labels, squared
        )
        return Learned(labels, squared, cost, points)

    def nearest(self, X: Real, high: float) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Index of the nearest centroid of each row, and the squared distance to it. Changes nothing."""
        scale, packed = self._plan(X, high)
        labels, squared = np.empty(len(X), np.int32), np.empty(len(X))
        pack_centroids(self.centroids, self.origin, scale, packed)
        assign(X, self.origin, scale, packed, self.centroids, labels, squared)
        return labels, squared

    def _plan(self, X: Real, high: float) -> tuple[float, Real]:
        """Scale in which to compare points with centroids, and scratch of the type in which to do it."""
        k, d = self.centroids.shape
        # The origin is a mean of centroids, so no difference to it exceeds this.
        bound = high + 2.0 * largest(frozen(self.centroids.reshape(-1)))
        limit = FLOAT32_RATIO * mean_square(self.stats)
        double = bound * bound * d > limit
        if double:
            reach = max(extent(X, self.origin), extent(frozen(self.centroids), self.origin))
            double = reach * reach * d > limit
        return power_of_two(bound), packed_like(k, d, double=double)

    def restart_starved(
        self,
        X: Real,
        row_weights: NDArray[np.float64],
        learned: Learned,
        share: float,
        idle: float,
        rng: NDArray[np.uint64],
    ) -> None:
        """Give each cluster that starves a far row of the batch just learned; `OnlineKMeans` tells the rule."""
        squared = learned.squared
        while (j := starved(self.stats, share, idle)) >= 0:
            i = draw(row_weights, squared, rng)
            if i < 0 or squared[i] < mean_square(self.stats):
                break
            weight = float(row_weights[i]) if len(row_weights) else 1.0
            if not self._move(X[i].astype(np.float64), weight, float(squared[i]), int(learned.labels[i]), j):
                break
            # Rows that are now nearer to the new centroid do not call for another one.
            squared = np.minimum(squared, ((X - self.centroids[j]) ** 2).sum(axis=1))

    def _move(self, x: NDArray[np.float64], weight: float, squared: float, donor: int, j: int) -> bool:
        """Move a row from the cluster that has it to the starved cluster j; False if it is all that cluster has."""
        rest = self.stats[donor, WEIGHT] - weight
        if donor == j or not rest > 1e-9 * weight:
            return False
        self.centroids[donor] += weight / rest * (self.centroids[donor] - x)
        self.stats[donor, WEIGHT] = rest
        self.stats[donor, COST] = max(0.0, self.stats[donor, COST] - weight * squared)
        self.centroids[j] = x
        self.stats[j] = self.stats[j, WEIGHT] + weight, 0.0, 0.0
        self.ids[j] = self.next_id
        self.next_id += 1
        return True


def array(arrays: Mapping[str, NDArray[Any]], name: str, dtype: type[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """One array of a state, checked and copied."""
    copy = np.array(arrays[name], dtype)
    if copy.shape != shape:
        raise StateError(f"array {name!r} has the shape {copy.shape}, not {shape}")
    return copy
