"""Stable cluster ids and lineage events (birth, death, split, merge, drift) across publications of a model.

A re-solve may return centroids in any order. `LineageTracker` matches each publication with the previous one by
weighted rows (a coreset), not by centroids alone: two clusters are the same if they hold the same points.

**Ids.** The overlap of an old and a new cluster is the mass of the rows that have both labels, summed over
representatives of the old rows and over the new rows. The assignment with the greatest total overlap (Kuhn 1955, by
scipy) passes an id on where the overlap is at least half of the smaller and a fifth of the larger cluster. A new
cluster whose rows within its reach (three times its spread) overlap old clusters by less than a tenth is *born*: it
gets a new id.

**Events** follow the transitions of MONIC (Spiliopoulou et al. 2006), but are decided by arrivals: the mass that
arrived since the representatives were picked, once it is at least a quarter of all mass.

- birth: the cluster is born, or has no predecessor and gets at least 1.5 times the arrivals that its mass explains;
- split: it has no predecessor, and its points were there before and belonged to another cluster;
- death: an old cluster has no successor, stood apart, and gets less than 0.3 of its expected arrivals;
- merge: it has no successor, and its points kept arriving, or belong to another cluster now;
- drift: a centroid is further than twice its spread from its position at birth or at the last reported drift.

Changes of fewer than 20 points (a weight of one is a point) are evidence of none of these.

**Causes.** A re-solve may partition the same points differently, and permanently, because a few far points attract a
centroid. So a split or a merge is reported only if something changed at about the time it began or later: k, a birth,
or the points themselves (the share or the mean of an old cluster's points, within its old borders, by 3.5 standard
errors, see `Comparison.has_changed`). A death needs such a change too, which may be older. Otherwise ids appear and
disappear without an event.

**Waiting.** With k fixed, k-means has near-ties: two clusters are fused and another is cut, and the next re-solve
undoes it. A fading cluster that still holds a centroid has the same effect. So an id without successor becomes
*dormant*, and is restored when its points have a cluster of their own again. All events but births are reported only
after they have lasted while a quarter of the mass arrived; a merge of two groups that still stand apart
(`weighted_rows.separation`) after nine tenths or, while some cluster fades, 99 %. In half-lives these are 0.4, 3.3 and
6.6; without decay the stream has grown by a third, tenfold, a hundredfold. Where k itself changed, there is no waiting.

**Limitation.** If the model's memory is much longer than the time in which a cluster moves into another one, the old
points of the moved cluster are still at their old position, and a death is reported instead of a merge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.models.lineage.cluster_records import NO_PARENT, ClusterRecords
from streamkm.models.lineage.transitions import (
    MIN_SPREAD,
    SILENT_MAX_ARRIVALS,
    Comparison,
    LabeledRows,
    Matching,
    birth,
    drifts,
    resolve_vanished,
    settle_new,
)
from streamkm.models.weighted_rows import Labels, Reals, masses, nearest, pick_representatives, spreads
from streamkm.state import ModelEvent

REPRESENTATIVES, REPRESENTATIVES_PER_CLUSTER = 2048, 32
"""Number of representative rows kept of a publication: the larger of the two limits."""


class LineageTracker:
    """Assigns ids at each publication and reports the events since the previous one.

    Attributes
    ----------
    next_id
        The lowest id that was never used. A caller that assigns ids between publications takes them from here, with
        `new_id`, and may pass them to the next publication.
    """

    def __init__(self) -> None:
        self.next_id = 0
        self._published = 0  # ids from here on were never published
        self._newest = 0  # ids from here on are newer than the representatives
        self._records: ClusterRecords | None = None
        self._dormant = ClusterRecords.no_records(0)
        self._rows: Reals = np.empty((0, 0))
        self._weights: Reals = np.empty(0)
        self._remaining_mass = 0.0  # mass at the time of the representatives, decayed
        self._fading = False
        self._last_change_mass = 0.0  # mass at the last significant change of the points, decayed

    @property
    def ids(self) -> NDArray[np.int64]:
        """(k,) int64: ids as last published; empty before the first publication."""
        return np.empty(0, np.int64) if self._records is None else self._records.ids.copy()

    def new_id(self) -> int:
        """Take an unused id."""
        self.next_id += 1
        return self.next_id - 1

    def rescale(self, factors: Reals) -> None:
        """Follow a change of the scale in which publications are made.

        Parameters
        ----------
        factors
            (d,), positive: every coordinate is multiplied by its factor.
        """
        for records in (self._records, self._dormant):
            if records is not None and len(records):
                records.rescale(factors)
        if len(self._rows):
            self._rows = self._rows * factors

    def publish(
        self,
        centroids: Reals,
        rows: Reals,
        weights: Reals,
        mass: float,
        *,
        decay: float = 1.0,
        current_ids: NDArray[np.int64] | None = None,
        assigned: tuple[Labels, Reals] | None = None,
    ) -> tuple[NDArray[np.int64], tuple[ModelEvent, ...]]:
        """Assign ids to new centroids.

        Parameters
        ----------
        centroids
            (k, d), in the same Euclidean space each time; k may differ from the previous publication.
        rows, weights
            (m, d) and (m,): a coreset of everything learned; only proportions of the weights matter.
        mass
            Decayed weight of everything learned.
        decay
            Factor in [0, 1] by which the weights have decayed since the previous publication.
        current_ids
            (k,): ids that the caller uses now. Ids taken with `new_id` since the previous publication are reused for
            clusters that would get a new id; others are ignored.
        assigned
            (m,) each, if known: the nearest centroid of each row, and the squared distance to it.

        Returns
        -------
        ids
            (k,) int64.
        events
            Births, deaths, splits, merges, drifts, in this order.
        """
        if not weights.sum() > 0.0:
            rows, weights, assigned = centroids, np.ones(len(centroids)), None
        shares = weights / weights.sum()
        labels, squared = nearest(rows, centroids) if assigned is None else assigned
        wide = spreads(labels, squared, shares, len(centroids))
        records = ClusterRecords.without_history(
            self._ids_given_by_caller(current_ids, len(centroids)), centroids, wide
        )
        events: tuple[ModelEvent, ...] = ()
        enough_arrived = True
        if self._records is None:
            self._dormant = ClusterRecords.no_records(centroids.shape[1])
            records.ids[:] = [self.new_id() if i == NO_PARENT else i for i in records.ids.tolist()]
        else:
            self._remaining_mass *= decay
            self._last_change_mass *= decay
            self._records.remaining_mass *= decay
            self._dormant.remaining_mass *= decay
            min_spread = MIN_SPREAD * float(np.sqrt((shares * squared).sum()))
            old, known = self._records, self._records.concat(self._dormant)
            then = LabeledRows.label(self._rows, self._weights, (old, known, records), min_spread)
            now = LabeledRows.label(rows, shares, (old, known, records), min_spread)
            comparison = Comparison(then, now, old, known, self._remaining_mass, mass)
            events = self._follow(records, comparison, min_spread)
            enough_arrived = comparison.enough_arrived
        self._records = records
        self._published = self.next_id
        if enough_arrived:
            size = max(REPRESENTATIVES, REPRESENTATIVES_PER_CLUSTER * len(centroids))
            self._rows, self._weights = pick_representatives(rows, shares, labels, squared, len(centroids), size)
            self._remaining_mass, self._newest = mass, self.next_id
        return self.ids, events

    def _ids_given_by_caller(self, current_ids: NDArray[np.int64] | None, k: int) -> NDArray[np.int64]:
        """(k,) the ids taken by the caller since the previous publication, else `NO_PARENT`."""
        ids = np.full(k, NO_PARENT, np.int64)
        if current_ids is not None:
            ids = np.where(current_ids >= self._published, current_ids, NO_PARENT)
            self.next_id = max(self.next_id, int(ids.max(initial=NO_PARENT)) + 1)
        return ids

    def _follow(self, records: ClusterRecords, comparison: Comparison, min_spread: float) -> tuple[ModelEvent, ...]:
        """Complete the records of the new clusters, and return the events."""
        old, known, mass, k = comparison.old, comparison.known, comparison.mass, len(records)
        # Step 1. Pass ids on; a dormant id is restored, an empty cluster keeps its id.
        matching = Matching.find(comparison, k, self._newest)
        share = masses(comparison.now.new, comparison.now.weights, k)
        empty = old.ids[matching.empty].tolist()
        births = []
        for j, i in enumerate(matching.predecessors):
            if i >= 0:
                records.inherit(j, known, i)
                if i >= len(old):
                    records.remaining_mass[j] = mass
            elif share[j] == 0.0 and empty:
                records.ids[j] = empty.pop(0)
            else:
                if records.ids[j] == NO_PARENT:
                    records.ids[j] = self.new_id()
                if matching.born[j]:
                    births.append(birth(int(records.ids[j]), share[j]))
                elif share[j] > 0.0:
                    records.parents[j], records.remaining_mass[j] = matching.owners[j], mass if k <= len(old) else 0.0
        # Step 2. Ids without a successor become dormant.
        lost = np.ones(len(known), np.bool_)
        lost[[i for i in matching.predecessors if i >= 0]] = False
        lost[: len(old)] &= ~matching.empty
        indices = np.flatnonzero(lost)
        dormant = known.take(indices)
        dormant.remaining_mass[indices < len(old)] = mass if k >= len(old) else 0.0
        # Step 3. Decide by arrivals.
        if comparison.enough_arrived:
            got, due = comparison.arrivals("known", len(known), "in_known_reach")
            fading = (got <= SILENT_MAX_ARRIVALS * due) & (due > 0.0)
            self._fading = bool(fading[[i for i in matching.predecessors if 0 <= i < len(old)]].any())
        if births or k != len(old) or (comparison.enough_arrived and comparison.has_changed(min_spread)):
            self._last_change_mass = mass
        late, splits = settle_new(records, comparison, self._last_change_mass)
        vanished = resolve_vanished(dormant, indices, records, comparison, self._last_change_mass, fading=self._fading)
        self._dormant = vanished.dormant
        # Step 4. Clusters that were split or merged get new anchors; undecided clusters report no drift.
        changed_ids = [i for event in (*splits, *vanished.merges) for i in event.after]
        records.reset_anchors(np.isin(records.ids, changed_ids))
        unborn = records.parents != NO_PARENT
        waiting = {*vanished.hosts, *records.parents[unborn].tolist(), *records.ids[unborn].tolist()}
        return (
            *births,
            *late,
            *vanished.deaths,
            *splits,
            *vanished.merges,
            *drifts(records, share, comparison, waiting, min_spread),
        )

    # Saving

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return copies of the arrays, by name: about 2,000 representative rows, and some numbers per cluster."""
        if self._records is None:
            return {}
        records = dict(self._records.arrays("lives_")) | dict(self._dormant.arrays("resting_"))
        return records | {"digest": self._rows.copy(), "digest_weights": self._weights.copy()}

    def params(self) -> dict[str, Any]:
        """Return the scalars, as JSON values."""
        return {
            "next_id": self.next_id,
            "published": self._published,
            "newest": self._newest,
            "left": self._remaining_mass,
            "fading": self._fading,
            "stirred": self._last_change_mass,
        }

    @classmethod
    def from_parts(cls, params: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> LineageTracker:
        """Restore a tracker from `params` and `arrays`.

        Raises
        ------
        StateError
            The arrays have inconsistent shapes.
        KeyError
            A parameter or an array is missing.
        """
        lineage = cls()
        lineage.next_id = int(params["next_id"])
        lineage._published, lineage._newest = int(params["published"]), int(params["newest"])
        lineage._remaining_mass, lineage._fading = float(params["left"]), bool(params["fading"])
        lineage._last_change_mass = float(params["stirred"])
        if "lives_ids" in arrays:
            lineage._records = ClusterRecords.from_arrays(arrays, "lives_")
            lineage._dormant = ClusterRecords.from_arrays(arrays, "resting_")
            lineage._rows, lineage._weights = np.array(arrays["digest"]), np.array(arrays["digest_weights"])
            if lineage._rows.shape != (len(lineage._weights), lineage._records.centroids.shape[1]):
                raise StateError(f"array 'digest' has the shape {lineage._rows.shape}")
        return lineage
