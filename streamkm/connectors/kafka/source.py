"""Reads a Kafka topic, by the driver of a Kafka client."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, Self

import numpy as np

from streamkm.connectors.kafka.background import BackgroundCall, OffsetCommitter
from streamkm.connectors.kafka.decompression import MAX_DECOMPRESSED_BYTES, MAX_VALUE_BYTES
from streamkm.connectors.kafka.driver import (
    ErrorKind,
    FetchedColumns,
    KafkaDriver,
    TopicDescription,
    error_message,
    kafka_error,
)
from streamkm.connectors.kafka.kafka_python import KafkaPythonDriver
from streamkm.connectors.positions import check_position
from streamkm.errors import (
    BrokerUnreachableError,
    CorruptBatchError,
    PositionLostError,
    SourceClosedError,
    SourceError,
    StreamkmError,
    TopicChangedError,
    TopicNotFoundError,
)
from streamkm.records import ByteRecords, Position, TopicPartition
from streamkm.state import Json

_CLOSE_SECONDS = 2.0
_CONFIRM_SECONDS = 5.0
_MISSED_REFRESHES = 3
"""Refreshes of metadata without a response after which the broker is gone."""


class KafkaSource:
    """A Kafka topic as a `Source`.

    Partitions are assigned, not balanced by a consumer group: the holder of the model's lease reads all of them. Only
    committed transactions are read. Offsets are committed to the group `group_id` for monitoring tools only.

    While no records arrive, `poll` raises after three refreshes of metadata (``metadata.max.age.ms``, 5 s) without a
    response.

    Parameters
    ----------
    driver
        Of the Kafka client; closed with the source.
    topic
        Name of the topic; it is never created.
    group_id
        Group for `commit`; if None, `commit` does nothing.

    Attributes
    ----------
    driver
        See above.
    """

    def __init__(self, driver: KafkaDriver, topic: str, *, group_id: str | None = None) -> None:
        self.driver = driver
        self._topic = topic
        self._group_id = group_id
        self._max_silence = _MISSED_REFRESHES * driver.metadata_seconds
        self._position: dict[TopicPartition, int] = {}
        self._topic_id: str | None = None  # of the first response
        self._partitions: frozenset[int] = frozenset()
        self._checked_metadata: object = None
        self._failure: StreamkmError | None = None
        self._closed = False
        self._committer: OffsetCommitter | None = None
        self._identity_check: BackgroundCall | None = None
        self._check_pending = False
        self._watch = driver.watch(topic)

    @classmethod
    def connect(
        cls,
        bootstrap: str,
        topic: str,
        *,
        group_id: str | None = None,
        public_api_only: bool = False,
        request_timeout: float = 30.0,
        client: Mapping[str, object] | None = None,
        max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
        max_value_bytes: int = MAX_VALUE_BYTES,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Self:
        """Open a source with kafka-python.

        Parameters
        ----------
        topic, group_id
            Of the source.
        bootstrap, public_api_only, request_timeout, client, max_decompressed_bytes, max_value_bytes, should_stop
            Of the driver, see `KafkaPythonDriver`.

        Raises
        ------
        BrokerUnreachableError
            No broker at `bootstrap` responds.
        BrokerRefusedError
            A broker refuses the connection.
        SettingsError
            A property in `client` is unknown or not valid.
        """
        driver = KafkaPythonDriver(
            bootstrap,
            public_api_only=public_api_only,
            request_timeout=request_timeout,
            client=client,
            max_decompressed_bytes=max_decompressed_bytes,
            max_value_bytes=max_value_bytes,
            should_stop=should_stop,
            where=topic,
        )
        return cls(driver, topic, group_id=group_id)

    def identity(self) -> Json:
        self._check()
        topic = self._describe()
        with self._translated_errors("describing the cluster"):
            cluster_id = self.driver.cluster_id()
        return {"kind": "kafka", "topic": self._topic, "topic_id": topic.topic_id, "cluster_id": cluster_id}

    def partitions(self) -> tuple[TopicPartition, ...]:
        self._check()
        self._refresh_partitions()
        return tuple(TopicPartition(self._topic, p) for p in sorted(self._partitions))

    def beginning(self) -> Position:
        return self._bounds("beginning", self.partitions())

    def end(self) -> Position:
        return self._bounds("end", self.partitions())

    def offsets_at(self, seconds: float) -> Position:
        """For each partition the offset of the first record at or after a time, s since the epoch, or else its end."""
        partitions = self.partitions()
        with self._translated_errors("asking for offsets by time"):
            found = self.driver.offsets_at(seconds, partitions)
        end = self._bounds("end", partitions)
        return {tp: min(found.get(tp, end[tp]), end[tp]) for tp in partitions}

    def seek(self, position: Position) -> None:
        self._check()
        if position:
            self._describe()  # the cached state may be some seconds old
        known = {TopicPartition(self._topic, p) for p in self._partitions}
        for tp, offset in position.items():
            if tp not in known:
                raise PositionLostError(f"the partition of offset {offset} does not exist", where=str(tp))
        partitions = sorted(position)
        beginning, end = self._bounds("beginning", partitions), self._bounds("end", partitions)
        for tp in partitions:
            check_position(tp, position[tp], beginning[tp], end[tp])
        start = {tp: position[tp] for tp in partitions}
        with self._translated_errors("seeking"):
            self.driver.assign(start)
        self._position = start

    def poll(self, timeout: float, max_records: int) -> Sequence[ByteRecords]:
        self._check()
        if not self._position:
            time.sleep(max(0.0, timeout))
            return ()
        try:
            self._refresh_partitions()
            self._check_pending = False
            got = self.driver.fetch(timeout, max_records)
            after = self.driver.position()
        except Exception as error:
            # The next poll of kafka-python may never return: this driver does not fetch again.
            self._failure = self._poll_error(error)
            raise self._failure from error
        out = []
        for tp, start in self._position.items():
            columns = got.get(tp)
            if columns is not None or after[tp] != start:
                out.append(ByteRecords(tp, start, after[tp], *(_EMPTY if columns is None else columns)))
        self._position = dict(after)
        if not out and (silent := self._watch.seconds_since_update()) > self._max_silence:
            self._failure = self._error(ErrorKind.UNREACHABLE, f"silent for {silent:.0f} s", "reading")
            raise self._failure
        return out

    def begin_identity_check(self) -> None:
        self._check_open()  # after a failed poll, records of earlier ones still have to be confirmed
        if self._identity_check is None:
            self._identity_check = BackgroundCall(self._describe, f"streamkm-ask-{self._topic}")
        self._identity_check.start()
        self._check_pending = True

    def confirm_identity(self) -> None:
        if not self._check_pending:
            self.begin_identity_check()
        self._check_pending = False
        assert self._identity_check is not None  # noqa: S101  # started above
        if not self._identity_check.wait(_CONFIRM_SECONDS):
            raise BrokerUnreachableError(
                f"no broker at {self.driver.bootstrap} confirmed the topic's identity within {_CONFIRM_SECONDS:g} s",
                where=self._topic,
            )

    def position(self) -> Position:
        self._check_open()
        return dict(self._position)

    def commit(self, position: Position) -> None:
        self._check_open()
        if self._group_id is None or not position:
            return
        if self._committer is None:
            group = self._group_id
            send = functools.partial(self.driver.commit_group, group)
            explain = functools.partial(self.driver.group_conflict, group)
            self._committer = OffsetCommitter(send, f"group {group}", explain)
        self._committer.commit(position)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._committer is not None:
            self._committer.close(_CLOSE_SECONDS)
        if self._identity_check is not None:
            self._identity_check.close()
        self.driver.close()

    def _check_open(self) -> None:
        if self._closed:
            raise SourceClosedError("the source was closed", where=self._topic)

    def _check(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure

    def _error(self, kind: ErrorKind, message: str, doing: str, where: str = "") -> StreamkmError:
        driver = self.driver
        return kafka_error(
            kind, message, doing=doing, where=where or self._topic, bootstrap=driver.bootstrap, client=driver.client
        )

    @contextlib.contextmanager
    def _translated_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except StreamkmError:
            raise
        except Exception as error:
            kind = self.driver.classify(error)
            raise self._error(kind, error_message(kind, error), doing) from error

    def _refresh_partitions(self) -> None:
        """Request the partitions if the client's metadata differ from what is known."""
        latest = self._watch.latest
        if self._partitions and latest is not None:
            if latest == (self._topic_id, self._partitions) or latest is self._checked_metadata:
                return
            self._checked_metadata = latest  # may be older than the response below
        self._describe()

    def _describe(self) -> TopicDescription:
        with self._translated_errors("describing the topic"):
            found = self.driver.describe_topic(self._topic)
            if found is None:
                names = self.driver.topics()
                near = difflib.get_close_matches(self._topic, names, n=3) or sorted(names)[:3]
                raise TopicNotFoundError(
                    "the topic does not exist",
                    where=f"{self._topic} on {self.driver.bootstrap}",
                    hint=f"Did you mean {' or '.join(near)}?" if near else "There is no topic on this broker",
                )
        if self._topic_id and found.topic_id and found.topic_id != self._topic_id:
            raise TopicChangedError(
                f"the topic was deleted and recreated while it was read (its id was {self._topic_id}, is "
                f"{found.topic_id})",
                where=self._topic,
                hint="Its offsets start again: start a new model under another name",
            )
        self._topic_id, self._partitions = found
        return found

    def _bounds(self, which: Literal["beginning", "end"], partitions: Sequence[TopicPartition]) -> Position:
        if not partitions:
            return {}
        with self._translated_errors(f"asking for the {which} offsets"):
            return self.driver.bounds(which, partitions)

    def _poll_error(self, error: Exception) -> StreamkmError:
        """Translate an error of `poll`, with the partition and the offset where they are known."""
        if isinstance(error, CorruptBatchError):
            return self._clip_lost(error)
        if isinstance(error, StreamkmError):
            return error
        kind = self.driver.classify(error)
        if kind is ErrorKind.POSITION_LOST:
            return self._position_lost(error)
        failed = self.driver.failed_at()
        where = f"{failed[0]}@{failed[1]}" if failed else ""
        message = error_message(kind, error)
        if kind is ErrorKind.FOREIGN:  # of a compression library: nothing else raises other errors here
            kind = ErrorKind.CORRUPT_BATCH
        return self._error(kind, message, "reading", where)

    def _clip_lost(self, error: CorruptBatchError) -> CorruptBatchError:
        """Limit the lost range to existing offsets: the header of a damaged batch may have any numbers."""
        if error.lost is not None:
            topic, partition, start, stop = error.lost
            tp = TopicPartition(topic, partition)
            with contextlib.suppress(SourceError):
                stop = min(stop, self._bounds("end", [tp])[tp])
                error.lost = (topic, partition, start, stop) if start < stop else None
        return error

    def _position_lost(self, error: Exception) -> StreamkmError:
        """An error with the partition and its range, if the broker still returns them."""
        try:
            beginning, end = self._bounds("beginning", list(self._position)), self._bounds("end", list(self._position))
            for tp, offset in self._position.items():
                check_position(tp, offset, beginning[tp], end[tp])
        except SourceError as found:
            if isinstance(found, PositionLostError):
                return found
        return self._error(ErrorKind.POSITION_LOST, error_message(ErrorKind.POSITION_LOST, error), "reading")


_NONE = np.empty(0, np.int64)
_EMPTY = FetchedColumns(np.empty(0, np.uint8), _NONE, _NONE, _NONE, _NONE, None, {})
