"""``streamkm models | inspect | snapshots | events``: models and their snapshots in the terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.table import Table

from consumers import terminal
from consumers.fields import add_field, describe_differences, fit_fields
from consumers.options import example, with_settings
from streamkm.effect_sizes import differences
from streamkm.settings import StoreSettings
from streamkm.state import ModelEvent, Snapshot
from streamkm.stores import open_store
from streamkm.stores.base import ModelInfo
from streamkm.stores.paging import split_page
from streamkm.times import format_age, format_time

if TYPE_CHECKING:
    from pydantic import BaseModel

MAX_FIELDS = 3
"""Fields in the list of models."""
MAX_DESCRIBED = 20
"""Clusters whose differences are described, the largest ones."""


@click.command(epilog=example("streamkm models --store sqlite:///streamkm.db", "streamkm models --json"))
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as /v1/models.")
def models(settings: StoreSettings, *, as_json: bool) -> None:
    """List the models of a store."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        found = store.models()
        if as_json:
            newest = [store.snapshot(m.spec.name) if m.last_snapshot else None for m in found]
            summaries = [model_json(m, s, detail=False) for m, s in zip(found, newest, strict=True)]
            terminal.say_json({"models": summaries})
            return
    if not found:
        terminal.say("no models yet: streamkm live MODEL --topic TOPIC --fields A,B,... creates one")
        return
    table = Table()
    for name in ("model", "k", "fields", "topic", "points", "bad", "lag", "snapshots", "last commit"):
        table.add_column(name, no_wrap=name in {"k", "points", "bad", "lag", "snapshots"})
    for m in found:
        p = m.progress
        table.add_row(
            m.spec.name,
            str(m.spec.n_clusters or "auto"),
            _shortened(m.spec.fields),
            str(m.spec.source.get("topic", "")),
            f"{p.counters.points:,}" if p else "0",
            f"{p.counters.bad:,}" if p else "0",
            f"{p.lag:,}" if p and p.lag >= 0 else "?",
            str(m.last_snapshot),
            _ago(p.committed_at) if p else "never",
        )
    terminal.show(table)


def _shortened(names: Sequence[str]) -> str:
    rest = len(names) - MAX_FIELDS
    return ", ".join(names[:MAX_FIELDS]) + (f" and {rest} more" if rest > 0 else "")


@click.command(epilog=example("streamkm inspect orders", "streamkm inspect orders --snapshot 12 --json"))
@click.argument("model")
@click.option("--snapshot", type=int, help="Number of a snapshot; the newest by default.")
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: model and snapshot, as the service has them.")
def inspect(model: str, settings: StoreSettings, *, snapshot: int | None, as_json: bool) -> None:
    """Show progress and clusters of MODEL."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        info = store.model(model)
        published = store.snapshot(model, snapshot) if snapshot or info.last_snapshot else None
        newest = store.snapshot(model) if as_json and info.last_snapshot else None
    if as_json:
        shown = None if published is None else snapshot_json(published)
        terminal.say_json({"model": model_json(info, newest, detail=True), "snapshot": shown})
        return
    p = info.progress
    if p is not None:
        lag = f"{p.lag:,}" if p.lag >= 0 else "unknown"
        terminal.say((model, "bold"), f": {p.counters.points:,} points, lag {lag}, last commit {_ago(p.committed_at)}")
        if p.counters.lost:
            terminal.say(
                (f"{p.counters.lost:,} records were removed before they could be read, and were skipped", "red")
            )
        terminal.say("position: " + ", ".join(f"{tp}@{offset}" for tp, offset in sorted(p.position.items())))
    if published is None:
        have, need = p.warmup if p and p.warmup else (0, 0)
        terminal.say(f"warming up: {have:,} of {need:,} points" if need else "no snapshot yet")
        return
    terminal.say(f"snapshot {published.id}, published {_ago(published.created_at)} ({published.reason})")
    show_clusters(published)
    for line in evaluation_lines(published):
        terminal.say(line)
    for event in published.events:
        terminal.say(f"since the snapshot before: {describe_event(event)}")


def evaluation_lines(s: Snapshot) -> list[str]:
    """Silhouette, outliers and suggested k of a snapshot, as lines of text."""
    lines, d = [], s.detail
    if d.get("evaluation"):
        lines.append(f"silhouette {d['evaluation']['silhouette']:.3f}, {d['outliers']:,} outliers so far")
    if d.get("k"):
        suggested, running = d["k"]["suggested"], d["k"]["running"]
        comparison = "the current number" if suggested == running else f"k is {running}"
        value = "none" if suggested is None else suggested
        lines.append(f"suggested number of clusters: {value} ({comparison}): {d['k']['reason']}")
    return lines


def describe_event(event: ModelEvent) -> str:
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
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Maximum of snapshots.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as /v1/models/MODEL/events.")
def events(model: str, settings: StoreSettings, *, limit: int, as_json: bool) -> None:
    """List the events of MODEL: births, deaths, splits, merges, drifts, promotions, outliers; newest first."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        store.model(model)
        found = store.snapshots(model, limit=limit + 1, eventful=True)
    page, next_page = split_page(found, limit)
    if as_json:
        from streamkm.service import serializers

        terminal.say_json(_json(serializers.event_list(page, next_page)))
        return
    if not page:
        terminal.say("no events yet")
        return
    table = Table()
    for name in ("snapshot", "published", "points", "event"):
        table.add_column(name, no_wrap=name in {"snapshot", "points"})
    for s in page:
        for event in s.events:
            table.add_row(str(s.id), format_time(s.created_at, "seconds"), f"{s.n_points:,}", describe_event(event))
    terminal.show(table)


