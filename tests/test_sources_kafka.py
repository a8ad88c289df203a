"""Adapter to kafka-python: translation of errors and settings."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import kafka
import kafka.errors as ke
import pytest
from kafka.net.inet import KafkaNetSocket
from kafka.net.selector import NetworkSelector

from kafka_traffic import produce
from source_checks import drain
from streamkm.connectors import KafkaSource
from streamkm.connectors.kafka.background import OffsetCommitter
from streamkm.connectors.kafka.client import (
    ERROR_KINDS,
    admin_settings,
    classify,
    client_settings,
    translate_error,
)
from streamkm.connectors.kafka.driver import ErrorKind
from streamkm.connectors.kafka.sockets import read_available
from streamkm.errors import BrokerUnreachableError, PositionLostError, SettingsError, SourceError, StreamkmError
from waiting import PATIENCE, wait_until

KAFKA_ERRORS = sorted(
    {e for e in vars(ke).values() if isinstance(e, type) and issubclass(e, ke.KafkaError) and e is not ke.KafkaError},
    key=lambda e: e.__name__,
)


def raised(kind: type[Exception]) -> Exception:
    """An instance of an error class of kafka-python; some need arguments."""
    try:
        return kind("said")
    except TypeError:
        return kind({}, {})


@pytest.mark.parametrize("kind", KAFKA_ERRORS, ids=lambda e: e.__name__)
def test_every_error_of_kafka_python_has_a_meaning_and_a_sentence(kind):
    assert any(base in ERROR_KINDS for base in kind.__mro__)
    error = translate_error(raised(kind), doing="reading", where="t-0@5", bootstrap="host:1")
    assert isinstance(error, SourceError | SettingsError)
    assert error.where == "t-0@5"
    assert error.message


def test_there_are_errors_to_translate_and_no_meaning_covers_all():
    assert len(KAFKA_ERRORS) > 100
    assert {classify(raised(kind)) for kind in KAFKA_ERRORS} == set(ErrorKind) - {ErrorKind.FOREIGN}
    assert ke.KafkaError not in ERROR_KINDS
    assert classify(ke.KafkaError("x")) is ErrorKind.FAILED
    assert classify(ValueError("x")) is ErrorKind.FOREIGN
    assert classify(ConnectionResetError()) is ErrorKind.UNREACHABLE


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ke.OffsetOutOfRangeError("x"), PositionLostError, "no longer in the topic"),
        (ke.TopicAuthorizationFailedError({"t"}), SourceError, "denies access while reading.*credentials"),
        (ke.SaslAuthenticationFailedError("no"), SourceError, "denies access"),
        (ke.KafkaTimeoutError("slow"), BrokerUnreachableError, "host:1.*advertise"),
        (ke.KafkaConfigurationError("what"), SettingsError, "what"),
        (ConnectionRefusedError(111, "Connection refused"), BrokerUnreachableError, "Connection refused"),
        (RuntimeError("loop"), SourceError, "RuntimeError: loop"),
    ],
)
def test_an_error_says_what_was_being_done_and_what_to_do(error, kind, words):
    translated = translate_error(error, doing="reading", where="t", bootstrap="host:1")
    assert type(translated) is kind
    with pytest.raises(StreamkmError, match=f"(?s){words}"):
        raise translated


def test_our_own_errors_stay_as_they_are():
    error = PositionLostError("x")
    assert translate_error(error, doing="", where="", bootstrap="") is error


def test_properties_are_known_by_the_names_of_kafka_java_librdkafka_and_kafka_python():
    assert client_settings(
        {
            "security.protocol": "SASL_SSL",
            "sasl.mechanism": "SCRAM-SHA-512",
            "sasl.username": "me",
            "sasl_plain_password": "secret",
            "ssl.ca.location": "/ca.pem",
            "ssl.check.hostname": "false",
            "receive.buffer.bytes": "1000",
            "fetch.max.wait.ms": "100",
            "metadata-max-age-ms": 5,
        }
    ) == {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_plain_username": "me",
        "sasl_plain_password": "secret",
        "ssl_cafile": "/ca.pem",
        "ssl_check_hostname": False,
        "receive_buffer_bytes": 1000,
        "fetch_max_wait_ms": 100,
        "metadata_max_age_ms": 5,
    }


def test_an_admin_client_gets_what_it_knows():
    settings = admin_settings({"security_protocol": "SSL", "fetch_min_bytes": 1, "request_timeout_ms": 5})
    assert settings == {"security_protocol": "SSL", "request_timeout_ms": 5}
    assert set(settings) <= set(kafka.KafkaAdminClient.DEFAULT_CONFIG)


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"k": 1, "securty.protocol": "SSL"}, "property 1 of the Kafka client: kafka-python does not know"),
        ({"securty.protocol": "SSL"}, "Is security_protocol meant"),
        ({"group.id": "g"}, "group.id: .*set by streamkm"),
        ({"sasl.jaas.config": "..."}, "sasl.username"),
        ({"ssl.check.hostname": "maybe"}, "neither true nor false"),
        ({"fetch.min.bytes": "many"}, "not an integer"),
    ],
)
def test_a_property_that_cannot_be_meant_is_named(properties, words):
    with pytest.raises(SettingsError, match=words):
        client_settings(properties)


@pytest.mark.parametrize(
    "bootstrap", ["127.0.0.1:{free}", "127.0.0.1:{free},localhost:{free}", "no-such-host.invalid:1"]
)
def test_a_broker_that_is_not_there_is_named_at_once(bootstrap):
    with socket.socket() as held:  # bound, not listening: connections are refused, and no other program can use it
        held.bind(("127.0.0.1", 0))
        address = bootstrap.format(free=held.getsockname()[1])
        before = threading.active_count()
        with pytest.raises(BrokerUnreachableError, match=address) as refused:
            KafkaSource.connect(address, "t", request_timeout=10)
    assert refused.value.hint
    assert threading.active_count() == before


def test_an_invalid_port_is_named():
    with pytest.raises(SettingsError, match="'kafka' is not a port"):
        KafkaSource.connect("localhost:kafka", "t")


@pytest.fixture
def deaf_server() -> Iterator[str]:
    """A server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_is_no_broker_and_leaves_no_thread(deaf_server):
    before = threading.active_count()
    with pytest.raises(BrokerUnreachableError, match=deaf_server):
        KafkaSource.connect(deaf_server, "t", request_timeout=1.0)
    assert threading.active_count() == before


