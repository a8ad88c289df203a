"""What the API answers, typed; and how stored data becomes such an answer.

Times are RFC 3339 strings in UTC; one that came from here finds the same snapshot again as ``?at=``. Numbers are
never NaN: what is not known is null.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamkm.records import Position
from streamkm.state import Snapshot
from streamkm.stores.base import ModelInfo

Status = Literal["warming-up", "running", "stale", "stopped"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MODEL = "orders"
_AT = "2026-11-01T10:00:00.250000Z"
_FIELDS = ["amount", "lat", "lon"]
_REF = {"id": 42, "created_at": _AT}
_POSITION = [{"topic": "orders", "partition": 0, "offset": 51234}, {"topic": "orders", "partition": 1, "offset": 50988}]
_SUMMARY = {
    **_REF,
    "kind": "live",
    "reason": "interval",
    "n_clusters": 2,
    "n_points": 102200,
    "inertia": 0.83,
    "position": _POSITION,
}
_CLUSTERS = [
    {
        "id": 0,
        "centroid": {"amount": 12.5, "lat": 52.52, "lon": 13.4},
        "values": [12.5, 52.52, 13.4],
        "weight": 81760.0,
        "share": 0.8,
        "spread": 1.9,
    },
    {
        "id": 3,
        "centroid": {"amount": 250.0, "lat": 48.14, "lon": 11.58},
        "values": [250.0, 48.14, 11.58],
        "weight": 20440.0,
        "share": 0.2,
        "spread": 14.2,
    },
]
_LISTED = {
    "name": _MODEL,
    "status": "running",
    "why": "committed 0.4 s ago",
    "n_clusters": 2,
    "fields": _FIELDS,
    "created_at": "2026-11-01T09:00:00Z",
    "points": 102200,
    "bad": 22,
    "lag": 120,
    "committed_at": "2026-11-01T10:00:01Z",
    "snapshot": _REF,
}


def _config(example: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [example]})


class PartitionPosition(BaseModel):
    """Where a partition is read on: every record below counts, none at or above."""

    model_config = _config(_POSITION[0])
    topic: str
    partition: int
    offset: int


class SnapshotRef(BaseModel):
    """Which snapshot answered."""

    model_config = _config(_REF)
    id: int = Field(description="Number of the snapshot in its model, from 1")
    created_at: str = Field(description="When it was published", json_schema_extra={"format": "date-time"})


class SnapshotSummary(SnapshotRef):
    """A snapshot without its clusters."""

    model_config = _config(_SUMMARY)
    kind: str = Field(description="live, or replay")
    reason: str = Field(description="Why it was published then: first, interval, points, stop")
    n_clusters: int
    n_points: int = Field(description="Points learned since the model was made")
    inertia: float | None = Field(
        description="Mean squared distance to the nearest centroid of the points since the snapshot before, each "
        "judged before it was learned; null when there were none"
    )
    position: list[PartitionPosition]


class Cluster(BaseModel):
    """One cluster."""

    model_config = _config(_CLUSTERS[0])
    id: int = Field(description="Stable: it means the same cluster in every snapshot")
    centroid: dict[str, float | None] = Field(description="By field, in the units of the records")
    values: list[float | None] = Field(description="The same in the order of `fields`")
    weight: float | None = Field(description="(Decayed) number of its points")
    share: float | None = Field(description="Its part of all weight, between 0 and 1; null when nothing has weight")
    spread: float | None = Field(description="Root mean squared distance of its points to the centroid")


class Centroids(BaseModel):
    """The clusters at one moment."""

    model_config = _config({"model": _MODEL, "snapshot": _SUMMARY, "fields": _FIELDS, "clusters": _CLUSTERS})
    model: str
    snapshot: SnapshotSummary
    fields: list[str]
    clusters: list[Cluster]


class SnapshotDetail(SnapshotSummary):
    """A snapshot with all that it holds."""

    model_config = _config(
        {
            **_SUMMARY,
            "model": _MODEL,
            "fields": _FIELDS,
            "clusters": _CLUSTERS,
            "commit_seq": 311,
            "detail": {"owner": "host-1:77"},
        }
    )
    model: str
    fields: list[str]
    clusters: list[Cluster]
    commit_seq: int = Field(description="The commit that published it; the journal up to it gives the snapshot again")
    detail: dict[str, Any] = Field(description="Where it came from")


class SnapshotList(BaseModel):
    """A page of snapshots, newest first."""

    model_config = _config({"snapshots": [_SUMMARY], "next": 42})
    snapshots: list[SnapshotSummary]
    next: int | None = Field(description="`before` of the next page; null on the last one")


class ModelSummary(BaseModel):
    """A model as the list shows it."""

    model_config = _config(_LISTED)
    name: str
    status: Status
    why: str = Field(description="Why it has this status")
    n_clusters: int = Field(description="k")
    fields: list[str] = Field(description="Names of the dimensions, in order")
    created_at: str = Field(json_schema_extra={"format": "date-time"})
    points: int = Field(description="Points learned since the model was made")
    bad: int = Field(description="Records in quarantine since the model was made")
    lag: int | None = Field(description="Records behind the end of the source at the last commit; null if unknown")
    committed_at: str | None = Field(description="The last commit", json_schema_extra={"format": "date-time"})
    snapshot: SnapshotRef | None = Field(description="The newest one; null while warming up")


class ModelList(BaseModel):
    """All models by name."""

    model_config = _config({"models": [_LISTED]})
    models: list[ModelSummary]


class CountersOut(BaseModel):
    """Records accounted for: records = points + bad + tombstones."""

    model_config = ConfigDict(extra="forbid", title="Counters")
    records: int
    points: int
    bad: int
    tombstones: int


class LeaseOut(BaseModel):
    """Who may write the model."""

    model_config = ConfigDict(extra="forbid", title="Lease")
    owner: str
    epoch: int = Field(description="Grows with every change of owner")
    expires_at: str = Field(json_schema_extra={"format": "date-time"})
    live: bool = Field(description="Whether it still runs, by the service's clock")


class Warmup(BaseModel):
    """How far the warm-up is."""

    model_config = ConfigDict(extra="forbid")
    have: int
    need: int


class ModelDetail(ModelSummary):
    """A model with all that is known about it, its clusters apart."""

    model_config = _config(
        {
            **_LISTED,
            "source": {"kind": "kafka", "topic": "orders"},
            "learner": {"n_clusters": 2, "seed": 0},
            "codec": {"kind": "json"},
            "counters": {"records": 102222, "points": 102200, "bad": 22, "tombstones": 0},
            "position": _POSITION,
            "commits": 311,
            "warmup": None,
            "lease": {"owner": "host-1:77", "epoch": 3, "expires_at": "2026-11-01T10:00:10Z", "live": True},
        }
    )
    source: dict[str, Any]
    learner: dict[str, Any]
    codec: dict[str, Any]
    counters: CountersOut
    position: list[PartitionPosition]
    commits: int = Field(description="Commits so far")
    warmup: Warmup | None = Field(description="While the model has no centroids yet")
    lease: LeaseOut | None


class Prediction(BaseModel):
    """Cluster and distance of each point, in the order of the points."""

    model_config = _config({"model": _MODEL, "snapshot": _REF, "ids": [0, 3], "distances": [1.25, 3.5]})
    model: str
    snapshot: SnapshotRef
    ids: list[int] = Field(description="Stable ids of the nearest clusters")
    distances: list[float | None] = Field(description="To that centroid; null when too large for a double")


class Health(BaseModel):
    """The service is well."""

    model_config = _config({"status": "ok"})
    status: Literal["ok"]


def iso(t: float) -> str:
    """RFC 3339 of seconds since 1970, never earlier than `t`, so that ``?at=`` with it includes what happened at `t`.

    >>> iso(0.0), iso(1793527200.25), parse_time(iso(1e9 + 1e-7)) >= 1e9 + 1e-7
    ('1970-01-01T00:00:00Z', '2026-11-01T10:00:00.250000Z', True)
    """
    micros = round(t * 1e6)
    if micros / 1e6 < t:
        micros += 1
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")


def parse_time(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time (UTC unless it says otherwise) or a number of seconds.

    A ``+`` that a URL turned into a space is understood.

    >>> parse_time("2026-11-01T10:00:00Z"), parse_time("2026-11-01T11:00:00 01:00"), parse_time("1793527200")
    (1793527200.0, 1793527200.0, 1793527200.0)

    Raises
    ------
    ValueError
        It is neither.
    """
    try:
        seconds = float(text)
    except ValueError:
        head, sign, zone = text.rpartition(" ")
        try:
            time = datetime.fromisoformat(f"{head}+{zone}" if sign and "T" in head else text)
        except ValueError:
            raise ValueError(
                f"{text!r} is neither an ISO 8601 time such as 2026-11-01T10:00:00Z nor seconds since 1970"
            ) from None
        seconds = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    if not abs(seconds) < 1e11:
        raise ValueError(f"{text!r} is no time in seconds since 1970")
    return seconds


