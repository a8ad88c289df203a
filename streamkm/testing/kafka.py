"""A Kafka cluster in memory, and the driver that reads it: what the state machine of `KafkaSource` meets, on cue."""

from __future__ import annotations

import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from streamkm.connectors import byte_records
from streamkm.connectors.kafka.driver import ErrorKind, FetchedColumns, TopicDescription
from streamkm.errors import CorruptBatchError
from streamkm.records import Position, RawRecord, TopicPartition


class InMemoryKafkaError(Exception):
    """An error of the client in memory.

    Parameters
    ----------
    kind
        What it means.
    message
        Its text.
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class _Log:
    records: list[RawRecord] = field(default_factory=list)
    beginning: int = 0
    end: int = 0
    unreadable: tuple[int, int] = (-1, -1)


@dataclass
class _Topic:
    topic_id: str
    logs: list[_Log]


class KafkaClusterInMemory:
    """Topics of records in memory.

    Attributes
    ----------
    silent
        Whether the brokers do not answer now.
    groups
        Committed positions by group.
    """

    def __init__(self) -> None:
        self.silent = False
        self.groups: dict[str, dict[TopicPartition, int]] = {}
        self._topics: dict[str, _Topic] = {}

    def create_topic(self, name: str, partitions: int = 1) -> None:
        """Create a topic, or recreate it with a new id and no records."""
        self._topics[name] = _Topic(str(uuid.uuid4()), [_Log() for _ in range(partitions)])

    def delete_topic(self, name: str) -> None:
        """Delete a topic."""
        del self._topics[name]

    def add_partitions(self, name: str, partitions: int) -> None:
        """Add partitions, up to this number."""
        logs = self._topics[name].logs
        logs += [_Log() for _ in range(partitions - len(logs))]

    def append(self, records: Iterable[RawRecord]) -> None:
        """Append records at their offsets."""
        for record in records:
            log = self.log(record.partition)
            log.records.append(record)
            log.end = record.offset + 1

    def advance(self, partition: TopicPartition, end: int) -> None:
        """Move a partition's end without a record, as a transaction marker does."""
        self.log(partition).end = end

    def truncate(self, partition: TopicPartition, beginning: int) -> None:
        """Delete the records below an offset, as retention does."""
        log = self.log(partition)
        log.beginning = beginning
        log.records = [record for record in log.records if record.offset >= beginning]

    def spoil(self, partition: TopicPartition, start: int, stop: int) -> None:
        """Make the batch of the offsets [start, stop) unreadable."""
        self.log(partition).unreadable = (start, stop)

    def topics(self) -> Mapping[str, _Topic]:
        """All topics.

        Raises
        ------
        InMemoryKafkaError
            The brokers are silent.
        """
        if self.silent:
            raise InMemoryKafkaError(ErrorKind.UNREACHABLE, "silent")
        return self._topics

    def log(self, partition: TopicPartition) -> _Log:
        """The log of a partition."""
        return self._topics[partition.topic].logs[partition.partition]

    def describe(self, name: str) -> TopicDescription | None:
        """A topic; None: it does not exist."""
        topic = self.topics().get(name)
        return None if topic is None else TopicDescription(topic.topic_id, frozenset(range(len(topic.logs))))


class TopicWatchInMemory:
    """A `TopicWatch` whose metadata are as old as the last `KafkaDriverInMemory.refresh`.

    Parameters
    ----------
    topic
        Name of the topic.
    clock
        Monotonic seconds.
    """

    def __init__(self, topic: str, clock: Callable[[], float]) -> None:
        self.topic, self._clock = topic, clock
        self.latest: TopicDescription | None = None
        self._updated_at = clock()

    def update(self, latest: TopicDescription | None) -> None:
        """Receive metadata."""
        self.latest, self._updated_at = latest, self._clock()

    def seconds_since_update(self) -> float:
        """See `TopicWatch`."""
        return self._clock() - self._updated_at


