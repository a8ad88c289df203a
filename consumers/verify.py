"""``streamkm verify``: learn the topic again by the journal, and compare with what was published."""

from __future__ import annotations

import contextlib
import logging
import sys
from functools import partial

import click
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from consumers import logs, terminal
from consumers.factories import source_opener
from consumers.options import example, with_settings
from streamkm.codecs import make_codec
from streamkm.engine import (
    JournalReplay,
    OffsetLedger,
    best_replay_start,
    check_same_stream,
    compare_snapshot,
    find_replay_starts,
    model_from_snapshot,
)
from streamkm.errors import NotFoundError
from streamkm.models import ARITHMETIC
from streamkm.settings import LiveSettings
from streamkm.stores import open_store
from streamkm.times import format_time

log = logging.getLogger("streamkm.verify")

DIFFERENT = 9
"""Exit status when the re-run gives something else."""


@click.command(epilog=example("streamkm verify orders", "streamkm verify orders 12 --json"))
@click.argument("model")
@click.argument("snapshot", type=int, required=False)
@with_settings(LiveSettings, only=("store", "bootstrap", "kafka_property", "max_decompressed"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(model: str, snapshot: int | None, settings: LiveSettings, *, as_json: bool) -> None:
    """Prove SNAPSHOT of MODEL (the newest if not given).

    First the journal is added up: every offset of every partition must have been read once, or be recorded as lost
    (--on-data-loss skip). Then the topic is read again in the mini-batches of the journal, learned, and ids, centroids,
    weights and spreads are compared bit for bit. Exit status 9 if anything differs.

    Learning begins with the model; where it was learned by an older streamkm of another arithmetic, at the checkpoint
    where this one took over; where the topic or the journal no longer reaches back so far, at the oldest of the
    checkpoints kept (one a day, for eight days) from which it still has everything.
    """
    logs.configure()
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        spec = store.model(model).spec
        published = store.snapshot(model, snapshot)
        last = published.commit_seq
        if not last:
            raise NotFoundError(
                f"snapshot {published.id} was recomputed, so no journal leads to it",
                where=f"model {model}",
                hint="Recompute it (streamkm replay) and compare the two (streamkm diff)",
            )
        opener = source_opener(str(spec.source["topic"]), settings, spec.codec)
        books, origins = find_replay_starts(store, model, last)
        books.close(published.position)
        # Said before the topic is read: where retention has taken what was learned, this is all that can be proven.
        log.info("%s", said_of(books))
        with contextlib.closing(opener()) as source:
            check_same_stream(spec, source.identity())
            origin = best_replay_start(origins, source.beginning())
        start = store.kept_checkpoint(model, origin.commit_seq).state if origin.commit_seq else None
        columns = ("learning again", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with (
            terminal.progress(*columns) as progress,
            JournalReplay(
                spec, opener, make_codec(spec.codec), partial(model_from_snapshot, store, spec), start
            ) as again,
        ):
            task = progress.add_task("", total=origin.batches)
            for _, learning in store.journal(model, last, after_seq=origin.commit_seq):
                again.repeat(learning)
                progress.advance(task, len(learning.batches))
            verdict = compare_snapshot(published, again.learner)
    differences = [*books.errors, *verdict.differences]
    if as_json:
        lost = [
            {"commit": commit, "partition": str(r.partition), "start": r.start, "stop": r.stop}
            for commit, r in books.lost
        ]
        answer = {"model": model, "snapshot": verdict.snapshot_id, "points": verdict.n_points}
        answer |= {"began_at_commit": origin.commit_seq, "arithmetic": ARITHMETIC}
        terminal.say_json({**answer, "equal": not differences, "differences": differences, "lost": lost}, indent=None)
    elif not differences:
        terminal.say(
            f"snapshot {verdict.snapshot_id} of {model} is what its {verdict.n_points:,} points say, bit for bit"
        )
        if origin.commit_seq:
            terminal.say(
                f"learned again from the checkpoint of commit {origin.commit_seq} "
                f"({format_time(origin.committed_at)}), the oldest of arithmetic {ARITHMETIC} "
                "from which the topic still has everything"
            )
        if books.lost:
            terminal.say(said_of(books))
    else:
        terminal.say(f"snapshot {verdict.snapshot_id} of {model} differs: {'; '.join(differences)}")
    sys.exit(DIFFERENT if differences else 0)


def said_of(books: OffsetLedger) -> str:
    """What the journal says of the offsets, as a sentence."""
    if books.errors:
        return f"the journal does not add up: {'; '.join(books.errors)}"
    if not books.lost:
        return f"the journal adds up: {books.read:,} offsets, each read once"
    lost = ", ".join(f"{r.partition}@{r.start} to {r.stop - 1} (commit {commit})" for commit, r in books.lost)
    n = sum(r.stop - r.start for _, r in books.lost)
    return f"the journal adds up: {books.read:,} offsets, each read once, and {n:,} lost and skipped: {lost}"