def number(x: float) -> float | None:
    """A float as JSON can carry it."""
    return float(x) if math.isfinite(x) else None


def positions(position: Position) -> list[PartitionPosition]:
    """A position, sorted."""
    return [PartitionPosition(topic=tp.topic, partition=tp.partition, offset=at) for tp, at in sorted(position.items())]


def ref(s: Snapshot) -> SnapshotRef:
    """Which snapshot it is."""
    return SnapshotRef(id=s.id, created_at=iso(s.created_at))


def summary(s: Snapshot) -> SnapshotSummary:
    """The snapshot without its clusters."""
    return SnapshotSummary(
        id=s.id,
        created_at=iso(s.created_at),
        kind=s.kind,
        reason=s.reason,
        n_clusters=len(s.ids),
        n_points=s.n_points,
        inertia=number(s.inertia),
        position=positions(s.position),
    )


def shares(s: Snapshot) -> list[float | None]:
    """Each cluster's part of all weight; None when nothing has weight."""
    total = float(s.weights.sum())
    return [number(w / total) if total > 0 else None for w in s.weights.tolist()]


def clusters(s: Snapshot) -> list[Cluster]:
    """The snapshot's clusters, in its order."""
    result = []
    share = shares(s)
    for i, values in enumerate(s.centroids.tolist()):
        shown = [number(v) for v in values]
        result.append(
            Cluster(
                id=int(s.ids[i]),
                centroid=dict(zip(s.fields, shown, strict=True)),
                values=shown,
                weight=number(s.weights[i]),
                share=share[i],
                spread=number(s.spreads[i]),
            )
        )
    return result


