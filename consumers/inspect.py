"""``streamkm models | inspect | snapshots``: look into a store from the terminal."""

from __future__ import annotations

import contextlib
import json
import time
from datetime import UTC, datetime
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from consumers.options import example, takes
from streamkm.settings import StoreSettings
from streamkm.state import Snapshot
from streamkm.stores import open_store
from streamkm.stores.base import ModelInfo


@click.command(epilog=example("streamkm models --store sqlite:///streamkm.db", "streamkm models --json"))
@takes(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(settings: StoreSettings, *, as_json: bool) -> None:
    """List the models of a store."""
    with contextlib.closing(open_store(settings.store)) as store:
        found = store.models()
    if as_json:
        click.echo(json.dumps([info_json(m) for m in found], indent=2))
        return
    table = Table(*("model", "k", "fields", "topic", "points", "bad", "lag", "snapshots", "last commit"))
    for m in found:
        p = m.progress
        table.add_row(
            m.spec.name,
            str(m.spec.n_clusters),
            ", ".join(m.spec.fields),
            str(m.spec.source.get("topic", "")),
            f"{p.counters.points:,}" if p else "0",
            f"{p.counters.bad:,}" if p else "0",
            f"{p.lag:,}" if p and p.lag >= 0 else "?",
            str(m.last_snapshot),
            ago(p.committed_at) if p else "never",
        )
    Console().print(table)


@click.command(epilog=example("streamkm inspect orders", "streamkm inspect orders --snapshot 12 --json"))
@click.argument("model")
@click.option("--snapshot", type=int, help="Number of a snapshot; the newest if not given.")
@takes(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: str, settings: StoreSettings, *, snapshot: int | None, as_json: bool) -> None:
    """Show MODEL: progress and clusters."""
    with contextlib.closing(open_store(settings.store)) as store:
        info = store.model(model)
        published = store.snapshot(model, snapshot) if snapshot or info.last_snapshot else None
    if as_json:
        shown = {**info_json(info), "snapshot": snapshot_json(published) if published else None}
        click.echo(json.dumps(shown, indent=2))
        return
    console = Console()
    p = info.progress
    if p is not None:
        lag = f"{p.lag:,}" if p.lag >= 0 else "unknown"
        console.print(f"[bold]{model}[/]: {p.counters.points:,} points, lag {lag}, last commit {ago(p.committed_at)}")
        console.print("position: " + ", ".join(f"{tp}@{at}" for tp, at in sorted(p.position.items())))
    if published is None:
        have, need = p.warmup if p and p.warmup else (0, 0)
        console.print(f"warming up: {have:,} of {need:,} points" if need else "nothing published yet")
        return
    console.print(f"snapshot {published.id}, published {ago(published.created_at)} ({published.reason})")
    console.print(cluster_table(published))


def cluster_table(s: Snapshot) -> Table:
    """Clusters of a snapshot, the largest first."""
    table = Table("cluster", "share", "spread", *s.fields)
    total = s.weights.sum() or 1.0
    for i in np.argsort(-s.weights, kind="stable"):
        row = [str(s.ids[i]), f"{s.weights[i] / total:.1%}", f"{s.spreads[i]:.4g}"]
        table.add_row(*row, *(f"{x:.5g}" for x in s.centroids[i]))
    return table


@click.command(epilog=example("streamkm snapshots orders", "streamkm snapshots orders --limit 5 --json"))
@click.argument("model")
@takes(StoreSettings)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def snapshots(model: str, settings: StoreSettings, *, limit: int, as_json: bool) -> None:
    """List what MODEL has published, newest first."""
    with contextlib.closing(open_store(settings.store)) as store:
        store.model(model)
        found = store.snapshots(model, limit=limit)
    if as_json:
        click.echo(json.dumps([snapshot_json(s) for s in found], indent=2))
        return
    table = Table("snapshot", "published", "why", "points", "inertia per point", "largest share")
    for s in found:
        share = s.weights.max() / (s.weights.sum() or 1.0)
        when = datetime.fromtimestamp(s.created_at, UTC).isoformat(timespec="seconds")
        table.add_row(str(s.id), when, s.reason, f"{s.n_points:,}", f"{s.inertia:.5g}", f"{share:.1%}")
    Console().print(table)


def info_json(m: ModelInfo) -> dict[str, Any]:
    """A model as JSON."""
    p = m.progress
    return {
        "model": m.spec.name,
        "k": m.spec.n_clusters,
        "fields": list(m.spec.fields),
        "source": dict(m.spec.source),
        "last_snapshot": m.last_snapshot,
        "points": p.counters.points if p else 0,
        "bad": p.counters.bad if p else 0,
        "tombstones": p.counters.tombstones if p else 0,
        "lag": p.lag if p and p.lag >= 0 else None,
        "committed_at": p.committed_at if p else None,
        "position": {str(tp): at for tp, at in p.position.items()} if p else {},
    }


def snapshot_json(s: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON."""
    return {
        "id": s.id,
        "created_at": s.created_at,
        "kind": s.kind,
        "reason": s.reason,
        "fields": list(s.fields),
        "ids": s.ids.tolist(),
        "centroids": s.centroids.tolist(),
        "weights": s.weights.tolist(),
        "spreads": s.spreads.tolist(),
        "inertia": s.inertia if np.isfinite(s.inertia) else None,
        "points": s.n_points,
        "position": {str(tp): at for tp, at in s.position.items()},
        "detail": dict(s.detail),
    }


def ago(then: float) -> str:
    """How long ago a moment was, for people."""
    seconds = max(0.0, time.time() - then)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
