"""Clusters have a life: ids that stay, and births, deaths, splits, merges and drifts told from what arrived.

A re-solve may put a model's centroids in any order and anywhere. `Lineage` compares each publication with the one
before, by weighted rows (a coreset) and not by centroids alone, because what a cluster is, is its points.

**Ids.** The overlap of an old and a new cluster is the mass of the rows that have both labels, in a digest of the old
rows and in the new ones together. The assignment of greatest overlap (Kuhn 1955, by scipy) hands ids on wherever it is
half of the smaller of the two clusters. A cluster that took almost nothing over from within its reach, three times its
spread, is *born*, and hands nothing on.

**Events** follow the transitions of MONIC (Spiliopoulou et al. 2006), but judged by arrivals: by the mass that came
since the digest was taken, once that is a quarter of all.

- birth: less than a tenth of the cluster was there before, or it grows by half again as fast as its mass explains;
- death: an old cluster has no successor, and gets less than 0.3 of the arrivals due to it;
- merge: it has no successor, but its points still come, and belong to another cluster now;
- split: a cluster without predecessor whose points were there, and belonged to another;
- drift: a centroid is further from where it last was reported than twice its spread.

**Patience.** With k fixed, k-means has near-ties: two clusters are fused and another is cut, and soon it is the other
way round. A fading cluster that still holds a centroid has the same effect. So an id without successor rests, and gets
its place back when its points again have a cluster of their own; a merge or a split is reported only when it has lasted
while a quarter of the mass came in, and a merge of two heaps that still stand apart (`populations.cleft`) only after
nine tenths, or, as long as some cluster fades, after 99 hundredths. In half-lives these are 0.4, 3.3 and 6.6.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from streamkm.errors import StateError
from streamkm.models.populations import Labels, Reals, cleft, digest, masses, nearest, overlap, spreads
from streamkm.state import Event

KEEP = 0.5
"""An id is handed on at this share of the smaller cluster."""
BORN = 0.1
"""A cluster of which less than this was there before is born."""
QUIET = 0.3
"""A cluster that gets less than this share of the arrivals due to it gets none."""
YOUNG = 1.5
"""A cluster that gets so many times the arrivals that its mass explains was not there until lately."""
REACH = 3.0
"""A cluster reaches this many spreads far."""
FLOOR = 0.05
"""No spread counts as less than this share of the overall one: a heap of equal rows has one too."""
APART = 2.0
"""Two heaps whose `cleft` is above this stand apart."""
FAR = 2.0
"""A centroid has drifted when it moved by this many spreads."""
JUDGED, PATIENCE, PATIENCE_APART, PATIENCE_FADING = 0.25, 0.25, 0.9, 0.99
"""Share of the mass that must have arrived before a judgement."""
DIGEST = 2048
DIGEST_PER_CLUSTER = 32
SETTLED = -1


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
        (k,) bool: of an id at rest, whether its points stood apart when it came to rest.
    """

    ids: NDArray[np.int64]
    centroids: Reals
    spreads: Reals
    anchors: Reals
    anchor_spreads: Reals
    left: Reals
    parents: NDArray[np.int64]
    apart: NDArray[np.bool_]

    @classmethod
    def none(cls, d: int) -> Lives:
        """No clusters, of d dimensions."""
        ids = np.empty(0, np.int64)
        nothing, nowhere = np.empty(0), np.empty((0, d))
        return cls(ids, nowhere, nothing, nowhere, nothing, nothing, ids, np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: NDArray[Any]) -> Lives:
        """Copies of those at an index."""
        return Lives(*(getattr(self, f.name)[index] for f in fields(self)))

    def plus(self, other: Lives) -> Lives:
        """These, then others."""
        return Lives(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

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


class Sample(NamedTuple):
    """Rows, looked at through the old, the old and resting, and the new centroids; weights sum to 1."""

    rows: Reals
    weights: Reals
    old: Labels
    known: Labels
    new: Labels
    in_reach: NDArray[np.bool_]
    """Whether a row is within reach of its new cluster."""
    at_home: NDArray[np.bool_]
    """Whether a row is within reach of the old or resting cluster that it is nearest to."""


class Lineage:
    """Hands out ids at each publication and tells what happened since the one before.

    Attributes
    ----------
    next_id
        The first id that no cluster ever had. A caller that gives out ids between publications takes them from here,
        by `new_id`, and may offer them at the next publication.
    """

    def __init__(self) -> None:
        self.next_id = 0
        self._offered = 0  # ids from here on were never published
        self._lives: Lives | None = None
        self._resting: Lives = Lives.none(0)
        self._rows: Reals = np.empty((0, 0))
        self._weights: Reals = np.empty(0)
        self._left = 0.0  # of the digest's mass, what decay has left
        self._newest = 0  # ids from here on are younger than the digest
        self._fading = False

    @property
    def ids(self) -> NDArray[np.int64]:
        """(k,) int64: ids as last published; empty before the first publication."""
        return np.empty(0, np.int64) if self._lives is None else self._lives.ids.copy()

    def new_id(self) -> int:
        """Take an id that no cluster ever had."""
        self.next_id += 1
        return self.next_id - 1

    def rescale(self, factors: Reals) -> None:
        """Follow a change of the space that publications are made in.

        Parameters
        ----------
        factors
            (d,), positive: every coordinate is multiplied by its factor.
        """
        width = float(np.sqrt(np.mean(factors**2)))
        for lives in (self._lives, self._resting):
            if lives is not None and len(lives):
                lives.centroids, lives.anchors = lives.centroids * factors, lives.anchors * factors
                lives.spreads, lives.anchor_spreads = lives.spreads * width, lives.anchor_spreads * width
        if len(self._rows):
            self._rows = self._rows * factors

    def publish(
        self,
        centroids: Reals,
        rows: Reals,
        weights: Reals,
        mass: float,
        *,
        kept: float = 1.0,
        offered: NDArray[np.int64] | None = None,
    ) -> tuple[NDArray[np.int64], tuple[Event, ...]]:
        """Give ids to new centroids.

        Parameters
        ----------
        centroids
            (k, d), in the same Euclidean space each time; k may differ from that of the publication before.
        rows, weights
            (m, d) and (m,), a coreset of all that the model knows; only proportions of the weights matter.
        mass
            Decayed weight of all that the model knows.
        kept
            Factor in [0, 1] by which weight that was there at the publication before has decayed since.
        offered
            (k,): ids that the caller uses now. Those taken by `new_id` since the publication before are used for the
            clusters that would get a new id anyway; others do not matter.

        Returns
        -------
        ids
            (k,) int64.
        events
            Births, deaths, splits, merges, drifts, in this order.
        """
        if not weights.sum() > 0.0:
            rows, weights = centroids, np.ones(len(centroids))
        share = weights / weights.sum()
        fresh = Fresh(self, offered)
        if self._lives is None:
            events = self._begin(centroids, rows, share, mass, fresh)
        else:
            self._left *= kept
            for lives in (self._lives, self._resting):
                lives.left *= kept
            events = self._follow(self._lives, centroids, rows, share, mass, fresh)
        self._offered = self.next_id
        return self.ids, events

    def _begin(self, centroids: Reals, rows: Reals, share: Reals, mass: float, fresh: Fresh) -> tuple[Event, ...]:
        labels, squared = nearest(rows, centroids)
        wide = spreads(labels, squared, share, len(centroids))
        self._lives = self._newborn(centroids, wide, np.array([fresh.take(j) for j in range(len(centroids))], np.int64))
        self._resting = Lives.none(centroids.shape[1])
        self._remember(centroids, rows, share, mass)
        return ()

    @staticmethod
    def _newborn(centroids: Reals, wide: Reals, ids: NDArray[np.int64]) -> Lives:
        k = len(ids)
        settled, apart = np.full(k, SETTLED, np.int64), np.zeros(k, np.bool_)
        return Lives(ids, centroids.copy(), wide.copy(), centroids.copy(), wide.copy(), np.zeros(k), settled, apart)

    def _remember(self, centroids: Reals, rows: Reals, share: Reals, mass: float) -> None:
        size = max(DIGEST, DIGEST_PER_CLUSTER * len(centroids))
        self._rows, self._weights = digest(rows, share, centroids, size)
        self._left = mass
        self._newest = self.next_id

    def _follow(
        self, old: Lives, centroids: Reals, rows: Reals, share: Reals, mass: float, fresh: Fresh
    ) -> tuple[Event, ...]:
        k = len(centroids)
        labels, squared = nearest(rows, centroids)
        wide = spreads(labels, squared, share, k)
        floor = FLOOR * float(np.sqrt(share @ squared))
        # Step 1. Look at the rows of then and of now through the centroids of then and of now.
        known = old.plus(self._resting)
        reach = REACH * np.maximum(wide, floor), REACH * np.maximum(known.spreads, floor)
        then = look(self._rows, self._weights, centroids, old, known, reach)
        now = look(rows, share, centroids, old, known, reach)
        arrived = mass - self._left
        judged = arrived >= JUDGED * mass
        # Step 2. Hand ids on; an id at rest gets its place back.
        mine = masses(now.new, now.weights, k)
        before = masses(then.new, then.weights * then.in_reach, k)
        had = masses(then.old, then.weights, len(old)), masses(now.old, now.weights, len(old))
        void = had[0] + had[1] == 0.0
        kin = overlap(then.old, then.new, then.weights * then.in_reach, (len(old), k))
        heirs = (kin >= 0.5 * had[0][:, np.newaxis]) & (kin > 0.0)
        here = overlap(now.old, now.new, now.weights * (now.in_reach & now.at_home), (len(old), k))
        heirs |= (here >= 0.5 * had[1][:, np.newaxis]) & (here > 0.0) & (old.ids >= self._newest)[:, np.newaxis]
        born = (before < BORN * mine) & ~heirs.any(axis=0)
        source = successors(then, now, len(old), len(known), k, born)
        # Step 3. Make the new lives; whoever has no successor rests.
        ids = np.array([known.ids[i] if i >= 0 else SETTLED for i in source], np.int64)
        empty = [i for i in np.flatnonzero(void) if i not in source]
        lives = self._newborn(centroids, wide, ids)
        births, owners = [], np.argmax(overlap(now.old, now.new, now.weights, (len(old), k)) + kin, axis=0)
        for j, i in enumerate(source):
            if i >= 0:
                lives.anchors[j], lives.anchor_spreads[j] = known.anchors[i], known.anchor_spreads[i]
                lives.parents[j] = known.parents[i]
                lives.left[j] = known.left[i] if i < len(old) else mass
            elif mine[j] == 0.0 and empty:  # an empty cluster goes on as one
                lives.ids[j] = old.ids[empty.pop(0)]
            else:
                lives.ids[j] = fresh.take(j)
                if born[j]:
                    births.append(Event("birth", (), (int(lives.ids[j]),), {"share": float(mine[j])}))
                elif mine[j] > 0.0:
                    lives.parents[j], lives.left[j] = old.ids[owners[j]], mass
        gone = np.ones(len(known), np.bool_)
        gone[[i for i in source if i >= 0]] = False
        gone[: len(old)] &= ~void
        lost = np.flatnonzero(gone)
        resting = known.take(lost)
        resting.left[lost < len(old)] = mass
        # Step 4. Judge by arrivals.
        due = masses(then.known, then.weights * then.at_home, len(known))
        came = masses(now.known, now.weights * now.at_home, len(known)) * mass - due * self._left
        quiet = (came <= QUIET * due * arrived) if judged else np.zeros(len(known), bool)
        if judged:
            survivors = [i for i in source if 0 <= i < len(old)]
            self._fading = bool((quiet & (due > 0.0))[survivors].any())
        splits, children = self._split(lives, mine, mine * mass - before * self._left, arrived, mass, judged=judged)
        ends, hosts, resting = self._end(resting, lost, len(old), quiet, lives, (then, now), mass)
        self._resting = self._bounded(resting, k)
        # Step 5. Whoever is neither host nor family of what is not settled can drift.
        waiting = {int(p) for p in lives.parents if p != SETTLED} | set(hosts.tolist())
        for j in range(k):
            if lives.parents[j] != SETTLED:
                waiting.add(int(lives.ids[j]))
        for event in (*splits, *ends):  # what was split or merged begins anew where it is
            again = np.isin(lives.ids, event.after)
            lives.anchors[again], lives.anchor_spreads[again] = centroids[again], wide[again]
        drifts = self._drift(lives, waiting, floor)
        self._lives = lives
        if judged:
            self._remember(centroids, rows, share, mass)
        return (*births, *children, *(e for e in ends if e.kind == "death"), *splits,
                *(e for e in ends if e.kind == "merge"), *drifts)  # fmt: skip

    @staticmethod
    def _split(
        lives: Lives, mine: Reals, came: Reals, arrived: float, mass: float, *, judged: bool
    ) -> tuple[list[Event], list[Event]]:
        """Splits, and late births, of clusters that have waited for long enough."""
        families: dict[int, list[int]] = {}
        births = []
        for j in np.flatnonzero(lives.parents != SETTLED).tolist():
            if not judged or lives.left[j] > (1.0 - PATIENCE) * mass:
                continue
            new = int(lives.ids[j])
            if came[j] >= YOUNG * mine[j] * arrived:
                births.append(Event("birth", (), (new,), {"share": float(mine[j])}))
            else:
                families.setdefault(int(lives.parents[j]), []).append(new)
            lives.parents[j] = SETTLED
        splits = []
        for parent, new_ids in sorted(families.items()):
            after = sorted({*new_ids, *({parent} & set(lives.ids.tolist()))})
            splits.append(Event("split", (parent,), tuple(after)))
        return splits, births

    def _end(
        self,
        resting: Lives,
        at: NDArray[np.int64],
        n_old: int,
        quiet: NDArray[np.bool_],
        lives: Lives,
        seen: tuple[Sample, Sample],
        mass: float,
    ) -> tuple[list[Event], NDArray[np.int64], Lives]:
        """Deaths and merges of ids at rest, the ids that hold the points of the others, and these others."""
        deaths, stay, hosts = [], [], []
        merges: dict[int, list[int]] = {}
        rows, weights, _, known, new, _, at_home = (np.concatenate(both) for both in zip(*seen, strict=True))
        for r, i in enumerate(at.tolist()):
            told = resting.parents[r] == SETTLED  # a split that was never reported ends without a word
            home = (known == i) & at_home
            host = int(np.argmax(masses(new[home], weights[home], len(lives))))
            inside = new == host
            gap = cleft(rows[inside], weights[inside], known[inside] == i)
            if i < n_old:
                resting.apart[r] = gap > APART
            if quiet[i] and resting.apart[r]:
                if told:
                    deaths.append(Event("death", (int(resting.ids[r]),)))
                continue
            patience = PATIENCE if gap <= APART else PATIENCE_FADING if self._fading else PATIENCE_APART
            if resting.left[r] > (1.0 - patience) * mass:
                stay.append(r)
                hosts.append(int(lives.ids[host]))
            elif told:
                merges.setdefault(int(lives.ids[host]), []).append(int(resting.ids[r]))
        ends = deaths + [Event("merge", tuple(sorted({host, *gone})), (host,)) for host, gone in sorted(merges.items())]
        return ends, np.array(hosts, np.int64), resting.take(np.array(stay, np.int64))

    @staticmethod
    def _bounded(resting: Lives, k: int) -> Lives:
        """At most as many as there are clusters, the latest."""
        latest = np.sort(np.argsort(-resting.left, kind="stable")[:k])
        return resting.take(latest)

    @staticmethod
    def _drift(lives: Lives, waiting: Iterable[int], floor: float) -> list[Event]:
        moved = np.linalg.norm(lives.centroids - lives.anchors, axis=1)
        unit = np.maximum(np.maximum(lives.spreads, lives.anchor_spreads), floor)
        drifts = []
        for j in np.flatnonzero((moved > FAR * unit) & ~np.isin(lives.ids, list(waiting))):
            own = (int(lives.ids[j]),)
            drifts.append(Event("drift", own, own, {"spreads": float(moved[j] / unit[j]) if unit[j] > 0.0 else None}))
            lives.anchors[j], lives.anchor_spreads[j] = lives.centroids[j], lives.spreads[j]
        return drifts

    # Saving

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays, by name; a few hundred kilobytes at most for ten dimensions."""
        if self._lives is None:
            return {}
        lives = (*self._lives.arrays("lives_"), *self._resting.arrays("resting_"))
        return dict(lives) | {"digest": self._rows.copy(), "digest_weights": self._weights.copy()}

    def params(self) -> dict[str, Any]:
        """Scalars, JSON values."""
        return {"next_id": self.next_id, "offered": self._offered, "left": self._left, "newest": self._newest} | {
            "fading": self._fading
        }

    @classmethod
    def from_parts(cls, params: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Lineage:
        """Undo `arrays` and `params`.

        Raises
        ------
        StateError
            Shapes that do not fit.
        KeyError
            Something is missing.
        """
        lineage = cls()
        lineage.next_id, lineage._offered = int(params["next_id"]), int(params["offered"])
        lineage._left, lineage._newest = float(params["left"]), int(params["newest"])
        lineage._fading = bool(params["fading"])
        if "lives_ids" in arrays:
            lineage._lives = Lives.from_arrays(arrays, "lives_")
            lineage._resting = Lives.from_arrays(arrays, "resting_")
            lineage._rows, lineage._weights = np.array(arrays["digest"]), np.array(arrays["digest_weights"])
            if lineage._rows.shape != (len(lineage._weights), lineage._lives.centroids.shape[1]):
                raise StateError(f"array 'digest' has the shape {lineage._rows.shape}")
        return lineage


class Fresh:
    """New ids: those that the caller took since the last publication for a cluster, else the next ones."""

    def __init__(self, lineage: Lineage, offered: NDArray[np.int64] | None) -> None:
        self._lineage = lineage
        lowest = lineage._offered  # noqa: SLF001 -- a part of Lineage
        self._offered = {} if offered is None else {j: int(i) for j, i in enumerate(offered) if i >= lowest}
        lineage.next_id = max(lineage.next_id, *(i + 1 for i in self._offered.values()), 0)

    def take(self, j: int) -> int:
        """An id for the new cluster j."""
        return self._offered[j] if j in self._offered else self._lineage.new_id()


def look(rows: Reals, weights: Reals, centroids: Reals, old: Lives, known: Lives, reach: tuple[Reals, Reals]) -> Sample:
    """See `Sample`; `reach` of new and of known clusters."""
    new, new_squared = nearest(rows, centroids)
    at, at_squared = nearest(rows, known.centroids)
    labels = nearest(rows, old.centroids)[0] if len(known) > len(old) else at
    return Sample(
        rows, weights, labels, at, new, new_squared <= reach[0][new] ** 2, at_squared <= reach[1][at] ** 2
    )  # fmt: skip


def successors(then: Sample, now: Sample, n_old: int, n_known: int, k: int, born: NDArray[np.bool_]) -> list[int]:
    """Index of the known cluster that each new one goes on from, or -1."""
    plain = overlap(then.old, then.new, then.weights, (n_old, k)) + overlap(now.old, now.new, now.weights, (n_old, k))
    finer = overlap(then.known, then.new, then.weights, (n_known, k))
    finer += overlap(now.known, now.new, now.weights, (n_known, k))
    columns = plain.sum(axis=0)
    # Where an id rests, its points are not those of the cluster that holds them: that is what `finer` adds.
    common = finer.copy()
    common[:n_old] += plain
    common[n_old:] *= 2.0
    fits = finer >= KEEP * np.minimum(finer.sum(axis=1)[:, np.newaxis], columns)
    fits[:n_old] |= plain >= KEEP * np.minimum(plain.sum(axis=1)[:, np.newaxis], columns)
    fits[n_old:] = finer[n_old:] >= KEEP * np.maximum(finer[n_old:].sum(axis=1)[:, np.newaxis], columns)
    common[~fits | born | (common < 2.0 * BORN * columns)] = 0.0
    source = [-1] * k
    for i, j in zip(*linear_sum_assignment(-common), strict=True):
        if common[i, j] > 0.0:
            source[j] = int(i)
    return source
