"""``streamkm models | inspect | snapshots | events``: look into a store from the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import click
import numpy as np
from rich.table import Table

from consumers import terminal
from consumers.fields import add_field, fitted
from consumers.fields import told as told_fields
from consumers.options import example, with_settings
from streamkm.effect_sizes import differences
from streamkm.settings import StoreSettings
from streamkm.state import Event, Snapshot
from streamkm.stores import open_store
from streamkm.stores.base import ModelInfo
from streamkm.times import format_age, format_time

MOST_NAMES = 3
"""Fields that the list of models names."""
MOST_TOLD = 20
"""Clusters whose differences are told, the largest ones."""


@click.command(epilog=example("streamkm models --store sqlite:///streamkm.db", "streamkm models --json"))
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def models(settings: StoreSettings, *, as_json: bool) -> None:
    """List the models of a store."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        found = store.models()
    if as_json:
        terminal.say_json([info_json(m) for m in found])
        return
    if not found:
        terminal.say("no models yet: streamkm live MODEL --topic TOPIC --fields A,B,... makes one")
        return
    table = Table()
    for name in ("model", "k", "fields", "topic", "points", "bad", "lag", "snapshots", "last commit"):
        table.add_column(name, no_wrap=name in {"k", "points", "bad", "lag", "snapshots"})
    for m in found:
        p = m.progress
        table.add_row(
            m.spec.name,
            str(m.spec.n_clusters or "auto"),
            _some(m.spec.fields),
            str(m.spec.source.get("topic", "")),
            f"{p.counters.points:,}" if p else "0",
            f"{p.counters.bad:,}" if p else "0",
            f"{p.lag:,}" if p and p.lag >= 0 else "?",
            str(m.last_snapshot),
            _ago(p.committed_at) if p else "never",
        )
    terminal.show(table)


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


@click.command(epilog=example("streamkm inspect orders", "streamkm inspect orders --snapshot 12 --json"))
@click.argument("model")
@click.option("--snapshot", type=int, help="Number of a snapshot; the newest if not given.")
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(model: str, settings: StoreSettings, *, snapshot: int | None, as_json: bool) -> None:
    """Show MODEL: progress and clusters."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        info = store.model(model)
        published = store.snapshot(model, snapshot) if snapshot or info.last_snapshot else None
    if as_json:
        shown = {**info_json(info), "snapshot": snapshot_json(published) if published else None}
        terminal.say_json(shown)
        return
    p = info.progress
    if p is not None:
        lag = f"{p.lag:,}" if p.lag >= 0 else "unknown"
        terminal.say(
            (model, "bold"),
            f": {p.counters.points:,} points, lag {lag}, last commit {_ago(p.committed_at)}",
        )
        if p.counters.lost:
            gone = f"{p.counters.lost:,} records were gone before they could be read, and were skipped"
            terminal.say((gone, "red"))
        terminal.say("position: " + ", ".join(f"{tp}@{at}" for tp, at in sorted(p.position.items())))
    if published is None:
        have, need = p.warmup if p and p.warmup else (0, 0)
        terminal.say(f"warming up: {have:,} of {need:,} points" if need else "nothing published yet")
        return
    terminal.say(f"snapshot {published.id}, published {_ago(published.created_at)} ({published.reason})")
    show_clusters(published)
    for line in judgement(published):
        terminal.say(line)
    for event in published.events:
        terminal.say(f"since the snapshot before: {told(event)}")


def judgement(s: Snapshot) -> list[str]:
    """How good the clusters of a snapshot are, as lines for people."""
    lines, d = [], s.detail
    if d.get("evaluation"):
        lines.append(f"silhouette {d['evaluation']['silhouette']:.3f}, {d['outliers']:,} outliers so far")
    if d.get("k"):
        suggested, running = d["k"]["suggested"], d["k"]["running"]
        same = "as many as there are" if suggested == running else f"k is {running}"
        which = "none" if suggested is None else suggested
        lines.append(f"suggested number of clusters: {which} ({same}): {d['k']['reason']}")
    return lines


def told(event: Event) -> str:
    """An event as a sentence."""
    before, after = (", ".join(map(str, ids)) for ids in (event.before, event.after))
    return {
        "birth": f"cluster {after} was born",
        "death": f"cluster {before} died",
        "split": f"cluster {before} split into {after}",
        "merge": f"clusters {before} merged into {after}",
        "drift": f"cluster {after} drifted",
        "promotion": f"snapshot {event.detail.get('snapshot')} was put in charge: clusters {after}",
        "outliers": f"{event.detail.get('count')} of {event.detail.get('points')} points belong to no cluster",
    }[event.kind]


@click.command(epilog=example("streamkm events orders", "streamkm events orders --json"))
@click.argument("model")
@with_settings(StoreSettings)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Snapshots at most.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def events(model: str, settings: StoreSettings, *, limit: int, as_json: bool) -> None:
    """Tell what happened in MODEL: births, deaths, splits, merges, drifts, promotions, outliers; newest first."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        store.model(model)
        found = store.snapshots(model, limit=limit, eventful=True)
    if as_json:
        fields = ("id", "created_at", "points", "events")
        terminal.say_json([{name: snapshot_json(s)[name] for name in fields} for s in found])
        return
    if not found:
        terminal.say("nothing has happened to the clusters yet")
        return
    table = Table()
    for name in ("snapshot", "published", "points", "what happened"):
        table.add_column(name, no_wrap=name in {"snapshot", "points"})
    for s in found:
        for event in s.events:
            table.add_row(str(s.id), format_time(s.created_at, "seconds"), f"{s.n_points:,}", told(event))
    terminal.show(table)


