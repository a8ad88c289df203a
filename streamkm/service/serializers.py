"""Converts stored data to the JSON of the API; large collections are encoded by hand, once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from streamkm.assignment import assign
from streamkm.effect_sizes import differences
from streamkm.records import BadRecord, Position
from streamkm.redaction import redact_all
from streamkm.service.schemas import live
from streamkm.service.schemas import models as schemas
from streamkm.state import Event, Snapshot
from streamkm.stores.base import ModelInfo
from streamkm.times import format_time


def number(x: float) -> float | None:
    """A float as JSON can carry it."""
    return float(x) if math.isfinite(x) else None


def positions(position: Position) -> list[schemas.PartitionPosition]:
    """A position, sorted."""
    return [
        schemas.PartitionPosition(topic=tp.topic, partition=tp.partition, offset=at)
        for tp, at in sorted(position.items())
    ]


def ref(s: Snapshot) -> schemas.SnapshotRef:
    """Which snapshot it is."""
    return schemas.SnapshotRef(id=s.id, created_at=format_time(s.created_at))


def summary(s: Snapshot) -> schemas.SnapshotSummary:
    """The snapshot without its clusters."""
    return schemas.SnapshotSummary(
        id=s.id,
        created_at=format_time(s.created_at),
        kind=s.kind,
        reason=s.reason,
        n_clusters=len(s.ids),
        n_points=s.n_points,
        inertia=number(s.inertia),
        position=positions(s.position),
        events=len(s.events),
    )


def shares(s: Snapshot) -> list[float | None]:
    """Each cluster's part of all weight; None when nothing has weight."""
    total = float(s.weights.sum())
    return [number(w / total) if total > 0 else None for w in s.weights.tolist()]


def clusters(s: Snapshot) -> list[schemas.Cluster]:
    """The snapshot's clusters, in its order."""
    result = []
    share, found = shares(s), differences(s.centroids, s.weights, s.deviations)
    within = np.full(s.centroids.shape, np.nan) if s.deviations is None else s.deviations
    for i, values in enumerate(s.centroids.tolist()):
        shown = [number(v) for v in values]
        result.append(
            schemas.Cluster(
                id=int(s.ids[i]),
                centroid=dict(zip(s.fields, shown, strict=True)),
                values=shown,
                weight=number(s.weights[i]),
                share=share[i],
                spread=number(s.spreads[i]),
                deviations=[number(v) for v in within[i]],
                differences=[number(v) for v in found[i]],
                born_at_points=int(s.born[i]),
                age=s.n_points - int(s.born[i]),
            )
        )
    return result


def events(happened: Iterable[Event]) -> list[schemas.Event]:
    """What happened to clusters."""
    return [schemas.Event(**e.to_json()) for e in happened]


def snapshot_events(s: Snapshot) -> schemas.SnapshotEvents:
    """What happened to clusters since the snapshot before."""
    return schemas.SnapshotEvents(**dict(ref(s)), events=events(s.events))


def centroids(s: Snapshot) -> schemas.Centroids:
    """The clusters at the moment of the snapshot."""
    return schemas.Centroids(model=s.model, snapshot=summary(s), fields=list(s.fields), clusters=clusters(s))


def snapshot_detail(s: Snapshot) -> schemas.SnapshotDetail:
    """All that the snapshot holds."""
    return schemas.SnapshotDetail(
        **dict(summary(s)),
        model=s.model,
        fields=list(s.fields),
        clusters=clusters(s),
        happened=events(s.events),
        distance=s.distance,
        factors=[number(f) for f in s.factors.tolist()],
        commit_seq=s.commit_seq,
        detail=dict(s.detail),
    )


def model_summary(info: ModelInfo, newest: Snapshot | None, status: schemas.Status, why: str) -> schemas.ModelSummary:
    """A model as the list shows it."""
    p = info.progress
    return schemas.ModelSummary(
        name=info.spec.name,
        status=status,
        why=why,
        n_clusters=info.spec.n_clusters or (len(newest.ids) if newest else 0),
        fields=list(info.spec.fields),
        created_at=format_time(info.created_at),
        points=p.counters.points if p else 0,
        bad=p.counters.bad if p else 0,
        lag=p.lag if p and p.lag >= 0 else None,
        committed_at=format_time(p.committed_at) if p else None,
        snapshot=ref(newest) if newest else None,
    )


