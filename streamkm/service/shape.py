"""How stored data becomes what the API answers."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from streamkm.effects import differences
from streamkm.records import Position
from streamkm.redaction import redact_all
from streamkm.service import schemas
from streamkm.service.times import iso
from streamkm.state import Event, Snapshot
from streamkm.stores.base import ModelInfo


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
    return schemas.SnapshotRef(id=s.id, created_at=iso(s.created_at))


def summary(s: Snapshot) -> schemas.SnapshotSummary:
    """The snapshot without its clusters."""
    return schemas.SnapshotSummary(
        id=s.id,
        created_at=iso(s.created_at),
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
        created_at=iso(info.created_at),
        points=p.counters.points if p else 0,
        bad=p.counters.bad if p else 0,
        lag=p.lag if p and p.lag >= 0 else None,
        committed_at=iso(p.committed_at) if p else None,
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
        lease=schemas.LeaseOut(owner=lease.owner, epoch=lease.epoch, expires_at=iso(lease.expires_at), live=lease_live)
        if lease
        else None,
    )
