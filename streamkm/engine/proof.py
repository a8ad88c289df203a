"""Proof of a published snapshot: replays its journal from the topic, and compares the two bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from streamkm.codecs import make_codec
from streamkm.connectors.base import Source
from streamkm.engine.promotion import model_from_snapshot
from streamkm.engine.source_checks import check_same_stream
from streamkm.engine.verification import (
    JournalReplay,
    OffsetLedger,
    ReplayStart,
    SnapshotComparison,
    best_replay_start,
    compare_snapshot,
    find_replay_starts,
)
from streamkm.errors import NotFoundError
from streamkm.state import ModelSpec, Snapshot
from streamkm.stores.base import ModelStore


@dataclass(frozen=True)
class Proof:
    """Result of a verification.

    Attributes
    ----------
    comparison
        Comparison of the snapshot with the replayed model.
    ledger
        The offsets of the journal.
    start
        Where the replay started.
    """

    comparison: SnapshotComparison
    ledger: OffsetLedger
    start: ReplayStart

    @property
    def differences(self) -> list[str]:
        """One sentence for each difference; empty if the snapshot is proven."""
        return [*self.ledger.errors, *self.comparison.differences]


def prove_snapshot(
    store: ModelStore,
    spec: ModelSpec,
    snapshot: Snapshot,
    open_source: Callable[[], Source],
    *,
    on_ledger: Callable[[OffsetLedger], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Proof:
    """Replay the journal of a snapshot, and compare.

    Parameters
    ----------
    store
        Store of the model.
    spec
        The model.
    snapshot
        A published snapshot of it.
    open_source
        Opens the topic of the model; several sources are open at a time.
    on_ledger
        Called with the offsets of the journal before the topic is read: if retention has removed records, the journal
        is all that can be checked.
    on_progress
        Called with the mini-batches learned, and their total.

    Raises
    ------
    NotFoundError
        The snapshot was recomputed, or the journal no longer reaches it; see `find_replay_starts`.
    SourceError
        The topic is not the one that the model has read, or cannot be read.
    """
    model, last = spec.name, snapshot.commit_seq
    if not last:
        raise NotFoundError(
            f"snapshot {snapshot.id} was recomputed, so it has no journal",
            where=f"model {model}",
            hint="Recompute it (streamkm replay) and compare the two (streamkm diff)",
        )
    ledger, starts = find_replay_starts(store, model, last)
    ledger.close(snapshot.position)
    on_ledger(ledger)
    with contextlib.closing(open_source()) as source:
        check_same_stream(spec, source.identity())
        start = best_replay_start(starts, source.beginning())
    state = store.kept_checkpoint(model, start.commit_seq).state if start.commit_seq else None
    load_snapshot = partial(model_from_snapshot, store, spec)
    with JournalReplay(spec, open_source, make_codec(spec.codec), load_snapshot, state) as replay:
        done = 0
        for _, entry in store.journal(model, last, after_seq=start.commit_seq):
            replay.apply(entry)
            done += len(entry.batches)
            on_progress(done, start.batches)
        return Proof(compare_snapshot(snapshot, replay.learner), ledger, start)