def test_a_committer_sends_the_newest_position_and_tries_again():
    sent, refused = [], []

    def send(position):
        if len(refused) < 2:
            refused.append(position)
            raise ke.CoordinatorNotAvailableError
        sent.append(position)

    committer = OffsetCommitter(send, "test")
    committer.commit({"a": 1})
    wait_until(lambda: refused)
    committer.commit({"a": 2})
    committer.close(10.0)
    assert sent == [{"a": 2}]


@pytest.mark.parametrize(
    ("warn_after", "why", "warnings"), [(PATIENCE, "", 0), (0.0, "", 1), (PATIENCE, "a share group has the name", 1)]
)
def test_only_what_lasts_or_has_a_reason_is_warned_of_once(caplog, warn_after, why, warnings):
    refused, sent = [], []

    def send(position):
        if len(refused) < 3:
            refused.append(position)
            raise ke.CoordinatorNotAvailableError
        sent.append(position)

    committer = OffsetCommitter(send, "test", lambda: why, warn_after)
    committer.commit({"a": 1})
    wait_until(lambda: sent)
    committer.close(PATIENCE)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * warnings
    assert why in caplog.text


def test_a_committer_never_blocks_commit_or_close():
    release, entered = threading.Event(), threading.Event()

    def send(_position):
        entered.set()
        release.wait(PATIENCE)

    committer = OffsetCommitter(send, "test")
    committer.commit({"a": 1})
    entered.wait(PATIENCE)
    committer.commit({"a": 2})
    committer.close(0.05)
    assert committer._thread.is_alive()
    release.set()
    committer._thread.join(PATIENCE)
    assert not committer._thread.is_alive()


