"""Rules of the lineage tracker: matching of old and new clusters, and the events that follow from it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from streamkm.models.lineage.cluster_records import NO_PARENT, ClusterRecords
from streamkm.models.weighted_rows import Labels, Reals, masses, nearest, overlap, separation
from streamkm.state import ModelEvent

MIN_SHARE_OF_SMALLER, MIN_SHARE_OF_LARGER = 0.5, 0.2
"""An id is passed on if the overlap is at least these shares of the smaller and of the larger cluster."""
BIRTH_MAX_OVERLAP = 0.1
"""A cluster is born if its overlap with old clusters is below this share of its mass."""
BIRTH_MIN_GROWTH = 1.5
"""A cluster is new if its share of the arrivals is at least this multiple of its share of the mass."""
SILENT_MAX_ARRIVALS = 0.3
"""A cluster is silent if it gets at most this share of its expected arrivals."""
ACTIVE_MIN_ARRIVALS = 0.5
"""A cluster is active if it gets more than this share of its expected arrivals, plus two standard errors."""
MIN_POINTS = 20.0
"""Points (of weight one), arrived or missing, that are needed as evidence of a birth or a death."""
REACH_SPREADS = 3.0
"""Reach of a cluster: this many spreads around its centroid."""
MIN_SPREAD = 0.05
"""Lower limit of a spread, as a share of the overall spread: clusters of equal rows have spread 0."""
MIN_SEPARATION = 2.0
"""Two groups of rows stand apart if their `separation` is above this."""
DRIFT_MIN_SPREADS = 2.0
"""A centroid has drifted when it moved by more than this many spreads."""
CHANGE_MIN_STANDARD_ERRORS = 3.5
"""A change of a cluster's share or mean is significant beyond this many standard errors, ..."""
CHANGE_MIN_SPREADS = 0.05
"""... but a change of the mean only if it is more than this share of the cluster's spread."""
CAUSE_MIN_SHARE, DEATH_CAUSE_MIN_SHARE = 0.1, 1e-3
"""A change can be the cause of a split or merge (of a death) if the decayed mass at the change is at least this share
of the mass when the split, merge or death began. Deaths take longer: a cluster can fade for ten half-lives and still
hold a centroid."""
MIN_ARRIVED_SHARE, WAIT_SHARE, WAIT_SHARE_SEPARATED, WAIT_SHARE_FADING = 0.25, 0.25, 0.9, 0.99
"""Share of the mass that must have arrived before events are decided; before an event is reported; before it is
reported for clusters that stand apart; and for such clusters while some cluster fades."""


class LabeledRows(NamedTuple):
    """Weighted rows with their labels among the old, the known (old and dormant) and the new clusters."""

    rows: Reals
    weights: Reals
    """(n,), summing to 1."""
    old: Labels
    """(n,): index of the nearest old centroid."""
    known: Labels
    """(n,): index of the nearest centroid among the old ones followed by the dormant ones."""
    new: Labels
    """(n,): index of the nearest new centroid."""
    in_new_reach: NDArray[np.bool_]
    """(n,): whether the row is within reach of its new cluster."""
    in_known_reach: NDArray[np.bool_]
    """(n,): whether the row is within reach of its known cluster."""

    @classmethod
    def label(
        cls,
        rows: Reals,
        weights: Reals,
        records: tuple[ClusterRecords, ClusterRecords, ClusterRecords],
        min_spread: float,
    ) -> LabeledRows:
        """Label rows by the (old, known, new) clusters."""
        old, known, new = records
        indices, squared = nearest(rows, known.centroids)
        labels = nearest(rows, old.centroids)[0] if len(known) > len(old) else indices
        home = squared <= (REACH_SPREADS * np.maximum(known.spreads, min_spread))[indices] ** 2
        to, squared = nearest(rows, new.centroids)
        return cls(
            rows,
            weights,
            labels,
            indices,
            to,
            squared <= (REACH_SPREADS * np.maximum(new.spreads, min_spread))[to] ** 2,
            home,
        )

    def overlaps(self, which: str, shape: tuple[int, int], where: NDArray[np.bool_] | None = None) -> Reals:
        """Overlap of the ``old`` or ``known`` clusters with the new ones, optionally only of the rows `where`, (n,)."""
        weights = self.weights if where is None else self.weights * where
        return overlap(self.old if which == "old" else self.known, self.new, weights, shape)


