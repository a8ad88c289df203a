"""``streamkm replay | diff | promote``: recompute a range of a topic exactly, compare, and put the result in charge."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.progress import BarColumn, TimeElapsedColumn
from rich.table import Table

from consumers import logs, terminal
from consumers.factories import source_opener
from consumers.inspect import show_clusters, snapshot_json
from consumers.options import DurationType, example, with_settings
from streamkm.broker import cache_dir
from streamkm.codecs import make_codec
from streamkm.errors import NotReadyError, SettingsError
from streamkm.reporting import PROGRESS_SECONDS
from streamkm.settings import ReplaySettings, StoreSettings, as_text
from streamkm.state import ModelSpec
from streamkm.stores import Promotion, Store, open_store

if TYPE_CHECKING:
    from streamkm.recompute.fitting import FitProgress

log = logging.getLogger("streamkm.replay")

_folder = click.Path(path_type=Path, file_okay=False)
POLITE = 10
"""Where cores are few, the live consumer comes first."""
LATE = 10
"""Exit status when a promotion was asked for and not seen in time."""


SECONDS_BETWEEN_LINES = 0.5


class Lines:
    """Progress for programs: a JSON object a line on standard error, two lines a second at most."""

    def __init__(self) -> None:
        self._at = float("-inf")
        self._stage = ""
        self._last: dict[str, Any] = dict.fromkeys(("done", "total", "run", "iteration", "inertia", "moved"))
        self.progress = contextlib.nullcontext()
        self._tell("starting")

    def read(self, done: int, total: int) -> None:
        """So many of so many offsets were read."""
        self._tell("reading", done=done, total=total)

    def fit(self, at: FitProgress) -> None:
        """An iteration was made."""
        inertia = at.inertia if math.isfinite(at.inertia) else None
        self._tell("fitting", run=at.run, iteration=at.iteration, inertia=inertia, moved=at.moved)

    def _tell(self, stage: str, **more: float | None) -> None:
        self._last |= more
        now = time.monotonic()
        if stage == self._stage and now - self._at < SECONDS_BETWEEN_LINES:
            return
        self._stage, self._at = stage, now
        terminal.say_json({"stage": stage, **self._last}, indent=None, err=True)


class Bars:
    """Progress: bars on a terminal, a line of the log twice a minute elsewhere."""

    def __init__(self) -> None:
        self._shown, self._told_at = terminal.is_terminal(err=True), time.monotonic()
        self.progress = terminal.progress("{task.description}", BarColumn(), TimeElapsedColumn())
        self._task = self.progress.add_task("reading", total=None)

    def read(self, done: int, total: int) -> None:
        """So many of so many offsets were read."""
        self._say(f"reading {done:,} of {total:,}", total, done)

    def fit(self, at: FitProgress) -> None:
        """An iteration was made."""
        self._say(f"start {at.run + 1}, iteration {at.iteration}: cost {at.inertia:.6g}, {at.moved:,} points moved")

    def _say(self, text: str, total: int | None = None, done: int | None = None) -> None:
        self.progress.update(self._task, description=text, total=total, completed=done)
        now = time.monotonic()
        if not self._shown and now - self._told_at >= PROGRESS_SECONDS:
            self._told_at = now
            log.info("%s", text)


@click.command(
    epilog=example(
        "streamkm replay orders --from beginning --to now",
        "streamkm replay orders --from 2026-11-01 --to now --k 8 --promote",
        "streamkm replay orders --from snapshot:12 --to 2h --archive orders-archive --init live",
    )
)
@click.argument("model")
@click.option("--from", "start", default="beginning", show_default=True, metavar="PLACE", help="First record.")
@click.option("--to", "stop", default="now", show_default=True, metavar="PLACE", help="Where to stop.")
@click.option(
    "--archive",
    type=_folder,
    help="Keep what was read as parquet files in this folder; what is there is not read from the topic again.",
)
@click.option("--work", type=_folder, help="Folder in which a killed replay goes on; in the cache if not given.")
@click.option("--trace", is_flag=True, help="Keep cost and moved points of every iteration.")
@click.option("--promote", "promoted", is_flag=True, help="Put the result in charge at once.")
@with_settings(ReplaySettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--progress-json", is_flag=True, help="Tell progress on standard error as JSON lines, for programs.")
def replay(
    model: str,
    settings: ReplaySettings,
    *,
    start: str,
    stop: str,
    archive: Path | None,
    work: Path | None,
    trace: bool,
    promoted: bool,
    as_json: bool,
    progress_json: bool,
) -> None:
    """Run the exact algorithm over a range of the topic of MODEL, beside the live consumer.

    A PLACE is beginning, now, an ISO 8601 time, how long ago (2h), offset:N, P:N,P:N for single partitions, or
    snapshot:N. The range is pinned before the first record is read. The result is a snapshot of its own, which answers
    nothing until it is promoted; the consumer and its offsets are left alone. The same command, after a kill, goes on.
    """
    # numba takes a second, which help need not wait for.
    from streamkm.engine import check_same_stream
    from streamkm.recompute.archive import Archive
    from streamkm.recompute.replay import ReplayFit, WorkFolder, recompute
    from streamkm.recompute.span import resolve_span

    logs.configure()
    if hasattr(os, "nice"):
        os.nice(max(0, POLITE - os.nice(0)))
    bars = Lines() if progress_json else Bars()
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        spec = store.model(model).spec
        k = _k(store, spec, settings)
        opener = source_opener(str(spec.source["topic"]), settings, spec.codec)
        choice = ReplayFit(k, settings.init, settings.n_init, settings.max_iter, settings.tol, settings.seed)
        asked = {"model": model, "from": start, "to": stop, "archive": str(archive), **asdict(choice)}
        asked |= {"store": as_text(settings.store), "source": dict(spec.source)}
        name = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
        own = WorkFolder(work or cache_dir() / "replay" / f"{model}-{name}")
        with contextlib.closing(opener()) as source:
            check_same_stream(spec, source.identity())
            span, resumed = own.load_or_create_plan(
                asked, lambda: resolve_span(source, start, stop, lambda i: store.snapshot(model, i).position)
            )
        if resumed:
            terminal.say(f"going on with the replay that was begun in {own.folder}", err=True)
        kept = Archive(
            archive or own.folder / "archive",
            {"source": dict(spec.source), "fields": list(spec.fields), "codec": dict(spec.codec)},
        )
        with bars.progress:
            kept.fill(
                span,
                opener,
                make_codec(spec.codec),
                max_bad_ratio=settings.max_bad_ratio,
                skip_lost=settings.on_data_loss == "skip",
                on_progress=bars.read,
            )
            number = recompute(
                store,
                spec,
                span,
                kept,
                own,
                choice,
                memory=settings.memory,
                threads=settings.threads or None,
                trace=trace,
                on_progress=bars.fit,
            )
        if archive is None:
            kept.remove()
        own.clear()
        if promoted:
            store.request_promotion(model, Promotion(number, skip=False))
        found = store.snapshot(model, number)
    if progress_json:
        terminal.say_json({"snapshot": number}, indent=None, err=True)
    if as_json:
        terminal.say_json(snapshot_json(found))
        return
    d = found.detail
    terminal.say(f"snapshot {number}: {found.n_points:,} points, cost {d['cost']:.6g}, {d['iterations']} iterations")
    if d["counts"]["bad"]:
        terminal.say(f"{d['counts']['bad']:,} bad records were left out")
    for partition, ranges in d["lost"].items():
        told = ", ".join(f"{start} to {stop - 1}" for start, stop in ranges)
        terminal.say((f"lost: {partition} could not be read at offsets {told}; the result is without them", "yellow"))
    if d["live"] is not None:
        terminal.say(f"on the same points snapshot {d['live']['snapshot']} costs {d['live']['cost']:.6g}")
    show_clusters(found)
    terminal.say(
        "the consumer is asked to put it in charge"
        if promoted
        else f"to put it in charge: streamkm promote {model} {number}"
    )


def _k(store: Store, spec: ModelSpec, settings: ReplaySettings) -> int:
    if settings.k is not None:
        if settings.k.low != settings.k.high:
            raise SettingsError("a replay is for one k", where="--k", hint="streamkm fit takes a range")
        return settings.k.low
    if spec.n_clusters:
        return spec.n_clusters
    return len(store.snapshot(spec.name).ids)


@click.command(epilog=example("streamkm diff orders 11 12", "streamkm diff orders 11 12 --json"))
@click.argument("model")
@click.argument("a", type=int)
@click.argument("b", type=int)
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def diff(model: str, a: int, b: int, settings: StoreSettings, *, as_json: bool) -> None:
    """Compare snapshots A and B of MODEL: what moved how far, which points change cluster, what each costs.

    Both are judged on the same points: the weighted sample of its stream that the model has now.
    """
    from streamkm.models import OnlineKMeans
    from streamkm.recompute.compare import compare

    with contextlib.closing(open_store(settings.store, create=False)) as store:
        first, second = store.snapshot(model, a), store.snapshot(model, b)
        checkpoint = store.load_checkpoint(model)
    if checkpoint is None:
        raise NotReadyError("the model has learned nothing yet", where=f"model {model}")
    coreset = OnlineKMeans.from_state(checkpoint.state).coreset_
    found = compare(first, second, coreset.rows_, coreset.weights_)
    if as_json:
        terminal.say_json(found.to_json())
        return
    terminal.say(f"{found.changed:.2%} of the points change cluster")
    terminal.say(f"mean squared distance: {found.cost_a:.6g} in snapshot {a}, {found.cost_b:.6g} in snapshot {b}")
    table = Table("cluster", f"share in {a}", f"share in {b}", "moved", "in spreads")
    for m in found.moved:
        spreads = "" if m.spreads is None else f"{m.spreads:.3g}"
        table.add_row(str(m.id), f"{m.share_before:.1%}", f"{m.share_after:.1%}", f"{m.distance:.4g}", spreads)
    terminal.show(table)
    for what, ids in ((f"only in {a}", found.gone), (f"only in {b}", found.new)):
        if ids:
            terminal.say(f"{what}: {', '.join(map(str, ids))}")


@click.command(
    epilog=example(
        "streamkm promote orders 12",
        "streamkm promote orders 9 --skip     (roll back, and leave out what came since)",
    )
)
@click.argument("model")
@click.argument("snapshot", type=int)
@click.option("--skip", is_flag=True, help="Leave out the records between it and now; else they are learned again.")
@click.option(
    "--wait",
    type=DurationType(),
    default="30s",
    show_default=True,
    metavar="DURATION",
    help="For the consumer to do it; 0: not.",
)
@with_settings(StoreSettings)
def promote(model: str, snapshot: int, settings: StoreSettings, *, skip: bool, wait: float) -> None:
    """Put SNAPSHOT in charge of MODEL, a recomputed one or an older one.

    The live consumer takes it up at its next checkpoint: ids and weights go on from it, and the records that came since
    are learned, in one commit. Exit status 10 if that was not seen within --wait; it stays asked for.
    """
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        store.request_promotion(model, Promotion(snapshot, skip))
        deadline = time.monotonic() + wait
        while store.control_requests(model).promotion is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        open_ = store.control_requests(model).promotion is not None
        newest = store.snapshot(model) if store.model(model).last_snapshot else None
    if not open_ and newest is not None:
        terminal.say(f"snapshot {snapshot} is in charge, as snapshot {newest.id}")
        return
    terminal.say(f"snapshot {snapshot} will be in charge when a consumer of {model} runs and has come so far")
    if wait > 0.0:
        sys.exit(LATE)
