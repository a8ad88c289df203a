"""What "near" means: the unit of each dimension, and whether only directions count."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.rows import weighted_sum
from streamkm.models.validate import frozen

Scale = Literal["none", "standard", "robust"]

SAME_SCALE = 0.02
"""Scales that all differ by less than this share are the same: adopting them would move points for nothing."""

IQR_OF_NORMAL = 1.3489795003921634
"""Interquartile range of the standard normal distribution."""

SAME_VALUE = 1e-12
"""Values that differ by less than this share of the larger quartile are the same."""


@dataclass(frozen=True)
class Metric:
    """How distances are measured.

    Attributes
    ----------
    factors
        (d,) float64: differences in each dimension are multiplied by this. Centroids and rows stay in raw units.
    spherical
        Rows and centroids have length one (cosine distance).
    """

    factors: NDArray[np.float64]
    spherical: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", frozen(self.factors))

    def __reduce__(self) -> tuple[type[Metric], tuple[NDArray[np.float64], bool]]:
        """Copies are read-only too: kernels are compiled for that."""
        return Metric, (self.factors, self.spherical)

    @classmethod
    def raw(cls, d: int, *, spherical: bool = False) -> Metric:
        """The metric of d dimensions in raw units."""
        return cls(np.ones(d), spherical)

    @cached_property
    def plain(self) -> bool:
        """Whether distances are in raw units."""
        return bool(np.all(self.factors == 1.0))

    def rescaled(self, rows: NDArray[np.float64], weights: NDArray[np.float64], scale: Scale) -> Metric:
        """The metric that weighted rows ask for; this one when that is about the same."""
        if scale == "none" or not weights.sum() > 0.0:
            return self
        factors = 1.0 / (deviations(rows, weights) if scale == "standard" else quartile_ranges(rows, weights))
        if np.all(np.abs(factors - self.factors) <= SAME_SCALE * self.factors):
            return self
        return replace(self, factors=factors)


def deviations(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) weighted standard deviations; 1 for a column that does not vary."""
    share = weights / weights.sum()
    centre = np.empty(rows.shape[1])
    weighted_sum(frozen(np.ascontiguousarray(rows)), frozen(share), centre)
    reach = np.max(np.abs(rows - centre), axis=0)
    reach[reach == 0.0] = 1.0
    # Dividing first keeps squares within range, whatever the unit.
    spread: NDArray[np.float64] = reach * np.sqrt(np.einsum("i,ij->j", share, ((rows - centre) / reach) ** 2))
    spread[spread <= 1e-12 * np.abs(centre)] = 1.0
    spread[spread == 0.0] = 1.0
    return spread


def quartile_ranges(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) weighted interquartile ranges, as a normal distribution's deviation.

    A column half of which is one value has another unit: the median distance of its other values from that one. Its
    interquartile range tells how many there are rather than how large they are, and is zero where they are rare. So
    is nearly its deviation, and each of them would be far away for being rare. 1 if there are no others.
    """
    low, common, high = (quantile(rows, weights, share) for share in (0.25, 0.5, 0.75))
    spread = (high - low) / IQR_OF_NORMAL
    away = np.abs(rows - common)
    same = away <= SAME_VALUE * np.maximum(np.abs(low), np.abs(high))
    for t in np.flatnonzero(weights @ same >= 0.5 * weights.sum()):
        others = ~same[:, t] & (weights > 0.0)
        spread[t] = quantile(away[others, t, np.newaxis], weights[others], 0.5)[0] if others.any() else 1.0
    return spread


def quantile(rows: NDArray[np.float64], weights: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """(d,) smallest value of each column at or below which lies `share` of the weight."""
    order = np.argsort(rows, axis=0, kind="stable")
    mass = np.cumsum(weights[order], axis=0)
    at = np.argmax(mass >= share * mass[-1], axis=0)
    columns = np.arange(rows.shape[1])
    values: NDArray[np.float64] = rows[order[at, columns], columns]
    return values