class Comparison(NamedTuple):
    """Representatives of the previous rows, the current rows, and the clusters to be matched."""

    then: LabeledRows
    now: LabeledRows
    old: ClusterRecords
    known: ClusterRecords
    remaining_mass: float
    """Mass at the time of the representatives, decayed until now."""
    mass: float
    """Mass now."""

    @property
    def enough_arrived(self) -> bool:
        """Whether enough mass has arrived to decide events."""
        return self.mass - self.remaining_mass >= MIN_ARRIVED_SHARE * self.mass

    @property
    def arrived(self) -> float:
        """Mass that arrived since the representatives were picked; a tiny positive number if none did."""
        return max(self.mass - self.remaining_mass, 1e-30 * self.mass, 1e-300)

    def arrivals(self, label: str, k: int, where: str) -> tuple[Reals, Reals]:
        """(k,) share of the arrivals that each label got, and (k,) share of the representatives that it had."""
        had, has = (
            masses(getattr(sample, label), sample.weights * getattr(sample, where), k)
            for sample in (self.then, self.now)
        )
        return (has * self.mass - had * self.remaining_mass) / self.arrived, had

    def two_standard_errors(self, shares: Reals) -> Reals:
        """(k,) two standard errors of the share of the arrivals, for labels with given expected shares, (k,)."""
        variance = sum(float(np.square(sample.weights).sum()) for sample in (self.then, self.now))
        return np.asarray(2.0 * np.sqrt(shares * variance) * self.mass / self.arrived)

    def standard_errors(self, label: str, k: int, where: str) -> Reals:
        """(k,) standard error of each label's share of the arrivals, with each row an independent draw."""
        variance = sum(
            masses(getattr(sample, label), sample.weights**2 * getattr(sample, where), k)
            for sample in (self.then, self.now)
        )
        return np.asarray(np.sqrt(variance) * self.mass / self.arrived)

    def has_changed(self, min_spread: float) -> bool:
        """Whether the points have changed: the share or the mean of some old cluster, within its old borders.

        The old borders are used for the current rows too, so that a new solution alone does not count as a change.
        """
        n, d = len(self.old), self.now.rows.shape[1]
        shares, squares, means, variances, widths = [], [], [], [], []
        for rows, weights, labels in ((s.rows, s.weights, s.old) for s in (self.then, self.now)):
            share = masses(labels, weights, n)
            there = np.where(share > 0.0, share, 1.0)
            mean = np.stack([masses(labels, weights * rows[:, t], n) / there for t in range(d)], axis=1)
            squared = np.square(rows - mean[labels]).sum(axis=1)
            shares.append(share)
            squares.append(masses(labels, weights**2, n))
            means.append(mean)
            variances.append(masses(labels, weights**2 * squared, n) / there**2)
            widths.append(masses(labels, weights * squared, n) / there)
        many = np.maximum(*shares) * (self.mass - self.remaining_mass) >= MIN_POINTS
        weight_changed = np.abs(shares[1] - shares[0]) > CHANGE_MIN_STANDARD_ERRORS * np.sqrt(squares[0] + squares[1])
        moved = np.linalg.norm(means[1] - means[0], axis=1)
        moved[np.minimum(*shares) == 0.0] = 0.0
        width = np.maximum(np.sqrt(np.maximum(*widths)), min_spread)
        moves = (moved > CHANGE_MIN_STANDARD_ERRORS * np.sqrt(variances[0] + variances[1])) & (
            moved > CHANGE_MIN_SPREADS * width
        )
        return bool((many & (weight_changed | moves)).any())

    def has_lasted(self, since: float, wait_share: float) -> bool:
        """Whether so much mass has arrived that the mass `since` is at most ``1 - wait_share`` of all."""
        return bool(since <= (1.0 - wait_share) * self.mass)