def show_clusters(s: Snapshot) -> None:
    """Clusters of a snapshot, the largest first, in as many fields as there is room for, and how each differs."""
    found = differences(s.centroids, s.weights, s.deviations)
    table, cut = fitted(lambda places: cluster_table(s, places), found, terminal.console().width)
    terminal.show(table)
    if cut:
        terminal.say(f"({cut}: --json has all)")
    if len(s.fields) == 1 or len(s.ids) == 1:
        return  # the centroids say it
    if not np.isfinite(found).any():
        terminal.say("what makes each cluster different is not known: an older streamkm published it")
        return
    order = np.argsort(-s.weights, kind="stable")
    terminal.say("differs most from the mean of all points, in standard deviations within clusters:")
    for i in order[:MOST_TOLD]:
        terminal.say(f"  cluster {s.ids[i]}: {told_fields(s.fields, found[i]) or 'in nothing much'}")
    if len(order) > MOST_TOLD:
        terminal.say(f"  (and {len(order) - MOST_TOLD} smaller ones: --json has all)")


def cluster_table(s: Snapshot, places: Sequence[int]) -> Table:
    """Clusters of a snapshot, the largest first, in the fields at some places."""
    table = Table("cluster", "share", "spread", "age in points")
    for j in places:
        add_field(table, s.fields[j])
    total = s.weights.sum() or 1.0
    for i in np.argsort(-s.weights, kind="stable"):
        age = f"{s.n_points - s.born[i]:,}"
        row = [str(s.ids[i]), f"{s.weights[i] / total:.1%}", f"{s.spreads[i]:.4g}", age]
        table.add_row(*row, *(f"{s.centroids[i, j]:.5g}" for j in places))
    return table


@click.command(epilog=example("streamkm snapshots orders", "streamkm snapshots orders --limit 5 --json"))
@click.argument("model")
@with_settings(StoreSettings)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def snapshots(model: str, settings: StoreSettings, *, limit: int, as_json: bool) -> None:
    """List what MODEL has published, newest first."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        store.model(model)
        found = store.snapshots(model, limit=limit)
    if as_json:
        terminal.say_json([snapshot_json(s) for s in found])
        return
    if not found:
        terminal.say("nothing published yet")
        return
    table = Table()
    for name in ("snapshot", "published", "why", "points", "inertia per point", "largest share"):
        table.add_column(name, no_wrap=name in {"snapshot", "points"})
    for s in found:
        share = s.weights.max() / (s.weights.sum() or 1.0)
        inertia = f"{s.inertia:.5g}" if np.isfinite(s.inertia) else "-"
        table.add_row(
            str(s.id), format_time(s.created_at, "seconds"), s.reason, f"{s.n_points:,}", inertia, f"{share:.1%}"
        )
    terminal.show(table)


def info_json(m: ModelInfo) -> dict[str, Any]:
    """A model as JSON."""
    p = m.progress
    return {
        "model": m.spec.name,
        "k": m.spec.n_clusters or "auto",
        "fields": list(m.spec.fields),
        "source": dict(m.spec.source),
        "last_snapshot": m.last_snapshot,
        "points": p.counters.points if p else 0,
        "bad": p.counters.bad if p else 0,
        "tombstones": p.counters.tombstones if p else 0,
        "lost": p.counters.lost if p else 0,
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
        "deviations": None if s.deviations is None else s.deviations.tolist(),
        "differences": None if s.deviations is None else differences(s.centroids, s.weights, s.deviations).tolist(),
        "born": s.born.tolist(),
        "factors": s.factors.tolist(),
        "distance": s.distance,
        "events": [event.to_json() for event in s.events],
        "inertia": s.inertia if np.isfinite(s.inertia) else None,
        "points": s.n_points,
        "position": {str(tp): at for tp, at in s.position.items()},
        "detail": dict(s.detail),
    }


def _ago(then: float) -> str:
    """How long ago a time was, for people."""
    return f"{format_age(time.time() - then)} ago"
