"""Ordering of points by a k-d tree, in memory or out of core, with the same result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels.exact.layout import find_leaves, move_rows, split_sample
from streamkm.kernels.exact.sums import Real
from streamkm.models.exact.storage import Storage, copy_rows, release
from streamkm.models.exact.threads import ThreadTeam

_LEVELS = 11
"""Maximum levels of a stage: out of core, the pages at the ends of its 2**11 = 2048 parts may be in memory."""

_SAMPLE = 32
"""Sampled rows per part for choosing cuts: with these, one part in fifty is a third too large."""

_NANOSECONDS = 20.0
"""Approximate duration of a stage, per row."""


@dataclass(frozen=True)
class KdOrdered:
    """Points ordered by a k-d tree.

    Parameters
    ----------
    raw
        (n, d) the points, in order; None if they were not given.
    weights
        (n,) in order; (0,) for ones.
    permutation
        (n,) previous index of each row.
    offsets
        (blocks + 1,) first row of each block, then n.
    """

    raw: Real | None
    weights: NDArray[np.float64]
    permutation: NDArray[np.int32]
    offsets: NDArray[np.int64]


def sort_by_kd_tree(
    rows: NDArray[np.float32],
    raw: Real | None,
    weights: NDArray[np.float64],
    block: int,
    team: ThreadTeam,
    storage: Storage,
) -> KdOrdered:
    """Order rows by a k-d tree, in place, and other arrays with them.

    Parameters
    ----------
    rows
        INOUT (n, d) working coordinates.
    raw
        (n, d) to be ordered like the rows, or None.
    weights
        (n,) to be ordered like the rows, or (0,).
    block
        Target number of rows per block; no block has more than 1.5 times as many.
    team
        Threads to use.
    storage
        Allocates arrays.
    """
    n, d = rows.shape
    limit = storage.max_rows(8 * d + 18 + (0 if raw is None else 2 * d * raw.itemsize)) or n
    sorter = _Sorter(rows, block, team, storage, limit)
    permutation = storage.allocate((n,), np.int32)
    for a, b in sorter.chunks(0, n):
        permutation[a:b] = np.arange(a, b)
        release(permutation, a, b)
    sorter.add_array(permutation)
    ordered_raw: Any = None if raw is None else sorter.add_array(sorter.copy(raw))
    ordered_weights = sorter.add_array(sorter.copy(weights)) if len(weights) else weights
    return KdOrdered(ordered_raw, ordered_weights, permutation, sorter.sort())


class _Sorter:
    """Moves the rows of a node to its parts, in chunks, alternating between two arrays from level to level.

    Rows of a part keep their order, so the result does not depend on chunks or threads.
    """

    def __init__(self, rows: NDArray[np.float32], block: int, team: ThreadTeam, storage: Storage, limit: int) -> None:
        self._n, self._block, self._team, self._storage, self._limit = len(rows), block, team, storage, limit
        self._most = block + block // 2
        self._leaves = np.empty(limit, np.uint16)
        self._pairs: list[tuple[NDArray[Any], NDArray[Any]]] = []
        self.add_array(rows)

    def copy(self, source: NDArray[Any]) -> NDArray[Any]:
        """Copy an array, (n,) or (n, m), that must not be changed."""
        array = self._storage.allocate(source.shape, source.dtype)
        for a, b in self.chunks(0, self._n):
            array[a:b] = source[a:b]
            release(array, a, b)
            release(source, a, b)
        return array

    def add_array(self, array: NDArray[Any]) -> NDArray[Any]:
        """Register an array, (n,) or (n, m), to be ordered like the rows, and return it."""
        spare = self._storage.allocate(array.shape, array.dtype)
        self._pairs.append((array.reshape(self._n, -1), spare.reshape(self._n, -1)))
        return array

    def chunks(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Divide rows into ranges that may be in memory, as (start, stop)."""
        return [(a, min(stop, a + self._limit)) for a in range(start, stop, self._limit)]

    def sort(self) -> NDArray[np.int64]:
        """Sort all rows, in depth-first order; return the first row of each block, then n."""
        offsets: list[int] = []
        stack = [(0, self._n, False)]
        spared = 0, 0  # range of the last leaves that are in the spare arrays; they are copied back together
        finished = 0  # rows before this one are finished
        while stack:
            start, stop, in_spare = stack.pop()
            ends = self._split(start, stop, in_spare=in_spare)
            if ends:
                parts = [(a, b, not in_spare) for a, b in zip([start, *ends[:-1]], ends, strict=True) if b > a]
                stack += reversed(parts)
                continue
            pieces = -(-(stop - start) // self._most)
            offsets += [start + piece * (stop - start) // pieces for piece in range(pieces)]
            if in_spare:
                if spared[1] != start:
                    self._copy_back(*spared)
                    spared = start, start
                spared = spared[0], stop
            if stop - finished >= self._limit:
                self._copy_back(*spared)
                spared = stop, stop
                for pair in self._pairs:
                    release(pair[0], finished, stop)
                    release(pair[1], finished, stop)
                finished = stop
        self._copy_back(*spared)
        return np.array([*offsets, self._n])

    def _copy_back(self, start: int, stop: int) -> None:
        for a, b in self.chunks(start, stop):
            for array, spare in self._pairs:
                array[a:b] = spare[a:b]
                if stop - start > self._limit:
                    release(array, a, b)
                    release(spare, a, b)

    def _split(self, start: int, stop: int, *, in_spare: bool) -> list[int]:
        """Move the rows of a node to its parts; return the ends of the parts, or an empty list if it is a leaf."""
        size, levels, team = stop - start, 0, self._team
        if size <= self._most:
            return []
        while (size >> levels) > self._block + self._block // 4:
            levels += 1
        rows = self._pairs[0][in_spare]
        fits = size <= self._limit  # if so, its pages stay in memory until all of its rows are finished
        # Equal numbers of levels per stage: eight and eight have fewer nodes than eleven and five.
        levels = -(-levels // -(-levels // _LEVELS))
        axes, cuts = np.empty(1 << levels, np.uint32), np.empty(1 << levels, np.float32)
        sampled = np.arange(start, stop, max(1, size // (_SAMPLE << levels)))
        split_sample(rows[sampled] if fits else copy_rows(rows, sampled), levels, axes, cuts)
        chunks = self.chunks(start, stop)
        counts = np.zeros((team.n_threads if fits else len(chunks), 1 << levels), np.int64)
        cost = _NANOSECONDS * size

        def leaves(a: int, b: int) -> NDArray[np.uint16]:
            return self._leaves[a - start : b - start] if fits else self._leaves[: b - a]

        def find(piece: int, a: int, b: int) -> None:
            find_leaves(rows, a, b, levels, axes, cuts, leaves(a, b), counts[piece])

        if fits:
            team.divide(start, stop, find, cost)
        else:
            for piece, (a, b) in enumerate(chunks):
                find(piece, a, b)
                release(rows, a, b)
        whole = counts.sum(axis=0)
        if whole.max() == size:  # all rows are equal: any order will do
            return []
        ends = start + np.cumsum(whole)
        begins = ends - whole + np.cumsum(counts, axis=0) - counts

        def move(piece: int, a: int, b: int) -> None:
            for pair in self._pairs:
                source, target, cursors = pair[in_spare], pair[not in_spare], begins[piece].copy()
                move_rows(source.view(np.int32), target.view(np.int32), a, b, leaves(a, b), cursors)
                if not fits:
                    release(source, a, b)
                    for first, last in zip(begins[piece].tolist(), cursors.tolist(), strict=True):
                        release(target, first, last)

        if fits:
            team.divide(start, stop, move, cost)
        else:
            for piece, (a, b) in enumerate(chunks):
                find(piece, a, b)
                move(piece, a, b)
        found: list[int] = ends.tolist()
        return found
