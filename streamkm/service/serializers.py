"""Converts stored data to the JSON of the API; large collections are encoded without schemas, for speed."""

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
from streamkm.state import Counters, ModelEvent, Snapshot
from streamkm.stores.base import ModelInfo
from streamkm.times import format_time

MAX_TEXT_CHARS = 2000
"""Characters of a quarantined record's key and value that are shown."""
MAX_TEXT_BYTES = 4 * MAX_TEXT_CHARS
"""Upper bound of the UTF-8 bytes of that many characters."""
KEPT_AXES_SHARE = 0.9
"""The axes of the last projection are kept while they explain at least this fraction of what the best axes explain."""
SIMILAR_VARIANCE_RATIO = 0.7
"""Two components with at least this ratio of variances are similar: their order would change by chance."""
MAX_FIELDS_WITH_SPREAD = 400
"""With more fields the spread within clusters is left out of the projection, unless there are at most two clusters."""
Points = NDArray[np.float64]


def number(x: float) -> float | None:
    """A float, or None if JSON cannot represent it."""
    return float(x) if math.isfinite(x) else None


def positions(position: Position) -> list[schemas.PartitionPosition]:
    """A position, sorted by topic and partition."""
    return [
        schemas.PartitionPosition(topic=tp.topic, partition=tp.partition, offset=at)
        for tp, at in sorted(position.items())
    ]


def snapshot_ref(s: Snapshot) -> schemas.SnapshotRef:
    """Reference to a snapshot."""
    return schemas.SnapshotRef(id=s.id, created_at=format_time(s.created_at))


def snapshot_summary(s: Snapshot) -> schemas.SnapshotSummary:
    """A snapshot without its clusters."""
    return schemas.SnapshotSummary(
        id=s.id,
        created_at=format_time(s.created_at),
        kind=s.kind,
        reason=s.reason,
        n_clusters=len(s.ids),
        n_points=s.n_points,
        inertia=number(s.inertia),
        position=positions(s.position),
        n_events=len(s.events),
    )


def shares(s: Snapshot) -> list[float | None]:
    """Fraction of the total weight of each cluster; None if the total is 0."""
    total = float(s.weights.sum())
    return [number(w / total) if total > 0 else None for w in s.weights.tolist()]


def clusters(s: Snapshot) -> list[schemas.Cluster]:
    """The clusters of a snapshot, in its order."""
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


def events(found: Iterable[ModelEvent]) -> list[schemas.Event]:
    """Events in the lineage of clusters."""
    return [schemas.Event(**e.to_json()) for e in found]


def snapshot_list(found: Sequence[Snapshot], next_page: int | None) -> schemas.SnapshotList:
    """Serialize a page of snapshots without their clusters."""
    return schemas.SnapshotList(snapshots=list(map(snapshot_summary, found)), next=next_page)


def event_list(found: Sequence[Snapshot], next_page: int | None) -> schemas.EventList:
    """Serialize the events of a page of snapshots."""
    return schemas.EventList(snapshots=list(map(snapshot_events, found)), next=next_page)


def snapshot_events(s: Snapshot) -> schemas.SnapshotEvents:
    """The events since the snapshot before."""
    return schemas.SnapshotEvents(**dict(snapshot_ref(s)), events=events(s.events))


def centroids(s: Snapshot) -> schemas.Centroids:
    """The clusters of a snapshot."""
    return schemas.Centroids(model=s.model, snapshot=snapshot_summary(s), fields=list(s.fields), clusters=clusters(s))


def snapshot_detail(s: Snapshot) -> schemas.SnapshotDetail:
    """A snapshot with its clusters and events."""
    return schemas.SnapshotDetail(
        **dict(snapshot_summary(s)),
        model=s.model,
        fields=list(s.fields),
        clusters=clusters(s),
        events=events(s.events),
        distance=s.distance,
        factors=[number(f) for f in s.factors.tolist()],
        commit_seq=s.commit_seq,
        detail=dict(s.detail),
    )