def model_detail(
    info: ModelInfo, newest: Snapshot | None, status: schemas.Status, why: str, *, lease_live: bool
) -> schemas.ModelDetail:
    """A model with all that is known about it."""
    p, lease = info.progress, info.lease
    c = p.counters if p else None
    return schemas.ModelDetail(
        **dict(model_summary(info, newest, status, why)),
        source=redact_all(info.spec.source),
        learner=dict(info.spec.learner),
        codec=dict(info.spec.codec),
        counters=schemas.CountersOut(
            records=c.records if c else 0,
            points=c.points if c else 0,
            bad=c.bad if c else 0,
            tombstones=c.tombstones if c else 0,
            lost=c.lost if c else 0,
        ),
        position=positions(p.position) if p else [],
        commits=p.commit_seq if p else 0,
        warmup=schemas.Warmup(have=p.warmup[0], need=p.warmup[1]) if p and p.warmup else None,
        lease=schemas.LeaseOut(
            owner=lease.owner, epoch=lease.epoch, expires_at=format_time(lease.expires_at), live=lease_live
        )
        if lease
        else None,
    )


CUT = 2000
"""Characters of a record's key and value."""
MOST_BYTES = 4 * CUT
"""Bytes that so many characters take at most."""
Points = NDArray[np.float64]
KEEPS = 0.9
"""Axes are kept while at least this share of the variance lies along them that could."""
ALIKE = 0.7
"""Two components are alike when the smaller one has this share of the larger one's variance."""
WIDE = 400
"""With more fields the spread within clusters has no say in how to look at them, unless there are hardly any."""


