"""Live centroids: updated by every batch, with the statistics of each cluster."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.kernels.assign import Real, assign, extent, largest, pack_centroids
from streamkm.kernels.groups import plain
from streamkm.kernels.random import draw
from streamkm.kernels.reductions import weighted_sum, weighted_total
from streamkm.kernels.search import COLUMN_BLOCK, lay_columns
from streamkm.kernels.simd import GROUP
from streamkm.kernels.update import (
    COST,
    IDLE,
    WEIGHT,
    AssignedRows,
    DistancePlan,
    learn_batch,
    mean_square,
    starved,
    to_unit_length,
)
from streamkm.models.decay import AgedWeights
from streamkm.models.metric import Metric
from streamkm.models.validation import ONES, frozen

# float32 resolves 2**-24 of a coordinate; distances are accurate enough while the extent is below 2**16 times the root
# mean squared distance. Beyond that, points are compared in float64.
FLOAT32_RATIO = 2.0**32


SMALL_BATCH_ROWS = 16
"""Batches of at most this many rows are compared in float64, without choosing a precision."""


class BatchResult(NamedTuple):
    """Result of learning a batch: its assignment to the centroids before the update, and the statistics after it."""

    assignment: AssignedRows
    """Nearest centroid of each row, and sums of the batch per cluster; a plain tuple (see `plain`)."""
    cost: float
    """Weighted sum of squared distances, by the given weights."""
    points: float
    """Sum of the given row weights."""
    decayed_cost: float
    """Weighted sum of squared distances, by the decayed weights."""
    decayed_points: float
    """Sum of the decayed row weights."""
    total_cost: float
    """Decayed cost of everything learned, including this batch."""
    mass: float
    """Decayed weight of everything learned, including this batch."""
    idle: float
    """Longest idle weight of a cluster: weight of all points since the last one that was assigned to it."""


def power_of_two(bound: float) -> float:
    """Power of two that scales `bound` into [0.5, 1); 1 if it is zero."""
    return math.ldexp(1.0, -max(-500, min(500, math.frexp(bound)[1])))


def packed_like(k: int, d: int, *, double: bool) -> Real:
    """Allocate the output of `pack_centroids`, float64 if `double`, else float32."""
    shape = (-(-k // GROUP), d, GROUP)
    return np.empty(shape, np.float64) if double else np.empty(shape, np.float32)


def columns_of(
    rows: NDArray[np.float64], origin: NDArray[np.float64], scale: NDArray[np.float64], *, double: bool
) -> Real:
    """Store rows, (n, d), by dimension with `lay_columns`, as float64 if `double`, else as float32."""
    n, d = rows.shape
    shape = (d, -(-n // COLUMN_BLOCK) * COLUMN_BLOCK)
    columns: Real = np.empty(shape, np.float64) if double else np.empty(shape, np.float32)
    lay_columns(rows, origin, scale, columns)
    return columns


@dataclass
class LiveCentroids:
    """Centroids with the statistics of each cluster.

    Attributes
    ----------
    centroids
        (k, d) float64, raw units.
    stats
        (k, 3) float64 as in `learn_batch`: decayed weight, decayed cost, idle weight (weight of other clusters' points
        since its last one).
    ids
        (k,) int64, stable.
    next_id
        The lowest id that was never used.
    origin
        (d,) float64: a weighted mean of the centroids, around which points are compared.
    metric
        Scale of each dimension, and whether distances are cosine.
    """

    centroids: NDArray[np.float64]
    stats: NDArray[np.float64]
    ids: NDArray[np.int64]
    next_id: int
    origin: NDArray[np.float64]
    metric: Metric
    _packed_float32: Real = field(init=False, repr=False)
    _small_plan: DistancePlan = field(init=False, repr=False)

    def __post_init__(self) -> None:
        k, d = self.centroids.shape
        self._packed_float32 = packed_like(k, d, double=False)
        self._small_plan = self._small_batch_plan()
        self._one_row_assignment = self._new_assignment(1)

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Scratch arrays are not copied: kernels are compiled for read-only arrays, which a copy would not preserve.
        self.__dict__.update(state)
        self.__post_init__()

    def _new_assignment(self, n: int) -> AssignedRows:
        k, d = self.centroids.shape
        return plain(AssignedRows(np.empty(n, np.int32), np.empty(n), np.empty((k, d + 2)), np.empty(d)))

    def _small_batch_plan(self) -> DistancePlan:
        # Few rows are compared in float64: choosing the precision would take longer than it saves.
        factors = ONES if self.metric.plain else self.metric.factors
        return plain(DistancePlan(self.metric.factors.copy(), factors, packed_like(*self.centroids.shape, double=True)))

    @classmethod
    def start(cls, centroids: NDArray[np.float64], stats: NDArray[np.float64], metric: Metric) -> LiveCentroids:
        """Make live centroids, (k, d), without a history; stats are (k, 3)."""
        k = len(centroids)
        ids = np.arange(k, dtype=np.int64)
        return cls(centroids, stats, ids, k, weighted_mean(centroids, stats[:, WEIGHT]), metric)

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, NDArray[Any]], k: int, d: int, next_id: int, *, spherical: bool
    ) -> LiveCentroids:
        """Restore live centroids from `arrays`."""
        return cls(
            checked_array(arrays, "centroids", np.float64, (k, d)),
            checked_array(arrays, "stats", np.float64, (k, 3)),
            checked_array(arrays, "ids", np.int64, (k,)),
            next_id,
            checked_array(arrays, "origin", np.float64, (d,)),
            Metric(checked_array(arrays, "factors", np.float64, (d,)), spherical),
        )

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays, by name."""
        copies = {name: getattr(self, name).copy() for name in ("centroids", "stats", "ids", "origin")}
        return copies | {"factors": self.metric.factors.copy()}

    def copy(self) -> LiveCentroids:
        """Return an independent copy."""
        arrays = self.centroids.copy(), self.stats.copy(), self.ids.copy()
        return LiveCentroids(*arrays, self.next_id, self.origin.copy(), self.metric)

    def replace(self, centroids: NDArray[np.float64], totals: NDArray[np.float64], metric: Metric) -> None:
        """Replace the centroids and their statistics, keeping ids.

        Parameters
        ----------
        centroids
            (k, d) new centroids.
        totals
            (k, d+2) as in `assign_accumulate`: mass and cost of each cluster.
        """
        d = centroids.shape[1]
        self.centroids, self.metric = centroids, metric
        self.stats[:, WEIGHT] = totals[:, d]
        self.stats[:, COST] = totals[:, d + 1]
        self.stats[totals[:, d] > 0.0, IDLE] = 0.0
        self.origin = weighted_mean(centroids, totals[:, d])
        self._small_plan = self._small_batch_plan()

    @property
    def weights(self) -> NDArray[np.float64]:
        """(k,) float64: decayed weights, a view."""
        return self.stats[:, WEIGHT]

    def assign_new_ids(self, indices: NDArray[np.int64]) -> None:
        """Assign new ids to the clusters at some indices, (m,)."""
        self.ids[indices] = np.arange(self.next_id, self.next_id + len(indices))
        self.next_id += len(indices)

    @property
    def spreads(self) -> NDArray[np.float64]:
        """(k,) float64: decayed root mean squared distance of each cluster's points; 0 without weight."""
        return np.sqrt(self.stats[:, COST] / np.where(self.weights > 0.0, self.weights, 1.0))

    @property
    def mean_square(self) -> float:
        """Decayed mean squared distance of all points."""
        return mean_square(self.stats)

    def learn(self, X: Real, aged: AgedWeights, high: float) -> BatchResult:
        """Learn one batch. The arrays of the result are valid until the next call.

        Parameters
        ----------
        X
            (n, d), from `validation.points`.
        aged
            Weights of the rows, and the decay of everything learned before.
        high
            Largest absolute value in X, from `validation.finite`.
        """
        assignment = self._one_row_assignment if len(X) == 1 else self._new_assignment(len(X))
        points = float(aged.weights.sum()) if len(aged.weights) else float(len(X))
        decayed_cost, decayed_points, total_cost, mass, waited = learn_batch(
            X,
            aged.decayed,
            points,
            aged.factor,
            self.distance_plan(X, high),
            self.metric.spherical,
            self.origin,
            self.centroids,
            self.stats,
            assignment,
        )
        cost = decayed_cost if aged.decayed is aged.weights else weighted_total(assignment[1], aged.weights)
        return BatchResult(assignment, cost, points, decayed_cost, decayed_points, total_cost, mass, waited)

    def nearest(self, X: Real, high: float) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """(n,) index of the nearest centroid of each row, and (n,) squared distance to it; arguments as in `learn`."""
        return nearest(X, high, self.centroids, self.origin, self.metric, mean_square(self.stats))

    def distance_plan(self, X: Real, high: float) -> DistancePlan:
        """Choose scale and precision for comparing rows, as a plain tuple; arguments as in `learn`."""
        if len(X) <= SMALL_BATCH_ROWS:
            return self._small_plan
        mean = mean_square(self.stats)
        return plain(distance_plan(X, high, self.centroids, self.origin, self.metric, mean, self._packed_float32))

    def restart_starved(
        self,
        X: Real,
        row_weights: NDArray[np.float64],
        learned: BatchResult,
        share: float,
        idle: float,
        rng: NDArray[np.uint64],
    ) -> None:
        """Restart starved clusters at far rows of the batch just learned; see `OnlineKMeans` for the rule.

        Parameters
        ----------
        X, row_weights
            (n, d) and (n,) or (0,): the batch.
        learned
            Result of learning it.
        share
            A cluster is starved below this share of the largest weight, ...
        idle
            ... if it got no point while the others got this weight.
        rng
            (1,) state of the random generator, advanced.
        """
        labels, squared, _, _ = learned.assignment
        while (j := starved(self.stats, share, idle)) >= 0:
            i = draw(row_weights, squared, rng)
            if i < 0 or squared[i] < mean_square(self.stats):
                break
            weight = float(row_weights[i]) if len(row_weights) else 1.0
            if not self._move(X[i].astype(np.float64), weight, float(squared[i]), int(labels[i]), j):
                break
            # Rows that are now nearer to the restarted centroid do not justify another restart.
            gaps = (X - self.centroids[j]) * self.metric.factors
            squared = np.minimum(squared, (gaps**2).sum(axis=1))

    def _move(self, x: NDArray[np.float64], weight: float, squared: float, donor: int, j: int) -> bool:
        """Move row x from cluster `donor` to the starved cluster j; False if it is all that the donor has."""
        rest = self.stats[donor, WEIGHT] - weight
        if donor == j or not rest > 1e-9 * weight:
            return False
        self.centroids[donor] += weight / rest * (self.centroids[donor] - x)
        self.stats[donor, WEIGHT] = rest
        self.stats[donor, COST] = max(0.0, self.stats[donor, COST] - weight * squared)
        self.centroids[j] = x
        if self.metric.spherical:
            to_unit_length(self.centroids)
        self.stats[j] = self.stats[j, WEIGHT] + weight, 0.0, 0.0
        self.ids[j] = self.next_id
        self.next_id += 1
        return True


