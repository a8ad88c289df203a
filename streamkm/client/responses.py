"""Results of the client's methods: arrays for many numbers, plain values for few."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl


Ints = NDArray[np.int64]
Reals = NDArray[np.float64]


class _Table(ABC):
    """What can be looked at as a table."""

    __slots__ = ()

    @abstractmethod
    def columns(self) -> dict[str, Any]:
        """Its columns by name."""

    def to_pandas(self) -> pd.DataFrame:
        """As a table of pandas, which has to be installed."""
        import pandas as pd  # noqa: PLC0415 - not one of our packages

        return pd.DataFrame(self.columns())

    def to_polars(self) -> pl.DataFrame:
        """As a table of polars."""
        import polars as pl  # noqa: PLC0415 - takes a while to import

        return pl.DataFrame(self.columns())


@dataclass(frozen=True, eq=False, slots=True)
class Centroids(_Table):
    """The clusters of one snapshot.

    Attributes
    ----------
    model, snapshot, created_at
        Whose, its number, and when it was published.
    fields
        Names of the d dimensions.
    ids
        (k,) stable ids: the same number is the same cluster in every snapshot.
    centroids
        (k, d) in the units of the records.
    weights, shares, spreads
        (k,) decayed number of points, its part of all, and root mean squared distance of the points to the centroid.
    deviations
        (k, d) the same by field, in the units of the records; NaN where it is not known.
    differences
        (k, d) how far each centroid is above the mean of all points, in standard deviations within clusters; NaN where
        it is not known. The fields that differ most tell what a cluster is about.
    """

    model: str
    snapshot: int
    created_at: datetime
    fields: tuple[str, ...]
    ids: Ints
    centroids: Reals
    weights: Reals
    shares: Reals
    spreads: Reals
    deviations: Reals
    differences: Reals

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From the answer of ``/centroids``."""
        clusters, fields = answer["clusters"], tuple(answer["fields"])

        def by_field(name: str) -> Reals:
            return np.array([c[name] for c in clusters], np.float64).reshape(len(clusters), len(fields))

        def by_cluster(name: str) -> Reals:
            return np.array([c[name] for c in clusters], np.float64)

        return cls(
            answer["model"],
            answer["snapshot"]["id"],
            moment(answer["snapshot"]["created_at"]),
            fields,
            np.array([c["id"] for c in clusters], np.int64),
            by_field("values"),
            by_cluster("weight"),
            by_cluster("share"),
            by_cluster("spread"),
            by_field("deviations"),
            by_field("differences"),
        )

    def columns(self) -> dict[str, Any]:
        """One row for each cluster: id, weight, share, spread, and a column for each field."""
        own = {"id": self.ids, "weight": self.weights, "share": self.shares, "spread": self.spreads}
        return own | {
            (name if name not in own else f"{name}_"): self.centroids[:, j] for j, name in enumerate(self.fields)
        }


@dataclass(frozen=True, eq=False, slots=True)
class Prediction(_Table):
    """Where n points belong.

    Attributes
    ----------
    model, snapshot
        Whose clusters, and the number of the snapshot that answered for all of them.
    ids
        (n,) stable ids of the nearest clusters.
    distances
        (n,) to that centroid; NaN where it is too large for a double.
    scores
        (n,) outlier scores: distances in spreads of that cluster; about 1 is ordinary.
    """

    model: str
    snapshot: int
    ids: Ints
    distances: Reals
    scores: Reals

    def columns(self) -> dict[str, Any]:
        """One row for each point."""
        return {"id": self.ids, "distance": self.distances, "score": self.scores}


