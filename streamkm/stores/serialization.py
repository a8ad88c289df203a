"""Conversion between plain data and database columns: exact in both directions, JSON and safetensors only."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
import sqlalchemy as sa

from streamkm.errors import StoreError
from streamkm.records import BadRecord, Headers, Position, RawRecord, TopicPartition
from streamkm.state import CodecSpec, Counters, Json, ModelEvent, ModelSpec, Progress, Snapshot
from streamkm.stores.base import Lease

Columns = dict[str, Any]
_DTYPES = {
    "ids": np.int64,
    "centroids": np.float64,
    "weights": np.float64,
    "spreads": np.float64,
    "born": np.int64,
    "factors": np.float64,
}


def spec_to_text(spec: ModelSpec) -> str:
    """A model's spec as JSON."""
    values = {f.name: getattr(spec, f.name) for f in fields(spec)}
    return json.dumps({**values, "codec": spec.codec.to_json()}, default=json_default)


def spec_from_text(text: str) -> ModelSpec:
    """Undo `spec_to_text`, except that tuples inside the JSON values become lists."""
    with damage_as_store_error("the spec of a model"):
        values = json.loads(text)
        codec = CodecSpec.from_json(values["codec"])
        return ModelSpec(**{**values, "fields": _names(values["fields"]), "codec": codec})


def position_to_rows(position: Position, model_id: int) -> list[Columns]:
    """One row of table ``progress`` per partition."""
    return [
        {"model_id": model_id, "topic": p.topic, "partition": p.partition, "next_offset": offset}
        for p, offset in position.items()
    ]


def position_to_text(position: Position) -> str:
    """A position as JSON: ``[[topic, partition, offset], ...]``."""
    return json.dumps([(*partition, offset) for partition, offset in position.items()])


def position_from_text(text: str) -> Position:
    """Undo `position_to_text`."""
    with damage_as_store_error("a position"):
        return {
            TopicPartition(str(topic), int(partition)): int(offset) for topic, partition, offset in json.loads(text)
        }


def progress_to_row(progress: Progress) -> Columns:
    """The progress columns of table ``checkpoints``; the position is in table ``progress``."""
    have, need = progress.warmup if progress.warmup is not None else (None, None)
    counters = asdict(progress.counters)
    del counters["lost"]  # a column of table models
    return {
        "commit_seq": progress.commit_seq,
        "committed_at": progress.committed_at,
        "lag": progress.lag,
        **counters,
        "warmup_have": have,
        "warmup_need": need,
    }


def progress_from_row(row: sa.Row[Any], position: Position) -> Progress:
    """Progress from a row of ``checkpoints`` joined with ``models.lost``, and the position."""
    return Progress(
        position,
        Counters(row.records, row.points, row.bad, row.tombstones, row.lost),
        row.commit_seq,
        row.committed_at,
        row.lag,
        None if row.warmup_have is None else (row.warmup_have, row.warmup_need),
    )


def lease_from_row(name: str, row: sa.Row[Any]) -> Lease | None:
    """The lease of a model; None when it is free."""
    return None if row.owner is None else Lease(name, row.owner, row.epoch, row.expires_at)


def snapshot_to_row(snapshot: Snapshot) -> Columns:
    """The columns of ``snapshots``, without the model and the numbers that the store assigns."""
    arrays = {name: np.ascontiguousarray(getattr(snapshot, name), dtype) for name, dtype in _DTYPES.items()}
    if snapshot.deviations is not None:
        arrays["deviations"] = np.ascontiguousarray(snapshot.deviations, np.float64)
    return {
        "created_at": snapshot.created_at,
        "kind": snapshot.kind,
        "reason": snapshot.reason,
        "inertia": None if math.isnan(snapshot.inertia) else snapshot.inertia,
        "n_points": snapshot.n_points,
        "fields": json.dumps(snapshot.fields),
        "position": position_to_text(snapshot.position),
        "detail": json.dumps(snapshot.detail, default=json_default),
        "distance": snapshot.distance,
        "events": json.dumps([event.to_json() for event in snapshot.events], default=json_default),
        "arrays": safetensors.numpy.save(arrays),
    }


