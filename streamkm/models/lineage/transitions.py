"""The rules of `lineage`: which new cluster goes on from which old one, and what became of the others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from streamkm.models.lineage.cluster_records import SETTLED, Lives
from streamkm.models.weighted_rows import Labels, Reals, cleft, masses, nearest, overlap
from streamkm.state import Event

KEEP, SOME = 0.5, 0.2
"""An id is handed on for this share of the smaller cluster, if it is that share of the larger one."""
BORN = 0.1
"""A cluster of which less than this was there before is born."""
YOUNG = 1.5
"""A cluster that gets so many times the arrivals that its mass explains was not there until lately."""
QUIET = 0.3
"""A cluster that gets less than this share of the arrivals due to it gets none."""
FED = 0.5
"""A cluster that gets more than this share of them, and the noise of two samples, still gets points."""
FEW = 20.0
"""Fewer points than this, come or missing, are no proof of a birth or a death."""
REACH = 3.0
"""A cluster reaches this many spreads far."""
FLOOR = 0.05
"""No spread counts as less than this share of the overall one: a heap of equal rows has one too."""
APART = 2.0
"""Two heaps whose `cleft` is above this stand apart."""
FAR = 2.0
"""A centroid has drifted when it moved by this many spreads."""
STRAY = 3.5
"""What a cluster's share or mean changed by so many standard errors is no accident, ..."""
STIRRED = 0.05
"""... unless its mean changed by less than this share of its spread."""
RECENT, BYGONE = 0.1, 1e-3
"""A change is the cause of a merge or a split if the mass that there was at the change was still this share of all when
that began; of a death, which takes longer to show: a cluster may fade for ten half-lives and hold a centroid."""
JUDGED, PATIENCE, PATIENCE_APART, PATIENCE_FADING = 0.25, 0.25, 0.9, 0.99
"""Share of the mass that must have arrived before a judgement."""


class Sample(NamedTuple):
    """Rows, looked at through the centroids of then and of now."""

    rows: Reals
    weights: Reals
    """(n,), with the sum 1."""
    old: Labels
    """(n,): index of the nearest centroid among the old ones."""
    known: Labels
    """(n,): the same among the old ones and, after them, those at rest."""
    new: Labels
    """(n,): the same among the new ones."""
    in_reach: NDArray[np.bool_]
    """(n,): whether the row is within reach of its new cluster."""
    at_home: NDArray[np.bool_]
    """(n,): whether it is within reach of its known cluster."""

    @classmethod
    def look(cls, rows: Reals, weights: Reals, lives: tuple[Lives, Lives, Lives], floor: float) -> Sample:
        """Look at rows through the old, the known and the new lives."""
        old, known, new = lives
        at, squared = nearest(rows, known.centroids)
        labels = nearest(rows, old.centroids)[0] if len(known) > len(old) else at
        home = squared <= (REACH * np.maximum(known.spreads, floor))[at] ** 2
        to, squared = nearest(rows, new.centroids)
        return cls(rows, weights, labels, at, to, squared <= (REACH * np.maximum(new.spreads, floor))[to] ** 2, home)

    def table(self, which: str, shape: tuple[int, int], where: NDArray[np.bool_] | None = None) -> Reals:
        """Overlap of the ``old`` or ``known`` clusters with the new ones, of the rows `where`."""
        weights = self.weights if where is None else self.weights * where
        return overlap(self.old if which == "old" else self.known, self.new, weights, shape)


