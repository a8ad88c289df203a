"""What the client answers with: arrays for many numbers, plain values for few."""

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
