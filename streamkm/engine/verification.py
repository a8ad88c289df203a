"""Re-derives a model from its topic and journal, and checks that the journal accounts for every offset."""

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
from streamkm.models import ARITHMETIC, OnlineKMeans
from streamkm.models.spec import new_learner
from streamkm.records import BatchRange, Position, TopicPartition
from streamkm.state import EventTimeLimit, JournalEntry, MiniBatch, ModelSpec, ModelState, Progress, Snapshot
from streamkm.stores.base import ModelInfo, Store
from streamkm.times import format_time

OWNER_EVENTS = frozenset({"promotion", "outliers"})
"""Kinds of events that a re-run does not give: they tell of the snapshots between which they stand, not of the points
of a model; and what an older streamkm published does not have them."""


class JournalReplay:
    """Learns a journal again, one commit after the other; `learner` is then what that commit stored.

    Parameters
    ----------
    spec
        The model's spec, as stored.
    open_source
        Gives a source; one is opened for each partition and closed at the end.
    adopt
        Gives the model that goes on from a snapshot, by its number (`from_snapshot`).
    start
        The state that the first commit follows; None: the model as it was made.
    """

    def __init__(
        self,
        spec: ModelSpec,
        open_source: Callable[[], Source],
        codec: Codec,
        adopt: Callable[[int], OnlineKMeans] | None = None,
        start: ModelState | None = None,
    ) -> None:
        self.learner = new_learner(spec) if start is None else OnlineKMeans.from_state(start)
        self._open_source, self._codec, self._adopt = open_source, codec_for_model(codec, spec), adopt
        self._readers: dict[TopicPartition, RangeReader] = {}

    def repeat(self, entry: JournalEntry) -> None:
        """Do again what the model did before one commit."""
        if entry.promoted_snapshot:
            if self._adopt is None:
                raise NotFoundError(f"snapshot {entry.promoted_snapshot} was put in charge, and nothing gives it again")
            self.learner = self._adopt(entry.promoted_snapshot)
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
            # A range comes in as many pieces as polls gave; decoding does not depend on the cut.
            decoded += [decode(self._codec, records, limit) for records in reader.read(wanted)]
        learn(self.learner, decoded, limit)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.source.close()


@dataclass(frozen=True)
class SnapshotComparison:
    """What a comparison of a snapshot with a re-run found.

    Attributes
    ----------
    differences
        One sentence for each array that is not equal bit for bit; empty when all are.
    """

    snapshot_id: int
    n_points: int
    differences: tuple[str, ...]

    def __bool__(self) -> bool:
        return not self.differences


def compare_snapshot(snapshot: Snapshot, learner: OnlineKMeans) -> SnapshotComparison:
    """Compare a published snapshot with a re-run model, bit for bit."""
    found = learner.published_
    if found is None:
        return SnapshotComparison(snapshot.id, learner.n_seen, ("the re-run publishes nothing",))
    differences = []
    for name in ("ids", "centroids", "weights", "spreads", "born", "factors", "deviations"):
        published, again = getattr(snapshot, name), getattr(found, name)
        if published is None:
            continue  # an older streamkm did not publish them
        if again is None:
            differences.append(f"{name} differ (the re-run has none)")
        elif published.shape != again.shape or published.tobytes() != again.tobytes():
            worst = np.max(np.abs(published - again)) if published.shape == again.shape else "their shapes differ"
            differences.append(f"{name} differ (largest difference {worst})")
    happened = [e.to_json() for e in snapshot.events if e.kind not in OWNER_EVENTS]
    if happened != [e.to_json() for e in found.events]:
        differences.append(f"events differ ({len(happened)} published, {len(found.events)} in the re-run)")
    if snapshot.n_points != learner.n_seen:
        differences.append(f"points differ ({snapshot.n_points} published, {learner.n_seen} in the re-run)")
    return SnapshotComparison(snapshot.id, learner.n_seen, tuple(differences))