def centroids(s: Snapshot) -> Centroids:
    """The clusters at the moment of the snapshot."""
    return Centroids(model=s.model, snapshot=summary(s), fields=list(s.fields), clusters=clusters(s))


def snapshot_detail(s: Snapshot) -> SnapshotDetail:
    """All that the snapshot holds."""
    return SnapshotDetail(
        **dict(summary(s)),
        model=s.model,
        fields=list(s.fields),
        clusters=clusters(s),
        commit_seq=s.commit_seq,
        detail=dict(s.detail),
    )


def model_summary(info: ModelInfo, newest: Snapshot | None, status: Status, why: str) -> ModelSummary:
    """A model as the list shows it."""
    p = info.progress
    return ModelSummary(
        name=info.spec.name,
        status=status,
        why=why,
        n_clusters=info.spec.n_clusters,
        fields=list(info.spec.fields),
        created_at=iso(info.created_at),
        points=p.counters.points if p else 0,
        bad=p.counters.bad if p else 0,
        lag=p.lag if p and p.lag >= 0 else None,
        committed_at=iso(p.committed_at) if p else None,
        snapshot=ref(newest) if newest else None,
    )


def model_detail(
    info: ModelInfo, newest: Snapshot | None, status: Status, why: str, *, lease_live: bool
) -> ModelDetail:
    """A model with all that is known about it."""
    p, lease = info.progress, info.lease
    c = p.counters if p else None
    return ModelDetail(
        **dict(model_summary(info, newest, status, why)),
        source=dict(info.spec.source),
        learner=dict(info.spec.learner),
        codec=dict(info.spec.codec),
        counters=CountersOut(
            records=c.records if c else 0,
            points=c.points if c else 0,
            bad=c.bad if c else 0,
            tombstones=c.tombstones if c else 0,
        ),
        position=positions(p.position) if p else [],
        commits=p.commit_seq if p else 0,
        warmup=Warmup(have=p.warmup[0], need=p.warmup[1]) if p and p.warmup else None,
        lease=LeaseOut(owner=lease.owner, epoch=lease.epoch, expires_at=iso(lease.expires_at), live=lease_live)
        if lease
        else None,
    )
