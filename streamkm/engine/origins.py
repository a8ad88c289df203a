"""Where a re-run of the journal can begin: with the model, or at a checkpoint that was kept."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from streamkm.engine.books import Books
from streamkm.errors import NotFoundError
from streamkm.models import ARITHMETIC
from streamkm.records import Position, TopicPartition
from streamkm.state import Learning, Progress
from streamkm.stores import Store
from streamkm.values import moment


@dataclass
class Origin:
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

    def add(self, learning: Learning) -> None:
        """Take in what one commit did."""
        self.batches += len(learning.batches)
        for r in (r for batch in learning.batches for r in batch):
            self.needs[r.partition] = min(r.start, self.needs.get(r.partition, r.start))

    def readable(self, beginning: Position) -> bool:
        """Whether a topic that begins there still has all that is needed."""
        return all(beginning.get(tp, 0) <= at for tp, at in self.needs.items())


def oldest(store: Store, name: str) -> Progress | None:
    """The checkpoint at which the journal begins; None: it begins with the model."""
    bases = store.bases(name)
    first = next(iter(store.journal(name)), (0,))[0]
    return bases[0] if bases and first != 1 else None


def find_origins(store: Store, name: str, until_seq: int) -> tuple[Books, list[Origin]]:
    """Add the journal up to a commit up, and find where a re-run that leads there can begin, the oldest first.

    It begins behind all that was learned by another arithmetic than this streamkm has.

    Raises
    ------
    NotFoundError
        The journal no longer reaches back so far, or the commit was learned by another arithmetic.
    """
    begin = oldest(store, name)
    if begin is not None and until_seq <= begin.commit_seq:
        raise NotFoundError(
            f"the journal begins behind commit {begin.commit_seq} ({moment(begin.committed_at)}), and this needs "
            f"commit {until_seq}",
            where=f"model {name}",
            hint="Take a newer one of those that streamkm snapshots lists: the journal of eight days is kept, or all "
            "of it with --keep-snapshots all",
        )
    books = Books() if begin is None else Books(begin.position)
    first = 0 if begin is None else begin.commit_seq
    kept = [b for b in store.bases(name) if first <= b.commit_seq < until_seq]
    found = [Origin(b.commit_seq, b.committed_at) for b in kept]
    if begin is None:
        found.insert(0, Origin())
    numbers = [origin.commit_seq for origin in found]
    other = 0  # the last commit by another arithmetic than ours
    last = None
    for commit, learning in store.journal(name, until_seq, after_seq=first):
        books.add(commit, learning)
        for origin in found[: bisect_left(numbers, commit)]:
            origin.add(learning)
        last = learning.arithmetic
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


def best_origin(origins: Sequence[Origin], beginning: Position) -> Origin:
    """The oldest from which the topic still has everything; the newest if there is none."""
    return next((origin for origin in origins if origin.readable(beginning)), origins[-1])