class OffsetLedger:
    """Adds a journal up, one commit after the other.

    Parameters
    ----------
    position
        Where the model stood before the first of them.

    Attributes
    ----------
    read
        Offsets read since then, those read again for an adopted snapshot not counted twice.
    lost
        (commit, range) of what was gone before it could be read.
    errors
        One sentence for each range that does not follow the one before it in its partition.
    """

    def __init__(self, position: Position | None = None) -> None:
        self.read = 0
        self.lost: list[tuple[int, BatchRange]] = []
        self.errors: list[str] = []
        self._at: dict[TopicPartition, int] = dict(position or {})

    def add(self, commit: int, entry: JournalEntry) -> None:
        """Account for what one commit did."""
        ranges = [r for batch in entry.batches for r in batch]
        if entry.promoted_snapshot:
            # A snapshot was put in charge: what came since it is learned again, up to where the model stands.
            again: dict[TopicPartition, int] = {}
            for r in ranges:
                self._follow(commit, r, again)
            for tp, at in again.items():
                if at != self._at.setdefault(tp, at):
                    self.errors.append(f"commit {commit} learns {tp} again to {at}, the model stands at {self._at[tp]}")
        else:
            for r in ranges:
                self._follow(commit, r, self._at)
                self.read += r.stop - r.start
        for r in entry.lost:
            self._follow(commit, r, self._at)
            self.lost.append((commit, r))

    def close(self, position: Position) -> None:
        """Compare with the position that the last commit stored."""
        self.errors += [
            f"{tp} stands at {position.get(tp)}, the journal ends at {at}"
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
    """A commit that a re-run can follow.

    Attributes
    ----------
    commit_seq
        Its number; 0: the model as it was made.
    committed_at
        Seconds since 1970; 0.0 for the model as it was made.
    batches
        Mini-batches from here to the snapshot.
    needs
        The first offset of each partition that is read again on the way.
    """

    commit_seq: int = 0
    committed_at: float = 0.0
    batches: int = 0
    needs: dict[TopicPartition, int] = field(default_factory=dict)

    def add(self, entry: JournalEntry) -> None:
        """Take in what one commit did."""
        self.batches += len(entry.batches)
        for r in (r for batch in entry.batches for r in batch):
            self.needs[r.partition] = min(r.start, self.needs.get(r.partition, r.start))

    def readable(self, beginning: Position) -> bool:
        """Whether a topic that begins there still has all that is needed."""
        return all(beginning.get(tp, 0) <= at for tp, at in self.needs.items())


def journal_start(store: Store, name: str) -> Progress | None:
    """The checkpoint at which the journal begins; None: it begins with the model."""
    bases = store.kept_checkpoints(name)
    first = next(iter(store.journal(name)), (0,))[0]
    return bases[0] if bases and first != 1 else None


def find_replay_starts(store: Store, name: str, until_seq: int) -> tuple[OffsetLedger, list[ReplayStart]]:
    """Add the journal up to a commit up, and find where a re-run that leads there can begin, the oldest first.

    It begins behind all that was learned by another arithmetic than this streamkm has.

    Raises
    ------
    NotFoundError
        The journal no longer reaches back so far, or the commit was learned by another arithmetic.
    """
    begin = journal_start(store, name)
    if begin is not None and until_seq <= begin.commit_seq:
        raise NotFoundError(
            f"the journal begins behind commit {begin.commit_seq} ({format_time(begin.committed_at)}), and this needs "
            f"commit {until_seq}",
            where=f"model {name}",
            hint="Take a newer one of those that streamkm snapshots lists: the journal of eight days is kept, or all "
            "of it with --keep-snapshots all",
        )
    books = OffsetLedger() if begin is None else OffsetLedger(begin.position)
    first = 0 if begin is None else begin.commit_seq
    kept = [b for b in store.kept_checkpoints(name) if first <= b.commit_seq < until_seq]
    found = [ReplayStart(b.commit_seq, b.committed_at) for b in kept]
    if begin is None:
        found.insert(0, ReplayStart())
    numbers = [origin.commit_seq for origin in found]
    other = 0  # the last commit by another arithmetic than ours
    last = None
    for commit, entry in store.journal(name, until_seq, after_seq=first):
        books.add(commit, entry)
        for origin in found[: bisect_left(numbers, commit)]:
            origin.add(entry)
        last = entry.arithmetic
        if last != ARITHMETIC:
            other = commit
    if last is not None and last != ARITHMETIC:
        raise NotFoundError(
            f"it was learned by arithmetic {last}, and this streamkm has {ARITHMETIC}: it cannot be derived again bit "
            "for bit, which says nothing against it",
            where=f"model {name}, commit {until_seq}",
            hint="Verify a snapshot that was published since, or this one with the streamkm that published it",
        )
    ours = [origin for origin in found if origin.commit_seq >= other]
    if not ours:
        raise NotFoundError(
            f"no checkpoint of arithmetic {ARITHMETIC} before it is kept",
            where=f"model {name}, commit {until_seq}",
            hint="Verify a snapshot that was published since the next checkpoint was kept (one is, each day)",
        )
    return books, ours


def best_replay_start(origins: Sequence[ReplayStart], beginning: Position) -> ReplayStart:
    """The oldest from which the topic still has everything; the newest if there is none."""
    return next((origin for origin in origins if origin.readable(beginning)), origins[-1])


_PAGE = 500
_SHOWN = 20


def audit(store: Store, name: str) -> list[str]:
    """What does not agree, one sentence each; nothing when all does.

    Its counters, its journal (each commit once and in order, each offset once), its snapshots (numbers, commits,
    positions, arrays that can be read) and its quarantine are held against the last checkpoint, which must be readable.
    A consumer may be at work meanwhile: what it adds is left out.

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
        return [f"snapshot {s.id} stands without a checkpoint" for s in store.snapshots(name, limit=1)]
    found = [*_counters(progress), *_journal(store, name, progress), *_snapshots(store, info, progress)]
    try:
        store.load_checkpoint(name)
    except StateError as e:
        found.append(f"the state of the checkpoint cannot be read: {e}")
    held = sum(1 for held in store.iter_quarantine(name) if held.commit_seq <= progress.commit_seq)
    if held > progress.counters.bad:
        found.append(f"{held} records are in quarantine, {progress.counters.bad} were counted as bad")
    return found if len(found) <= _SHOWN else [*found[:_SHOWN], f"and {len(found) - _SHOWN} more"]


def _counters(p: Progress) -> list[str]:
    c = p.counters
    if c.records == c.points + c.bad + c.tombstones:
        return []
    return [f"{c.records} records are not {c.points} points, {c.bad} bad ones and {c.tombstones} tombstones"]


def _journal(store: Store, name: str, p: Progress) -> list[str]:
    found: list[str] = []
    begin = journal_start(store, name)
    books, last, records = OffsetLedger(), 0, p.counters.records
    if begin is not None:
        books, last = OffsetLedger(begin.position), begin.commit_seq
        records -= begin.counters.records
    try:
        for seq, entry in store.journal(name, p.commit_seq, after_seq=last):
            if seq != last + 1:
                found.append(f"the journal goes from commit {last} to {seq}")
            books.add(seq, entry)
            last = seq
    except StoreError as e:
        return [*found, f"the journal cannot be read behind commit {last}: {e.message}"]
    if last != p.commit_seq:
        found.append(f"the journal ends at commit {last}, the checkpoint is commit {p.commit_seq}")
    books.close(p.position)
    if records > books.read:
        found.append(f"{records} records were counted in {books.read} offsets")
    return found + books.errors


def _snapshots(store: Store, info: ModelInfo, p: Progress) -> list[str]:
    name, found = info.spec.name, []
    before, newest = None, 0
    try:
        while page := store.snapshots(name, before=before, limit=_PAGE):
            for s in page:
                if s.commit_seq > p.commit_seq:
                    continue  # published since we began
                if s.kind != "replay":
                    newest = newest or s.id
                    ahead = [str(tp) for tp, at in sorted(s.position.items()) if at > p.position.get(tp, -1)]
                    if ahead:
                        found.append(f"snapshot {s.id} is ahead of the model in {', '.join(ahead)}")
                    if not s.commit_seq:
                        found.append(f"snapshot {s.id} has no commit")
            before = page[-1].id
    except StoreError as e:
        return [*found, f"{e.where}: {e.message}"]
    if newest != info.last_snapshot:
        found.append(f"the newest snapshot is {newest}, the model says {info.last_snapshot}")
    return found
