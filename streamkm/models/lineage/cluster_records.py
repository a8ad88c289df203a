"""What lineage remembers of clusters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.models.weighted_rows import Reals

SETTLED = -1
"""Parent of a cluster about which nothing is left to report."""


@dataclass
class Lives:
    """What is remembered of some clusters; arrays of one length.

    Attributes
    ----------
    ids
        (k,) int64.
    centroids, spreads
        (k, d) and (k,), as last published.
    anchors, anchor_spreads
        The same at its birth or last drift.
    left
        (k,): of the mass of the whole model when its present condition (below) began, what decay has left.
    parents
        (k,) int64: the id it seems to have split from while that is not reported, else `SETTLED`.
    apart
        (k,) bool: of an id at rest, whether its points stood apart, and no more came, when it came to rest.
    silent
        (k,) bool: of an id at rest, whether none came when that last was judged.
    """

    ids: NDArray[np.int64]
    centroids: Reals
    spreads: Reals
    anchors: Reals
    anchor_spreads: Reals
    left: Reals
    parents: NDArray[np.int64]
    apart: NDArray[np.bool_]
    silent: NDArray[np.bool_]

    @classmethod
    def begin(cls, ids: NDArray[np.int64], centroids: Reals, spreads: Reals) -> Lives:
        """Clusters without a history."""
        k = len(ids)
        settled, no = np.full(k, SETTLED, np.int64), np.zeros(k, np.bool_)
        anchors = centroids.copy(), spreads.copy()
        return cls(ids, centroids.copy(), spreads.copy(), *anchors, np.zeros(k), settled, no, no.copy())

    @classmethod
    def none(cls, d: int) -> Lives:
        """No clusters, of d dimensions."""
        ids = np.empty(0, np.int64)
        nothing, nowhere, no = np.empty(0), np.empty((0, d)), np.empty(0, np.bool_)
        return cls(ids, nowhere, nothing, nowhere, nothing, nothing, ids, no, no)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: NDArray[Any]) -> Lives:
        """Copies of those at an index."""
        return Lives(*(getattr(self, f.name)[index] for f in fields(self)))

    def plus(self, other: Lives) -> Lives:
        """These, then others."""
        return Lives(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def go_on(self, j: int, other: Lives, i: int) -> None:
        """Let j have the id and the history of another's i."""
        for name in ("ids", "anchors", "anchor_spreads", "left", "parents"):
            getattr(self, name)[j] = getattr(other, name)[i]

    def anchor(self, which: NDArray[np.bool_]) -> None:
        """Anchor some of them where they are."""
        self.anchors[which], self.anchor_spreads[which] = self.centroids[which], self.spreads[which]

    def rescale(self, factors: Reals) -> None:
        """Multiply every coordinate by its factor, (d,)."""
        width = float(np.sqrt(np.mean(factors**2)))
        for name in ("centroids", "anchors"):
            setattr(self, name, getattr(self, name) * factors)
        for name in ("spreads", "anchor_spreads"):
            setattr(self, name, getattr(self, name) * width)

    def arrays(self, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
        """Copies of the arrays, each with its name."""
        for f in fields(self):
            yield prefix + f.name, getattr(self, f.name).copy()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> Lives:
        """Undo `arrays`."""
        lives = cls(*(np.array(arrays[prefix + f.name]) for f in fields(cls)))
        k, d = lives.centroids.shape
        for f in fields(cls):
            if getattr(lives, f.name).shape != ((k, d) if f.name in ("centroids", "anchors") else (k,)):
                raise StateError(f"array {prefix + f.name!r} has the shape {getattr(lives, f.name).shape}")
        return lives
