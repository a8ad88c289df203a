"""The Kafka of a test run, and topics on it.

The broker is the first there is (``streamkm.broker.choose_broker``): one named by STREAMKM_TEST_BOOTSTRAP, else a
container when a Docker daemon has the image or can pull it, else the local Apache Kafka of streamkm.broker. It lives as
long as the session, and tests share it: each takes topics of its own. A test that kills or pauses its broker starts a
LocalBroker itself.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from streamkm.broker import KAFKA_IMAGE, LocalBroker, choose_broker
from streamkm.broker.properties import SMALL, free_ports
from streamkm.errors import StreamkmError
from waiting import PATIENCE

TopicFactory = Callable[..., str]
FOR_TESTS = {"log.retention.ms": "-1"}
"""Tests write records of long ago, which a broker would forget five minutes after its start."""


def local_broker(**options: Any) -> LocalBroker:
    """A broker that lives for too short a time to be compiled well: with the first compiler alone it takes two thirds.

    And it is waited for on a busy machine too.
    """
    return LocalBroker(jvm_options=["-XX:TieredStopAtLevel=1"], start_timeout=PATIENCE, **options)


@contextlib.contextmanager
def _container() -> Iterator[str]:
    """Apache's own image; testcontainers' KafkaContainer knows Confluent's only."""
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    (port,) = free_ports(1)  # a broker tells clients where it is, so this has to be known before it starts
    settings = {
        "NODE_ID": "1",
        "PROCESS_ROLES": "broker,controller",
        "LISTENERS": "CLIENT://:9092,INTERNAL://:9094,CONTROLLER://:9093",
        # Its talk with itself, such as the ends of transactions, does not go round by our port.
        "ADVERTISED_LISTENERS": f"CLIENT://localhost:{port},INTERNAL://localhost:9094",
        "CONTROLLER_QUORUM_VOTERS": "1@localhost:9093",
        "CONTROLLER_LISTENER_NAMES": "CONTROLLER",
        "INTER_BROKER_LISTENER_NAME": "INTERNAL",
        "LISTENER_SECURITY_PROTOCOL_MAP": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        **{
            name.replace(".", "_").upper(): value
            for name, value in (SMALL | FOR_TESTS).items()
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
    """Address of a Kafka that is shared by the session. There is no run without: it fails where none can be had."""
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
    """Return kafka-python's admin client for the session's broker."""
    client = KafkaAdminClient(bootstrap_servers=bootstrap)
    yield client
    client.close()


@pytest.fixture
def topic(admin: KafkaAdminClient) -> Iterator[TopicFactory]:
    """Make topics: ``topic(partitions=1, configs=None) -> name``. They are deleted after the test."""
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