def model_status(info: ModelInfo, newest: Snapshot | None, status: schemas.Status, reason: str) -> schemas.ModelStatus:
    """Serialize status and counters of a model.

    Parameters
    ----------
    info
        The model.
    newest
        Its newest snapshot.
    status, reason
        As `status.status` returns them.
    """
    p = info.progress
    return schemas.ModelStatus(
        status=status,
        status_reason=reason,
        n_clusters=len(newest.ids) if newest else info.spec.n_clusters,
        points=p.counters.points if p else 0,
        bad_records=p.counters.bad if p else 0,
        lag=p.lag if p and p.lag >= 0 else None,
        committed_at=format_time(p.committed_at) if p else None,
        snapshot=snapshot_ref(newest) if newest else None,
    )


def model_summary(
    info: ModelInfo, newest: Snapshot | None, status: schemas.Status, reason: str
) -> schemas.ModelSummary:
    """Serialize a model without its details; arguments as for `model_status`."""
    return schemas.ModelSummary(
        **dict(model_status(info, newest, status, reason)),
        name=info.spec.name,
        fields=list(info.spec.fields),
        created_at=format_time(info.created_at),
    )


def model_detail(
    info: ModelInfo, newest: Snapshot | None, status: schemas.Status, reason: str, *, lease_live: bool
) -> schemas.ModelDetail:
    """A model with its settings, counters, position and owner."""
    p, lease = info.progress, info.lease
    c = p.counters if p else Counters()
    return schemas.ModelDetail(
        **dict(model_summary(info, newest, status, reason)),
        source=redact_all(info.spec.source),
        learner=dict(info.spec.learner),
        codec=info.spec.codec.to_json(),
        counters=schemas.CountersOut(
            records=c.records, points=c.points, bad_records=c.bad, tombstones=c.tombstones, lost_records=c.lost
        ),
        position=positions(p.position) if p else [],
        commits=p.commit_seq if p else 0,
        warmup=schemas.Warmup(points=p.warmup[0], points_needed=p.warmup[1]) if p and p.warmup else None,
        lease=schemas.LeaseOut(
            owner=lease.owner, epoch=lease.epoch, expires_at=format_time(lease.expires_at), live=lease_live
        )
        if lease
        else None,
    )


def history_entry(s: Snapshot) -> bytes:
    """JSON of a `live.HistoricalSnapshot`; numbers that are not finite become null."""
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


def history(fields: Sequence[str], snapshots: Iterable[Snapshot], next_page: int | None) -> bytes:
    """JSON of a `live.History`."""
    entries = b",".join(map(history_entry, snapshots))
    return b'{"fields":%b,"snapshots":[%b],"next":%b}' % (orjson.dumps(list(fields)), entries, orjson.dumps(next_page))


def in_charge(s: Snapshot) -> bool:
    """Whether a snapshot was ever in charge: a recomputed one is published again when it is promoted."""
    return s.kind != "replay"


def lineage_page(found: Sequence[Snapshot], next_page: int | None) -> live.Lineage:
    """Serialize the lineage of the clusters in a page of snapshots, newest first."""
    return live.Lineage(clusters=lineage_of(reversed(found)), next=next_page)


def lineage_of(snapshots: Iterable[Snapshot]) -> list[live.ClusterLineage]:
    """The lineage of each cluster, by id.

    Parameters
    ----------
    snapshots
        Snapshots with events, oldest first.
    """
    found: dict[int, live.ClusterLineage] = {}

    def cluster(i: int) -> live.ClusterLineage:
        return found.setdefault(i, live.ClusterLineage(id=i, born=None, ended=None, origins=[], successors=[]))

    for s in snapshots:
        for e in s.events:
            if e.kind not in {"birth", "death", "split", "merge"}:
                continue
            for i in set(e.after) - set(e.before):
                cluster(i).born = snapshot_ref(s)
                cluster(i).origins = sorted(e.before)
            for i in set(e.before) - set(e.after):
                cluster(i).ended = snapshot_ref(s)
                cluster(i).successors = sorted(e.after)
            for i in (*e.before, *e.after):
                cluster(i)
    return [found[i] for i in sorted(found)]


def k_profile(s: Snapshot) -> live.KProfile:
    """The criteria for the number of clusters that are stored in a snapshot."""
    stored: Mapping[str, Any] = s.detail.get("k") or {}
    names = ("ks", "cost", "silhouette", "gap", "davies_bouldin")
    return live.KProfile(
        current=len(s.ids),
        suggested=stored.get("suggested"),
        reason=stored.get("reason", "not computed yet: the first time is about a minute after the start"),
        **{name: stored.get(name, []) for name in names},
    )


