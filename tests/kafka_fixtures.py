"""The Kafka of a test run, and topics on it.

The broker is the first there is (``streamkm.broker.choose_broker``): one named by STREAMKM_TEST_BOOTSTRAP, else a
container when a Docker daemon answers, else the local Apache Kafka of streamkm.broker. It lives as long as the session,
and tests share it: each takes topics of its own. A test that kills or pauses its broker starts a LocalBroker itself.
"""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Mapping

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from streamkm.broker import LocalBroker, choose_broker
from streamkm.errors import StreamkmError

TopicFactory = Callable[..., str]


@contextlib.contextmanager
def _container() -> Iterator[str]:
    from testcontainers.community.kafka import KafkaContainer

    # One broker: without these two a transaction waits for ever for three replicas of its log.
    container = (
        KafkaContainer()
        .with_kraft()
        .with_env("KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR", "1")
        .with_env("KAFKA_TRANSACTION_STATE_LOG_MIN_ISR", "1")
    )
    with container:
        yield container.get_bootstrap_server()


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
        # Tests write records of long ago, which the broker would forget five minutes after its start.
        local = LocalBroker(properties={"log.retention.ms": "-1"})
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
