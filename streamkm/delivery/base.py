"""What assignments need of others: sources, codecs and stores are siblings, which sinks do not know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from streamkm.records import Batch, CommittedOffset, Outgoing, Position, Records, TopicPartition
from streamkm.state import Snapshot


class Reads(Protocol):
    """What is needed of a source; see `sources.Source`."""

    def partitions(self) -> tuple[TopicPartition, ...]: ...
    def beginning(self) -> Position: ...
    def end(self) -> Position: ...
    def seek(self, position: Position) -> None: ...
    def poll(self, timeout: float, max_records: int) -> Sequence[Records]: ...
    def position(self) -> Position: ...
    def ask(self) -> None: ...
    def confirm(self) -> None: ...
    def close(self) -> None: ...


class Transactions(Protocol):
    """Writes records and the position behind what they were made of, all or nothing."""

    def make_topic(self, topic: str, partitions: int) -> None:
        """Make a topic unless it is there."""
        ...

    def group_conflict(self) -> str:
        """Who else uses the name under which positions are kept, as a sentence; empty if nobody does."""
        ...

    def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, CommittedOffset]:
        """The position of the last transaction, or of somebody else; without partitions that have none."""
        ...

    def is_empty(self, topic: str) -> bool:
        """Whether nothing was ever written to a topic that is there."""
        ...

    def write(self, records: Sequence[Outgoing], position: Mapping[TopicPartition, CommittedOffset]) -> None:
        """One transaction.

        Raises
        ------
        WriterFencedError
            Somebody else writes the same now.
        """
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


class Snapshots(Protocol):
    """What is needed of a store."""

    def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Snapshot:
        """The newest in charge; `NotFoundError` while there is none."""
        ...


class Decodes(Protocol):
    """What is needed of a codec."""

    def decode(self, records: Records) -> Batch:
        """Turn records into points."""
        ...