class Seen(NamedTuple):
    """A digest of the rows of then, the rows of now, and the lives whose change is to be judged."""

    then: Sample
    now: Sample
    old: Lives
    known: Lives
    left: float
    """Mass of the digest, decayed until now."""
    mass: float
    """Mass of all now."""

    @property
    def judged(self) -> bool:
        """Whether enough has arrived to judge by."""
        return self.mass - self.left >= JUDGED * self.mass

    @property
    def arrived(self) -> float:
        """Mass that arrived since the digest; next to nothing where none did, so that shares of it are finite."""
        return max(self.mass - self.left, 1e-30 * self.mass, 1e-300)

    def arrivals(self, label: str, k: int, where: str) -> tuple[Reals, Reals]:
        """(k,) share of the arrivals that each label got since the digest, and share that it had of the digest."""
        had, has = (
            masses(getattr(sample, label), sample.weights * getattr(sample, where), k)
            for sample in (self.then, self.now)
        )
        return (has * self.mass - had * self.left) / self.arrived, had

    def noise(self, shares: Reals) -> Reals:
        """Two standard errors of the share of the arrivals, for labels of given shares."""
        variance = sum(float(np.square(sample.weights).sum()) for sample in (self.then, self.now))
        return np.asarray(2.0 * np.sqrt(shares * variance) * self.mass / self.arrived)

    def scatter(self, label: str, k: int, where: str) -> Reals:
        """(k,) standard errors of the share of the arrivals that each label got, each row a draw for itself."""
        variance = sum(
            masses(getattr(sample, label), sample.weights**2 * getattr(sample, where), k)
            for sample in (self.then, self.now)
        )
        return np.asarray(np.sqrt(variance) * self.mass / self.arrived)

    def restless(self, floor: float) -> bool:
        """Whether what came is not as what was there: some old cluster's share or mean is another within its borders.

        Borders are those of then, for the rows of now too: what a new solution does to clusters does not show here.
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
        many = np.maximum(*shares) * (self.mass - self.left) >= FEW
        grown = np.abs(shares[1] - shares[0]) > STRAY * np.sqrt(squares[0] + squares[1])
        moved = np.linalg.norm(means[1] - means[0], axis=1)
        moved[np.minimum(*shares) == 0.0] = 0.0
        width = np.maximum(np.sqrt(np.maximum(*widths)), floor)
        moves = (moved > STRAY * np.sqrt(variances[0] + variances[1])) & (moved > STIRRED * width)
        return bool((many & (grown | moves)).any())

    def waited(self, since: float, patience: float) -> bool:
        """Whether the mass that there was since then is little enough by now."""
        return bool(since <= (1.0 - patience) * self.mass)


class Heirs(NamedTuple):
    """Who goes on from whom."""

    source: list[int]
    """Index of the known cluster that each new one goes on from, or -1."""
    born: NDArray[np.bool_]
    """(k,): whether almost nothing of a new one was there before."""
    owners: NDArray[np.int64]
    """(k,): id of the old cluster that most of a new one's points belonged to."""
    void: NDArray[np.bool_]
    """Whether an old cluster was, and is, empty."""

    @classmethod
    def find(cls, seen: Seen, k: int, newest: int) -> Heirs:
        """Match new clusters with old ones and those at rest; ids from `newest` on are younger than the digest."""
        then, now, old, known, _, _ = seen
        n, m = len(old), len(known)
        mine = masses(now.new, now.weights, k)
        # Step 1. Who is born: a cluster that, within its reach, took over neither much nor most of anybody.
        before = then.table("old", (n, k), then.in_reach)
        had = before >= KEEP * masses(then.old, then.weights, n)[:, np.newaxis]
        here = now.table("old", (n, k), now.in_reach & now.at_home)
        has = here >= KEEP * masses(now.old, now.weights, n)[:, np.newaxis]
        heirs = (had & (before > 0.0)) | (has & (here > 0.0) & (old.ids >= newest)[:, np.newaxis])
        strange = (before.sum(axis=0) < BORN * mine) & ~heirs.any(axis=0)
        # Step 2. The greatest overlap. Where an id rests, the points near it are not those of the cluster that holds
        # them for the time being: that is what `finer` adds.
        plain = then.table("old", (n, k)) + now.table("old", (n, k))
        finer = then.table("known", (m, k)) + now.table("known", (m, k))
        column = plain.sum(axis=0)
        common = finer.copy()
        common[:n] += plain
        common[n:] *= 2.0
        row = finer.sum(axis=1)[:, np.newaxis]
        fits = finer >= KEEP * np.minimum(row, column)
        fits[:n] |= plain >= KEEP * np.minimum(plain.sum(axis=1)[:, np.newaxis], column)
        fits[n:] = finer[n:] >= KEEP * np.maximum(row[n:], column)
        fits &= common >= 2.0 * SOME * np.maximum(row, column)
        common[~fits | strange] = 0.0
        source = [-1] * k
        for i, j in zip(*linear_sum_assignment(-common), strict=True):
            if common[i, j] > 0.0:
                source[j] = int(i)
        return cls(
            source, strange & (mine * seen.mass >= FEW), old.ids[np.argmax(plain, axis=0)], plain.sum(axis=1) == 0.0
        )


def grow_up(lives: Lives, seen: Seen, stirred: float) -> tuple[list[Event], list[Event]]:
    """Late births, and splits, of clusters without predecessor that have lasted; they are settled now.

    Of splits, those with a cause: `stirred` is what decay left of the mass at the last change.
    """
    k = len(lives)
    share = masses(seen.now.new, seen.now.weights, k)
    births: list[Event] = []
    families: dict[int, list[int]] = {}
    if not seen.judged:
        return [], []
    got, _ = seen.arrivals("new", k, "in_reach")
    for j in np.flatnonzero(lives.parents != SETTLED).tolist():
        if not seen.waited(lives.left[j], PATIENCE):
            continue
        own, many = int(lives.ids[j]), share[j] * seen.mass >= FEW
        if got[j] >= YOUNG * share[j] and many:
            births.append(birth(own, share[j]))
        elif many and stirred >= RECENT * lives.left[j]:
            families.setdefault(int(lives.parents[j]), []).append(own)
        else:
            lives.anchor(lives.ids == lives.parents[j])
        lives.parents[j] = SETTLED
    living = set(lives.ids.tolist())
    splits = [
        Event("split", (parent,), tuple(sorted({*children, *({parent} & living)})))
        for parent, children in sorted(families.items())
    ]
    return births, splits


