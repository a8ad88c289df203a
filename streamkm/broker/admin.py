"""Requests to a local broker over Kafka's protocol."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping

from streamkm.broker.properties import NODE_ID
from streamkm.errors import LocalBrokerError


def is_ready(host: str, port: int, timeout: float) -> bool:
    """Whether a broker is ready: it lists itself in the metadata. Before that, partitions have no leaders.

    Parameters
    ----------
    host, port
        A plaintext listener.
    timeout
        Maximum duration, s.
    """
    # A plain connection first: kafka-python would log every refused one as an error.
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=min(1.0, timeout)):
        from kafka import KafkaAdminClient  # type: ignore[import-untyped] # noqa: PLC0415 - slow to import
        from kafka.errors import KafkaError  # type: ignore[import-untyped] # noqa: PLC0415

        left_ms = max(1, int(1000 * timeout))
        with contextlib.suppress(KafkaError):
            admin = KafkaAdminClient(
                bootstrap_servers=f"{host}:{port}", bootstrap_timeout_ms=left_ms, request_timeout_ms=left_ms
            )
            try:
                return any(broker["broker_id"] == NODE_ID for broker in admin.describe_cluster()["brokers"])
            finally:
                admin.close()
    return False


def create_topic(address: str, name: str, partitions: int, configs: Mapping[str, str]) -> bool:
    """See :meth:`streamkm.broker.LocalBroker.create_topic`.

    Raises
    ------
    LocalBrokerError
        The broker refused the topic.
    """
    from kafka import KafkaAdminClient  # noqa: PLC0415 - slow to import
    from kafka.errors import KafkaError, TopicAlreadyExistsError  # noqa: PLC0415

    admin = KafkaAdminClient(bootstrap_servers=address)
    spec = {"num_partitions": partitions, "replication_factor": 1, "configs": dict(configs)}
    try:
        admin.create_topics({name: spec}, wait_for_metadata=True)
    except TopicAlreadyExistsError:
        return False
    except KafkaError as error:
        raise LocalBrokerError(f"The topic cannot be created ({error})", where=name) from error
    finally:
        admin.close()
    return True