def distance_plan(
    X: Real,
    high: float,
    centroids: NDArray[np.float64],
    origin: NDArray[np.float64],
    metric: Metric,
    mean: float,
    scratch: Real | None = None,
) -> DistancePlan:
    """Choose the scale and the precision for comparing rows with centroids.

    Parameters
    ----------
    X, centroids
        (n, d) and (k, d), raw units.
    high
        Largest absolute value in X.
    origin
        (d,): a mean of the centroids.
    mean
        Expected mean squared distance.
    scratch
        Output of `packed_like` in float32 to reuse, if any.
    """
    k, d = centroids.shape
    factors = metric.factors
    # The origin is a mean of centroids, so no difference to it exceeds this bound.
    bound = (high + 2.0 * largest(frozen(centroids.reshape(-1)))) * largest(factors)
    limit = FLOAT32_RATIO * mean
    double = not bound * bound * d <= limit
    if double:
        bound = max(extent(X, origin, factors), extent(frozen(centroids), origin, factors))
        double = not bound * bound * d <= limit
    scale = factors * power_of_two(bound)
    packed = scratch if scratch is not None and not double else packed_like(k, d, double=double)
    return DistancePlan(scale, ONES if metric.plain else factors, packed)


def nearest(
    X: Real,
    high: float,
    centroids: NDArray[np.float64],
    origin: NDArray[np.float64],
    metric: Metric,
    mean: float,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """(n,) index of the nearest centroid, and (n,) squared distance to it; arguments as in `distance_plan`."""
    scale, factors, packed = distance_plan(X, high, centroids, origin, metric, mean)
    labels, squared = np.empty(len(X), np.int32), np.empty(len(X))
    pack_centroids(centroids, origin, scale, packed)
    assign(X, origin, scale, factors, packed, centroids, labels, squared)
    return labels, squared


def normalized(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n,) weights divided by their sum; uniform if no weight is positive, or if the sum is infinite."""
    mass = float(weights.sum())
    if 0.0 < mass < math.inf:
        return weights / mass
    return np.full(len(weights), 1.0 / max(1, len(weights)))


def weighted_mean(centroids: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) weighted mean of rows; unweighted if no weight is positive, zeros if there are no rows."""
    share = normalized(weights)
    mean = np.empty(centroids.shape[1])
    weighted_sum(frozen(centroids), frozen(share), mean)
    return mean


def checked_array(
    arrays: Mapping[str, NDArray[Any]], name: str, dtype: type[Any], shape: tuple[int, ...]
) -> NDArray[Any]:
    """Return a copy of one array of a state, of any shape, which is checked.

    Raises
    ------
    StateError
        The shape is wrong.
    KeyError
        The array is missing.
    """
    copy = np.array(arrays[name], dtype)
    if copy.shape != shape:
        raise StateError(f"array {name!r} has the shape {copy.shape}, not {shape}")
    return copy