@dataclass(frozen=True, slots=True)
class Model:
    """A model as the service tells it.

    Attributes
    ----------
    status, why
        One word, and the reason for it.
    points, bad, lag
        Points learned, records in quarantine, and records behind the end of the topic (None if unknown).
    snapshot
        Number of the newest snapshot; None while warming up.
    told
        The whole answer.
    """

    name: str
    status: str
    why: str
    n_clusters: int
    fields: tuple[str, ...]
    points: int
    bad: int
    lag: int | None
    snapshot: int | None
    told: Mapping[str, Any]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From an answer of ``/models``."""
        newest = answer["snapshot"]
        same = {name: answer[name] for name in ("name", "status", "why", "n_clusters", "points", "bad", "lag")}
        return cls(fields=tuple(answer["fields"]), snapshot=newest["id"] if newest else None, told=answer, **same)


@dataclass(frozen=True, slots=True)
class Published:
    """A snapshot without its clusters.

    Attributes
    ----------
    inertia
        Mean squared distance of the points before it; None when there were none.
    events
        How many births, deaths, splits, merges and drifts it tells.
    """

    id: int
    created_at: datetime
    kind: str
    reason: str
    n_clusters: int
    n_points: int
    inertia: float | None
    events: int

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From an entry of ``/snapshots``."""
        rest = ("kind", "reason", "n_clusters", "n_points", "inertia", "events")
        return cls(answer["id"], moment(answer["created_at"]), *(answer[name] for name in rest))


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to clusters.

    Attributes
    ----------
    snapshot, created_at
        Of the snapshot that tells it.
    kind
        birth, death, split, merge, drift, promotion or outliers.
    before, after
        Ids of the clusters it happened to, and of those that came of it.
    detail
        What it was judged by.
    index
        Its place among the events of the snapshot, from 0.
    """

    snapshot: int
    created_at: datetime
    kind: str
    before: tuple[int, ...]
    after: tuple[int, ...]
    detail: Mapping[str, Any]
    index: int = 0

    @property
    def id(self) -> str:
        """What tells it apart from all others of its model: a stream of events can go on behind it."""
        return f"{self.snapshot}.{self.index}"

    @classmethod
    def of(cls, snapshot: Mapping[str, Any]) -> list[Self]:
        """From an entry of ``/events``."""
        at = snapshot["id"], moment(snapshot["created_at"])
        return [
            cls(*at, e["kind"], tuple(e["before"]), tuple(e["after"]), e["detail"], i)
            for i, e in enumerate(snapshot["events"])
        ]


def moment(text: str) -> datetime:
    """A time as the service writes it, with its zone.

    >>> moment("2026-11-01T10:00:00Z").isoformat()
    '2026-11-01T10:00:00+00:00'
    """
    return datetime.fromisoformat(text)


@dataclass(frozen=True, eq=False, slots=True)
class Past:
    """The clusters of one snapshot of the past, in short.

    Attributes
    ----------
    inertia
        Mean squared distance of the points before it; None when there were none.
    ids, shares, spreads
        (k,) of its clusters.
    centroids
        (k, d) in the units of the records.
    events
        What happened since the snapshot before.
    """

    id: int
    created_at: datetime
    kind: str
    reason: str
    n_points: int
    inertia: float | None
    ids: Ints
    shares: Reals
    spreads: Reals
    centroids: Reals
    events: tuple[Event, ...]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From an entry of ``/history``."""
        told: dict[str, Any] = {name: answer[name] for name in ("id", "kind", "reason", "n_points", "inertia")}
        told |= {name: np.array(answer[name], np.float64) for name in ("shares", "spreads", "centroids")}
        at, ids = moment(answer["created_at"]), np.array(answer["ids"], np.int64)
        return cls(created_at=at, ids=ids, events=tuple(Event.of(answer)), **told)


@dataclass(frozen=True, slots=True)
class Life:
    """The life of a cluster, as far as the events tell it.

    Attributes
    ----------
    born, ended
        Numbers of the snapshots that tell its beginning and its end; None where none does.
    origins, successors
        Ids of the clusters that it came from, and of those that came of it.
    """

    id: int
    born: int | None
    ended: int | None
    origins: tuple[int, ...]
    successors: tuple[int, ...]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From an entry of ``/lineage``."""
        born, ended = (answer[name] and answer[name]["id"] for name in ("born", "ended"))
        return cls(answer["id"], born, ended, tuple(answer["origins"]), tuple(answer["successors"]))


@dataclass(frozen=True, slots=True)
class Moved:
    """A cluster that both of two snapshots have: how far it moved, and its part of the points before and after."""

    id: int
    distance: float
    spreads: float | None
    share_before: float
    share_after: float


@dataclass(frozen=True, slots=True)
class Difference:
    """From snapshot `a` to snapshot `b`, judged on the points that the model remembers.

    Attributes
    ----------
    moved
        Clusters that both have, the one that moved farthest first.
    gone, new
        Ids that only one of the two has.
    changed
        Share of the points whose cluster changes.
    cost_a, cost_b
        Mean squared distance of the points to the nearest centroid.
    points
        Their weight.
    """

    a: int
    b: int
    moved: tuple[Moved, ...]
    gone: tuple[int, ...]
    new: tuple[int, ...]
    changed: float
    cost_a: float
    cost_b: float
    points: float

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From the answer of ``/diff``."""
        lists = {
            "moved": tuple(Moved(**m) for m in answer["moved"]),
            "gone": tuple(answer["gone"]),
            "new": tuple(answer["new"]),
        }
        return cls(**{**answer, **lists})


