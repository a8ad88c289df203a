"""Clusters have a life: ids that stay, and births, deaths, splits, merges and drifts told from what arrived.

A re-solve may put a model's centroids in any order and anywhere. `Lineage` compares each publication with the one
before, by weighted rows (a coreset) and not by centroids alone, because what a cluster is, is its points.

**Ids.** The overlap of an old and a new cluster is the mass of the rows that have both labels, in a digest of the old
rows and in the new ones together. The assignment of greatest overlap (Kuhn 1955, by scipy) hands ids on wherever it is
half of the smaller and a fifth of the larger of the two. A cluster that took over less than a tenth of itself from
within its reach, three times its spread, is *born*, and hands nothing on.

**Events** follow the transitions of MONIC (Spiliopoulou et al. 2006), but judged by arrivals: by the mass that came
since the digest was taken, once that is a quarter of all.

- birth: the cluster is born, or has no predecessor and grows by half again as fast as its mass explains;
- split: it has no predecessor, and its points were there and belonged to another;
- death: an old cluster has no successor, stood apart, and gets less than 0.3 of the arrivals due to it;
- merge: it has no successor, but points came until then, and still do, or they belong to another cluster now;
- drift: a centroid is further from where it was at birth, or at the last drift, than twice its spread.

Fewer than 20 points, come or missing, are no proof of any of these (a weight of one is a point).

**Causes.** A re-solve may cut the same points otherwise, for good, because a few far points want a centroid. So a split
or a merge is told only if something changed about when it began or since: k, a birth, or the points themselves: the
share or the mean of some old cluster's points, within its old borders, by 3.5 standard errors (`Seen.restless`). A
death needs such a change too, if long ago. Otherwise ids come and go without a word.

**Patience.** With k fixed, k-means has near-ties: two clusters are fused and another is cut, and soon it is the other
way round. A fading cluster that still holds a centroid has the same effect. So an id without successor rests, and gets
its place back when its points again have a cluster of their own; everything but a birth is reported only when it has
lasted while a quarter of the mass came in, and a merge of two heaps that still stand apart (`populations.cleft`) only
after nine tenths, or, as long as some cluster fades, 99 hundredths. In half-lives these are 0.4, 3.3 and 6.6; without
decay the stream has grown by a third, tenfold, a hundredfold. Where k itself has changed, nothing else need last.

**Limit.** A model that remembers for much longer than it takes a cluster to move into another has that cluster's old
points still in their place, and sees a death.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.models.lineage.cluster_records import SETTLED, Lives
from streamkm.models.lineage.transitions import FLOOR, QUIET, Heirs, Sample, Seen, birth, drifts, grow_up, lay_to_rest
from streamkm.models.weighted_rows import Labels, Reals, digest, masses, nearest, spreads
from streamkm.state import Event

DIGEST = 2048
DIGEST_PER_CLUSTER = 32
"""Rows of a digest: the larger of the two."""


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
        self._published = 0  # ids from here on were never published
        self._newest = 0  # ids from here on are younger than the digest
        self._lives: Lives | None = None
        self._resting = Lives.none(0)
        self._rows: Reals = np.empty((0, 0))
        self._weights: Reals = np.empty(0)
        self._left = 0.0  # mass of the digest, decayed
        self._fading = False
        self._stirred = 0.0  # mass when what came was last not as what was there, decayed

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
        for lives in (self._lives, self._resting):
            if lives is not None and len(lives):
                lives.rescale(factors)
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
        assigned: tuple[Labels, Reals] | None = None,
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
        assigned
            (m,) each, where the caller knows them: the nearest centroid of each row, and the squared distance to it.

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
        lives = Lives.begin(self._spare(offered, len(centroids)), centroids, wide)
        events: tuple[Event, ...] = ()
        judged = True
        if self._lives is None:
            self._resting = Lives.none(centroids.shape[1])
            lives.ids[:] = [self.new_id() if i == SETTLED else i for i in lives.ids.tolist()]
        else:
            self._left *= kept
            self._stirred *= kept
            self._lives.left *= kept
            self._resting.left *= kept
            floor = FLOOR * float(np.sqrt((shares * squared).sum()))
            old, known = self._lives, self._lives.plus(self._resting)
            then = Sample.look(self._rows, self._weights, (old, known, lives), floor)
            now = Sample.look(rows, shares, (old, known, lives), floor)
            seen = Seen(then, now, old, known, self._left, mass)
            events = self._follow(lives, seen, floor)
            judged = seen.judged
        self._lives = lives
        self._published = self.next_id
        if judged:
            size = max(DIGEST, DIGEST_PER_CLUSTER * len(centroids))
            self._rows, self._weights = digest(rows, shares, labels, squared, len(centroids), size)
            self._left, self._newest = mass, self.next_id
        return self.ids, events

    def _spare(self, offered: NDArray[np.int64] | None, k: int) -> NDArray[np.int64]:
        """(k,) the ids taken by the caller since the publication before, else `SETTLED`."""
        ids = np.full(k, SETTLED, np.int64)
        if offered is not None:
            ids = np.where(offered >= self._published, offered, SETTLED)
            self.next_id = max(self.next_id, int(ids.max(initial=SETTLED)) + 1)
        return ids

    def _follow(self, lives: Lives, seen: Seen, floor: float) -> tuple[Event, ...]:
        """Complete the new lives, and tell what happened."""
        old, known, mass, k = seen.old, seen.known, seen.mass, len(lives)
        # Step 1. Hand ids on; an id at rest gets its place back, an empty cluster goes on as one.
        heirs = Heirs.find(seen, k, self._newest)
        share = masses(seen.now.new, seen.now.weights, k)
        empty = old.ids[heirs.void].tolist()
        births = []
        for j, i in enumerate(heirs.source):
            if i >= 0:
                lives.go_on(j, known, i)
                if i >= len(old):
                    lives.left[j] = mass
            elif share[j] == 0.0 and empty:
                lives.ids[j] = empty.pop(0)
            else:
                if lives.ids[j] == SETTLED:
                    lives.ids[j] = self.new_id()
                if heirs.born[j]:
                    births.append(birth(int(lives.ids[j]), share[j]))
                elif share[j] > 0.0:
                    lives.parents[j], lives.left[j] = heirs.owners[j], mass if k <= len(old) else 0.0
        # Step 2. Whoever has no successor rests.
        lost = np.ones(len(known), np.bool_)
        lost[[i for i in heirs.source if i >= 0]] = False
        lost[: len(old)] &= ~heirs.void
        at = np.flatnonzero(lost)
        resting = known.take(at)
        resting.left[at < len(old)] = mass if k >= len(old) else 0.0
        # Step 3. Judge by arrivals.
        if seen.judged:
            got, due = seen.arrivals("known", len(known), "at_home")
            fading = (got <= QUIET * due) & (due > 0.0)
            self._fading = bool(fading[[i for i in heirs.source if 0 <= i < len(old)]].any())
        if births or k != len(old) or (seen.judged and seen.restless(floor)):
            self._stirred = mass
        late, splits = grow_up(lives, seen, self._stirred)
        rest = lay_to_rest(resting, at, lives, seen, self._stirred, fading=self._fading)
        self._resting = rest.resting
        # Step 4. What was split or merged begins anew where it is. What waits for a judgement does not drift meanwhile.
        told = [i for event in (*splits, *rest.merges) for i in event.after]
        lives.anchor(np.isin(lives.ids, told))
        unborn = lives.parents != SETTLED
        waiting = {*rest.hosts, *lives.parents[unborn].tolist(), *lives.ids[unborn].tolist()}
        return (*births, *late, *rest.deaths, *splits, *rest.merges, *drifts(lives, share, seen, waiting, floor))

    # Saving

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Copies of the arrays, by name: a digest of some 2,000 rows, and a few numbers for each cluster."""
        if self._lives is None:
            return {}
        lives = dict(self._lives.arrays("lives_")) | dict(self._resting.arrays("resting_"))
        return lives | {"digest": self._rows.copy(), "digest_weights": self._weights.copy()}

    def params(self) -> dict[str, Any]:
        """Scalars, JSON values."""
        return {
            "next_id": self.next_id,
            "published": self._published,
            "newest": self._newest,
            "left": self._left,
            "fading": self._fading,
            "stirred": self._stirred,
        }

    @classmethod
    def from_parts(cls, params: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Lineage:
        """Undo `params` and `arrays`.

        Raises
        ------
        StateError
            Shapes that do not fit.
        KeyError
            Something is missing.
        """
        lineage = cls()
        lineage.next_id = int(params["next_id"])
        lineage._published, lineage._newest = int(params["published"]), int(params["newest"])
        lineage._left, lineage._fading = float(params["left"]), bool(params["fading"])
        lineage._stirred = float(params["stirred"])
        if "lives_ids" in arrays:
            lineage._lives = Lives.from_arrays(arrays, "lives_")
            lineage._resting = Lives.from_arrays(arrays, "resting_")
            lineage._rows, lineage._weights = np.array(arrays["digest"]), np.array(arrays["digest_weights"])
            if lineage._rows.shape != (len(lineage._weights), lineage._lives.centroids.shape[1]):
                raise StateError(f"array 'digest' has the shape {lineage._rows.shape}")
        return lineage
