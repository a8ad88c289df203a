"""``streamkm replay | diff | promote``: recompute a range of a topic exactly, compare snapshots, and promote one."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, TimeElapsedColumn
from rich.table import Table

from consumers import logs, terminal
from consumers.factories import codec_resources, source_opener
from consumers.inspect import show_clusters, snapshot_json
from consumers.options import DurationType, example, with_settings
from streamkm.broker import cache_dir
from streamkm.errors import SettingsError
from streamkm.reporting import PROGRESS_SECONDS
from streamkm.settings import ReplaySettings, StoreSettings, as_text
from streamkm.state import ModelSpec, Snapshot
from streamkm.stores import Promotion, Store, open_store

if TYPE_CHECKING:
    from streamkm.recompute.fitting import FitProgress

log = logging.getLogger("streamkm.replay")

NICE = 10
"""Niceness: the live consumer has priority."""
NOT_PROMOTED = 10
"""Exit status if the consumer did not promote the snapshot in time."""
SECONDS_BETWEEN_LINES = 0.5
"""Minimum seconds between two lines of JSON progress."""
_folder = click.Path(path_type=Path, file_okay=False)


class JsonProgress:
    """Progress for programs: one JSON object per line on standard error, at most two lines a second."""

    def __init__(self) -> None:
        self._written_at = float("-inf")
        self._stage = ""
        self._values: dict[str, float | None] = dict.fromkeys(("done", "total", "run", "iteration", "inertia", "moved"))
        self.context = contextlib.nullcontext()
        self._write("starting")

    def read(self, done: int, total: int) -> None:
        """Report the offsets read, and their total."""
        self._write("reading", done=done, total=total)

    def fit(self, at: FitProgress) -> None:
        """Report an iteration."""
        inertia = at.inertia if math.isfinite(at.inertia) else None
        self._write("fitting", run=at.run, iteration=at.iteration, inertia=inertia, moved=at.moved)

    def _write(self, stage: str, **values: float | None) -> None:
        self._values |= values
        now = time.monotonic()
        if stage == self._stage and now - self._written_at < SECONDS_BETWEEN_LINES:
            return
        self._stage, self._written_at = stage, now
        terminal.say_json({"stage": stage, **self._values}, indent=None, err=True)


class TextProgress:
    """Progress for people: a bar on a terminal, else a line of the log twice a minute."""

    def __init__(self) -> None:
        self._shown, self._logged_at = terminal.is_terminal(err=True), time.monotonic()
        self.context = terminal.progress("{task.description}", BarColumn(), TimeElapsedColumn())
        self._task = self.context.add_task("reading", total=None)

    def read(self, done: int, total: int) -> None:
        """Report the offsets read, and their total."""
        self._show(f"reading {done:,} of {total:,}", total, done)

    def fit(self, at: FitProgress) -> None:
        """Report an iteration."""
        self._show(f"start {at.run + 1}, iteration {at.iteration}: cost {at.inertia:.6g}, {at.moved:,} points moved")

    def _show(self, text: str, total: int | None = None, done: int | None = None) -> None:
        self.context.update(self._task, description=text, total=total, completed=done)
        now = time.monotonic()
        if not self._shown and now - self._logged_at >= PROGRESS_SECONDS:
            self._logged_at = now
            log.info("%s", text)


@click.command(
    epilog=example(
        "streamkm replay orders --from beginning --to now",
        "streamkm replay orders --from 2026-11-01 --to now --k 8 --promote",
        "streamkm replay orders --from snapshot:12 --to 2h --archive orders-archive --init live",
    )
)
@click.argument("model")
@click.option("--from", "start", default="beginning", show_default=True, metavar="POSITION", help="Start of the range.")
@click.option("--to", "stop", default="now", show_default=True, metavar="POSITION", help="End of the range.")
@click.option(
    "--archive",
    type=_folder,
    help="Keep the records that are read as parquet files in this folder; they are not read from the topic again.",
)
@click.option("--work", type=_folder, help="Folder in which a killed replay is resumed; in the cache by default.")
@click.option("--trace", is_flag=True, help="Store cost and moved points of every iteration.")
@click.option("--promote", "promoted", is_flag=True, help="Promote the result at once.")
@with_settings(ReplaySettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--progress-json", is_flag=True, help="Write progress to standard error as JSON lines, for programs.")
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
    """Run exact K-Means over a range of the topic of MODEL, beside the live consumer.

    A POSITION is beginning, now, an ISO 8601 time, an age (2h), offset:N, P:N,P:N for single partitions, or snapshot:N.
    The range is fixed before the first record is read. The result is a snapshot that is not in charge until it is
    promoted; the consumer and its offsets are not affected. After a kill, the same command resumes.
    """
    # Imported late: numba takes a second, which --help need not wait for.
    from streamkm.engine import check_same_stream
    from streamkm.recompute.range_replay import ReplayRequest, replay_range
    from streamkm.recompute.replay import ReplayFit

    logs.configure()
    if hasattr(os, "nice"):
        os.nice(max(0, NICE - os.nice(0)))
    progress = JsonProgress() if progress_json else TextProgress()
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        spec = store.model(model).spec
        k = _k(store, spec, settings)
        request = ReplayRequest(
            start=start,
            stop=stop,
            fit=ReplayFit(k, settings.init, settings.n_init, settings.max_iter, settings.tol, settings.seed),
            archive=archive,
            store=as_text(settings.store),
            max_bad_ratio=settings.max_bad_ratio,
            skip_lost=settings.on_data_loss == "skip",
            memory=settings.memory,
            threads=settings.threads or None,
            trace=trace,
        )
        folder = work or request.work_folder(spec, cache_dir())
        with progress.context:
            number = replay_range(
                store,
                spec,
                source_opener(str(spec.source["topic"]), settings, spec.codec),
                request,
                folder,
                check_source=lambda source: check_same_stream(spec, source.identity()),
                resources=codec_resources(),
                on_resume=lambda: terminal.say(f"resuming the replay in {folder}", err=True),
                on_read=progress.read,
                on_fit=progress.fit,
            )
        if promoted:
            store.request_promotion(model, Promotion(number, skip=False))
        found = store.snapshot(model, number)
    if progress_json:
        terminal.say_json({"snapshot": number}, indent=None, err=True)
    if as_json:
        terminal.say_json(snapshot_json(found))
        return
    _show_result(found)
    terminal.say(
        "the consumer is asked to promote it" if promoted else f"to promote it: streamkm promote {model} {number}"
    )


def _show_result(s: Snapshot) -> None:
    d = s.detail
    terminal.say(f"snapshot {s.id}: {s.n_points:,} points, cost {d['cost']:.6g}, {d['iterations']} iterations")
    if d["counts"]["bad"]:
        terminal.say(f"{d['counts']['bad']:,} bad records were skipped")
    for partition, ranges in d["lost"].items():
        offsets = ", ".join(f"{start} to {stop - 1}" for start, stop in ranges)
        terminal.say((f"lost: {partition} could not be read at offsets {offsets}; the result lacks them", "yellow"))
    if d["live"] is not None:
        terminal.say(f"on the same points snapshot {d['live']['snapshot']} costs {d['live']['cost']:.6g}")
    show_clusters(s)


def _k(store: Store, spec: ModelSpec, settings: ReplaySettings) -> int:
    if settings.k is not None:
        if settings.k.low != settings.k.high:
            raise SettingsError("a replay needs a single k", where="--k", hint="streamkm fit takes a range")
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
    """Compare snapshots A and B of MODEL: shift of each cluster, changed assignments, cost.

    Both are evaluated on the same points: the model's current weighted sample of its stream.
    """
    from streamkm.recompute.compare import compare_on_sample

    with contextlib.closing(open_store(settings.store, create=False)) as store:
        found = compare_on_sample(store, store.snapshot(model, a), store.snapshot(model, b))
    if as_json:
        terminal.say_json(found.to_json())
        return
    terminal.say(f"{found.changed:.2%} of the points change cluster")
    terminal.say(f"mean squared distance: {found.cost_a:.6g} in snapshot {a}, {found.cost_b:.6g} in snapshot {b}")
    table = Table("cluster", f"share in {a}", f"share in {b}", "moved", "in spreads")
    for m in found.shifts:
        spreads = "" if m.spreads is None else f"{m.spreads:.3g}"
        table.add_row(str(m.id), f"{m.share_before:.1%}", f"{m.share_after:.1%}", f"{m.distance:.4g}", spreads)
    terminal.show(table)
    for what, ids in ((f"only in {a}", found.removed), (f"only in {b}", found.added)):
        if ids:
            terminal.say(f"{what}: {', '.join(map(str, ids))}")


@click.command(
    epilog=example(
        "streamkm promote orders 12",
        "streamkm promote orders 9 --skip     (roll back, and skip the records since)",
    )
)
@click.argument("model")
@click.argument("snapshot", type=int)
@click.option("--skip", is_flag=True, help="Skip the records since the snapshot; else they are learned again.")
@click.option(
    "--wait",
    type=DurationType(),
    default="30s",
    show_default=True,
    metavar="DURATION",
    help="Time to wait for the consumer; 0 to not wait.",
)
@with_settings(StoreSettings)
def promote(model: str, snapshot: int, settings: StoreSettings, *, skip: bool, wait: float) -> None:
    """Put SNAPSHOT in charge of MODEL: a recomputed one, or an older one.

    The live consumer does it at its next checkpoint, in one commit: ids and weights continue from the snapshot, and the
    records since are learned. Exit status 10 if that did not happen within --wait; the request stays.
    """
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        store.request_promotion(model, Promotion(snapshot, skip))
        deadline = time.monotonic() + wait
        while store.control_requests(model).promotion is not None and time.monotonic() < deadline:
            time.sleep(0.1)
        pending = store.control_requests(model).promotion is not None
        newest = store.snapshot(model) if store.model(model).last_snapshot else None
    if not pending and newest is not None:
        terminal.say(f"snapshot {snapshot} is in charge, as snapshot {newest.id}")
        return
    terminal.say(f"snapshot {snapshot} will be in charge after the next checkpoint of a consumer of {model}")
    if wait > 0.0:
        sys.exit(NOT_PROMOTED)
