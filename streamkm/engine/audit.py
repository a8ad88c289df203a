"""Whether what a store holds of a model agrees with itself; no record of the topic is needed for that."""

from __future__ import annotations

from streamkm.engine.books import Books
from streamkm.engine.origins import oldest
from streamkm.errors import StateError, StoreError
from streamkm.state import Progress
from streamkm.stores.base import ModelInfo, Store

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
        store.load(name)
    except StateError as e:
        found.append(f"the state of the checkpoint cannot be read: {e}")
    held = sum(1 for held in store.quarantine(name) if held.commit_seq <= progress.commit_seq)
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
    begin = oldest(store, name)
    books, last, records = Books(), 0, p.counters.records
    if begin is not None:
        books, last = Books(begin.position), begin.commit_seq
        records -= begin.counters.records
    try:
        for seq, learning in store.journal(name, p.commit_seq, after_seq=last):
            if seq != last + 1:
                found.append(f"the journal goes from commit {last} to {seq}")
            books.add(seq, learning)
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
