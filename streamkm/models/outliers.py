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
from streamkm.models.centroids import array
from streamkm.models.decay import Aged
from streamkm.models.validation import frozen

TAIL = 0.005
"""Only the outermost rows, with at most this share of the mass, can be outliers."""

GAP = 100.0
"""A gap: the squared distance from the median grows by this factor from one row to the next."""

MEDIAN_ROWS = 255
"""The median is that of so many rows, picked evenly."""

RECENT = 256
"""The latest outliers are remembered."""

WINDOW, TOO_MANY = 2000.0, 0.02
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
        self._middle, self._factors = np.zeros(d), np.ones(d)
        self._mass = 0.0
        self._points = self._out = 0.0

    @property
    def found(self) -> bool:
        """Whether there ever was an outlier."""
        return self.count > 0

    def leave_out(self, X: Real, aged: Aged) -> tuple[Real, Aged]:
        """Take a batch into account; what is returned of it are no outliers.

        Parameters
        ----------
        X, aged
            As for `LiveCentroids.learn`.
        """
        row_weights, decayed = aged.weights, aged.decayed
        weighted = len(row_weights) > 0
        self._mass *= aged.factor
        self._points += float(row_weights.sum()) if weighted else float(len(X))
        inside = np.empty(len(X), np.bool_)
        if self.limit < math.inf and within(X, self._middle, self._factors, self.limit, inside) < len(X):
            outside = ~inside
            self.count += int(outside.sum())
            self._mass += float(decayed[outside].sum()) if len(decayed) else float(outside.sum())
            self._out += float(row_weights[outside].sum()) if weighted else float(outside.sum())
            self.recent = np.concatenate([self.recent, X[outside].astype(np.float64)])[-RECENT:]
            X, aged = frozen(X[inside]), aged.take(inside)
        if self._points >= WINDOW:
            if self._out > TOO_MANY * self._points:
                self.limit = math.inf
            self._points = self._out = 0.0
        return X, aged

    def decay(self, factor: float) -> None:
        """Let what was seen before count less."""
        self._mass *= factor

    def look(
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
        self._middle, self._factors = robust_middle(all_rows, all_weights), factors.copy()
        squared = np.empty(len(all_rows))
        squares_from(frozen(all_rows), self._middle, self._factors, squared)
        self.limit = widest_gap(squared, all_weights, TAIL, GAP)
        inside: NDArray[np.bool_] = squared[: len(rows)] <= self.limit
        if inside.all():
            return None
        self.count += round(float(weights[~inside].sum()))
        self._mass += float(weights[~inside].sum())
        self.recent = np.concatenate([rows[~inside], self.recent])[-RECENT:]
        return inside

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays, by name."""
        return {"gap_middle": self._middle.copy(), "gap_factors": self._factors.copy(), "outliers": self.recent.copy()}

    def numbers(self) -> dict[str, Any]:
        """Scalars, by name."""
        limit = None if self.limit == math.inf else self.limit
        return {"limit": limit, "count": self.count, "mass": self._mass, "window": [self._points, self._out]}

    @classmethod
    def restore(cls, arrays: Mapping[str, NDArray[Any]], numbers: Mapping[str, Any], d: int) -> GapRule:
        """Undo `arrays` and `numbers`."""
        rule = cls(d)
        rule.limit = math.inf if numbers["limit"] is None else float(numbers["limit"])
        rule.count, rule._mass = int(numbers["count"]), float(numbers["mass"])
        rule._points, rule._out = map(float, numbers["window"])
        rule._middle = array(arrays, "gap_middle", np.float64, (d,))
        rule._factors = array(arrays, "gap_factors", np.float64, (d,))
        rule.recent = array(arrays, "outliers", np.float64, (len(arrays["outliers"]), d))
        return rule


def robust_middle(rows: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """(d,) median of each coordinate, over rows that stand for equal shares of the weight."""
    places = np.empty(MEDIAN_ROWS, np.int64)
    even_places(frozen(weights), places)
    middle: NDArray[np.float64] = np.partition(rows[places], MEDIAN_ROWS // 2, axis=0)[MEDIAN_ROWS // 2]
    return middle
