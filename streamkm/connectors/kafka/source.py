"""Reads a Kafka topic through kafka-python."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]
import numpy as np
from kafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from streamkm.connectors.columns import byte_records
from streamkm.connectors.kafka.background import BackgroundCall, OffsetCommitter
from streamkm.connectors.kafka.client import admin_settings, connection_settings, start_client, translate_error
from streamkm.connectors.kafka.connection_check import check_connection
from streamkm.connectors.kafka.decompression import MAX_DECOMPRESSED_BYTES, MAX_VALUE_BYTES, DecompressionBuffer
from streamkm.connectors.kafka.metadata import TopicMetadata, group_conflict, topic_id
from streamkm.connectors.kafka.record_batches import BatchRecords, RecordColumns, columns, join
from streamkm.connectors.kafka.sockets import SUPPORTED_VERSIONS
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
from streamkm.records import ByteRecords, Position, RawRecord, TopicPartition
from streamkm.state import Json

log = logging.getLogger(__name__)

_CLIENT_DEFAULTS: dict[str, Any] = {
    "max_partition_fetch_bytes": 2 << 20,
    "fetch_max_bytes": 32 << 20,
    "reconnect_backoff_max_ms": 2000,  # default 30 s: reading would resume that long after the broker is back
    "metadata_max_age_ms": 5000,  # default 5 min: delay until a new partition is noticed
    "metrics_enabled": False,
}
_CLOSE_SECONDS = 2.0
_METADATA_SECONDS = 0.05
_CONFIRM_SECONDS = 5.0


class KafkaSource:
    """A Kafka topic as a `Source`.

    Partitions are assigned, not balanced by a consumer group: the holder of the model's lease reads all of them. Only
    committed transactions are read. Offsets are committed to the group `group_id` for monitoring tools only.

    Parameters
    ----------
    bootstrap
        ``host:port``, several separated by commas.
    topic
        Name of the topic; it is never created.
    group_id
        Group for `commit`; if None, `commit` does nothing.
    public_api_only
        Use the public API of kafka-python only: slower by an order of magnitude, with the same result. Otherwise record
        batches are read as columns, if the version of kafka-python is known to allow it.
    request_timeout
        Time after which a broker that does not respond counts as unreachable, s. While no records arrive, `poll` raises
        after three refreshes of metadata (``metadata.max.age.ms``, 5 s) without a response.
    client
        More client properties by their Kafka names (``security.protocol``, ``sasl.mechanism``, ...).
    max_decompressed_bytes
        Maximum number of bytes that one poll decompresses; the rest follows in the next poll. Not used with
        `public_api_only`.
    max_value_bytes
        Maximum size of a value, bytes: a longer one in a compressed batch may be truncated (`ByteRecords.cut`).
    should_stop
        Called while waiting for the first broker; True ends the wait.

    Attributes
    ----------
    columnar
        Whether record batches are read as columns.

    Raises
    ------
    BrokerUnreachableError
        No broker at `bootstrap` responds.
    BrokerRefusedError
        A broker refuses the connection.
    SettingsError
        A property in `client` is unknown or not valid.
    """

    def __init__(
        self,
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
    ) -> None:
        self._bootstrap = bootstrap
        self._topic = topic
        self._group_id = group_id
        self._timeout_ms = int(request_timeout * 1000)
        self._settings = _CLIENT_DEFAULTS | connection_settings(bootstrap, client, request_timeout)
        wait = int(self._settings.get("fetch_max_wait_ms", 500))
        self._settings["fetch_max_wait_ms"] = min(wait, self._timeout_ms // 2)
        # Metadata is refreshed regularly: after three refreshes without a response the broker is gone.
        self._max_silence = 3 * int(self._settings["metadata_max_age_ms"]) / 1000
        self._decompression = DecompressionBuffer(max_decompressed_bytes, max_value_bytes)
        self._position: dict[TopicPartition, int] = {}
        self._topic_id: str | None = None  # of the first response
        self._partitions: frozenset[int] = frozenset()
        self._checked_metadata: object = None
        self._failure: StreamkmError | None = None
        self._closed = False
        self._admin_client: Any = None
        self._admin_lock = threading.Lock()  # the committer's thread may need it first
        self._committer: OffsetCommitter | None = None
        self._identity_check: BackgroundCall | None = None
        self._check_pending = False
        self.columnar = not public_api_only and kafka.__version__ in SUPPORTED_VERSIONS
        with self._translated_errors("connecting"):
            check_connection(self._settings, should_stop)
            # No group: kafka-python's poll would wait for the group's coordinator. No deserializers: one that raises
            # makes the next poll loop forever.
            self._consumer = start_client(
                kafka.KafkaConsumer,
                large_reads=self.columnar,
                **self._settings,
                group_id=None,
                auto_offset_reset="none",
                enable_auto_commit=False,
                isolation_level="read_committed",
                allow_auto_create_topics=False,
            )
        self._topic_metadata = TopicMetadata(self._consumer._cluster, topic)  # noqa: SLF001  # the version is pinned
        if self.columnar:
            read = functools.partial(BatchRecords, buffer=self._decompression)
            self._consumer._fetcher.PartitionRecords = read  # noqa: SLF001  # see record_batches
        elif not public_api_only:
            log.warning(
                "kafka-python %s is not one of %s: records are read one by one, which is slower",
                kafka.__version__,
                ", ".join(sorted(SUPPORTED_VERSIONS)),
            )

    def identity(self) -> Json:
        self._check()
        topic = self._describe()
        with self._translated_errors("describing the cluster"):
            cluster = self._admin().describe_cluster()
        return {
            "kind": "kafka",
            "topic": self._topic,
            "topic_id": topic_id(topic.get("topic_id")),
            "cluster_id": str(cluster.get("cluster_id") or ""),
        }

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
        timestamps = {kafka.TopicPartition(*tp): max(0, math.ceil(seconds * 1000)) for tp in partitions}
        with self._translated_errors("asking for offsets by time"):
            found = self._consumer.offsets_for_times(timestamps, timeout_ms=self._timeout_ms)
        end = self._bounds("end", partitions)
        at = {tp: found.get(kafka.TopicPartition(*tp)) for tp in partitions}
        return {tp: end[tp] if o is None or o.offset < 0 else min(int(o.offset), end[tp]) for tp, o in at.items()}

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
        with self._translated_errors("seeking"):
            self._consumer.assign([kafka.TopicPartition(*tp) for tp in partitions])
            for tp in partitions:
                self._consumer.seek(kafka.TopicPartition(*tp), position[tp])
        self._position = {tp: position[tp] for tp in partitions}

    def poll(self, timeout: float, max_records: int) -> Sequence[ByteRecords]:
        self._check()
        if not self._position:
            time.sleep(max(0.0, timeout))
            return ()
        try:
            self._refresh_partitions()
            self._check_pending = False
            self._decompression.reset()
            got = self._consumer.poll(timeout_ms=max(0, int(timeout * 1000)), max_records=max_records)
            after = {tp: self._offset(tp) for tp in self._position}
        except Exception as error:
            # The next poll of kafka-python may never return: this consumer is not used again.
            self._failure = self._poll_error(error)
            raise self._failure from error
        out = []
        for tp in self._position:
            records = got.get(kafka.TopicPartition(*tp))
            if records or after[tp] != self._position[tp]:
                make = _from_batches if self.columnar else _from_consumer_records
                out.append(make(tp, self._position[tp], after[tp], records or ()))
        self._position = after
        if not out and (silent := self._topic_metadata.seconds_since_update()) > self._max_silence:
            silence = ke.KafkaTimeoutError(f"silent for {silent:.0f} s")
            self._failure = translate_error(silence, doing="reading", where=self._topic, bootstrap=self._bootstrap)
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
                f"no broker at {self._bootstrap} confirmed the topic's identity within {_CONFIRM_SECONDS:g} s",
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
            explain = lambda: group_conflict(self._admin(), group)  # noqa: E731
            self._committer = OffsetCommitter(self._send_commit, f"group {group}", explain)
        self._committer.commit(position)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._committer is not None:
            self._committer.close(_CLOSE_SECONDS)
        if self._identity_check is not None:
            self._identity_check.close()
        for client in (self._consumer, self._admin_client):
            if client is not None:
                # Errors of a client that is discarded do not matter.
                with contextlib.suppress(Exception):
                    client.close()

    def _check_open(self) -> None:
        if self._closed:
            raise SourceClosedError("the source was closed", where=self._topic)

    def _check(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise copy.copy(self._failure) from self._failure

    @contextlib.contextmanager
    def _translated_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            translated = translate_error(error, doing=doing, where=self._topic, bootstrap=self._bootstrap)
            if translated is error:
                raise
            raise translated from error

    def _admin(self) -> Any:
        with self._admin_lock:
            if self._admin_client is None:
                self._admin_client = start_client(kafka.KafkaAdminClient, **admin_settings(self._settings))
            return self._admin_client

    def _refresh_partitions(self) -> None:
        """Request the partitions if the client's metadata differ from what is known."""
        latest = self._topic_metadata.latest
        if self._partitions and latest is not None:
            if latest == (self._topic_id, self._partitions) or latest is self._checked_metadata:
                return
            self._checked_metadata = latest  # may be older than the response below
        self._describe()

    def _describe(self) -> Mapping[str, Any]:
        with self._translated_errors("describing the topic"):
            (topic,) = self._admin().describe_topics([self._topic])
            error = ke.for_code(topic["error_code"])
            if error in {ke.UnknownTopicOrPartitionError, ke.InvalidTopicError}:
                names = [name for name in self._admin().list_topics() if not name.startswith("__")]
                near = difflib.get_close_matches(self._topic, names, n=3) or sorted(names)[:3]
                raise TopicNotFoundError(
                    "the topic does not exist",
                    where=f"{self._topic} on {self._bootstrap}",
                    hint=f"Did you mean {' or '.join(near)}?" if near else "There is no topic on this broker",
                )
            if error is not ke.NoError and not topic["partitions"]:
                raise error(self._topic)
            found = topic_id(topic.get("topic_id"))
            if self._topic_id and found and found != self._topic_id:
                raise TopicChangedError(
                    f"the topic was deleted and recreated while it was read (its id was {self._topic_id}, is {found})",
                    where=self._topic,
                    hint="Its offsets start again: start a new model under another name",
                )
            self._topic_id = found
            self._partitions = frozenset(int(p["partition_index"]) for p in topic["partitions"])
        return cast("Mapping[str, Any]", topic)

    def _bounds(self, which: str, partitions: Sequence[TopicPartition]) -> Position:
        if not partitions:
            return {}
        fetch = self._consumer.beginning_offsets if which == "beginning" else self._consumer.end_offsets
        deadline = time.monotonic() + self._timeout_ms / 1000
        with self._translated_errors(f"asking for the {which} offsets"):
            while True:
                try:
                    found = fetch([kafka.TopicPartition(*tp) for tp in partitions], timeout_ms=self._timeout_ms)
                    return {tp: int(found[kafka.TopicPartition(*tp)]) for tp in partitions}
                except KeyError:
                    # A partition newer than the consumer's metadata: kafka-python has requested newer ones, but
                    # returns without it.
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_METADATA_SECONDS)

    def _offset(self, tp: TopicPartition) -> int:
        if self.columnar:  # the public method checks every partition each time
            return int(self._consumer._subscription.assignment[kafka.TopicPartition(*tp)].position.offset)  # noqa: SLF001
        return int(self._consumer.position(kafka.TopicPartition(*tp), timeout_ms=self._timeout_ms))

    def _poll_error(self, error: Exception) -> StreamkmError:
        """Translate an error of `poll`, with the partition and the offset where they are known."""
        if isinstance(error, CorruptBatchError):
            return self._clip_lost(error)
        if isinstance(error, StreamkmError):
            return error
        where = self._topic
        # Only a private attribute of kafka-python has the partition; without it the error names the topic.
        part = getattr(getattr(self._consumer, "_fetcher", None), "_next_partition_records", None)
        if part:
            where = f"{self._topic}-{part.topic_partition.partition}@{part.next_fetch_offset}"
        if isinstance(error, ke.OffsetOutOfRangeError):
            return self._position_lost(error)
        if not isinstance(error, ke.KafkaError | OSError):
            # Errors of the compression libraries: nothing else raises other errors here.
            return CorruptBatchError(
                f"a record batch cannot be read ({type(error).__name__}: {error})",
                where=where,
                hint="Restore the partition from a replica, or continue from an offset behind the batch",
            )
        return translate_error(error, doing="reading", where=where, bootstrap=self._bootstrap)

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
        return translate_error(error, doing="reading", where=self._topic, bootstrap=self._bootstrap)

    def _send_commit(self, position: Position) -> None:
        offsets = {kafka.TopicPartition(*tp): OffsetAndMetadata(offset, "", -1) for tp, offset in position.items()}
        for tp, error in self._admin().alter_group_offsets(self._group_id, offsets).items():
            if error is not ke.NoError:
                raise error(f"{tp.topic}-{tp.partition}")


_EMPTY = columns(np.empty(0, np.uint8), np.empty((5, 0), np.int64))


def _from_batches(tp: TopicPartition, start: int, stop: int, parts: Sequence[RecordColumns]) -> ByteRecords:
    found = join(parts) if parts else _EMPTY
    data = found.data.view()
    data.flags.writeable = False
    return ByteRecords(
        tp,
        start,
        stop,
        data,
        found.begins,
        found.ends,
        found.offsets,
        found.timestamps,
        found.details,
        found.cut,
    )


def _from_consumer_records(tp: TopicPartition, start: int, stop: int, records: Sequence[Any]) -> ByteRecords:
    raw = [RawRecord(tp, r.offset, r.timestamp, r.key, r.value, tuple(map(tuple, r.headers))) for r in records]
    return byte_records(tp, start, stop, raw)
