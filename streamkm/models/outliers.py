"""Spikes: rows so far from all others that a centroid that follows one is lost to the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.assign import Real
from streamkm.kernels.outliers import squares_from, widest_gap, within
from streamkm.kernels.reductions import even_places
from streamkm.models.centroids import checked_array
from streamkm.models.decay import AgedWeights
from streamkm.models.validation import frozen

MAX_TAIL_MASS = 0.005
"""Only the outermost rows, with at most this share of the mass, can be outliers."""

MIN_GAP_RATIO = 100.0
"""A gap: the squared distance from the median grows by this factor from one row to the next."""

MEDIAN_ROWS = 255
"""The median is that of so many rows, picked evenly."""

MAX_RECENT = 256
"""The latest outliers are remembered."""

MIN_WINDOW_POINTS, MAX_OUTLIER_SHARE = 2000.0, 0.02
"""Over at least so many points, at most this share can be outliers; more are a cluster, and the rule is lifted until a
re-solve finds a gap again, with the outliers so far among the rows."""


class GapRule:
    """Rows beyond a wide gap in the distances from the median are outliers: counted and shown, but not learned.

    The median is that of each coordinate. In data that have no such gap, the rule does nothing; on real data sets
    without planted outliers it found none.

    Attributes
    ----------
    limit
        Squared distance from the median beyond which rows are outliers; infinity without a gap.
    count
        Outliers so far.
    recent
        (m, d) float64: the latest of them, raw units, oldest first.
    """

    def __init__(self, d: int) -> None:
        self.limit = math.inf
        self.count = 0
        self.recent: NDArray[np.float64] = np.empty((0, d))
        self._median, self._factors = np.zeros(d), np.ones(d)
        self._mass = 0.0
        self._window_points = self._window_outliers = 0.0

    @property
    def found(self) -> bool:
        """Whether there ever was an outlier."""
        return self.count > 0

    def remove_outliers(self, X: Real, aged: AgedWeights) -> tuple[Real, AgedWeights]:
        """Take a batch into account; what is returned of it are no outliers.

        Parameters
        ----------
        X, aged
            As for `LiveCentroids.learn`.
        """
        row_weights, decayed = aged.weights, aged.decayed
        weighted = len(row_weights) > 0
        self._mass *= aged.factor
        self._window_points += float(row_weights.sum()) if weighted else float(len(X))
        inside = np.empty(len(X), np.bool_)
        if self.limit < math.inf and within(X, self._median, self._factors, self.limit, inside) < len(X):
            outside = ~inside
            self.count += int(outside.sum())
            self._mass += float(decayed[outside].sum()) if len(decayed) else float(outside.sum())
            self._window_outliers += float(row_weights[outside].sum()) if weighted else float(outside.sum())
            self.recent = np.concatenate([self.recent, X[outside].astype(np.float64)])[-MAX_RECENT:]
            X, aged = frozen(X[inside]), aged.take(inside)
        if self._window_points >= MIN_WINDOW_POINTS:
            if self._window_outliers > MAX_OUTLIER_SHARE * self._window_points:
                self.limit = math.inf
            self._window_points = self._window_outliers = 0.0
        return X, aged

    def decay(self, factor: float) -> None:
        """Let what was seen before count less."""
        self._mass *= factor

    def refit(
        self, rows: NDArray[np.float64], weights: NDArray[np.float64], factors: NDArray[np.float64]
    ) -> NDArray[np.bool_] | None:
        """Find the gap anew in a coreset and the latest outliers, or find that there is none (any more).

        Parameters
        ----------
        rows, weights
            (m, d) and (m,).
        factors
            (d,): units of the distance.

        Returns
        -------
        ndarray or None
            (m,): which of the rows are no outliers; None when none is.
        """
        all_rows, all_weights = rows, weights
        if self._mass > 0.0 and len(self.recent):
            all_rows = np.concatenate([rows, self.recent])
            all_weights = np.concatenate([weights, np.full(len(self.recent), self._mass / len(self.recent))])
        if not all_weights.sum() > 0.0:
            return None
        self._median, self._factors = coordinate_median(all_rows, all_weights), factors.copy()
        squared = np.empty(len(all_rows))
        squares_from(frozen(all_rows), self._median, self._factors, squared)
        self.limit = widest_gap(squared, all_weights, MAX_TAIL_MASS, MIN_GAP_RATIO)
        inside: NDArray[np.bool_] = squared[: len(rows)] <= self.limit
        if inside.all():
            return None
        self.count += round(float(weights[~inside].sum()))
        self._mass += float(weights[~inside].sum())
        self.recent = np.concatenate([rows[~inside], self.recent])[-MAX_RECENT:]
        return inside

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays, by name."""
        return {"gap_middle": self._median.copy(), "gap_factors": self._factors.copy(), "outliers": self.recent.copy()}

    def scalars(self) -> dict[str, Any]:
        """Scalars, by name."""
        limit = None if self.limit == math.inf else self.limit
        return {
            "limit": limit,
            "count": self.count,
            "mass": self._mass,
            "window": [self._window_points, self._window_outliers],
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, Any], d: int) -> GapRule:
        """Undo `arrays` and `scalars`."""
        rule = cls(d)
        rule.limit = math.inf if scalars["limit"] is None else float(scalars["limit"])
        rule.count, rule._mass = int(scalars["count"]), float(scalars["mass"])
        rule._window_points, rule._window_outliers = map(float, scalars["window"])
        rule._median = checked_array(arrays, "gap_middle", np.float64, (d,))
        rule._factors = checked_array(arrays, "gap_factors", np.float64, (d,))
        rule.recent = checked_array(arrays, "outliers", np.float64, (len(arrays["outliers"]), d))
        return rule


def coordinate_median(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) median of each coordinate, over rows that stand for equal shares of the weight."""
    places = np.empty(MEDIAN_ROWS, np.int64)
    even_places(frozen(weights), places)
    middle: NDArray[np.float64] = np.partition(rows[places], MEDIAN_ROWS // 2, axis=0)[MEDIAN_ROWS // 2]
    return middle