def show_clusters(s: Snapshot) -> None:
    """Print the clusters of a snapshot, largest first, with as many fields as fit, and how each cluster differs."""
    found = differences(s.centroids, s.weights, s.deviations)
    table, omitted = fit_fields(lambda columns: cluster_table(s, columns), found, terminal.console().width)
    terminal.show(table)
    if omitted:
        terminal.say(f"({omitted}: --json has all)")
    if len(s.fields) == 1 or len(s.ids) == 1:
        return  # the centroids say it
    if not np.isfinite(found).any():
        terminal.say("the differences between clusters are unknown: an older version published this snapshot")
        return
    order = np.argsort(-s.weights, kind="stable")
    terminal.say("largest differences from the mean of all points, in standard deviations within clusters:")
    for i in order[:MAX_DESCRIBED]:
        terminal.say(f"  cluster {s.ids[i]}: {describe_differences(s.fields, found[i]) or 'none'}")
    if len(order) > MAX_DESCRIBED:
        terminal.say(f"  (and {len(order) - MAX_DESCRIBED} smaller ones: --json has all)")


def cluster_table(s: Snapshot, columns: Sequence[int]) -> Table:
    """Clusters of a snapshot, largest first, with the fields of some indices."""
    table = Table("cluster", "share", "spread", "age in points")
    for j in columns:
        add_field(table, s.fields[j])
    total = s.weights.sum() or 1.0
    for i in np.argsort(-s.weights, kind="stable"):
        age = f"{s.n_points - s.born[i]:,}"
        row = [str(s.ids[i]), f"{s.weights[i] / total:.1%}", f"{s.spreads[i]:.4g}", age]
        table.add_row(*row, *(f"{s.centroids[i, j]:.5g}" for j in columns))
    return table


@click.command(epilog=example("streamkm snapshots orders", "streamkm snapshots orders --limit 5 --json"))
@click.argument("model")
@with_settings(StoreSettings)
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="Maximum of snapshots.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as /v1/models/MODEL/snapshots.")
def snapshots(model: str, settings: StoreSettings, *, limit: int, as_json: bool) -> None:
    """List the snapshots of MODEL, newest first."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        store.model(model)
        found = store.snapshots(model, limit=limit + 1)
    page, next_page = split_page(found, limit)
    if as_json:
        from streamkm.service import serializers

        terminal.say_json(_json(serializers.snapshot_list(page, next_page)))
        return
    if not page:
        terminal.say("no snapshots yet")
        return
    table = Table()
    for name in ("snapshot", "published", "reason", "points", "inertia per point", "largest share"):
        table.add_column(name, no_wrap=name in {"snapshot", "points"})
    for s in page:
        share = s.weights.max() / (s.weights.sum() or 1.0)
        inertia = f"{s.inertia:.5g}" if np.isfinite(s.inertia) else "-"
        published = format_time(s.created_at, "seconds")
        table.add_row(str(s.id), published, s.reason, f"{s.n_points:,}", inertia, f"{share:.1%}")
    terminal.show(table)


def model_json(info: ModelInfo, newest: Snapshot | None, *, detail: bool) -> dict[str, Any]:
    """A model as JSON, as the service has it.

    Parameters
    ----------
    info
        The model.
    newest
        Its newest snapshot.
    detail
        With settings, counters, position and owner.
    """
    from streamkm.service import ServiceOptions, serializers
    from streamkm.service.status import lease_live, status

    now = time.time()
    state, reason = status(info, now, ServiceOptions().stale_after)
    if detail:
        return _json(serializers.model_detail(info, newest, state, reason, lease_live=lease_live(info, now)))
    return _json(serializers.model_summary(info, newest, state, reason))


def snapshot_json(s: Snapshot) -> dict[str, Any]:
    """A snapshot as JSON, as the service has it."""
    from streamkm.service import serializers

    return _json(serializers.snapshot_detail(s))


def _json(content: BaseModel) -> dict[str, Any]:
    return content.model_dump()


def _ago(then: float) -> str:
    """Time since a moment, such as ``3 min ago``."""
    return f"{format_age(time.time() - then)} ago"
