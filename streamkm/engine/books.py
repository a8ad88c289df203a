"""Whether a journal accounts for every offset: read once, or recorded as lost. No record is needed for that."""

from __future__ import annotations

from streamkm.records import BatchRange, Position, TopicPartition
from streamkm.state import Learning


class Books:
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

    def add(self, commit: int, learning: Learning) -> None:
        """Account for what one commit did."""
        ranges = [r for batch in learning.batches for r in batch]
        if learning.adopted:
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
        for r in learning.lost:
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