def test_a_committer_gives_up_in_time_if_no_broker_accepts():
    def send(_position):
        raise ke.CoordinatorNotAvailableError

    committer = OffsetCommitter(send, "test")
    committer.commit({"a": 1})
    committer.close(0.6)
    wait_until(lambda: not committer._thread.is_alive())


@pytest.mark.kafka
def test_an_unknown_version_of_kafka_python_is_read_record_by_record(bootstrap, topic, monkeypatch, caplog):
    monkeypatch.setattr(kafka, "__version__", "3.0.99")
    with contextlib.closing(KafkaSource.connect(bootstrap, topic(1))) as source:
        assert not source.driver.columnar
    assert "3.0.99" in caplog.text


@pytest.mark.kafka
def test_closing_gives_back_threads(bootstrap, topic):
    name = topic(1)
    before = threading.active_count()
    source = KafkaSource.connect(bootstrap, name, group_id="g")
    source.seek(source.beginning())
    source.commit(source.position())
    source.close()
    wait_until(lambda: threading.active_count() == before)


@pytest.mark.kafka
def test_large_fetches_are_received_in_large_pieces(bootstrap, topic):
    name = topic(1)
    produce(bootstrap, name, [bytes(900_000)] * 3)
    sizes = []
    with contextlib.closing(KafkaSource.connect(bootstrap, name)) as source:
        source.seek(source.beginning())
        transports = [conn.transport for conn in source.driver._consumer._manager._conns.values() if conn.transport]
        assert transports
        for transport in transports:
            wide = transport._sock_recv
            transport._sock_recv = lambda wide=wide: (got := wide(), sizes.append(len(got[0])))[0]
        assert len(drain(source, source.end())) > 0
    assert max(sizes) > 4096


@pytest.mark.kafka
def test_a_batch_larger_than_the_decompression_limit_is_polled_in_pieces(bootstrap, topic):
    name = topic(1)
    values = [b"%04d" % i + bytes(100_000) for i in range(120)]
    config = {"compression_type": "zstd", "linger_ms": 60_000, "batch_size": 16 << 20, "max_request_size": 16 << 20}
    with contextlib.closing(kafka.KafkaProducer(bootstrap_servers=bootstrap, **config)) as producer:
        for value in values:
            producer.send(name, value, partition=0)
        producer.flush(PATIENCE)
        assert producer.metrics()["producer-metrics"]["records-per-request-avg"] == len(values)
    with contextlib.closing(
        KafkaSource.connect(bootstrap, name, max_decompressed_bytes=1 << 20, max_value_bytes=150_000)
    ) as source:
        source.seek(source.beginning())
        got = drain(source, source.end(), 1000)
    read = [records.data[a:b].tobytes() for records in got for a, b in zip(records.begins, records.ends, strict=True)]
    assert read == values
    assert max(int((records.ends - records.begins).sum()) for records in got) <= 4 << 20  # the minimum of a poll


def test_a_socket_gives_what_it_has_and_says_when_it_is_closed():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)  # noqa: FBT003
    transport = SimpleNamespace(_sock=ours)
    assert read_available(transport) == (b"", None)
    theirs.sendall(b"x" * 10_000)
    assert read_available(transport) == (b"x" * 10_000, None)
    theirs.sendall(b"last")
    theirs.close()
    data, error = read_available(transport)
    assert (data, type(error)) == (b"last", ke.KafkaConnectionError)
    ours.close()
    data, error = read_available(transport)
    assert (data, type(error)) == (b"", ke.KafkaConnectionError)


@pytest.mark.parametrize("accepts", [True, False])
def test_a_refused_connection_leaves_no_socket_open(accepts):
    made = []

    class Recording(KafkaNetSocket):
        SCHEMES = ()

        def socket(self, *args):
            made.append(super().socket(*args))
            return made[-1]

    with socket.socket() as server, contextlib.closing(NetworkSelector()) as net:
        server.bind(("127.0.0.1", 0))
        if accepts:
            server.listen()
        (address,) = Recording().dns_lookup(*server.getsockname())
        with contextlib.nullcontext() if accepts else pytest.raises(ke.KafkaConnectionError):
            net.run(Recording().connect, net, address)
    assert [sock.fileno() >= 0 for sock in made] == [accepts]
    made[0].close()
