"""Per-cluster history that the lineage tracker keeps between publications."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.models.weighted_rows import Reals

NO_PARENT = -1
"""Value of `ClusterRecords.parents` for a cluster without a pending event."""

_STORED_NAMES = {"remaining_mass": "left", "separated": "apart"}
"""Field -> its name in a saved state, where the two differ."""


@dataclass
class ClusterRecords:
    """History of some clusters, one array entry each.

    Attributes
    ----------
    ids
        (k,) int64.
    centroids, spreads
        (k, d) and (k,), as last published.
    anchors, anchor_spreads
        Centroids and spreads at birth or at the last reported drift.
    remaining_mass
        (k,): mass of the whole model when the cluster entered its current condition (`parents` set, or dormant),
        decayed since. Its share of the current mass falls as points arrive.
    parents
        (k,) int64: id of the cluster that it may have split from, until that is decided; then `NO_PARENT`.
    separated
        (k,) bool: for dormant ids, whether the points stood apart from other clusters, and no more came, when the id
        became dormant.
    silent
        (k,) bool: for dormant ids, whether no points came, when last decided.
    """

    ids: NDArray[np.int64]
    centroids: Reals
    spreads: Reals
    anchors: Reals
    anchor_spreads: Reals
    remaining_mass: Reals
    parents: NDArray[np.int64]
    separated: NDArray[np.bool_]
    silent: NDArray[np.bool_]

    @classmethod
    def without_history(cls, ids: NDArray[np.int64], centroids: Reals, spreads: Reals) -> ClusterRecords:
        """Make records of clusters, (k,), (k, d) and (k,), without a history, anchored where they are."""
        k = len(ids)
        no_parents, no = np.full(k, NO_PARENT, np.int64), np.zeros(k, np.bool_)
        anchors = centroids.copy(), spreads.copy()
        return cls(ids, centroids.copy(), spreads.copy(), *anchors, np.zeros(k), no_parents, no, no.copy())

    @classmethod
    def no_records(cls, d: int) -> ClusterRecords:
        """Make records of no clusters, in d dimensions."""
        ids = np.empty(0, np.int64)
        nothing, nowhere, no = np.empty(0), np.empty((0, d)), np.empty(0, np.bool_)
        return cls(ids, nowhere, nothing, nowhere, nothing, nothing, ids, no, no)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: NDArray[Any]) -> ClusterRecords:
        """Copy the records at (m,) indices."""
        return ClusterRecords(*(getattr(self, f.name)[index] for f in fields(self)))

    def concat(self, other: ClusterRecords) -> ClusterRecords:
        """Make records of these clusters followed by the others."""
        return ClusterRecords(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def inherit(self, j: int, other: ClusterRecords, i: int) -> None:
        """Give cluster j the id and the history of the other records' cluster i."""
        for name in ("ids", "anchors", "anchor_spreads", "remaining_mass", "parents"):
            getattr(self, name)[j] = getattr(other, name)[i]

    def reset_anchors(self, which: NDArray[np.bool_]) -> None:
        """Anchor some clusters, given by a (k,) mask, at their current centroids."""
        self.anchors[which], self.anchor_spreads[which] = self.centroids[which], self.spreads[which]

    def rescale(self, factors: Reals) -> None:
        """Multiply every coordinate by its factor, (d,)."""
        width = float(np.sqrt(np.mean(factors**2)))
        for name in ("centroids", "anchors"):
            setattr(self, name, getattr(self, name) * factors)
        for name in ("spreads", "anchor_spreads"):
            setattr(self, name, getattr(self, name) * width)

    def arrays(self, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
        """Yield copies of the arrays for a saved state, each with its name."""
        for f in fields(self):
            yield prefix + _STORED_NAMES.get(f.name, f.name), getattr(self, f.name).copy()

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> ClusterRecords:
        """Restore records from `arrays`.

        Raises
        ------
        StateError
            An array has the wrong shape.
        KeyError
            An array is missing.
        """
        names = [prefix + _STORED_NAMES.get(f.name, f.name) for f in fields(cls)]
        records = cls(*(np.array(arrays[name]) for name in names))
        k, d = records.centroids.shape
        for f, name in zip(fields(cls), names, strict=True):
            if getattr(records, f.name).shape != ((k, d) if f.name in ("centroids", "anchors") else (k,)):
                raise StateError(f"array {name!r} has the shape {getattr(records, f.name).shape}")
        return records
