"""``streamkm verify``: learn the topic again by the journal, and compare with what was published."""

from __future__ import annotations

import contextlib
import json
import sys
from functools import partial

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from consumers import logs
from consumers.compose import source_opener
from consumers.options import example, takes
from streamkm.codecs import make_codec
from streamkm.engine import Rerun, compare, from_snapshot
from streamkm.settings import LiveSettings
from streamkm.stores import open_store

DIFFERENT = 9
"""Exit status when the re-run gives something else."""


@click.command(epilog=example("streamkm verify orders", "streamkm verify orders 12 --json"))
@click.argument("model")
@click.argument("snapshot", type=int, required=False)
@takes(LiveSettings, only=("store", "bootstrap", "client"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(model: str, snapshot: int | None, settings: LiveSettings, *, as_json: bool) -> None:
    """Prove SNAPSHOT of MODEL (the newest if not given).

    Reads the topic again in the mini-batches of the journal, learns them, and compares ids, centroids, weights and
    spreads bit for bit. Exit status 9 if anything differs.
    """
    logs.configure()
    with contextlib.closing(open_store(settings.store)) as store:
        spec = store.model(model).spec
        published = store.snapshot(model, snapshot)
        last = published.commit_seq
        opener = source_opener(str(spec.source["topic"]), settings, None)
        total = sum(len(learning.batches) for _, learning in store.journal(model, last))
        columns = ("learning again", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            Progress(*columns, disable=not sys.stderr.isatty()) as progress,
            Rerun(spec, opener, make_codec(spec.codec), partial(from_snapshot, store, spec)) as again,
        ):
            task = progress.add_task("", total=total)
            for _, learning in store.journal(model, last):
                again.repeat(learning)
                progress.advance(task, len(learning.batches))
            verdict = compare(published, again.learner)
    if as_json:
        answer = {"model": model, "snapshot": verdict.snapshot_id, "points": verdict.n_points}
        click.echo(json.dumps({**answer, "equal": bool(verdict), "differences": verdict.differences}))
    elif verdict:
        click.echo(
            f"snapshot {verdict.snapshot_id} of {model} is what its {verdict.n_points:,} points say, bit for bit"
        )
    else:
        click.echo(f"snapshot {verdict.snapshot_id} of {model} differs: {'; '.join(verdict.differences)}")
    sys.exit(0 if verdict else DIFFERENT)
