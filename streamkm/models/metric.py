"""How distances are measured: the scale of each dimension, and whether rows are directions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.reductions import weighted_sum
from streamkm.models.validation import frozen

Scale = Literal["none", "standard", "robust"]

MAX_SAME_SCALE_DIFFERENCE = 0.02
"""New scales that all differ by less than this share are ignored: changing them would move points without need."""

IQR_OF_NORMAL = 1.3489795003921634
"""Interquartile range of the standard normal distribution."""

EQUAL_VALUE_TOLERANCE = 1e-12
"""Values are equal up to this share of the larger absolute quartile."""


@dataclass(frozen=True)
class Metric:
    """Scale of each dimension, and whether distances are cosine.

    Attributes
    ----------
    factors
        (d,) float64: factors on the differences in each dimension. Centroids and rows stay in raw units.
    spherical
        Rows and centroids have length one (cosine distance).
    """

    factors: NDArray[np.float64]
    spherical: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", frozen(self.factors))

    def __reduce__(self) -> tuple[type[Metric], tuple[NDArray[np.float64], bool]]:
        """Make copies and pickles read-only too: kernels are compiled for read-only arrays."""
        return Metric, (self.factors, self.spherical)

    @classmethod
    def raw(cls, d: int, *, spherical: bool = False) -> Metric:
        """Make the metric of d dimensions in raw units."""
        return cls(np.ones(d), spherical)

    @cached_property
    def plain(self) -> bool:
        """Whether distances are in raw units, unscaled."""
        return bool(np.all(self.factors == 1.0))

    def rescaled(self, rows: NDArray[np.float64], weights: NDArray[np.float64], scale: Scale) -> Metric:
        """Return the metric with factors from weighted rows, (n, d) and (n,); this one if they are nearly the same."""
        if scale == "none" or not weights.sum() > 0.0:
            return self
        factors = 1.0 / (standard_deviations(rows, weights) if scale == "standard" else quartile_ranges(rows, weights))
        if np.all(np.abs(factors - self.factors) <= MAX_SAME_SCALE_DIFFERENCE * self.factors):
            return self
        return replace(self, factors=factors)


def standard_deviations(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) weighted standard deviations; 1 for a constant column."""
    share = weights / weights.sum()
    centre = np.empty(rows.shape[1])
    weighted_sum(frozen(np.ascontiguousarray(rows)), frozen(share), centre)
    reach = np.max(np.abs(rows - centre), axis=0)
    reach[reach == 0.0] = 1.0
    # Dividing first keeps the squares within the range of float64.
    spread: NDArray[np.float64] = reach * np.sqrt(np.einsum("i,ij->j", share, ((rows - centre) / reach) ** 2))
    spread[spread <= 1e-12 * np.abs(centre)] = 1.0
    spread[spread == 0.0] = 1.0
    return spread


def quartile_ranges(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) weighted interquartile ranges, divided by that of the standard normal distribution.

    If at least half of a column is one value, its unit is the median distance of the other values from that value, or
    1 if there are none. (The interquartile range would depend on the number of other values instead of their size, and
    is zero if they are rare. The standard deviation would be small if they are rare, and each of them far away only
    because it is rare.)
    """
    low, median, high = (quantile(rows, weights, share) for share in (0.25, 0.5, 0.75))
    spread = (high - low) / IQR_OF_NORMAL
    away = np.abs(rows - median)
    equal = away <= EQUAL_VALUE_TOLERANCE * np.maximum(np.abs(low), np.abs(high))
    for t in np.flatnonzero(weights @ equal >= 0.5 * weights.sum()):
        others = ~equal[:, t] & (weights > 0.0)
        spread[t] = quantile(away[others, t, np.newaxis], weights[others], 0.5)[0] if others.any() else 1.0
    return spread


def quantile(rows: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """(d,) weighted quantile of each column: the smallest value with at least `share` of the weight at or below it."""
    order = np.argsort(rows, axis=0, kind="stable")
    mass = np.cumsum(weights[order], axis=0)
    at = np.argmax(mass >= share * mass[-1], axis=0)
    columns = np.arange(rows.shape[1])
    values: NDArray[np.float64] = rows[order[at, columns], columns]
    return values
