"""What `KafkaSource` needs from a Kafka client: a driver adapts one client, and the source does the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import (
    BrokerUnreachableError,
    CorruptBatchError,
    PositionLostError,
    SettingsError,
    SourceError,
    StreamkmError,
    TopicNotFoundError,
)
from streamkm.records import Bytes, Headers, Position, TopicPartition


class ErrorKind(Enum):
    """What an error of a client means."""

    UNREACHABLE = "no broker answers"
    POSITION_LOST = "the position is not in the topic"
    CORRUPT_BATCH = "a record batch cannot be read"
    TOPIC_NOT_FOUND = "the topic does not exist"
    SETTINGS = "the client refuses its settings"
    DENIED = "the broker denies access"
    FAILED = "any other error of the client"
    FOREIGN = "not an error of the client"


def kafka_error(
    kind: ErrorKind, message: str, *, doing: str, where: str, bootstrap: str, client: str = "kafka-python"
) -> StreamkmError:
    """The error of streamkm for an error of a client; raise it ``from`` that.

    Parameters
    ----------
    kind
        What the error means.
    message
        Its text.
    doing
        Current operation, such as "reading".
    where
        Topic, or ``topic-partition@offset``.
    bootstrap
        Addresses of the brokers.
    client
        Name of the client.
    """
    text, hint = _TEXTS[kind]
    filled = text.format(message=message, doing=doing, bootstrap=bootstrap, client=client)
    return _CLASSES[kind](filled, where=where, hint=hint)


def error_message(kind: ErrorKind, error: Exception) -> str:
    """The text of a client's error, with its type where the kind says little."""
    text, name = str(error), type(error).__name__
    return f"{name}: {text}" if kind in {ErrorKind.FAILED, ErrorKind.FOREIGN} else text or name


_CLASSES: Mapping[ErrorKind, type[SourceError | SettingsError]] = {
    ErrorKind.UNREACHABLE: BrokerUnreachableError,
    ErrorKind.POSITION_LOST: PositionLostError,
    ErrorKind.CORRUPT_BATCH: CorruptBatchError,
    ErrorKind.TOPIC_NOT_FOUND: TopicNotFoundError,
    ErrorKind.SETTINGS: SettingsError,
    ErrorKind.DENIED: SourceError,
    ErrorKind.FAILED: SourceError,
    ErrorKind.FOREIGN: SourceError,
}
_TEXTS: Mapping[ErrorKind, tuple[str, str]] = {
    ErrorKind.UNREACHABLE: (
        "no broker answered at {bootstrap} while {doing} ({message})",
        "Is it running, and does it advertise an address that is reachable from here?",
    ),
    ErrorKind.POSITION_LOST: (
        "the position is no longer in the topic ({message})",
        "Retention deleted it, or the topic was truncated; choose a new position to continue from",
    ),
    ErrorKind.CORRUPT_BATCH: (
        "a record batch cannot be read ({message})",
        "Restore the partition from a replica, or continue from an offset behind the batch",
    ),
    ErrorKind.TOPIC_NOT_FOUND: ("the topic does not exist ({message})", ""),
    ErrorKind.SETTINGS: ("{client} refuses its settings: {message}", ""),
    ErrorKind.DENIED: (
        "the broker denies access while {doing}: {message}",
        "Check the credentials, and their permissions to describe and read the topic and to use the group",
    ),
    ErrorKind.FAILED: ("{client} failed while {doing}: {message}", ""),
    ErrorKind.FOREIGN: ("{client} failed while {doing}: {message}", ""),
}


class TopicDescription(NamedTuple):
    """A topic as a broker describes it.

    Attributes
    ----------
    topic_id
        Changes when the topic is recreated; empty for brokers without topic ids (before 2.8).
    partitions
        Numbers of the partitions; empty if they are temporarily unavailable.
    """

    topic_id: str
    partitions: frozenset[int]


class TopicWatch(Protocol):
    """Follows the metadata of a topic that a client refreshes by itself.

    Attributes
    ----------
    latest
        The topic in the newest metadata, a new object with each refresh; None until the client reads the topic.
    """

    latest: TopicDescription | None

    def seconds_since_update(self) -> float:
        """Time since the last refresh of any metadata, s."""


class FetchedColumns(NamedTuple):
    """Consecutive records of a partition as columns; see `streamkm.records.ByteRecords` for shapes and meaning.

    Attributes
    ----------
    data
        (m,) uint8, read-only, has the values.
    begins, ends
        (n,) start and end of each value in `data`; the end is -1 for a null value.
    offsets, timestamps
        (n,) offsets, and milliseconds since 1970 or -1.
    details
        Returns key and headers of record i.
    full_sizes
        Bytes of the whole value of truncated records, by offset.
    """

    data: Bytes
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    offsets: NDArray[np.int64]
    timestamps: NDArray[np.int64]
    details: Callable[[int], tuple[bytes | None, Headers]] | None
    full_sizes: Mapping[int, int]


class KafkaDriver(Protocol):
    """Adapts one Kafka client to `KafkaSource`; open when it is made.

    It never commits, skips or repeats records by itself, reads committed records only, and creates no topics. Methods
    raise the client's own errors, which `classify` explains, or errors of streamkm. `describe_topic`, `topics`,
    `commit_group` and `group_conflict` may be called by other threads than the one that reads, also while it does.

    Attributes
    ----------
    client
        Name of the client, for messages.
    bootstrap
        Addresses of the brokers, for messages.
    metadata_seconds
        Interval of the client's own refreshes of metadata, s.
    """

    client: str
    bootstrap: str
    metadata_seconds: float

    def cluster_id(self) -> str:
        """Id of the cluster; empty if it has none."""

    def describe_topic(self, topic: str) -> TopicDescription | None:
        """Ask a broker for a topic; None: it does not exist."""

    def topics(self) -> Sequence[str]:
        """Names of all topics that may be read, without internal ones."""

    def watch(self, topic: str) -> TopicWatch:
        """Follow the metadata of a topic without requests of its own."""

    def bounds(self, which: Literal["beginning", "end"], partitions: Collection[TopicPartition]) -> Position:
        """First offset of each partition, or the offset after its last readable record."""

    def offsets_at(self, seconds: float, partitions: Collection[TopicPartition]) -> Position:
        """Offset of the first record at or after a time, s since 1970; without partitions that have none."""

    def assign(self, position: Position) -> None:
        """Read exactly these partitions, from these offsets; fetched records are discarded."""

    def fetch(self, timeout: float, max_records: int) -> Mapping[TopicPartition, FetchedColumns]:
        """The next records of all partitions together, after a wait of at most `timeout` seconds.

        After an error nothing is fetched with this driver any more.
        """

    def position(self) -> Position:
        """The next offset of each assigned partition; passes over offsets without records."""

    def failed_at(self) -> tuple[TopicPartition, int] | None:
        """Partition and offset at which `fetch` raised an error; None if the client does not tell."""

    def commit_group(self, group: str, position: Position) -> None:
        """Commit offsets to a group."""

    def group_conflict(self, group: str) -> str:
        """Describe members of a group that this program only commits offsets to; empty if none are known."""

    def classify(self, error: Exception) -> ErrorKind:
        """What an error that a method of this driver raised means."""

    def close(self) -> None:
        """Close all connections; never raises."""
