"""Protocols of sources and writers of records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

from streamkm.records import CommittedOffset, DeliveryError, Position, ProducerRecord, Records, TopicPartition
from streamkm.state import Json


@runtime_checkable
class Source(Protocol):
    """Partitions of records, read forward from a position.

    A source is used by one thread. Nothing is read before `seek`: there is no default start position that could skip
    records.

    Blocking calls: `poll` waits up to its timeout. `partitions`, `beginning`, `end`, `seek`, `commit` and `identity`
    may send requests to the broker and take up to the source's request timeout, after which they raise
    `BrokerUnreachableError`. `position` and `close` return at once.

    A position is, for each partition, the offset of the next record to read. It is not the last record's offset plus
    one: transaction markers, aborted records and offsets removed by compaction advance it without a record. A range is
    read completely when ``position >= end``; a record with the last offset may not exist.

    After `poll` has raised an error the source cannot be used any more: close it, and open a new one at the last
    committed position. After `close` every method but `close` raises `SourceClosedError`.
    """

    def identity(self) -> Json:
        """Describe what is read, for `ModelSpec.source`: kind, topic, and the ids that change when it is recreated."""

    def partitions(self) -> tuple[TopicPartition, ...]:
        """Current partitions, sorted; their number may grow.

        Raises
        ------
        TopicNotFoundError
            The topic does not exist (it is not created).
        """

    def beginning(self) -> Position:
        """The first available offset of each partition."""

    def end(self) -> Position:
        """The offset after the last readable record of each partition.

        For read-committed sources this is the last stable offset: records of open transactions are not included.
        """

    def seek(self, position: Position) -> None:
        """Read exactly these partitions, from exactly these offsets. Buffered records are discarded.

        Raises
        ------
        PositionLostError
            An offset is outside of its partition's range. The message has both.
        """

    def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
        """Read the records that are available: at most one `Records` per partition, sorted by partition.

        Each `Records` starts where the previous one of its partition stopped, so that their ranges tile the partition.
        Reading a range again gives the same records.

        Parameters
        ----------
        timeout
            Maximum wait for the first record, s.
        max_records
            Maximum number of records over all partitions.

        Returns
        -------
        sequence of Records
            Empty if no record came in time.

        Raises
        ------
        PositionLostError
            Retention has deleted records at the position.
        CorruptBatchError
            A record batch cannot be read.
        """

    def position(self) -> Position:
        """Offsets from which the next `poll` reads."""

    def commit(self, position: Position) -> None:
        """Commit offsets to the broker's group, for monitoring tools only. Never raises for an unavailable broker."""

    def close(self) -> None:
        """Close connections and files."""


@runtime_checkable
class IdentityCheck(Protocol):
    """Verifies after a poll that the records came from the topic that `Source.seek` found.

    Fetch requests name a topic, not its id: a topic that is deleted and recreated while it is read returns its new
    records under old offsets. Topic ids are never reused. So an id that is requested after a poll, and has not changed,
    proves that everything polled before came from the same topic.
    """

    def begin_identity_check(self) -> None:
        """Request the topic's id in the background; returns at once."""

    def confirm_identity(self) -> None:
        """Wait for the result; requests it first if `begin_identity_check` was not called since the last poll.

        Raises
        ------
        TopicChangedError, TopicNotFoundError
            Records polled since the last `confirm_identity` may come from another topic.
        BrokerUnreachableError
            The broker does not answer, so the identity is unknown.
        """


class VerifiableSource(Source, IdentityCheck, Protocol):
    """A source with `IdentityCheck`."""


class Writer(Protocol):
    """Writes records to topics. Used by one thread."""

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        """Create a topic with the cluster's default replication, unless it exists.

        Raises
        ------
        SourceError
            It does not exist, and cannot be created.
        """

    def write(self, records: Sequence[ProducerRecord]) -> Sequence[DeliveryError | None]:
        """Write records and wait for the acknowledgements.

        Returns
        -------
        sequence
            For each record None if it was acknowledged, else the reason.
        """

    def close(self) -> None:
        """Close the connections."""


class TransactionalWriter(Protocol):
    """Writes records, and the source position that they were made from, in one transaction. Used by one thread."""

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        """See `Writer.create_topic`."""

    def group_conflict(self) -> str:
        """Describe other users of the group that holds the position; empty if there are none."""

    def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, CommittedOffset]:
        """The group's committed position, without partitions that have none."""

    def is_empty(self, topic: str) -> bool:
        """Whether an existing topic has never had a record."""

    def write(self, records: Sequence[ProducerRecord], position: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Write records and commit a position, all or nothing.

        Raises
        ------
        WriterFencedError
            Another writer with the same name has taken over.
        SourceError
            Nothing was written.
        BrokerUnreachableError
            The outcome is unknown: the group's position tells.
        """

    def close(self) -> None:
        """Close the connections."""