class Matching(NamedTuple):
    """Which new cluster continues which old one."""

    predecessors: list[int]
    """Index of the known cluster that each new one continues, or -1."""
    born: NDArray[np.bool_]
    """(k,): whether the new cluster is born: almost none of its rows were there before."""
    owners: NDArray[np.int64]
    """(k,): id of the old cluster that had most of the new one's rows."""
    empty: NDArray[np.bool_]
    """(n_old,): whether the old cluster has no rows, before and now."""

    @classmethod
    def find(cls, comparison: Comparison, k: int, newest: int) -> Matching:
        """Match k new clusters with the known ones; ids from `newest` on are newer than the representatives."""
        then, now, old, known, _, _ = comparison
        n, m = len(old), len(known)
        mine = masses(now.new, now.weights, k)
        # Step 1. Births: a cluster that, within its reach, took over neither much of itself nor most of an old cluster.
        before = then.overlaps("old", (n, k), then.in_new_reach)
        had = before >= MIN_SHARE_OF_SMALLER * masses(then.old, then.weights, n)[:, np.newaxis]
        here = now.overlaps("old", (n, k), now.in_new_reach & now.in_known_reach)
        has = here >= MIN_SHARE_OF_SMALLER * masses(now.old, now.weights, n)[:, np.newaxis]
        has_heir = (had & (before > 0.0)) | (has & (here > 0.0) & (old.ids >= newest)[:, np.newaxis])
        strange = (before.sum(axis=0) < BIRTH_MAX_OVERLAP * mine) & ~has_heir.any(axis=0)
        # Step 2. The greatest overlap. Rows near a dormant id are not rows of the cluster that holds them for now:
        # `finer` separates them.
        plain = then.overlaps("old", (n, k)) + now.overlaps("old", (n, k))
        finer = then.overlaps("known", (m, k)) + now.overlaps("known", (m, k))
        column = plain.sum(axis=0)
        common = finer.copy()
        common[:n] += plain
        common[n:] *= 2.0
        row = finer.sum(axis=1)[:, np.newaxis]
        fits = finer >= MIN_SHARE_OF_SMALLER * np.minimum(row, column)
        fits[:n] |= plain >= MIN_SHARE_OF_SMALLER * np.minimum(plain.sum(axis=1)[:, np.newaxis], column)
        fits[n:] = finer[n:] >= MIN_SHARE_OF_SMALLER * np.maximum(row[n:], column)
        fits &= common >= 2.0 * MIN_SHARE_OF_LARGER * np.maximum(row, column)
        common[~fits | strange] = 0.0
        predecessors = [-1] * k
        for i, j in zip(*linear_sum_assignment(-common), strict=True):
            if common[i, j] > 0.0:
                predecessors[j] = int(i)
        return cls(
            predecessors,
            strange & (mine * comparison.mass >= MIN_POINTS),
            old.ids[np.argmax(plain, axis=0)],
            plain.sum(axis=1) == 0.0,
        )


def settle_new(
    records: ClusterRecords, comparison: Comparison, last_change_mass: float
) -> tuple[list[ModelEvent], list[ModelEvent]]:
    """Decide about new clusters without predecessor that have lasted, and clear their `parents`.

    Parameters
    ----------
    records
        The new clusters, changed in place.
    comparison
        The rows of both publications.
    last_change_mass
        Mass at the last change of the points, decayed since: splits are reported only if caused by one.

    Returns
    -------
    births, splits
        Their events.
    """
    k = len(records)
    share = masses(comparison.now.new, comparison.now.weights, k)
    births: list[ModelEvent] = []
    families: dict[int, list[int]] = {}
    if not comparison.enough_arrived:
        return [], []
    got, _ = comparison.arrivals("new", k, "in_new_reach")
    for j in np.flatnonzero(records.parents != NO_PARENT).tolist():
        if not comparison.has_lasted(records.remaining_mass[j], WAIT_SHARE):
            continue
        own, many = int(records.ids[j]), share[j] * comparison.mass >= MIN_POINTS
        if got[j] >= BIRTH_MIN_GROWTH * share[j] and many:
            births.append(birth(own, share[j]))
        elif many and last_change_mass >= CAUSE_MIN_SHARE * records.remaining_mass[j]:
            families.setdefault(int(records.parents[j]), []).append(own)
        else:
            records.reset_anchors(records.ids == records.parents[j])
        records.parents[j] = NO_PARENT
    living = set(records.ids.tolist())
    splits = [
        ModelEvent("split", (parent,), tuple(sorted({*children, *({parent} & living)})))
        for parent, children in sorted(families.items())
    ]
    return births, splits


def birth(own: int, share: float) -> ModelEvent:
    """Make the event of a birth; `share` is the cluster's share of all mass."""
    return ModelEvent("birth", (), (own,), {"share": float(share)})


class Vanished(NamedTuple):
    """What became of clusters without successor."""

    deaths: list[ModelEvent]
    merges: list[ModelEvent]
    dormant: ClusterRecords
    """Clusters that are not decided yet."""
    hosts: list[int]
    """Ids of the clusters that hold the points of the undecided ones."""


