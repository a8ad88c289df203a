"""Writes records to topics through kafka-python."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]

from streamkm.connectors.kafka.client import connection_settings, translate_error
from streamkm.connectors.kafka.connection_check import check_connection
from streamkm.connectors.kafka.metadata import create_topic
from streamkm.records import DeliveryError, ProducerRecord

NULL_HEADERS = "__streamkm.null.headers"
"""Header with the names of headers whose null value was replaced by an empty one: kafka-python cannot write null."""

_PERMANENT = (ke.MessageSizeTooLargeError, ke.InvalidTimestampError, ke.InvalidRecordError, TypeError, ValueError)
_CLOSE_SECONDS = 2.0


class KafkaWriter:
    """Writes records to topics, and waits for the acknowledgement of all in-sync replicas.

    Used by one thread.

    Parameters
    ----------
    bootstrap
        ``host:port``, several separated by commas.
    client
        More client properties by their Kafka names, as for `KafkaSource.connect`.
    timeout
        Time after which a record without acknowledgement counts as failed, s.
    should_stop
        Called while waiting for the first broker; True ends the wait.

    Raises
    ------
    BrokerUnreachableError
        No broker at `bootstrap` responds.
    SettingsError
        A property in `client` is unknown or not valid.
    """

    def __init__(
        self,
        bootstrap: str,
        *,
        client: Mapping[str, object] | None = None,
        timeout: float = 10.0,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._bootstrap, self._timeout = bootstrap, timeout
        milliseconds = int(timeout * 1000)
        self._settings = connection_settings(bootstrap, client, timeout)
        known = kafka.KafkaProducer.DEFAULT_CONFIG
        try:
            check_connection(self._settings, should_stop)
            self._producer = kafka.KafkaProducer(
                **{name: value for name, value in self._settings.items() if name in known},
                acks="all",
                # An idempotent producer fails permanently at a record that is too large, with all records in flight.
                # Duplicates are allowed here, and one request at a time keeps the order.
                enable_idempotence=False,
                max_in_flight_requests_per_connection=1,
                delivery_timeout_ms=milliseconds + 1000,
                max_block_ms=milliseconds,
                max_request_size=100 << 20,  # the topic limits the size of a record
                linger_ms=5,
                metrics_enabled=False,
            )
        except Exception as error:
            raise translate_error(error, doing="connecting", where="producer", bootstrap=bootstrap) from error

    def partitions(self, topic: str) -> int:
        """Number of partitions of an existing topic."""
        try:
            return len(self._producer.partitions_for(topic))
        except Exception as error:
            raise translate_error(
                error, doing="asking for partitions", where=topic, bootstrap=self._bootstrap
            ) from error

    def create_topic(self, topic: str, partitions: int = 1) -> None:
        create_topic(self._settings, topic, partitions)

    def write(self, records: Sequence[ProducerRecord]) -> list[DeliveryError | None]:
        """Write records and wait for the acknowledgements; for each record None, or the reason of its failure."""
        sent = [self._send(record) for record in records]
        deadline = time.monotonic() + self._timeout + 2.0
        answers: list[DeliveryError | None] = []
        for future in sent:
            if isinstance(future, DeliveryError):
                answers.append(future)
                continue
            try:
                future.get(timeout=max(0.0, deadline - time.monotonic()))
                answers.append(None)
            except Exception as error:  # noqa: BLE001  # returned to the caller
                answers.append(_delivery_error(error))
        return answers

    def _send(self, record: ProducerRecord) -> Any:
        headers = [(_valid_utf8(name), value or b"") for name, value in record.headers]
        null = [_valid_utf8(name) for name, value in record.headers if value is None]
        if null:
            headers.append((NULL_HEADERS, ",".join(null).encode()))
        # kafka-python rejects records with neither key nor value.
        value = b"" if record.key is None and record.value is None else record.value
        at = None if record.timestamp < 0 else record.timestamp
        try:
            return self._producer.send(record.topic, value, record.key, headers, record.partition, at)
        except Exception as error:  # noqa: BLE001  # as above
            return _delivery_error(error)

    def close(self) -> None:
        """Close the connections without waiting for acknowledgements."""
        with contextlib.suppress(Exception):
            self._producer.close(_CLOSE_SECONDS)


def _delivery_error(error: Exception) -> DeliveryError:
    too_large = isinstance(error, ke.MessageSizeTooLargeError)
    return DeliveryError(f"{type(error).__name__}: {error}", isinstance(error, _PERMANENT), too_large)


def _valid_utf8(name: str) -> str:
    return name.encode("utf-8", "replace").decode()
