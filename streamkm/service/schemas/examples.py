"""Example values of the schemas, shared so that the API description is consistent."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

MODEL = "orders"
TIME = "2026-11-01T10:00:00.250000Z"
FIELDS = ["amount", "lat", "lon"]
SNAPSHOT_REF = {"id": 42, "created_at": TIME}
POSITION = [{"topic": "orders", "partition": 0, "offset": 51234}, {"topic": "orders", "partition": 1, "offset": 50988}]
SNAPSHOT_SUMMARY = {
    **SNAPSHOT_REF,
    "kind": "live",
    "reason": "interval",
    "n_clusters": 2,
    "n_points": 102200,
    "inertia": 0.83,
    "position": POSITION,
    "n_events": 1,
}
CLUSTERS = [
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
CENTROIDS = {"model": MODEL, "snapshot": SNAPSHOT_SUMMARY, "fields": FIELDS, "clusters": CLUSTERS}
EVENT = {"kind": "split", "before": [0], "after": [0, 3], "detail": {}}
CLUSTER_EVENT = {"id": "42.0", "model": MODEL, "snapshot": 42, "created_at": TIME, **EVENT}
SNAPSHOT_EVENTS = {**SNAPSHOT_REF, "events": [EVENT]}
MODEL_STATUS: dict[str, Any] = {
    "status": "running",
    "status_reason": "committed 0.4 s ago",
    "n_clusters": 2,
    "points": 102200,
    "bad_records": 22,
    "lag": 120,
    "committed_at": TIME,
    "snapshot": SNAPSHOT_REF,
}
MODEL_SUMMARY = {**MODEL_STATUS, "name": MODEL, "fields": FIELDS, "created_at": "2026-11-01T09:00:00Z"}
PREDICTION = {"model": MODEL, "snapshot": SNAPSHOT_REF, "ids": [0, 3], "distances": [1.25, 3.5], "scores": [0.66, 0.25]}
INPUT_TENSOR = {"name": "points", "datatype": "FP64", "shape": [-1, 3]}
OUTPUT_TENSOR = {"name": "ids", "datatype": "INT64", "shape": [2], "data": [0, 3]}
INFERENCE = {"model_name": MODEL, "model_version": "42", "id": "a7", "outputs": [OUTPUT_TENSOR]}

HISTORICAL_SNAPSHOT = {
    **SNAPSHOT_REF,
    "kind": "live",
    "reason": "interval",
    "n_points": 102200,
    "inertia": 0.83,
    "ids": [0, 3],
    "shares": [0.8, 0.2],
    "spreads": [1.9, 14.2],
    "centroids": [[12.5, 52.52, 13.4], [250.0, 48.14, 11.58]],
    "events": [EVENT],
}
CLUSTER_SHIFT = {"id": 0, "distance": 0.4, "spreads": 0.21, "share_before": 0.81, "share_after": 0.8}
SNAPSHOT_DIFF = {
    "a": 41,
    "b": 42,
    "shifts": [CLUSTER_SHIFT],
    "removed": [],
    "added": [3],
    "changed": 0.02,
    "cost_a": 0.9,
    "cost_b": 0.83,
    "points": 102200.0,
}
CLUSTER_LINEAGE = {"id": 3, "born": SNAPSHOT_REF, "ended": None, "origins": [0], "successors": []}
QUARANTINED_RECORD = {
    "topic": "orders",
    "partition": 0,
    "offset": 51200,
    "timestamp": 1793527200250,
    "reason": "missing-field",
    "field": "lat",
    "message": "the field is missing",
    "key": None,
    "value": '{"amount": 12.5}',
    "value_bytes": 16,
}
POINT_SAMPLE: dict[str, Any] = {
    "model": MODEL,
    "snapshot": SNAPSHOT_REF,
    "fields": FIELDS,
    "points": [[12.0, 52.5, 13.4]],
    "ids": [0],
    "distances": [0.5],
    "scores": [0.26],
    "projection": {"mean": [60.0, 51.6, 13.0], "axes": [[1.0, 0.0, 0.0], [0.0, 0.7, 0.7]], "explained": [0.9, 0.08]},
}
LIVE_STATUS: dict[str, Any] = {
    **MODEL_STATUS,
    "time": TIME,
    "paused": False,
    "rate": 5000.0,
    "inertia": 0.83,
    "partitions": [{"topic": "orders", "partition": 0, "offset": 51234, "end": 51354, "lag": 120, "rate": 2500.0}],
}
K_PROFILE = {
    "current": 2,
    "suggested": 3,
    "reason": "of the k whose silhouette is near the best the gap is the highest",
    "ks": [2, 3],
    "cost": [2.1, 0.8],
    "silhouette": [0.6, 0.8],
    "gap": [0.4, 0.9],
    "davies_bouldin": [0.7, 0.4],
}

JOB_REQUEST: dict[str, Any] = {
    "from": "2026-11-01",
    "to": "now",
    "k": 8,
    "init": "k-means++",
    "n_init": 1,
    "max_iter": 300,
}
JOB: dict[str, Any] = {
    "id": "9f2c4b1e70aa4d53",
    "model": MODEL,
    "state": "done",
    "options": JOB_REQUEST,
    "progress": {"stage": "fitting", "done": 102200, "total": 102200, "run": 0, "iteration": 21, "inertia": 84800.5},
    "snapshot": 43,
    "error": "",
    "created_at": TIME,
    "updated_at": TIME,
}


def config(example: dict[str, Any], *, strict: bool = False) -> ConfigDict:
    """Configuration of a schema without further members, with an example."""
    return ConfigDict(extra="forbid", strict=strict, json_schema_extra={"examples": [example]})
