"""Verification: replays the journal of a model from its topic, and checks that it accounts for every offset."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from streamkm.codecs.base import Codec
from streamkm.connectors.base import Source
from streamkm.connectors.ranges import RangeReader
from streamkm.engine.event_times import decode
from streamkm.engine.learn import codec_for_model, learn
from streamkm.errors import NotFoundError, StateError, StoreError
from streamkm.models import ARITHMETIC
from streamkm.models.learner import Learner
from streamkm.models.spec import new_learner, restore_learner
from streamkm.records import BatchRange, Position, TopicPartition
from streamkm.state import EventTimeLimit, JournalEntry, MiniBatch, ModelSpec, ModelState, Progress, Snapshot
from streamkm.stores.base import ModelInfo, ModelStore, Store
from streamkm.stores.paging import iter_snapshots
from streamkm.times import format_time

OWNER_EVENTS = frozenset({"promotion", "outliers"})
"""Kinds of events that a replay does not produce: they come from the owner, not from the model. Snapshots of older
versions do not have them."""


class JournalReplay:
    """Learns a journal again, commit by commit, as a context manager.

    Parameters
    ----------
    spec
        The stored spec of the model.
    open_source
        Opens a source; called once per partition. They are closed at the end.
    codec
        Of the model.
    load_snapshot
        Returns the model that continues from a snapshot, by its number (`model_from_snapshot`).
    start
        The state before the first commit; None: a new model.

    Attributes
    ----------
    learner
        The model after the last commit that was replayed.
    """

    def __init__(
        self,
        spec: ModelSpec,
        open_source: Callable[[], Source],
        codec: Codec,
        load_snapshot: Callable[[int], Learner] | None = None,
        start: ModelState | None = None,
    ) -> None:
        self.learner = new_learner(spec) if start is None else restore_learner(start)
        self._open_source, self._codec, self._load_snapshot = open_source, codec_for_model(codec, spec), load_snapshot
        self._readers: dict[TopicPartition, RangeReader] = {}

    def apply(self, entry: JournalEntry) -> None:
        """Repeat what the model did before one commit.

        Raises
        ------
        NotFoundError
            The entry promotes a snapshot, and `load_snapshot` is None or does not find it.
        PositionLostError
            The topic no longer has the records.
        """
        if entry.promoted_snapshot:
            if self._load_snapshot is None:
                raise NotFoundError(f"snapshot {entry.promoted_snapshot} was promoted, and cannot be loaded here")
            self.learner = self._load_snapshot(entry.promoted_snapshot)
        for done, ranges in enumerate(entry.batches):
            if done == entry.prepared_after:
                self.learner.prepare()
            self._learn(ranges, entry.limit)
        if entry.prepared_after == len(entry.batches):
            self.learner.prepare()
        if entry.prepared_after >= 0 or entry.promoted_snapshot:
            self.learner.publish(as_is=entry.promoted_snapshot > 0)

    def _learn(self, ranges: MiniBatch, limit: EventTimeLimit | None) -> None:
        decoded = []
        for wanted in ranges:
            reader = self._readers.get(wanted.partition)
            if reader is None:
                reader = self._readers[wanted.partition] = RangeReader(self._open_source(), wanted.partition)
            # A range may come in several pieces, one per poll; decoding does not depend on the pieces.
            decoded += [decode(self._codec, records, limit) for records in reader.read(wanted)]
        learn(self.learner, decoded, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.source.close()


@dataclass(frozen=True)
class SnapshotComparison:
    """Result of comparing a snapshot with a replay; true when they are equal.

    Attributes
    ----------
    snapshot_id
        Number of the snapshot.
    n_points
        Points that the replayed model has learned.
    differences
        One sentence for each array that differs in any bit; empty when all are equal.
    """

    snapshot_id: int
    n_points: int
    differences: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.differences


def compare_snapshot(snapshot: Snapshot, learner: Learner) -> SnapshotComparison:
    """Compare a published snapshot with a replayed model, bit for bit."""
    found = learner.published_
    if found is None:
        return SnapshotComparison(snapshot.id, learner.n_seen, ("the replay publishes nothing",))
    differences = []
    for name in ("ids", "centroids", "weights", "spreads", "born", "factors", "deviations"):
        published, again = getattr(snapshot, name), getattr(found, name)
        if published is None:
            continue  # older versions did not publish these
        if again is None:
            differences.append(f"{name} differ (the replay has none)")
        elif published.shape != again.shape or published.tobytes() != again.tobytes():
            worst = np.max(np.abs(published - again)) if published.shape == again.shape else "their shapes differ"
            differences.append(f"{name} differ (largest difference {worst})")
    events = [e.to_json() for e in snapshot.events if e.kind not in OWNER_EVENTS]
    if events != [e.to_json() for e in found.events]:
        differences.append(f"events differ ({len(events)} published, {len(found.events)} in the replay)")
    if snapshot.n_points != learner.n_seen:
        differences.append(f"points differ ({snapshot.n_points} published, {learner.n_seen} in the replay)")
    return SnapshotComparison(snapshot.id, learner.n_seen, tuple(differences))


class OffsetLedger:
    """Accounts for the offsets of a journal, commit by commit.

    Parameters
    ----------
    position
        Position of the model before the first commit.

    Attributes
    ----------
    read
        Number of offsets read; those learned again after a promotion count once.
    lost
        (commit number, range) of records that were deleted before they were read.
    errors
        One sentence for each range that does not follow the previous range of its partition.
    """

    def __init__(self, position: Position | None = None) -> None:
        self.read = 0
        self.lost: list[tuple[int, BatchRange]] = []
        self.errors: list[str] = []
        self._at: dict[TopicPartition, int] = dict(position or {})

    def add(self, commit: int, entry: JournalEntry) -> None:
        """Add the entry of one commit."""
        ranges = [r for batch in entry.batches for r in batch]
        if entry.promoted_snapshot:
            # A promotion: the records since the snapshot are learned again, up to the model's position.
            again: dict[TopicPartition, int] = {}
            for r in ranges:
                self._follow(commit, r, again)
            for tp, at in again.items():
                if at != self._at.setdefault(tp, at):
                    self.errors.append(
                        f"commit {commit} learns {tp} again to {at}, the position of the model is {self._at[tp]}"
                    )
        else:
            for r in ranges:
                self._follow(commit, r, self._at)
                self.read += r.stop - r.start
        for r in entry.lost:
            self._follow(commit, r, self._at)
            self.lost.append((commit, r))

    def close(self, position: Position) -> None:
        """Compare the end of the journal with the stored position."""
        self.errors += [
            f"the position of {tp} is {position.get(tp)}, the journal ends at {at}"
            for tp, at in sorted(self._at.items())
            if position.get(tp) != at
        ]

    def _follow(self, commit: int, r: BatchRange, at: dict[TopicPartition, int]) -> None:
        before = at.get(r.partition, r.start)
        if r.start > before:
            self.errors.append(f"{r.partition}@{before} to {r.start - 1} is neither read nor lost (commit {commit})")
        elif r.start < before:
            self.errors.append(f"{r.partition}@{r.start} to {before - 1} is read twice (commit {commit})")
        at[r.partition] = r.stop


@dataclass
class ReplayStart:
    """A checkpoint at which a replay can start.

    Attributes
    ----------
    commit_seq
        Number of its commit; 0: the new model.
    committed_at
        Seconds since 1970; 0.0 for the new model.
    batches
        Mini-batches from here to the end of the replay.
    needs
        The first offset of each partition that the replay reads.
    """

    commit_seq: int = 0
    committed_at: float = 0.0
    batches: int = 0
    needs: dict[TopicPartition, int] = field(default_factory=dict)

    def add(self, entry: JournalEntry) -> None:
        """Add the entry of a commit behind this checkpoint."""
        self.batches += len(entry.batches)
        for r in (r for batch in entry.batches for r in batch):
            self.needs[r.partition] = min(r.start, self.needs.get(r.partition, r.start))

    def readable(self, beginning: Position) -> bool:
        """Whether a topic with these first offsets still has all records that the replay needs."""
        return all(beginning.get(tp, 0) <= at for tp, at in self.needs.items())


def journal_start(store: ModelStore, name: str) -> Progress | None:
    """The checkpoint at which the journal starts; None: it starts with the new model."""
    kept = store.kept_checkpoints(name)
    first = next(iter(store.journal(name)), (0,))[0]
    return kept[0] if kept and first != 1 else None


def find_replay_starts(store: ModelStore, name: str, until_seq: int) -> tuple[OffsetLedger, list[ReplayStart]]:
    """Account for the journal up to a commit, and find the checkpoints from which a replay to it can start.

    A replay starts behind everything that was learned with another version of the arithmetic.

    Returns
    -------
    ledger, starts
        The accounted journal, and the possible starts, oldest first.

    Raises
    ------
    NotFoundError
        The journal starts behind the commit, or the commit was learned with another version of the arithmetic.
    """
    begin = journal_start(store, name)
    if begin is not None and until_seq <= begin.commit_seq:
        raise NotFoundError(
            f"the journal starts behind commit {begin.commit_seq} ({format_time(begin.committed_at)}), and this needs "
            f"commit {until_seq}",
            where=f"model {name}",
            hint="Choose a newer snapshot from streamkm snapshots: the journal of eight days is kept, or all of it "
            "with --keep-snapshots all",
        )
    ledger = OffsetLedger() if begin is None else OffsetLedger(begin.position)
    first = 0 if begin is None else begin.commit_seq
    kept = [b for b in store.kept_checkpoints(name) if first <= b.commit_seq < until_seq]
    found = [ReplayStart(b.commit_seq, b.committed_at) for b in kept]
    if begin is None:
        found.insert(0, ReplayStart())
    numbers = [start.commit_seq for start in found]
    other = 0  # the last commit with another version of the arithmetic
    last = None
    for commit, entry in store.journal(name, until_seq, after_seq=first):
        ledger.add(commit, entry)
        for start in found[: bisect_left(numbers, commit)]:
            start.add(entry)
        last = entry.arithmetic
        if last != ARITHMETIC:
            other = commit
    if last is not None and last != ARITHMETIC:
        raise NotFoundError(
            f"it was learned with arithmetic {last}, and this version of streamkm has {ARITHMETIC}: a replay cannot be "
            "equal bit for bit, so the snapshot can be neither confirmed nor refuted",
            where=f"model {name}, commit {until_seq}",
            hint="Verify a newer snapshot, or this one with the version of streamkm that published it",
        )
    ours = [start for start in found if start.commit_seq >= other]
    if not ours:
        raise NotFoundError(
            f"no earlier checkpoint with arithmetic {ARITHMETIC} is kept",
            where=f"model {name}, commit {until_seq}",
            hint="Verify a snapshot that is newer than the next kept checkpoint (one a day is kept)",
        )
    return ledger, ours


def best_replay_start(starts: Sequence[ReplayStart], beginning: Position) -> ReplayStart:
    """The oldest start for which the topic still has all records; the newest if there is none."""
    return next((start for start in starts if start.readable(beginning)), starts[-1])


_MAX_LISTED = 20
"""Findings returned."""


def audit(store: Store, name: str) -> list[str]:
    """Check a stored model for inconsistencies.

    Counters, journal (each commit once and in order, each offset once), snapshots (numbers, commits, positions,
    readable arrays) and quarantine are compared with the last checkpoint, which must be readable. The model may be
    written meanwhile: newer commits are ignored.

    Returns
    -------
    list
        One sentence for each inconsistency; empty when there is none.

    Raises
    ------
    NotFoundError
        There is no such model.
    StoreUnavailableError
        The store cannot be read.
    """
    info = store.model(name)
    progress = info.progress
    if progress is None:
        return [f"snapshot {s.id} exists without a checkpoint" for s in store.snapshots(name, limit=1)]
    found = [*_counters(progress), *_journal(store, name, progress), *_snapshots(store, info, progress)]
    try:
        store.load_checkpoint(name)
    except StateError as e:
        found.append(f"the state of the checkpoint cannot be read: {e}")
    held = sum(1 for held in store.iter_quarantine(name) if held.commit_seq <= progress.commit_seq)
    if held > progress.counters.bad:
        found.append(f"{held} records are in quarantine, {progress.counters.bad} were counted as bad")
    return found if len(found) <= _MAX_LISTED else [*found[:_MAX_LISTED], f"and {len(found) - _MAX_LISTED} more"]


def _counters(p: Progress) -> list[str]:
    c = p.counters
    if c.records == c.points + c.bad + c.tombstones:
        return []
    return [f"{c.records} records are not {c.points} points, {c.bad} bad ones and {c.tombstones} tombstones"]


def _journal(store: ModelStore, name: str, p: Progress) -> list[str]:
    found: list[str] = []
    begin = journal_start(store, name)
    ledger, last, records = OffsetLedger(), 0, p.counters.records
    if begin is not None:
        ledger, last = OffsetLedger(begin.position), begin.commit_seq
        records -= begin.counters.records
    try:
        for seq, entry in store.journal(name, p.commit_seq, after_seq=last):
            if seq != last + 1:
                found.append(f"the journal goes from commit {last} to {seq}")
            ledger.add(seq, entry)
            last = seq
    except StoreError as e:
        return [*found, f"the journal cannot be read behind commit {last}: {e.message}"]
    if last != p.commit_seq:
        found.append(f"the journal ends at commit {last}, the checkpoint is commit {p.commit_seq}")
    ledger.close(p.position)
    if records > ledger.read:
        found.append(f"{records} records were counted in {ledger.read} offsets")
    return found + ledger.errors


def _snapshots(store: ModelStore, info: ModelInfo, p: Progress) -> list[str]:
    name, found = info.spec.name, []
    newest = 0
    try:
        for s in iter_snapshots(store, name):
            if s.commit_seq > p.commit_seq:
                continue  # published after the checkpoint was read
            if s.kind != "replay":
                newest = newest or s.id
                ahead = [str(tp) for tp, at in sorted(s.position.items()) if at > p.position.get(tp, -1)]
                if ahead:
                    found.append(f"snapshot {s.id} is ahead of the model in {', '.join(ahead)}")
                if not s.commit_seq:
                    found.append(f"snapshot {s.id} has no commit")
    except StoreError as e:
        return [*found, f"{e.where}: {e.message}"]
    if newest != info.last_snapshot:
        found.append(f"the newest snapshot is {newest}, the model says {info.last_snapshot}")
    return found
