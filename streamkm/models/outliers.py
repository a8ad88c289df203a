"""Outlier detection by gaps: rows so far from all others that a centroid following one would be lost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.assign import Real
from streamkm.kernels.outliers import mask_within, squared_distances_from, widest_gap
from streamkm.kernels.reductions import evenly_spaced_rows
from streamkm.models.centroids import checked_array
from streamkm.models.decay import AgedWeights
from streamkm.models.validation import frozen

MAX_TAIL_MASS = 0.005
"""Maximum share of the mass that can be outliers."""

MIN_GAP_RATIO = 100.0
"""Minimum ratio of the squared distances from the median of two successive rows for a gap between them."""

MEDIAN_ROWS = 255
"""Rows, picked evenly by weight, from which the median is computed."""

MAX_RECENT = 256
"""Outliers that are remembered."""

MIN_WINDOW_POINTS, MAX_OUTLIER_SHARE = 2000.0, 0.02
"""In a window of this many points, at most this share can be outliers. If there are more, they are a cluster, and the
limit is lifted until a re-solve finds a gap again, with the remembered outliers among the rows."""


class GapRule:
    """Treats rows beyond a wide gap in the distances from the median as outliers: counted and shown, but not learned.

    The median is computed by coordinate. In data without such a gap, the rule does nothing; on real data sets without
    planted outliers it found none.

    Attributes
    ----------
    limit
        Squared distance from the median beyond which rows are outliers; infinity without a gap.
    count
        Number of outliers so far.
    recent
        (m, d) float64: the latest outliers, raw units, oldest first.
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
        """Whether there has been an outlier."""
        return self.count > 0

    def remove_outliers(self, X: Real, aged: AgedWeights) -> tuple[Real, AgedWeights]:
        """Count the outliers of a batch, and return the batch without them.

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
        if self.limit < math.inf and mask_within(X, self._median, self._factors, self.limit, inside) < len(X):
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
        """Multiply the mass of past outliers by a factor."""
        self._mass *= factor

    def refit(
        self, rows: NDArray[np.float64], weights: NDArray[np.float64], factors: NDArray[np.float64]
    ) -> NDArray[np.bool_] | None:
        """Find the gap from a coreset and the remembered outliers, or lift the limit if there is none.

        Parameters
        ----------
        rows, weights
            (m, d) and (m,).
        factors
            (d,): scale factors of the distance.

        Returns
        -------
        ndarray or None
            (m,): mask of the rows that are no outliers; None if there are no outliers.
        """
        all_rows, all_weights = rows, weights
        if self._mass > 0.0 and len(self.recent):
            all_rows = np.concatenate([rows, self.recent])
            all_weights = np.concatenate([weights, np.full(len(self.recent), self._mass / len(self.recent))])
        if not all_weights.sum() > 0.0:
            return None
        self._median, self._factors = coordinate_median(all_rows, all_weights), factors.copy()
        squared = np.empty(len(all_rows))
        squared_distances_from(frozen(all_rows), self._median, self._factors, squared)
        self.limit = widest_gap(squared, all_weights, MAX_TAIL_MASS, MIN_GAP_RATIO)
        inside: NDArray[np.bool_] = squared[: len(rows)] <= self.limit
        if inside.all():
            return None
        self.count += round(float(weights[~inside].sum()))
        self._mass += float(weights[~inside].sum())
        self.recent = np.concatenate([rows[~inside], self.recent])[-MAX_RECENT:]
        return inside

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays, by name."""
        return {"gap_middle": self._median.copy(), "gap_factors": self._factors.copy(), "outliers": self.recent.copy()}

    def scalars(self) -> dict[str, Any]:
        """Return the scalars, by name."""
        limit = None if self.limit == math.inf else self.limit
        return {
            "limit": limit,
            "count": self.count,
            "mass": self._mass,
            "window": [self._window_points, self._window_outliers],
        }

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], scalars: Mapping[str, Any], d: int) -> GapRule:
        """Restore a rule from `arrays` and `scalars`."""
        rule = cls(d)
        rule.limit = math.inf if scalars["limit"] is None else float(scalars["limit"])
        rule.count, rule._mass = int(scalars["count"]), float(scalars["mass"])
        rule._window_points, rule._window_outliers = map(float, scalars["window"])
        rule._median = checked_array(arrays, "gap_middle", np.float64, (d,))
        rule._factors = checked_array(arrays, "gap_factors", np.float64, (d,))
        rule.recent = checked_array(arrays, "outliers", np.float64, (len(arrays["outliers"]), d))
        return rule


def coordinate_median(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) median of each coordinate, over rows that represent equal shares of the weight."""
    places = np.empty(MEDIAN_ROWS, np.int64)
    evenly_spaced_rows(frozen(weights), places)
    middle: NDArray[np.float64] = np.partition(rows[places], MEDIAN_ROWS // 2, axis=0)[MEDIAN_ROWS // 2]
    return middle