def snapshot_from_row(model: str, row: Mapping[str, Any] | sa.RowMapping) -> Snapshot:
    """A snapshot from its row; the arrays are read-only.

    Raises
    ------
    StoreError
        The row is damaged.
    """
    with damage_as_store_error("it", f"model {model}, snapshot {row['id']}"):
        arrays = safetensors.numpy.load(row["arrays"])
        for a in arrays.values():
            a.flags.writeable = False
        names = _names(json.loads(row["fields"]))
        k, d = arrays["centroids"].shape
        shapes = {"centroids": (k, d), "factors": (d,)}
        if len(names) != d or any(arrays[name].shape != shapes.get(name, (k,)) for name in _DTYPES):
            raise ValueError("its arrays do not fit together")
        deviations = arrays.get("deviations")  # older versions did not publish deviations
        if deviations is not None and deviations.shape != (k, d):
            raise ValueError("its arrays do not fit together")
        return Snapshot(
            model=model,
            id=row["id"],
            commit_seq=row["commit_seq"],
            created_at=row["created_at"],
            kind=row["kind"],
            reason=row["reason"],
            fields=names,
            inertia=math.nan if row["inertia"] is None else row["inertia"],
            n_points=row["n_points"],
            position=position_from_text(row["position"]),
            detail=json.loads(row["detail"]),
            distance=row["distance"],
            events=tuple(ModelEvent.from_json(event) for event in json.loads(row["events"])),
            deviations=deviations,
            **{name: arrays[name] for name in _DTYPES},
        )


def bad_record_to_row(bad: BadRecord) -> Columns:
    """The columns of ``quarantine``, without the model."""
    record = bad.record
    return {
        "topic": record.partition.topic,
        "partition": record.partition.partition,
        "record_offset": record.offset,
        "record_timestamp": record.timestamp,
        "reason": bad.reason,
        "field": bad.field,
        "message": bad.message,
        "headers": _headers_to_text(record.headers),
        "key": record.key,
        "value": record.value,
        "value_size": record.size,
        "kept_bytes": kept_bytes(bad),
    }


def kept_bytes(bad: BadRecord) -> int:
    """Approximate bytes that a quarantined record occupies."""
    return bad.record.n_bytes + len(bad.message)


def bad_record_from_row(row: sa.Row[Any]) -> BadRecord:
    """A quarantined record from its row."""
    with damage_as_store_error(f"the quarantined record {row.topic}-{row.partition}@{row.record_offset}"):
        headers = _headers_from_text(row.headers)
    record = RawRecord(
        TopicPartition(row.topic, row.partition),
        row.record_offset,
        row.record_timestamp,
        row.key,
        row.value,
        headers,
        row.value_size,
    )
    return BadRecord(record, row.reason, row.field, row.message)


def _headers_to_text(headers: Headers) -> str:
    return json.dumps([(name, None if value is None else base64.b64encode(value).decode()) for name, value in headers])


def _headers_from_text(text: str) -> Headers:
    return tuple((str(name), None if value is None else base64.b64decode(value)) for name, value in json.loads(text))


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(name, str) for name in values):
        raise TypeError(f"names of fields are {values!r:.40}")
    return tuple(values)


_TYPE_ERRORS = (AttributeError, OverflowError, RecursionError)
"""Raised by values of an unexpected type."""


@contextmanager
def damage_as_store_error(what: str, where: str = "") -> Iterator[None]:
    """Raise `StoreError` for errors of decoding: stored data that does not decode is damaged.

    Parameters
    ----------
    what
        Names the data in the message.

    Raises
    ------
    StoreError
        The body raised an error of decoding.
    """
    try:
        yield
    except (safetensors.SafetensorError, LookupError, TypeError, ValueError, *_TYPE_ERRORS) as e:
        raise StoreError(f"{what} is damaged ({e})", where=where, hint="Restore a backup") from e


def json_default(value: object) -> Json:
    """Encode mappings other than dict, as the ``default`` of `json.dumps`.

    Raises
    ------
    TypeError
        The value is not a mapping.
    """
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a JSON value")
