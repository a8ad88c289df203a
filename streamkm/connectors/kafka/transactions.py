"""Writes records and commits offsets in one Kafka transaction, through kafka-python."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]
from kafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from streamkm.connectors.kafka.client import admin_settings, connection_settings, start_client, translate_error
from streamkm.connectors.kafka.connection_check import check_connection
from streamkm.connectors.kafka.metadata import create_topic, group_conflict
from streamkm.connectors.kafka.sockets import SUPPORTED_VERSIONS
from streamkm.errors import BrokerUnreachableError, SourceError, WriterFencedError
from streamkm.records import CommittedOffset, ProducerRecord, TopicPartition

_CLOSE_SECONDS = 2.0
_FENCED = (ke.ProducerFencedError, ke.InvalidProducerEpochError)
_PRODUCER_STATE_LOST = (ke.UnknownProducerIdError, ke.InvalidProducerIdMappingError, ke.OutOfOrderSequenceNumberError)
"""The cluster has deleted the producer's state, as after days without a record; a new producer continues."""


class KafkaTransactionalWriter:
    """Writes records and commits offsets to a group, all or nothing.

    Two writers with the same name exclude each other: opening the second aborts an open transaction of the first, and
    fences it. After an error the writer cannot be used any more: close it and open a new one. Used by one thread.

    Parameters
    ----------
    bootstrap
        ``host:port``, several separated by commas.
    name
        Name of the writer (``transactional.id``) and of its group.
    client
        More client properties by their Kafka names, as for `KafkaSource.connect`.
    timeout
        Maximum duration of one step of a transaction, s.
    should_stop
        Called while waiting for the first broker; True ends the wait.

    Raises
    ------
    BrokerUnreachableError
        No broker at `bootstrap` responds, or none initializes the producer in time.
    SettingsError
        A property in `client` is unknown or not valid.
    """

    def __init__(
        self,
        bootstrap: str,
        name: str,
        *,
        client: Mapping[str, object] | None = None,
        timeout: float = 30.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._bootstrap, self._name, self._timeout = bootstrap, name, timeout
        self._partitions: dict[str, int] = {}
        milliseconds = int(timeout * 1000)
        self._settings = connection_settings(bootstrap, client, timeout) | {"metrics_enabled": False}
        known = kafka.KafkaProducer.DEFAULT_CONFIG
        self._producer: Any = None
        with self._translated_errors("connecting"):
            check_connection(self._settings, should_stop)
            self._producer = start_client(
                kafka.KafkaProducer,
                **{key: value for key, value in self._settings.items() if key in known},
                transactional_id=name,
                acks="all",
                # Longer than any step, and short enough that a dead writer's transaction soon stops blocking readers.
                transaction_timeout_ms=2 * milliseconds,
                delivery_timeout_ms=milliseconds + 1000,
                max_block_ms=milliseconds,
                max_request_size=100 << 20,  # the topic limits the size of a record
                batch_size=1 << 18,
                linger_ms=20,
            )
            # A producer fenced in the middle of a transaction would request a new epoch and, if it got one, fence its
            # successor; 3.0.12 was seen to hang while doing so after SIGSTOP and SIGCONT. Without epoch bumps
            # kafka-python treats fencing as final, which it is.
            self._producer._transaction_manager._supports_epoch_bump = lambda: False  # noqa: SLF001
            try:
                self._with_timeout("initializing the producer", self._producer.init_transactions)
            except Exception:
                self.close()
                raise

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        create_topic(self._settings, topic, partitions)

    def is_empty(self, topic: str) -> bool:
        """Whether an existing topic has never had a record."""
        with self._translated_errors("asking for the end", topic):
            consumer = start_client(kafka.KafkaConsumer, **self._settings, group_id=None)
            try:
                tps = [kafka.TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
                return not any(consumer.end_offsets(tps, timeout_ms=int(self._timeout * 1000)).values())
            finally:
                with contextlib.suppress(Exception):
                    consumer.close(autocommit=False)

    def group_conflict(self) -> str:
        """Describe other users of the group; empty if there are none."""
        with (
            self._translated_errors("looking at the group"),
            contextlib.closing(start_client(kafka.KafkaAdminClient, **admin_settings(self._settings))) as admin,
        ):
            return group_conflict(admin, self._name)

    def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, CommittedOffset]:
        """The group's committed position, without partitions that have none. Waits for transactions that are ending."""
        kafka_partitions = [kafka.TopicPartition(*tp) for tp in partitions]
        milliseconds = int(self._timeout * 1000)
        with self._translated_errors("asking for the group's position"):
            # An admin client does not wait for transactions that are ending; a read-committed consumer does.
            consumer = start_client(
                kafka.KafkaConsumer,
                **self._settings,
                group_id=self._name,
                enable_auto_commit=False,
                isolation_level="read_committed",
            )
            try:
                if kafka.__version__ in SUPPORTED_VERSIONS:  # one request for all partitions
                    found = consumer._coordinator.fetch_committed_offsets(kafka_partitions, timeout_ms=milliseconds)  # noqa: SLF001
                else:
                    found = {
                        tp: consumer.committed(tp, metadata=True, timeout_ms=milliseconds) for tp in kafka_partitions
                    }
            finally:
                with contextlib.suppress(Exception):
                    consumer.close(autocommit=False)
        return {
            TopicPartition(tp.topic, tp.partition): CommittedOffset(int(at.offset), str(at.metadata or ""))
            for tp, at in found.items()
            if at is not None and at.offset >= 0
        }

    def write(self, records: Sequence[ProducerRecord], position: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Write records and commit the group's position in one transaction.

        Parameters
        ----------
        records
            Partition numbers are taken modulo the number of partitions of the topic.
        position
            New position of the group.

        Raises
        ------
        WriterFencedError
            Another writer with this name has taken over.
        BrokerUnreachableError
            The outcome is unknown; the group's position tells.
        SourceError
            The cluster rejected the transaction. Read-committed consumers see nothing of it.
        """
        producer = self._producer
        try:
            with self._translated_errors("writing"):
                producer.begin_transaction()
                sent = [
                    producer.send(
                        r.topic,
                        r.value,
                        r.key,
                        [(name, value or b"") for name, value in r.headers],
                        None if r.partition is None else r.partition % self._partition_count(r.topic),
                        None if r.timestamp < 0 else r.timestamp,
                    )
                    for r in records
                ]
                producer.flush(self._timeout)
                for future in sent:
                    if not future.succeeded():
                        raise future.exception or ke.KafkaTimeoutError("a record was not acknowledged")
                offsets = {
                    kafka.TopicPartition(*tp): OffsetAndMetadata(at.offset, at.metadata, -1)
                    for tp, at in position.items()
                }
                self._with_timeout("sending offsets", lambda: producer.send_offsets_to_transaction(offsets, self._name))
                self._with_timeout("committing", producer.commit_transaction)
        except BrokerUnreachableError:
            raise  # aborting would fail too; the next writer with this name aborts the transaction
        except SourceError:
            with contextlib.suppress(Exception):
                self._with_timeout("aborting", producer.abort_transaction)
            raise

    def close(self) -> None:
        """Close the connections."""
        if self._producer is not None:
            with contextlib.suppress(Exception):
                self._producer.close(_CLOSE_SECONDS)

    def _partition_count(self, topic: str) -> int:
        if topic not in self._partitions:
            found = self._producer.partitions_for(topic)
            if not found:
                raise ke.UnknownTopicOrPartitionError(topic)
            self._partitions[topic] = len(found)
        return self._partitions[topic]

    def _with_timeout(self, doing: str, call: Callable[[], object]) -> None:
        """Run a call of kafka-python that has no timeout of its own; the call is abandoned after the timeout."""
        raised: list[Exception] = []
        done = threading.Event()

        def work() -> None:
            try:
                call()
            except Exception as error:  # noqa: BLE001  # raised again below
                raised.append(error)
            finally:
                done.set()

        threading.Thread(target=work, name=f"streamkm-{doing.replace(' ', '-')}", daemon=True).start()
        if not done.wait(self._timeout):
            raise BrokerUnreachableError(
                f"no broker at {self._bootstrap} answered within {self._timeout:g} s while {doing}", where=self._name
            )
        if raised:
            raise raised[0]

    @contextlib.contextmanager
    def _translated_errors(self, doing: str, where: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:
            # Later calls only report an earlier failure; the producer keeps its cause.
            manager = getattr(self._producer, "_transaction_manager", None)
            cause = getattr(manager, "last_error", None) or error
            if isinstance(error, _FENCED) or isinstance(cause, _FENCED):
                raise WriterFencedError(
                    "another process has taken over, with the same model and target "
                    f"(or this one was paused for more than {2 * self._timeout:g} s)",
                    where=self._name,
                    hint="Only one process can write. Stop the other one before this one is started again",
                ) from error
            if isinstance(cause, _PRODUCER_STATE_LOST):
                raise BrokerUnreachableError(
                    f"the cluster has deleted the state of this writer ({type(cause).__name__})", where=self._name
                ) from error
            reported = cause if isinstance(cause, Exception) else error
            translated = translate_error(reported, doing=doing, where=where or self._name, bootstrap=self._bootstrap)
            if translated is error:
                raise
            raise translated from error
