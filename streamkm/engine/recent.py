"""A sample of the points that were learned last, and the ends of the partitions, for display."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamkm.records import Position
from streamkm.state import Recent

MAX_POINTS = 500
"""Points in a sample."""
MAX_VALUES = 40_000
"""Coordinates in a sample: fewer points in many dimensions."""


class RecentSample:
    """Collects the `Recent` of the next commit. Nothing is learned or derived from it.

    The cost per mini-batch is a copy of the sampled points, independent of the size of the mini-batch.

    Parameters
    ----------
    n_fields
        d, the dimension of a point.
    last
        The sample of the previous owner, returned until there are newer points.
    """

    def __init__(self, n_fields: int, last: Recent | None = None) -> None:
        self.max_points = min(MAX_POINTS, MAX_VALUES // n_fields)
        self._pieces: deque[NDArray[np.float64]] = deque()
        self._n_points = 0
        self._points = np.empty((0, n_fields)) if last is None else last.points
        self._ends: Position = {} if last is None else last.ends

    def add(self, ranges: Sequence[NDArray[np.float64]]) -> None:
        """Sample a mini-batch: points at an even stride, including the last.

        Parameters
        ----------
        ranges
            Arrays (n_i, d), in the order in which they were learned.
        """
        total = sum(map(len, ranges))
        if not total or not self.max_points:
            return
        stride = -(-total // self.max_points)
        at = (total - 1) % stride  # index of the next sampled point in the range
        for points in ranges:
            if at < len(points):
                piece = points[at::stride].copy()  # a view would keep the whole mini-batch in memory
                self._pieces.append(piece)
                self._n_points += len(piece)
                at += stride * len(piece)
            at -= len(points)
        while self._n_points - len(self._pieces[0]) >= self.max_points:
            self._n_points -= len(self._pieces.popleft())

    def take(self, ends: Position) -> Recent | None:
        """The sample since the last call; None when nothing has changed.

        Parameters
        ----------
        ends
            End offset of each partition (one above its newest record), as far as known.
        """
        if not self._pieces and ends == self._ends:
            return None
        if self._pieces:
            self._points = np.concatenate(self._pieces)[-self.max_points :]
            self._pieces.clear()
            self._n_points = 0
        self._ends = dict(ends)
        return Recent(self._points, self._ends)
