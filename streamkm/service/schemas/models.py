"""What the API answers, typed. Numbers are never NaN: what is not known is null."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from streamkm.effect_sizes import LIMIT

Status = Literal["warming-up", "running", "paused", "stale", "stopped"]

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
    "events": 1,
}
_CLUSTERS = [
    {
        "id": 0,
        "centroid": {"amount": 12.5, "lat": 52.52, "lon": 13.4},
        "values": [12.5, 52.52, 13.4],
        "weight": 81760.0,
        "share": 0.8,
        "spread": 1.9,
        "deviations": [1.8, 0.4, 0.3],
        "differences": [-17.0, 2.1, 1.2],
        "born_at_points": 1000,
        "age": 101200,
    },
    {
        "id": 3,
        "centroid": {"amount": 250.0, "lat": 48.14, "lon": 11.58},
        "values": [250.0, 48.14, 11.58],
        "weight": 20440.0,
        "share": 0.2,
        "spread": 14.2,
        "deviations": [5.0, 0.5, 0.3],
        "differences": [67.0, -8.3, -4.9],
        "born_at_points": 90000,
        "age": 12200,
    },
]
_EVENT = {"kind": "split", "before": [3], "after": [3, 9], "detail": {}}
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
    events: int = Field(description="Births, deaths, splits, merges and drifts since the snapshot before")


class Event(BaseModel):
    """Something that happened to clusters."""

    model_config = _config(_EVENT)
    kind: Literal["birth", "death", "split", "merge", "drift", "promotion", "outliers"]
    before: list[int] = Field(description="Ids of the clusters it happened to; none for a birth")
    after: list[int] = Field(description="Ids of the clusters that came of it; none for a death")
    detail: dict[str, Any] = Field(description="What it was judged by")


class SnapshotEvents(SnapshotRef):
    """What happened to clusters between the snapshot before and this one."""

    model_config = _config({**_REF, "events": [_EVENT]})
    events: list[Event]


class EventList(BaseModel):
    """A page of snapshots that tell events, newest first."""

    model_config = _config({"snapshots": [{**_REF, "events": [_EVENT]}], "next": 42})
    snapshots: list[SnapshotEvents]
    next: int | None = Field(description="`before` of the next page; null on the last one")


class Cluster(BaseModel):
    """One cluster."""

    model_config = _config(_CLUSTERS[0])
    id: int = Field(description="Stable: it means the same cluster in every snapshot")
    centroid: dict[str, float | None] = Field(description="By field, in the units of the records")
    values: list[float | None] = Field(description="The same in the order of `fields`")
    weight: float | None = Field(description="(Decayed) number of its points")
    share: float | None = Field(description="Its part of all weight, between 0 and 1; null when nothing has weight")
    spread: float | None = Field(description="Root mean squared distance of its points to the centroid")
    deviations: list[float | None] = Field(
        description="The same by field, in the units of the records; null: not known (older versions did not tell)"
    )
    differences: list[float | None] = Field(
        description="By field, how far the centroid is above the mean of all points, in standard deviations within "
        f"clusters, up to {LIMIT:g}; null: not known"
    )
    born_at_points: int = Field(description="Points the model had learned when this id was published first")
    age: int = Field(description="Points it has learned since")


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
            "happened": [_EVENT],
            "distance": "euclidean",
            "factors": [1.0, 1.0, 1.0],
            "commit_seq": 311,
            "detail": {"owner": "host-1:77"},
        }
    )
    model: str
    fields: list[str]
    clusters: list[Cluster]
    happened: list[Event] = Field(description="The events since the snapshot before")
    distance: Literal["euclidean", "cosine"] = Field(description="How points and centroids are compared")
    factors: list[float | None] = Field(description="By field: coordinates are multiplied by it before comparing")
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
    n_clusters: int = Field(description="k; 0 while it is to be chosen from the first points")
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
    """Records accounted for: records = points + bad + tombstones; those lost are none of them."""

    model_config = ConfigDict(extra="forbid", title="Counters")
    records: int
    points: int
    bad: int
    tombstones: int
    lost: int = Field(description="Gone from the topic before they could be read")


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
            "counters": {"records": 102222, "points": 102200, "bad": 22, "tombstones": 0, "lost": 0},
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

    model_config = _config(
        {"model": _MODEL, "snapshot": _REF, "ids": [0, 3], "distances": [1.25, 3.5], "scores": [0.66, 0.25]}
    )
    model: str
    snapshot: SnapshotRef
    ids: list[int] = Field(description="Stable ids of the nearest clusters")
    distances: list[float | None] = Field(description="To that centroid; null when too large for a double")
    scores: list[float | None] = Field(
        description="Outlier scores: the distance in spreads of that cluster; about 1 is ordinary"
    )
    second_ids: list[int | None] | None = Field(
        default=None, description="With include=second: ids of the second nearest; null in a model of one cluster"
    )
    second_distances: list[float | None] | None = Field(default=None, description="With include=second: to those")
    clusters: list[int] | None = Field(default=None, description="With include=distances: ids, in the order of these")
    all_distances: list[list[float | None]] | None = Field(
        default=None, description="With include=distances: of each point to each cluster"
    )


class Health(BaseModel):
    """The service is well."""

    model_config = _config({"status": "ok"})
    status: Literal["ok"]


class ServerMetadata(BaseModel):
    """The server, by the open inference protocol."""

    model_config = _config({"name": "streamkm", "version": "0.1.0", "extensions": ["binary_tensor_data"]})
    name: str
    version: str
    extensions: list[str]


class ServerLive(BaseModel):
    """It is up."""

    model_config = _config({"live": True})
    live: bool


class ServerReady(BaseModel):
    """It can answer."""

    model_config = _config({"ready": True})
    ready: bool


class ModelReady(BaseModel):
    """The model can answer."""

    model_config = _config({"name": _MODEL, "ready": True})
    name: str
    ready: bool


_TENSOR = {"name": "points", "datatype": "FP64", "shape": [-1, 3]}


class TensorMetadata(BaseModel):
    """A tensor that goes in or comes out; -1 is any length."""

    model_config = _config(_TENSOR)
    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """A model, by the open inference protocol: a version is a snapshot."""

    model_config = _config(
        {
            "name": _MODEL,
            "versions": ["42"],
            "platform": "streamkm",
            "inputs": [_TENSOR],
            "outputs": [{"name": "ids", "datatype": "INT64", "shape": [-1]}],
        }
    )
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


_IDS = {"name": "ids", "datatype": "INT64", "shape": [2], "data": [0, 3]}


class Tensor(TensorMetadata):
    """A tensor with its numbers, flat."""

    model_config = _config(_IDS)
    data: list[float | None]


class Inference(BaseModel):
    """Cluster, distance and outlier score of each point."""

    model_config = _config({"model_name": _MODEL, "model_version": "42", "id": "a7", "outputs": [_IDS]})
    model_name: str
    model_version: str = Field(description="Number of the snapshot that answered")
    id: str | None = Field(default=None, description="That of the request")
    outputs: list[Tensor]
