"""The Kafka broker of a test run, and its topics.

The broker is selected by ``streamkm.testing.choose_broker``: one named by STREAMKM_TEST_BOOTSTRAP, else a container if
a Docker daemon has the image or can pull it, else the local Apache Kafka of streamkm.broker. It is shared by all tests
of a session: each creates its own topics. A test that kills or pauses its broker starts a LocalBroker itself.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from streamkm.broker import LocalBroker
from streamkm.broker.properties import DEFAULT_PROPERTIES, free_ports
from streamkm.errors import StreamkmError
from streamkm.testing import KAFKA_IMAGE, choose_broker
from waiting import PATIENCE

TopicFactory = Callable[..., str]
FOR_TESTS = {"log.retention.ms": "-1"}
"""Tests write records of long ago, which a broker would forget five minutes after its start."""


def local_broker(**options: Any) -> LocalBroker:
    """A short-lived broker: with the first JIT compiler only it uses a third less CPU.

    The start timeout allows for a busy machine.
    """
    return LocalBroker(jvm_options=["-XX:TieredStopAtLevel=1"], start_timeout=PATIENCE, **options)


@contextlib.contextmanager
def _container() -> Iterator[str]:
    """Apache's own image; KafkaContainer of testcontainers supports only Confluent's."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    (port,) = free_ports(1)  # a broker advertises its address, so the port must be known before the start
    settings = {
        "NODE_ID": "1",
        "PROCESS_ROLES": "broker,controller",
        "LISTENERS": "CLIENT://:9092,INTERNAL://:9094,CONTROLLER://:9093",
        # Inter-broker requests, such as ends of transactions, do not use the forwarded port.
        "ADVERTISED_LISTENERS": f"CLIENT://localhost:{port},INTERNAL://localhost:9094",
        "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "INTER_BROKER_LISTENER_NAME": "INTERNAL",
        "LISTENER_SECURITY_PROTOCOL_MAP": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        **{
            name.replace(".", "_").upper(): value
            for name, value in (DEFAULT_PROPERTIES | FOR_TESTS).items()
            if "listener" not in name
        },
    }
    container = DockerContainer(KAFKA_IMAGE).with_bind_ports(9092, port)
    for name, value in settings.items():
        container.with_env(f"KAFKA_{name}", value)
    with container.waiting_for(LogMessageWaitStrategy("Kafka Server started").with_startup_timeout(int(PATIENCE))):
        yield f"localhost:{port}"


@pytest.fixture(scope="session")
def bootstrap() -> Iterator[str]:
    """Address of the session's broker. Tests fail if none is available."""
    try:
        choice = choose_broker()
    except StreamkmError as error:
        pytest.fail(str(error), pytrace=False)
    if choice.kind == "named":
        yield choice.detail
    elif choice.kind == "docker":
        with _container() as address:
            yield address
    else:
        local = local_broker(properties=FOR_TESTS)
        try:
            local.start()
        except StreamkmError as error:
            pytest.fail(f"The local broker of the tests did not start. {error}", pytrace=False)
        with local:
            yield local.bootstrap


@pytest.fixture(scope="session")
def admin(bootstrap: str) -> Iterator[KafkaAdminClient]:
    """kafka-python's admin client for the session's broker."""
    client = KafkaAdminClient(bootstrap_servers=bootstrap)
    yield client
    client.close()


@pytest.fixture
def topic(admin: KafkaAdminClient) -> Iterator[TopicFactory]:
    """Factory of topics: ``topic(partitions=1, configs=None) -> name``. They are deleted after the test."""
    made: list[str] = []

    def make(partitions: int = 1, configs: Mapping[str, str] | None = None) -> str:
        name = f"test-{uuid.uuid4().hex[:12]}"
        spec = {"num_partitions": partitions, "replication_factor": 1, "configs": dict(configs or {})}
        admin.create_topics({name: spec}, wait_for_metadata=True)
        made.append(name)
        return name

    yield make
    # The test may have deleted a topic itself.
    with contextlib.suppress(KafkaError):
        if made:
            admin.delete_topics(made)
