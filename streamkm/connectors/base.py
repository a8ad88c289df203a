"""The contract of a source of records."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from streamkm.records import Outgoing, Position, Records, Refused, TopicPartition
from streamkm.state import Json


@runtime_checkable
class Confirms(Protocol):
    """A source that can tell afterwards whether what it gave came from the topic that `Source.seek` found.

    Kafka's fetches name a topic, not its id: one that is deleted and made anew while it is read gives its new records
    under the old offsets. Ids never come back. So an id that is asked for after a poll, and is the old one, vouches for
    all that was polled before.
    """

    def ask(self) -> None:
        """Ask, beside the stream, whether it is still the same topic; returns at once."""
        ...

    def confirm(self) -> None:
        """Wait for the answer; asks itself when nobody did since the last poll.

        Raises
        ------
        TopicChangedError, TopicNotFoundError
            What was polled since the last `confirm` may be from another topic.
        BrokerUnreachableError
            Nobody answers: that cannot be told now.
        """
        ...


@runtime_checkable
class Source(Protocol):
    """Partitions of records, read forward from a position.

    A source belongs to one thread. Nothing is read before `seek`: the caller says where to start, always, so no
    default ("latest") can lose records.

    What may block: `poll` up to its timeout; `partitions`, `beginning`, `end`, `seek`, `commit` and `identity` may ask
    the broker and take up to the source's request timeout, after which they raise `BrokerUnreachableError`. `position`
    and `close` never block for long.

    What a position means: for each partition the offset of the next record to read. It is the source's own position,
    not the last record's offset plus one: a transaction marker, an aborted record or a hole of compaction moves it on
    without giving a record. A range is read to its end when ``position >= end``, never when a record with the last
    offset was seen, because there may be none.

    After an error out of `poll` the source is unusable: close it and make a new one at the last committed position.
    After `close` every method but `close` raises `SourceClosedError`; `close` may be called again.
    """

    def identity(self) -> Json:
        """What is being read, for the model's `ModelSpec.source`: kind, topic, and ids that tell a topic made anew."""
        ...

    def partitions(self) -> tuple[TopicPartition, ...]:
        """The partitions there are now, sorted. May grow.

        Raises
        ------
        TopicNotFoundError
            The topic does not exist (it is not created).
        """
        ...

    def beginning(self) -> Position:
        """The first offset that can still be read, for each partition there is now."""
        ...

    def end(self) -> Position:
        """The offset after the last readable record now, for each partition.

        Under read-committed that is the last stable offset: open transactions do not count as lag.
        """
        ...

    def seek(self, position: Position) -> None:
        """Read exactly these partitions from exactly these offsets on. What was buffered is dropped.

        Raises
        ------
        PositionLostError
            An offset lies below the beginning or above the end of its partition. The message names both.
        """
        ...

    def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
        """What can be read now: at most one `Records` a partition, sorted by partition, `max_records` in all.

        Waits up to `timeout` seconds for the first record; returns an empty sequence when there is none. Each
        `Records` starts where the one before in that partition stopped, so their ranges tile the partition. Reading
        the same range again gives the same records.

        Raises
        ------
        PositionLostError
            Retention removed the position while reading.
        CorruptBatchError
            A batch cannot be read; the message says where.
        """
        ...

    def position(self) -> Position:
        """Where the next `poll` reads on."""
        ...

    def commit(self, position: Position) -> None:
        """Tell the broker's group how far we are, for other people's tools. Best effort: never raises for a broker."""
        ...

    def close(self) -> None:
        """Give back connections and files."""
        ...


class Writer(Protocol):
    """Writes records to topics. Belongs to one thread."""

    def make_topic(self, topic: str) -> None:
        """Make a topic unless it is there.

        Raises
        ------
        SourceError
            It is not there, and cannot be made.
        """
        ...

    def write(self, records: Sequence[Outgoing]) -> Sequence[Refused | None]:
        """Write records; for each, None once it was acknowledged, or why it was not."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...
