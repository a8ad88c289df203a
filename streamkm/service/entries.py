"""How snapshots, samples and quarantined records become JSON where there are many of them: encoded once, by hand."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from streamkm.records import BadRecord
from streamkm.service import schemas_live as schemas
from streamkm.service import shape
from streamkm.service.nearest import assign
from streamkm.service.times import iso
from streamkm.state import Snapshot

CUT = 2000
"""Characters of a record's key and value."""
Points = NDArray[np.float64]
KEEPS = 0.9
"""Axes are kept while the points have at least this share of the variance along them that they could have."""


def entry(s: Snapshot) -> bytes:
    """A `schemas_live.HistoryEntry`. Numbers that are not finite become null, as orjson has it."""
    return orjson.dumps(
        {
            "id": s.id,
            "created_at": iso(s.created_at),
            "kind": s.kind,
            "reason": s.reason,
            "n_points": s.n_points,
            "inertia": s.inertia,
            "ids": np.ascontiguousarray(s.ids),
            "shares": shape.shares(s),
            "spreads": np.ascontiguousarray(s.spreads),
            "centroids": np.ascontiguousarray(s.centroids),
            "events": [e.to_json() for e in s.events],
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def history(fields: Sequence[str], snapshots: Iterable[Snapshot], following: int | None) -> bytes:
    """A `schemas_live.History`."""
    listed = b",".join(map(entry, snapshots))
    return b'{"fields":%b,"snapshots":[%b],"next":%b}' % (orjson.dumps(list(fields)), listed, orjson.dumps(following))


def in_charge(s: Snapshot) -> bool:
    """Whether a snapshot ever answered: a recomputed one is published anew when it is promoted."""
    return s.kind != "replay"


def lives(snapshots: Iterable[Snapshot]) -> list[schemas.Life]:
    """What the events of snapshots, the oldest first, tell about each cluster."""
    found: dict[int, schemas.Life] = {}

    def life(i: int) -> schemas.Life:
        return found.setdefault(i, schemas.Life(id=i, born=None, ended=None, origins=[], successors=[]))

    for s in snapshots:
        for e in s.events:
            if e.kind not in {"birth", "death", "split", "merge"}:
                continue
            for i in set(e.after) - set(e.before):
                life(i).born = shape.ref(s)
                life(i).origins = sorted(e.before)
            for i in set(e.before) - set(e.after):
                life(i).ended = shape.ref(s)
                life(i).successors = sorted(e.after)
            for i in (*e.before, *e.after):
                life(i)
    return [found[i] for i in sorted(found)]


def choice_of_k(s: Snapshot) -> schemas.ChoiceOfK:
    """What the snapshot says about k."""
    told: Mapping[str, Any] = s.detail.get("k") or {}
    names = ("ks", "cost", "silhouette", "gap", "davies_bouldin")
    return schemas.ChoiceOfK(
        running=len(s.ids),
        suggested=told.get("suggested"),
        reason=told.get("reason", "not looked into yet: the first look is about a minute after the start"),
        **{name: told.get(name, []) for name in names},
    )


def quarantined(bad: BadRecord) -> schemas.QuarantinedRecord:
    """A record of the quarantine; what is no text in it is replaced."""
    r = bad.record
    return schemas.QuarantinedRecord(
        topic=r.partition.topic,
        partition=r.partition.partition,
        offset=r.offset,
        timestamp=r.timestamp,
        reason=bad.reason,
        field=_clean(bad.field),
        message=_clean(bad.message),
        key=_text(r.key),
        value=_text(r.value),
        value_bytes=len(r.value or b""),
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value[: 4 * CUT].decode("utf-8", "replace")[:CUT]


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def project(s: Snapshot, points: NDArray[np.float64], last: schemas.Projection | None) -> schemas.Projection:
    """Two axes to look at points along: those of the last time while they are good, so that the picture stands still.

    Parameters
    ----------
    points
        (m, d) raw.
    last
        Axes of the last time.
    """
    d = points.shape[1]
    with np.errstate(all="ignore"):
        mean = points.mean(axis=0) if len(points) else np.zeros(d)
        scaled = (points - mean) * s.factors
        total = float((scaled**2).sum())
    if not (math.isfinite(total) and total > 0.0):
        axes = np.eye(2, d) * s.factors
        return schemas.Projection(mean=np.nan_to_num(mean).tolist(), axes=axes.tolist(), explained=[0.0, 0.0])
    values, vectors = np.linalg.eigh(scaled.T @ scaled) if d <= len(points) else _thin(scaled)
    best = vectors[:, ::-1][:, :2].T
    best = best * np.where(best[np.arange(len(best)), np.abs(best).argmax(axis=1)] < 0.0, -1.0, 1.0)[:, None]
    best = np.vstack([best, np.zeros((2 - len(best), d))])
    if last is not None and len(last.mean) == d:
        kept = ((points - np.array(last.mean)) @ np.array(last.axes).T).var(axis=0) * len(points) / total
        if kept.sum() >= KEEPS * min(1.0, float(values[::-1][:2].sum()) / total):
            return last.model_copy(update={"explained": kept.tolist()})
    explained = [*(values[::-1][:2] / total).tolist(), 0.0][:2]
    return schemas.Projection(mean=mean.tolist(), axes=(best * s.factors).tolist(), explained=explained)


def _thin(scaled: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues and vectors, ascending, of more columns than rows."""
    _, sizes, rows = np.linalg.svd(scaled, full_matrices=False)
    return sizes[::-1] ** 2, rows[::-1].T


def sample(s: Snapshot, points: NDArray[np.float64], projection: schemas.Projection) -> bytes:
    """A `schemas_live.Sample` of points (m, d)."""
    found = assign(s, points) if len(points) else None
    return orjson.dumps(
        {
            "model": s.model,
            "snapshot": {"id": s.id, "created_at": iso(s.created_at)},
            "fields": s.fields,
            "points": np.ascontiguousarray(points),
            "ids": [] if found is None else found.ids,
            "distances": [] if found is None else found.distances,
            "scores": [] if found is None else found.scores,
            "projection": projection.model_dump(),
        },
        option=orjson.OPT_SERIALIZE_NUMPY,
    )


def thinned(points: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """At most so many of the rows, evenly."""
    if len(points) <= most:
        return points
    return points[np.linspace(0, len(points) - 1, most).astype(np.int64)]