def resolve_vanished(
    dormant: ClusterRecords,
    indices: NDArray[np.int64],
    records: ClusterRecords,
    comparison: Comparison,
    last_change_mass: float,
    *,
    fading: bool,
) -> Vanished:
    """Decide about clusters without successor.

    Parameters
    ----------
    dormant
        The clusters, changed in place.
    indices
        (m,) indices of these among the known clusters.
    records
        The new clusters, whose anchors may be reset.
    comparison
        The rows of both publications.
    last_change_mass
        Mass at the last change of the points, decayed since: merges and deaths are reported only if caused by one.
    fading
        Whether some cluster that holds a centroid gets no arrivals.
    """
    vanished = Vanished([], [], dormant, [])
    merges: dict[int, list[int]] = {}
    stay = []
    then, now = list[NDArray[Any]](comparison.then), list[NDArray[Any]](comparison.now)
    both = [np.concatenate([a, b]) for a, b in zip(then, now, strict=True)]
    rows, weights, _, known, new, _, in_known_reach = both
    got, due = comparison.arrivals("known", len(comparison.known), "in_known_reach")
    has = masses(comparison.now.known, comparison.now.weights, len(comparison.known))
    fed = got > ACTIVE_MIN_ARRIVALS * due + comparison.two_standard_errors(due)
    sure = due - got >= comparison.standard_errors("known", len(comparison.known), "in_known_reach")
    for r, i in enumerate(indices.tolist()):
        # Step 1. The host is the new cluster that holds the points now; do they stand apart from the host's own?
        home = (known == i) & in_known_reach
        host = int(np.argmax(masses(new[home], weights[home], len(records))))
        inside = new == host
        gap = separation(rows[inside], weights[inside], known[inside] == i)
        if i < len(comparison.old):
            dormant.separated[r], dormant.silent[r] = gap > MIN_SEPARATION, False
        if (
            comparison.enough_arrived and fed[i] and dormant.remaining_mass[r] > comparison.remaining_mass
        ):  # the representatives are older
            dormant.separated[r] = False
        # Step 2. A separate group without arrivals is dead, unless points arrived until it lost its centroid.
        if comparison.enough_arrived and due[i] * (comparison.mass - comparison.remaining_mass) >= MIN_POINTS:
            dormant.silent[r] = got[i] <= SILENT_MAX_ARRIVALS * due[i] and sure[i]
        silent = bool(dormant.separated[r] and dormant.silent[r])
        wait_share = (
            WAIT_SHARE if silent or gap <= MIN_SEPARATION else WAIT_SHARE_FADING if fading else WAIT_SHARE_SEPARATED
        )
        if not (comparison.enough_arrived and comparison.has_lasted(dormant.remaining_mass[r], wait_share)):
            stay.append(r)
            vanished.hosts.append(int(records.ids[host]))
        elif dormant.parents[r] == NO_PARENT:  # otherwise its split was never reported, and it needs no event
            own = int(dormant.ids[r])
            if silent and last_change_mass >= DEATH_CAUSE_MIN_SHARE * dormant.remaining_mass[r]:
                vanished.deaths.append(ModelEvent("death", (own,)))
            elif silent or not (
                last_change_mass >= CAUSE_MIN_SHARE * dormant.remaining_mass[r]
                and has[i] * comparison.mass >= MIN_POINTS
            ):
                records.reset_anchors(np.arange(len(records)) == host)
            else:
                merges.setdefault(int(records.ids[host]), []).append(own)
    vanished.merges.extend(ModelEvent("merge", tuple(sorted({h, *gone})), (h,)) for h, gone in sorted(merges.items()))
    # Keep at most as many as there are clusters, the latest.
    kept = sorted(stay, key=lambda r: -dormant.remaining_mass[r])[: len(records)]
    return vanished._replace(dormant=dormant.take(np.array(sorted(kept), np.int64)))


def drifts(
    records: ClusterRecords, shares: Reals, comparison: Comparison, waiting: Iterable[int], min_spread: float
) -> list[ModelEvent]:
    """Report centroids that moved far, except undecided ids, and reset their anchors; shares are (k,).

    Anchors of clusters of a few points are reset each time: one more point can move them far.
    """
    records.reset_anchors(shares * comparison.mass < MIN_POINTS)
    moved = np.linalg.norm(records.centroids - records.anchors, axis=1)
    unit = np.maximum(np.maximum(records.spreads, records.anchor_spreads), min_spread)
    far = (moved > DRIFT_MIN_SPREADS * unit) & ~np.isin(records.ids, list(waiting))
    events = []
    for j in np.flatnonzero(far).tolist():
        own = (int(records.ids[j]),)
        events.append(ModelEvent("drift", own, own, {"spreads": float(moved[j] / unit[j]) if unit[j] > 0.0 else None}))
    records.reset_anchors(far)
    return events
