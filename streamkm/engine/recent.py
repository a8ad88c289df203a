"""Some of the points learned last, and where the partitions end: for people to look at."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamkm.records import Position
from streamkm.state import Recent

MAX_POINTS = 500
MAX_VALUES = 40_000
"""Most numbers in these points: fewer points where they are long."""


class RecentSample:
    """What the commits of one tenure carry as `Recent`. Nothing is learned or derived from it.

    A mini-batch costs a copy of the points that are kept of it, and nothing that grows with its size.

    Parameters
    ----------
    n_fields
        d, numbers of a point.
    last
        What the model's last owner saw, to be shown until there is something newer.
    """

    def __init__(self, n_fields: int, last: Recent | None = None) -> None:
        self.most = min(MAX_POINTS, MAX_VALUES // n_fields)
        self._pieces: deque[NDArray[np.float64]] = deque()
        self._held = 0
        self._points = np.empty((0, n_fields)) if last is None else last.points
        self._ends: Position = {} if last is None else last.ends

    def add(self, ranges: Sequence[NDArray[np.float64]]) -> None:
        """Keep some points of a mini-batch: evenly strided over all of it, its last one among them.

        Parameters
        ----------
        ranges
            (n_i, d) each, in the order in which they were learned.
        """
        total = sum(map(len, ranges))
        if not total or not self.most:
            return
        stride = -(-total // self.most)
        at = (total - 1) % stride  # of the next point to keep, from the beginning of the range
        for points in ranges:
            if at < len(points):
                piece = points[at::stride].copy()  # a view would keep the whole batch in memory
                self._pieces.append(piece)
                self._held += len(piece)
                at += stride * len(piece)
            at -= len(points)
        while self._held - len(self._pieces[0]) >= self.most:
            self._held -= len(self._pieces.popleft())

    def take(self, ends: Position) -> Recent | None:
        """What a commit is to carry; None when it would tell nothing new.

        Parameters
        ----------
        ends
            One above the newest record of each partition, as far as known.
        """
        if not self._pieces and ends == self._ends:
            return None
        if self._pieces:
            self._points = np.concatenate(self._pieces)[-self.most :]
            self._pieces.clear()
            self._held = 0
        self._ends = dict(ends)
        return Recent(self._points, self._ends)