def entry(s: Snapshot) -> bytes:
    """A `schemas_live.HistoryEntry`. Numbers that are not finite become null, as orjson has it."""
    return orjson.dumps(
        {
            "id": s.id,
            "created_at": format_time(s.created_at),
            "kind": s.kind,
            "reason": s.reason,
            "n_points": s.n_points,
            "inertia": s.inertia,
            "ids": np.ascontiguousarray(s.ids),
            "shares": shares(s),
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


def lives(snapshots: Iterable[Snapshot]) -> list[live.Life]:
    """What the events of snapshots, the oldest first, tell about each cluster."""
    found: dict[int, live.Life] = {}

    def life(i: int) -> live.Life:
        return found.setdefault(i, live.Life(id=i, born=None, ended=None, origins=[], successors=[]))

    for s in snapshots:
        for e in s.events:
            if e.kind not in {"birth", "death", "split", "merge"}:
                continue
            for i in set(e.after) - set(e.before):
                life(i).born = ref(s)
                life(i).origins = sorted(e.before)
            for i in set(e.before) - set(e.after):
                life(i).ended = ref(s)
                life(i).successors = sorted(e.after)
            for i in (*e.before, *e.after):
                life(i)
    return [found[i] for i in sorted(found)]


def choice_of_k(s: Snapshot) -> live.ChoiceOfK:
    """What the snapshot says about k."""
    told: Mapping[str, Any] = s.detail.get("k") or {}
    names = ("ks", "cost", "silhouette", "gap", "davies_bouldin")
    return live.ChoiceOfK(
        running=len(s.ids),
        suggested=told.get("suggested"),
        reason=told.get("reason", "not looked into yet: the first look is about a minute after the start"),
        **{name: told.get(name, []) for name in names},
    )


def quarantined(bad: BadRecord) -> live.QuarantinedRecord:
    """A record of the quarantine; what is no text in it is replaced."""
    r = bad.record
    return live.QuarantinedRecord(
        topic=r.partition.topic,
        partition=r.partition.partition,
        offset=r.offset,
        timestamp=r.timestamp,
        reason=bad.reason,
        field=_clean(bad.field),
        message=_clean(bad.message),
        key=_text(r.key),
        value=_text(r.value),
        value_bytes=len(r.value or b"") if r.size is None else r.size,
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value[:MOST_BYTES].decode("utf-8", "replace")[:CUT]


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def project(s: Snapshot, points: Points, last: live.Projection | None) -> live.Projection:
    """Two axes to look at points along, so that the picture stands still while the stream does.

    They are principal components of all that the snapshot knows: of its centroids and of the spread around them. A few
    hundred points would give others each time, and one that is far away any. Axes of the last time are kept while they
    are good; others are turned within their plane until they are as near to those as they can be.

    Parameters
    ----------
    points
        (m, d) raw, the last ones: for snapshots that do not know how their clusters spread.
    last
        Axes of the last time.
    """
    mean, rows = _looked_at(s, points)
    d = len(mean)
    with np.errstate(all="ignore"):
        total = float((rows**2).sum())
    if not (math.isfinite(total) and total > 0.0):
        axes = np.eye(2, d) * s.factors
        return live.Projection(mean=np.nan_to_num(mean).tolist(), axes=axes.tolist(), explained=[0.0, 0.0])
    best = (
        np.linalg.svd(rows, full_matrices=False)[2][:2] if d > len(rows) else np.linalg.eigh(rows.T @ rows)[1].T[:-3:-1]
    )
    best = best * np.where(best[np.arange(len(best)), np.abs(best).argmax(axis=1)] < 0.0, -1.0, 1.0)[:, None]
    best = np.vstack([best, np.zeros((2 - len(best), d))])
    if last is not None and len(last.mean) == d:
        before = _orthonormal(np.array(last.axes) / np.where(s.factors > 0.0, s.factors, 1.0))
        explained = _explained(rows, before, total)
        if sum(explained) >= KEEPS * sum(_explained(rows, best, total)):
            return last.model_copy(update={"explained": explained})
        best = _turned(best, before)
    else:
        first, second = _explained(rows, best, total)
        if second >= ALIKE * first:
            # Which of them is the larger is chance: the fields that matter most in this plane tell how to look at it.
            telling = np.sort(np.argsort(-np.square(best).sum(axis=0), kind="stable")[:2])
            best = _turned(best, np.eye(d)[telling])
    return live.Projection(
        mean=mean.tolist(), axes=(best * s.factors).tolist(), explained=_explained(rows, best, total)
    )


def _looked_at(s: Snapshot, points: Points) -> tuple[Points, Points]:
    """The mean (d,), and rows (m, d) around it in the unit of distances whose squares are the scatter to look at."""
    total = float(s.weights.sum())
    with np.errstate(all="ignore"):
        if s.deviations is not None and np.isfinite(s.deviations).all() and 0.0 < total < math.inf:
            share = s.weights / total
            mean = share @ s.centroids
            between = np.sqrt(share)[:, np.newaxis] * (s.centroids - mean)
            within = np.sqrt(share @ s.deviations**2)
            d = len(mean)
            if d <= WIDE or len(between) <= 2:
                return mean, np.concatenate([between, np.diag(within)]) * s.factors
            return mean, between * s.factors
        seen = points if len(points) > 1 and np.ptp(points, axis=0).any() else s.centroids
        mean = seen.mean(axis=0) if len(seen) else np.zeros(points.shape[1])
        return mean, (seen - mean) * s.factors


def _turned(axes: Points, towards: Points) -> Points:
    """Two axes, turned within their plane until they are as near to two others as they can be (Procrustes)."""
    left, _, right = np.linalg.svd(towards @ axes.T)
    near: Points = left @ right @ axes
    return near


def _explained(rows: Points, axes: Points, total: float) -> list[float]:
    """Share of the scatter along each of some orthonormal axes."""
    found: list[float] = (np.square(rows @ axes.T).sum(axis=0) / total).tolist()
    return found


def _orthonormal(axes: Points) -> Points:
    """Two axes at right angles and of length one as near to some as they can be; units may have changed since."""
    left, _, right = np.linalg.svd(axes, full_matrices=False)
    near: Points = left @ right
    return near


def sample(s: Snapshot, points: NDArray[np.float64], projection: live.Projection) -> bytes:
    """A `schemas_live.Sample` of points (m, d)."""
    found = assign(s, points) if len(points) else None
    return orjson.dumps(
        {
            "model": s.model,
            "snapshot": {"id": s.id, "created_at": format_time(s.created_at)},
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
