"""``streamkm verify``: prove a snapshot from its journal and its topic."""

from __future__ import annotations

import contextlib
import logging
import sys

import click
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from consumers import logs, terminal
from consumers.factories import source_opener
from consumers.options import example, with_settings
from streamkm.engine import OffsetLedger, Proof, prove_snapshot
from streamkm.models import ARITHMETIC
from streamkm.settings import LiveSettings
from streamkm.stores import open_store
from streamkm.times import format_time

log = logging.getLogger("streamkm.verify")

DIFFERENT = 9
"""Exit status if the snapshot is not proven."""


@click.command(epilog=example("streamkm verify orders", "streamkm verify orders 12 --json"))
@click.argument("model")
@click.argument("snapshot", type=int, required=False)
@with_settings(LiveSettings, only=("store", "bootstrap", "kafka_property", "max_decompressed"))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(model: str, snapshot: int | None, settings: LiveSettings, *, as_json: bool) -> None:
    """Prove SNAPSHOT of MODEL (the newest by default).

    First the journal is checked: every offset of every partition must have been read once, or be recorded as lost
    (--on-data-loss skip). Then the topic is read again in the mini-batches of the journal and learned, and ids,
    centroids, weights and spreads are compared bit for bit. Exit status 9 if anything differs.

    Learning begins with the first record of the model. If an older version with another arithmetic learned it, learning
    begins at the checkpoint where this arithmetic began; if topic or journal no longer reach back that far, at the
    oldest kept checkpoint (one per day, for eight days) from which both are complete.
    """
    logs.configure()
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        spec = store.model(model).spec
        published = store.snapshot(model, snapshot)
        opener = source_opener(str(spec.source["topic"]), settings, spec.codec)
        columns = ("learning", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with terminal.progress(*columns) as progress:
            task = progress.add_task("")
            proof = prove_snapshot(
                store,
                spec,
                published,
                opener,
                on_ledger=lambda ledger: log.info("%s", describe_ledger(ledger)),
                on_progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
    if as_json:
        terminal.say_json(proof_json(model, proof), indent=None)
    else:
        for line in proof_lines(model, proof):
            terminal.say(line)
    sys.exit(DIFFERENT if proof.differences else 0)


def proof_json(model: str, proof: Proof) -> dict[str, object]:
    """A proof as JSON."""
    return {
        "model": model,
        "snapshot": proof.comparison.snapshot_id,
        "points": proof.comparison.n_points,
        "start_commit": proof.start.commit_seq,
        "arithmetic": ARITHMETIC,
        "equal": not proof.differences,
        "differences": proof.differences,
        "lost": [
            {"commit": commit, "partition": str(r.partition), "start": r.start, "stop": r.stop}
            for commit, r in proof.ledger.lost
        ],
    }


def proof_lines(model: str, proof: Proof) -> list[str]:
    """A proof as lines of text."""
    number, points = proof.comparison.snapshot_id, proof.comparison.n_points
    if proof.differences:
        return [f"snapshot {number} of {model} differs: {'; '.join(proof.differences)}"]
    lines = [f"snapshot {number} of {model} follows from its {points:,} points, bit for bit"]
    if proof.start.commit_seq:
        lines.append(
            f"learned from the checkpoint of commit {proof.start.commit_seq} "
            f"({format_time(proof.start.committed_at)}), the oldest of arithmetic {ARITHMETIC} with a complete topic"
        )
    return [*lines, describe_ledger(proof.ledger)] if proof.ledger.lost else lines


def describe_ledger(ledger: OffsetLedger) -> str:
    """The offsets of a journal as a sentence."""
    if ledger.errors:
        return f"the journal is inconsistent: {'; '.join(ledger.errors)}"
    if not ledger.lost:
        return f"the journal is complete: {ledger.read:,} offsets, each read once"
    lost = ", ".join(f"{r.partition}@{r.start} to {r.stop - 1} (commit {commit})" for commit, r in ledger.lost)
    n = sum(r.stop - r.start for _, r in ledger.lost)
    return f"the journal is complete: {ledger.read:,} offsets, each read once, and {n:,} lost and skipped: {lost}"