class KafkaDriverInMemory:
    """A `KafkaDriver` for a cluster in memory.

    Parameters
    ----------
    cluster
        The cluster.
    clock
        Monotonic seconds.

    Attributes
    ----------
    requests
        Number of requests to the brokers, by method.
    fail
        Error that the next call of a method raises, by name of the method.
    closed
        Whether it was closed.
    """

    client = "the client in memory"
    bootstrap = "memory:9092"
    metadata_seconds = 5.0

    def __init__(self, cluster: KafkaClusterInMemory, clock: Callable[[], float] = time.monotonic) -> None:
        self.cluster, self._clock = cluster, clock
        self.requests: Counter[str] = Counter()
        self.fail: dict[str, Exception] = {}
        self.closed = False
        self._watches: list[TopicWatchInMemory] = []
        self._position: dict[TopicPartition, int] = {}
        self._failed_at: tuple[TopicPartition, int] | None = None

    def refresh(self) -> None:
        """Refresh metadata, as a client does at intervals; silent brokers send none."""
        if not self.cluster.silent:
            for watch in self._watches:
                watch.update(self.cluster.describe(watch.topic) or TopicDescription("", frozenset()))

    def cluster_id(self) -> str:
        """See `KafkaDriver`."""
        self._request("cluster_id")
        return "memory"

    def describe_topic(self, topic: str) -> TopicDescription | None:
        """See `KafkaDriver`."""
        self._request("describe_topic")
        return self.cluster.describe(topic)

    def topics(self) -> Sequence[str]:
        """See `KafkaDriver`."""
        self._request("topics")
        return list(self.cluster.topics())

    def watch(self, topic: str) -> TopicWatchInMemory:
        """See `KafkaDriver`."""
        self._watches.append(TopicWatchInMemory(topic, self._clock))
        return self._watches[-1]

    def bounds(self, which: Literal["beginning", "end"], partitions: Collection[TopicPartition]) -> Position:
        """See `KafkaDriver`."""
        self._request("bounds")
        self.cluster.topics()
        logs = {tp: self.cluster.log(tp) for tp in partitions}
        return {tp: log.beginning if which == "beginning" else log.end for tp, log in logs.items()}

    def offsets_at(self, seconds: float, partitions: Collection[TopicPartition]) -> Position:
        """See `KafkaDriver`."""
        self._request("offsets_at")
        self.cluster.topics()
        found = {
            tp: next((r.offset for r in self.cluster.log(tp).records if r.timestamp >= seconds * 1000), -1)
            for tp in partitions
        }
        return {tp: offset for tp, offset in found.items() if offset >= 0}

    def assign(self, position: Position) -> None:
        """See `KafkaDriver`."""
        self._position = dict(position)

    def fetch(self, timeout: float, max_records: int) -> Mapping[TopicPartition, FetchedColumns]:  # noqa: ARG002
        """See `KafkaDriver`; does not wait. Silent brokers send nothing.

        Raises
        ------
        InMemoryKafkaError
            A position is not in its partition.
        CorruptBatchError
            The next batch was spoiled.
        """
        self._request("fetch")
        out: dict[TopicPartition, FetchedColumns] = {}
        known = {} if self.cluster.silent else self.cluster.topics()
        for tp, start in self._position.items():
            if tp.topic not in known:
                continue
            log = self.cluster.log(tp)
            self._failed_at = (tp, start)
            if not log.beginning <= start <= log.end:
                raise InMemoryKafkaError(ErrorKind.POSITION_LOST, "offset out of range")
            if log.unreadable[0] <= start < log.unreadable[1]:
                raise CorruptBatchError("it is spoilt", where=f"{tp}@{start}", lost=(*tp, start, log.unreadable[1]))
            first = bisect_left(log.records, start, key=lambda record: record.offset)
            records = log.records[first : first + max_records]
            whole = first + len(records) == len(log.records)
            if start < log.unreadable[0]:
                records, whole = [record for record in records if record.offset < log.unreadable[0]], False
            if records:
                columns = byte_records(tp, start, log.end, records)
                out[tp] = FetchedColumns(
                    columns.data,
                    columns.begins,
                    columns.ends,
                    columns.offsets,
                    columns.timestamps,
                    columns.details,
                    columns.full_sizes,
                )
                self._position[tp] = records[-1].offset + 1
            if whole and max_records > 0:
                self._position[tp] = log.end
            max_records -= len(records)
        return out

    def position(self) -> Position:
        """See `KafkaDriver`."""
        return dict(self._position)

    def failed_at(self) -> tuple[TopicPartition, int] | None:
        """See `KafkaDriver`."""
        return self._failed_at

    def commit_group(self, group: str, position: Position) -> None:
        """See `KafkaDriver`."""
        self._request("commit_group")
        self.cluster.topics()
        self.cluster.groups.setdefault(group, {}).update(position)

    def group_conflict(self, group: str) -> str:  # noqa: ARG002
        """See `KafkaDriver`."""
        self._request("group_conflict")
        return ""

    def classify(self, error: Exception) -> ErrorKind:
        """See `KafkaDriver`."""
        return error.kind if isinstance(error, InMemoryKafkaError) else ErrorKind.FOREIGN

    def close(self) -> None:
        """See `KafkaDriver`."""
        self.closed = True

    def _request(self, method: str) -> None:
        self.requests[method] += 1
        if method in self.fail:
            raise self.fail.pop(method)