def quarantined(bad: BadRecord) -> live.QuarantineEntry:
    """A quarantined record; bytes that are not UTF-8 are replaced."""
    r = bad.record
    return live.QuarantineEntry(
        topic=r.partition.topic,
        partition=r.partition.partition,
        offset=r.offset,
        timestamp=r.timestamp,
        reason=bad.reason,
        field=_valid_text(bad.field),
        message=_valid_text(bad.message),
        key=_text(r.key),
        value=_text(r.value),
        value_bytes=len(r.value or b"") if r.size is None else r.size,
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value[:MAX_TEXT_BYTES].decode("utf-8", "replace")[:MAX_TEXT_CHARS]


def _valid_text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def project(s: Snapshot, points: Points, last: live.Projection | None) -> live.Projection:
    """Two axes to draw points along, chosen so that successive pictures of a stream are stable.

    They are the principal components of the scatter of the centroids and of the spread within clusters. Those of a few
    hundred points would differ each time, and depend on outliers. The last axes are kept while they explain enough;
    new ones are rotated within their plane to be as close to the last ones as possible.

    Parameters
    ----------
    s
        The snapshot.
    points
        (m, d) recent points, used if the snapshot has no deviations (published by an older version).
    last
        The last projection; None at first.
    """
    mean, rows = _scatter(s, points)
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
        if sum(explained) >= KEPT_AXES_SHARE * sum(_explained(rows, best, total)):
            return last.model_copy(update={"explained": explained})
        best = _rotated(best, before)
    else:
        first, second = _explained(rows, best, total)
        if second >= SIMILAR_VARIANCE_RATIO * first:
            # Their order is chance: orient the plane by the two fields with the largest loadings.
            largest = np.sort(np.argsort(-np.square(best).sum(axis=0), kind="stable")[:2])
            best = _rotated(best, np.eye(d)[largest])
    return live.Projection(
        mean=mean.tolist(), axes=(best * s.factors).tolist(), explained=_explained(rows, best, total)
    )


def _scatter(s: Snapshot, points: Points) -> tuple[Points, Points]:
    """The mean (d,), and centred rows (m, d), in units of distance, whose squares sum to the scatter to project."""
    total = float(s.weights.sum())
    with np.errstate(all="ignore"):
        if s.deviations is not None and np.isfinite(s.deviations).all() and 0.0 < total < math.inf:
            share = s.weights / total
            mean = share @ s.centroids
            between = np.sqrt(share)[:, np.newaxis] * (s.centroids - mean)
            within = np.sqrt(share @ s.deviations**2)
            d = len(mean)
            if d <= MAX_FIELDS_WITH_SPREAD or len(between) <= 2:
                return mean, np.concatenate([between, np.diag(within)]) * s.factors
            return mean, between * s.factors
        rows = points if len(points) > 1 and np.ptp(points, axis=0).any() else s.centroids
        mean = rows.mean(axis=0) if len(rows) else np.zeros(points.shape[1])
        return mean, (rows - mean) * s.factors


def _rotated(axes: Points, towards: Points) -> Points:
    """Two axes, rotated within their plane to be as close to two others as possible (orthogonal Procrustes)."""
    left, _, right = np.linalg.svd(towards @ axes.T)
    rotated: Points = left @ right @ axes
    return rotated


def _explained(rows: Points, axes: Points, total: float) -> list[float]:
    """Fraction of the scatter along each of some orthonormal axes."""
    found: list[float] = (np.square(rows @ axes.T).sum(axis=0) / total).tolist()
    return found


def _orthonormal(axes: Points) -> Points:
    """The orthonormal axes closest to two given ones, whose units may have changed."""
    left, _, right = np.linalg.svd(axes, full_matrices=False)
    closest: Points = left @ right
    return closest


def sample(s: Snapshot, points: NDArray[np.float64], projection: live.Projection) -> bytes:
    """JSON of a `live.PointSample` of points (m, d)."""
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


def subsample(points: NDArray[np.float64], limit: int) -> NDArray[np.float64]:
    """At most `limit` of the (n, d) rows, evenly spaced."""
    if len(points) <= limit:
        return points
    return points[np.linspace(0, len(points) - 1, limit).astype(np.int64)]