@dataclass(frozen=True, eq=False, slots=True)
class KProfile:
    """How good each number of clusters is.

    Attributes
    ----------
    running, suggested
        k of the model, and the k that several criteria agree on; None if they do not, or it was not looked into yet.
    ks
        (m,) the k that were tried.
    cost, silhouette, gap, davies_bouldin
        (m,) what each costs, and how well it tells clusters apart; NaN where that has no meaning.
    """

    running: int
    suggested: int | None
    reason: str
    ks: Ints
    cost: Reals
    silhouette: Reals
    gap: Reals
    davies_bouldin: Reals

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From the answer of ``/k``."""
        told: dict[str, Any] = {name: answer[name] for name in ("running", "suggested", "reason")}
        names = ("cost", "silhouette", "gap", "davies_bouldin")
        told |= {name: np.array(answer[name], np.float64) for name in names}
        return cls(ks=np.array(answer["ks"], np.int64), **told)


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Some of the last points with their clusters.

    Attributes
    ----------
    points
        (n, d) in the units of the records.
    ids, distances, scores
        (n,) as a prediction has them.
    mean, axes
        (d,) and (2, d): ``axes @ (point - mean)`` is where to draw a point.
    explained
        (2,) part of the points' variance along each axis.
    """

    snapshot: int
    fields: tuple[str, ...]
    points: Reals
    ids: Ints
    distances: Reals
    scores: Reals
    mean: Reals
    axes: Reals
    explained: Reals

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From the answer of ``/sample``."""
        fields, plane = tuple(answer["fields"]), answer["projection"]
        points = np.array(answer["points"], np.float64).reshape(-1, len(fields))
        columns = (np.array(answer[name], np.float64) for name in ("distances", "scores"))
        planes = (np.array(plane[name], np.float64) for name in ("mean", "axes", "explained"))
        return cls(answer["snapshot"]["id"], fields, points, np.array(answer["ids"], np.int64), *columns, *planes)


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that could not be learned; key and value as text, cut where they are long."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    reason: str
    field: str
    message: str
    key: str | None
    value: str | None
    value_bytes: int | None


@dataclass(frozen=True, slots=True)
class Quarantine:
    """How many records are in quarantine, by reason, and the newest of them."""

    total: int
    reasons: Mapping[str, int]
    records: tuple[Refused, ...]

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From the answer of ``/quarantine``."""
        return cls(answer["total"], answer["reasons"], tuple(Refused(**r) for r in answer["records"]))


@dataclass(frozen=True, slots=True)
class Job:
    """A recomputation.

    Attributes
    ----------
    state
        queued, running, done, failed or cancelled.
    asked, progress
        What was asked, and how far it is.
    snapshot
        Number of the snapshot that came of it.
    error
        Why it failed.
    """

    id: str
    model: str
    state: str
    asked: Mapping[str, Any]
    progress: Mapping[str, Any]
    snapshot: int | None
    error: str
    created_at: datetime
    updated_at: datetime

    @property
    def ended(self) -> bool:
        """Whether nothing more comes of it."""
        return self.state not in {"queued", "running"}

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From an answer of ``/jobs``."""
        return cls(**{**answer, **{name: moment(answer[name]) for name in ("created_at", "updated_at")}})


@dataclass(frozen=True, slots=True)
class Me:
    """Who the service takes one for: name of the token, its right (none, read, write), its models (None: all)."""

    name: str | None
    right: str
    models: tuple[str, ...] | None

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        """From the answer of ``/me``."""
        models = answer["models"]
        return cls(answer["name"], answer["right"], None if models is None else tuple(models))
