"""The driver for kafka-python."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]
from kafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from streamkm.connectors.columns import byte_records
from streamkm.connectors.kafka.client import (
    admin_settings,
    classify,
    connection_settings,
    start_client,
    translate_error,
)
from streamkm.connectors.kafka.connection_check import check_connection
from streamkm.connectors.kafka.decompression import MAX_DECOMPRESSED_BYTES, MAX_VALUE_BYTES, DecompressionBuffer
from streamkm.connectors.kafka.driver import ErrorKind, FetchedColumns, TopicDescription
from streamkm.connectors.kafka.metadata import TopicMetadata, group_conflict, topic_id
from streamkm.connectors.kafka.record_batches import BatchRecords, RecordColumns, join
from streamkm.connectors.kafka.sockets import SUPPORTED_VERSIONS
from streamkm.records import Position, RawRecord, TopicPartition

log = logging.getLogger(__name__)

_CLIENT_DEFAULTS: dict[str, Any] = {
    "max_partition_fetch_bytes": 2 << 20,
    "fetch_max_bytes": 32 << 20,
    "reconnect_backoff_max_ms": 2000,  # default 30 s: reading would resume that long after the broker is back
    "metadata_max_age_ms": 5000,  # default 5 min: delay until a new partition is noticed
    "metrics_enabled": False,
}
_METADATA_SECONDS = 0.05
"""Wait for newer metadata, s."""


class KafkaPythonDriver:
    """A `KafkaDriver` for kafka-python.

    Parameters
    ----------
    bootstrap
        ``host:port``, several separated by commas.
    public_api_only
        Use the public API of kafka-python only: slower by an order of magnitude, with the same result. Otherwise record
        batches are read as columns, if the version of kafka-python is known to allow it.
    request_timeout
        Time after which a broker that does not respond counts as unreachable, s.
    client
        More client properties by their Kafka names (``security.protocol``, ``sasl.mechanism``, ...).
    max_decompressed_bytes
        Maximum number of bytes that one fetch decompresses; the rest follows in the next one. Not used with
        `public_api_only`.
    max_value_bytes
        Maximum size of a value, bytes: a longer one in a compressed batch may be truncated.
    should_stop
        Called while waiting for the first broker; True ends the wait.
    where
        What is read, for errors.

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

    client = "kafka-python"

    def __init__(
        self,
        bootstrap: str,
        *,
        public_api_only: bool = False,
        request_timeout: float = 30.0,
        client: Mapping[str, object] | None = None,
        max_decompressed_bytes: int = MAX_DECOMPRESSED_BYTES,
        max_value_bytes: int = MAX_VALUE_BYTES,
        should_stop: Callable[[], bool] = lambda: False,
        where: str = "",
    ) -> None:
        self.bootstrap = bootstrap
        self._timeout_ms = int(request_timeout * 1000)
        self._settings = _CLIENT_DEFAULTS | connection_settings(bootstrap, client, request_timeout)
        wait = int(self._settings.get("fetch_max_wait_ms", 500))
        self._settings["fetch_max_wait_ms"] = min(wait, self._timeout_ms // 2)
        self.metadata_seconds = int(self._settings["metadata_max_age_ms"]) / 1000
        self._decompression = DecompressionBuffer(max_decompressed_bytes, max_value_bytes)
        self._assigned: dict[TopicPartition, Any] = {}
        self._admin_client: Any = None
        self._admin_lock = threading.Lock()
        self.columnar = not public_api_only and kafka.__version__ in SUPPORTED_VERSIONS
        try:
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
        except Exception as error:
            translated = translate_error(error, doing="connecting", where=where, bootstrap=bootstrap)
            if translated is error:
                raise
            raise translated from error
        if self.columnar:
            read = functools.partial(BatchRecords, buffer=self._decompression)
            self._consumer._fetcher.PartitionRecords = read  # noqa: SLF001  # see record_batches
        elif not public_api_only:
            log.warning(
                "kafka-python %s is not one of %s: records are read one by one, which is slower",
                kafka.__version__,
                ", ".join(sorted(SUPPORTED_VERSIONS)),
            )

    def cluster_id(self) -> str:
        return str(self._admin().describe_cluster().get("cluster_id") or "")

    def describe_topic(self, topic: str) -> TopicDescription | None:
        (found,) = self._admin().describe_topics([topic])
        error = ke.for_code(found["error_code"])
        if error in {ke.UnknownTopicOrPartitionError, ke.InvalidTopicError}:
            return None
        if error is not ke.NoError and not found["partitions"]:
            raise error(topic)
        partitions = frozenset(int(p["partition_index"]) for p in found["partitions"])
        return TopicDescription(topic_id(found.get("topic_id")), partitions)

    def topics(self) -> Sequence[str]:
        return [name for name in self._admin().list_topics() if not name.startswith("__")]

    def watch(self, topic: str) -> TopicMetadata:
        return TopicMetadata(self._consumer._cluster, topic)  # noqa: SLF001  # the version is pinned

    def bounds(self, which: Literal["beginning", "end"], partitions: Collection[TopicPartition]) -> Position:
        fetch = self._consumer.beginning_offsets if which == "beginning" else self._consumer.end_offsets
        deadline = time.monotonic() + self._timeout_ms / 1000
        while True:
            try:
                found = fetch([kafka.TopicPartition(*tp) for tp in partitions], timeout_ms=self._timeout_ms)
                return {tp: int(found[kafka.TopicPartition(*tp)]) for tp in partitions}
            except KeyError:
                # A partition newer than the consumer's metadata: kafka-python has requested newer ones, but returns
                # without it.
                if time.monotonic() > deadline:
                    raise
                time.sleep(_METADATA_SECONDS)

    def offsets_at(self, seconds: float, partitions: Collection[TopicPartition]) -> Position:
        milliseconds = max(0, math.ceil(seconds * 1000))
        timestamps = {kafka.TopicPartition(*tp): milliseconds for tp in partitions}
        found = self._consumer.offsets_for_times(timestamps, timeout_ms=self._timeout_ms)
        at = {tp: found.get(kafka.TopicPartition(*tp)) for tp in partitions}
        return {tp: int(o.offset) for tp, o in at.items() if o is not None and o.offset >= 0}

    def assign(self, position: Position) -> None:
        self._assigned = {tp: kafka.TopicPartition(*tp) for tp in position}
        self._consumer.assign(list(self._assigned.values()))
        for tp, assigned in self._assigned.items():
            self._consumer.seek(assigned, position[tp])

    def fetch(self, timeout: float, max_records: int) -> Mapping[TopicPartition, FetchedColumns]:
        self._decompression.reset()
        got = self._consumer.poll(timeout_ms=max(0, int(timeout * 1000)), max_records=max_records)
        make = _from_batches if self.columnar else _from_consumer_records
        return {TopicPartition(*tp): make(records) for tp, records in got.items() if records}

    def position(self) -> Position:
        if self.columnar:  # the public method checks every partition each time
            states = self._consumer._subscription.assignment  # noqa: SLF001
            return {tp: int(states[assigned].position.offset) for tp, assigned in self._assigned.items()}
        return {
            tp: int(self._consumer.position(assigned, timeout_ms=self._timeout_ms))
            for tp, assigned in self._assigned.items()
        }

    def failed_at(self) -> tuple[TopicPartition, int] | None:
        # Only a private attribute of kafka-python has it.
        part = getattr(getattr(self._consumer, "_fetcher", None), "_next_partition_records", None)
        return (TopicPartition(*part.topic_partition), int(part.next_fetch_offset)) if part else None

    def commit_group(self, group: str, position: Position) -> None:
        offsets = {kafka.TopicPartition(*tp): OffsetAndMetadata(offset, "", -1) for tp, offset in position.items()}
        for tp, error in self._admin().alter_group_offsets(group, offsets).items():
            if error is not ke.NoError:
                raise error(f"{tp.topic}-{tp.partition}")

    def group_conflict(self, group: str) -> str:
        return group_conflict(self._admin(), group)

    def classify(self, error: Exception) -> ErrorKind:
        return classify(error)

    def close(self) -> None:
        for client in (self._consumer, self._admin_client):
            if client is not None:
                # Errors of a client that is discarded do not matter.
                with contextlib.suppress(Exception):
                    client.close()

    def _admin(self) -> Any:
        with self._admin_lock:
            if self._admin_client is None:
                self._admin_client = start_client(kafka.KafkaAdminClient, **admin_settings(self._settings))
            return self._admin_client


def _from_batches(parts: Sequence[RecordColumns]) -> FetchedColumns:
    found = join(list(parts))
    data = found.data.view()
    data.flags.writeable = False
    return FetchedColumns(data, found.begins, found.ends, found.offsets, found.timestamps, found.details, found.cut)


def _from_consumer_records(records: Sequence[Any]) -> FetchedColumns:
    tp = TopicPartition(records[0].topic, records[0].partition)
    raw = [RawRecord(tp, r.offset, r.timestamp, r.key, r.value, tuple(map(tuple, r.headers))) for r in records]
    found = byte_records(tp, raw[0].offset, raw[-1].offset + 1, raw)
    return FetchedColumns(
        found.data, found.begins, found.ends, found.offsets, found.timestamps, found.details, found.full_sizes
    )
