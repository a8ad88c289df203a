"""Records and positions onto a cluster in one transaction, through kafka-python."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]
from kafka.structs import OffsetAndMetadata  # type: ignore[import-untyped]

from streamkm.connectors.kafka.client import admin_settings, client_settings, start_client, translate_error
from streamkm.connectors.kafka.connection_check import check_connection
from streamkm.connectors.kafka.metadata import create_topic, group_conflict
from streamkm.connectors.kafka.security import resolve_security
from streamkm.connectors.kafka.sockets import SUPPORTED_VERSIONS
from streamkm.errors import BrokerUnreachableError, SourceError, WriterFencedError
from streamkm.records import CommittedOffset, ProducerRecord, TopicPartition

_CLOSE_SECONDS = 2.0
_FENCED = (ke.ProducerFencedError, ke.InvalidProducerEpochError)
_PRODUCER_STATE_LOST = (ke.UnknownProducerIdError, ke.InvalidProducerIdMappingError, ke.OutOfOrderSequenceNumberError)
"""The cluster lost what it knew of the writer, as after days without a record: a new one goes on."""


class KafkaTransactionalWriter:
    """Writes records, and the position of a group in what they were made of, all or nothing.

    Two with one name cannot both write: making the second ends an open transaction of the first and shuts it out. After
    an error nothing is written until `close` and a new one. Not safe to use from several threads at once.

    Parameters
    ----------
    bootstrap
        ``host:port``, several separated by commas.
    name
        Of the writer (``transactional.id``) and of its group.
    client
        More properties of the client by their Kafka names, as for a `KafkaSource`.
    timeout
        Seconds that the cluster may take for one step of a transaction.

    should_stop
        Asked while a first broker is waited for: whether it is time to give up.

    Raises
    ------
    BrokerUnreachableError
        No broker answers at `bootstrap`, or none makes the writer in time.
    SettingsError
        A property in `client` is unknown or wrong.
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
        self._settings = {
            **resolve_security(client_settings(client or {})),
            "bootstrap_servers": bootstrap.split(","),
            "bootstrap_timeout_ms": milliseconds,
            "request_timeout_ms": milliseconds,
            "metrics_enabled": False,
        }
        known = kafka.KafkaProducer.DEFAULT_CONFIG
        self._producer: Any = None
        with self._translated_errors("connecting"):
            check_connection(self._settings, should_stop)
            self._producer = start_client(
                kafka.KafkaProducer,
                **{key: value for key, value in self._settings.items() if key in known},
                transactional_id=name,
                acks="all",
                # Far more than a step takes, and short enough that what a dead writer left open soon holds up nobody.
                transaction_timeout_ms=2 * milliseconds,
                delivery_timeout_ms=milliseconds + 1000,
                max_block_ms=milliseconds,
                max_request_size=100 << 20,  # what a record may weigh, the topic decides
                batch_size=1 << 18,
                linger_ms=20,
            )
            # One that is shut out in the middle of a transaction would ask for a new epoch and so, if it got one, shut
            # its successor out; stopped and woken again, 3.0.12 was seen to hang in doing so. Without that kafka-python
            # takes it for the end, as it is.
            self._producer._transaction_manager._supports_epoch_bump = lambda: False  # noqa: SLF001
            try:
                self._with_timeout("becoming the writer", self._producer.init_transactions)
            except Exception:
                self.close()
                raise

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        create_topic(self._settings, topic, partitions)

    def is_empty(self, topic: str) -> bool:
        """Whether nothing was ever written to a topic that is there."""
        with self._translated_errors("asking for the end", topic):
            consumer = start_client(kafka.KafkaConsumer, **self._settings, group_id=None)
            try:
                tps = [kafka.TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
                return not any(consumer.end_offsets(tps, timeout_ms=int(self._timeout * 1000)).values())
            finally:
                with contextlib.suppress(Exception):
                    consumer.close(autocommit=False)

    def group_conflict(self) -> str:
        """Who else uses the group, as a sentence; empty if nobody does."""
        with (
            self._translated_errors("looking at the group"),
            contextlib.closing(start_client(kafka.KafkaAdminClient, **admin_settings(self._settings))) as admin,
        ):
            return group_conflict(admin, self._name)

    def committed(self, partitions: Iterable[TopicPartition]) -> Mapping[TopicPartition, CommittedOffset]:
        """The group's position, without the partitions that it has none for. Ends of transactions are waited for."""
        ours = [kafka.TopicPartition(*tp) for tp in partitions]
        milliseconds = int(self._timeout * 1000)
        with self._translated_errors("asking for the group's position"):
            # An admin client does not wait for transactions that are about to end; a read-committed consumer does.
            consumer = start_client(
                kafka.KafkaConsumer,
                **self._settings,
                group_id=self._name,
                enable_auto_commit=False,
                isolation_level="read_committed",
            )
            try:
                if kafka.__version__ in SUPPORTED_VERSIONS:  # one question for all of them
                    found = consumer._coordinator.fetch_committed_offsets(ours, timeout_ms=milliseconds)  # noqa: SLF001
                else:
                    found = {tp: consumer.committed(tp, metadata=True, timeout_ms=milliseconds) for tp in ours}
            finally:
                with contextlib.suppress(Exception):
                    consumer.close(autocommit=False)
        return {
            TopicPartition(tp.topic, tp.partition): CommittedOffset(int(at.offset), str(at.metadata or ""))
            for tp, at in found.items()
            if at is not None and at.offset >= 0
        }

    def write(self, records: Sequence[ProducerRecord], position: Mapping[TopicPartition, CommittedOffset]) -> None:
        """Write records and the group's position in one transaction.

        Parameters
        ----------
        records
            A partition that the topic does not have is taken modulo the number of those it has.
        position
            What becomes the group's position.

        Raises
        ------
        WriterFencedError
            Another writer of this name is at work.
        SourceError
            The cluster does not take it. Nothing of it is visible to those that read committed records only, unless
            `BrokerUnreachableError` says that nobody knows: then the group's position tells.
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
                self._with_timeout(
                    "sending positions", lambda: producer.send_offsets_to_transaction(offsets, self._name)
                )
                self._with_timeout("committing", producer.commit_transaction)
        except BrokerUnreachableError:
            raise  # nobody would answer; the next writer of this name aborts it
        except SourceError:
            with contextlib.suppress(Exception):
                self._with_timeout("aborting", producer.abort_transaction)
            raise

    def close(self) -> None:
        """Give back the connections."""
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
        """Make a call that kafka-python lets wait for ever; after the time we do not wait with it."""
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
            # Later calls say that something was wrong before; what it was, the producer keeps.
            manager = getattr(self._producer, "_transaction_manager", None)
            cause = getattr(manager, "last_error", None) or error
            if isinstance(error, _FENCED) or isinstance(cause, _FENCED):
                raise WriterFencedError(
                    "another process has taken over, with the same model and the same target "
                    f"(or this one stood still for more than {2 * self._timeout:g} s)",
                    where=self._name,
                    hint="One at a time writes. Leave this one stopped, or stop the other one first",
                ) from error
            if isinstance(cause, _PRODUCER_STATE_LOST):
                raise BrokerUnreachableError(
                    f"the cluster has forgotten this writer ({type(cause).__name__})", where=self._name
                ) from error
            told = cause if isinstance(cause, Exception) else error
            translated = translate_error(told, doing=doing, where=where or self._name, bootstrap=self._bootstrap)
            if translated is error:
                raise
            raise translated from error