def birth(own: int, share: float) -> Event:
    """The birth of a cluster that holds a share of all mass."""
    return Event("birth", (), (own,), {"share": float(share)})


class Rest(NamedTuple):
    """What became of clusters without successor."""

    deaths: list[Event]
    merges: list[Event]
    resting: Lives
    """Those whose fate is not known yet."""
    hosts: list[int]
    """Ids of the clusters that hold their points."""


def lay_to_rest(
    resting: Lives, at: NDArray[np.int64], lives: Lives, seen: Seen, stirred: float, *, fading: bool
) -> Rest:
    """Judge clusters without successor.

    Parameters
    ----------
    resting
        They.
    at
        Their indices among the known.
    lives
        The new clusters.
    stirred
        What decay left of the mass at the last change: merges have a cause, or are not told.
    fading
        Whether some cluster with a centroid gets no arrivals.
    """
    rest = Rest([], [], resting, [])
    merges: dict[int, list[int]] = {}
    stay = []
    then, now = list[NDArray[Any]](seen.then), list[NDArray[Any]](seen.now)
    both = [np.concatenate([a, b]) for a, b in zip(then, now, strict=True)]
    rows, weights, _, known, new, _, at_home = both
    got, due = seen.arrivals("known", len(seen.known), "at_home")
    has = masses(seen.now.known, seen.now.weights, len(seen.known))
    fed = got > FED * due + seen.noise(due)
    sure = due - got >= seen.scatter("known", len(seen.known), "at_home")
    for r, i in enumerate(at.tolist()):
        # Step 1. Whoever holds its points now is its host; do they stand apart from the host's own?
        home = (known == i) & at_home
        host = int(np.argmax(masses(new[home], weights[home], len(lives))))
        inside = new == host
        gap = cleft(rows[inside], weights[inside], known[inside] == i)
        if i < len(seen.old):
            resting.apart[r], resting.silent[r] = gap > APART, False
        if seen.judged and fed[i] and resting.left[r] > seen.left:  # the digest is from before
            resting.apart[r] = False
        # Step 2. A heap that gets no more points is dead, unless it got them until it lost its centroid.
        if seen.judged and due[i] * (seen.mass - seen.left) >= FEW:
            resting.silent[r] = got[i] <= QUIET * due[i] and sure[i]
        silent = bool(resting.apart[r] and resting.silent[r])
        patience = PATIENCE if silent or gap <= APART else PATIENCE_FADING if fading else PATIENCE_APART
        if not (seen.judged and seen.waited(resting.left[r], patience)):
            stay.append(r)
            rest.hosts.append(int(lives.ids[host]))
        elif resting.parents[r] == SETTLED:  # else it split off, was never reported, and goes without a word
            own = int(resting.ids[r])
            if silent and stirred >= BYGONE * resting.left[r]:
                rest.deaths.append(Event("death", (own,)))
            elif silent or not (stirred >= RECENT * resting.left[r] and has[i] * seen.mass >= FEW):
                lives.anchor(np.arange(len(lives)) == host)
            else:
                merges.setdefault(int(lives.ids[host]), []).append(own)
    rest.merges.extend(Event("merge", tuple(sorted({h, *gone})), (h,)) for h, gone in sorted(merges.items()))
    # No more than there are clusters, the latest.
    kept = sorted(stay, key=lambda r: -resting.left[r])[: len(lives)]
    return rest._replace(resting=resting.take(np.array(sorted(kept), np.int64)))


def drifts(lives: Lives, shares: Reals, seen: Seen, waiting: Iterable[int], floor: float) -> list[Event]:
    """Report centroids that went far, but not of the ids that wait for a judgement; they are anchored anew.

    A cluster of a few points has no place yet: the next one may be far from them.
    """
    lives.anchor(shares * seen.mass < FEW)
    moved = np.linalg.norm(lives.centroids - lives.anchors, axis=1)
    unit = np.maximum(np.maximum(lives.spreads, lives.anchor_spreads), floor)
    far = (moved > FAR * unit) & ~np.isin(lives.ids, list(waiting))
    events = []
    for j in np.flatnonzero(far).tolist():
        own = (int(lives.ids[j]),)
        events.append(Event("drift", own, own, {"spreads": float(moved[j] / unit[j]) if unit[j] > 0.0 else None}))
    lives.anchor(far)
    return events
