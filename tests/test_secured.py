"""A broker with login or TLS: errors are specific and immediate, and no secret is printed."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from processes import program, run_apart
from secured_broker import PASSWORD, Secured, secured
from source_checks import drain
from streamkm.connectors import KafkaSource, KafkaTransactionalWriter, KafkaWriter
from streamkm.connectors.kafka.client import client_settings
from streamkm.connectors.kafka.security import resolve_security as checked
from streamkm.errors import BrokerRefusedError, BrokerUnreachableError, SettingsError

__all__ = ["secured"]

FOR_EVER = 600.0
"""Seconds that no test may take: who waits for the end of a time-out does not pass."""

REFUSED = {
    "wrong password": ("sasl", {"sasl.password": "not this one"}, "the login failed .*Check sasl.username"),
    "unknown user": ("sasl", {"sasl.username": "nobody"}, "the login failed"),
    "no login": ("sasl", None, "PLAINTEXT connection: it closes the connection .*login .SASL."),
    "no login over TLS": ("sasl_tls", {"security.protocol": "SSL"}, "SSL connection: it closes the connection"),
    "disabled mechanism": ("sasl", {"sasl.mechanism": "SCRAM-SHA-512"}, "does not support .* SCRAM-SHA-512.*: PLAIN"),
    "login where there is none": ("plain", {}, "the listener has no login"),
    "TLS to a plain port": ("plain", {"security.protocol": "SSL"}, "the listener does not use TLS"),
    "TLS and a login to a plain port": ("sasl", {"security.protocol": "SASL_SSL"}, "the listener does not use TLS"),
    "plain to a port with TLS": ("tls", None, "the listener uses TLS|it closes the connection .*SSL"),
    "login without TLS": ("sasl_tls", {}, "the listener uses TLS|it closes the connection"),
    "name that is not in the certificate": (
        "misnamed",
        {"security.protocol": "SSL"},
        "certificate is not trusted: .*127.0.0.1.* by a name",
    ),
    "certificate of an unknown authority": (
        "tls",
        {"security.protocol": "SSL", "ssl.ca.location": ""},
        "certificate is not trusted: .*ssl.ca.location",
    ),
    "no certificate of ours": ("mutual", {"security.protocol": "SSL"}, "ends the encrypted connection .*certificate"),
}


def properties(broker: Secured, more: dict[str, str] | None) -> dict[str, str]:
    """Properties of a valid client, changed by the given ones; None: of a client without any."""
    if more is None:
        return {}
    found = broker.login(**{"ssl.ca.location": str(broker.authority), **more})
    if found["security.protocol"] == "SSL":
        found = {name: value for name, value in found.items() if not name.startswith("sasl")}
    return {name: value for name, value in found.items() if value}


@pytest.mark.kafka
@pytest.mark.parametrize("case", REFUSED)
def test_why_a_broker_refuses_a_connection_is_reported_without_waiting(secured: Secured, case: str) -> None:
    listener, more, words = REFUSED[case]
    before = threading.active_count()
    with pytest.raises(BrokerRefusedError, match=words) as refused:
        KafkaSource.connect(
            getattr(secured, listener), "points", client=properties(secured, more), request_timeout=FOR_EVER
        )
    assert threading.active_count() == before
    assert refused.value.where == getattr(secured, listener)
    assert PASSWORD not in str(refused.value)


@pytest.mark.kafka
def test_writers_report_it_too_and_a_second_broker_may_accept(secured: Secured) -> None:
    wrong = secured.login(**{"sasl.password": "wrong"})
    with pytest.raises(BrokerRefusedError, match="login failed"):
        KafkaWriter(secured.sasl, client=wrong, timeout=FOR_EVER)
    with pytest.raises(BrokerRefusedError, match="login failed"):
        KafkaTransactionalWriter(secured.sasl, "t", client=wrong, timeout=FOR_EVER)
    both = f"{secured.plain},{secured.sasl}"
    with contextlib.closing(KafkaSource.connect(both, "points", client=secured.login())) as source:
        assert source.identity()["topic"] == "points"


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("listener", "protocol"), [("sasl", "SASL_PLAINTEXT"), ("sasl_tls", "sasl_ssl"), ("tls", "SSL")]
)
def test_valid_credentials_can_read(secured: Secured, listener: str, protocol: str) -> None:
    client = properties(secured, {"security.protocol": protocol})
    client = client if protocol != "SSL" else {k: v for k, v in client.items() if not k.startswith("sasl")}
    with contextlib.closing(KafkaSource.connect(getattr(secured, listener), "points", client=client)) as source:
        source.seek(source.beginning())
        assert sum(map(len, drain(source, source.end()))) == 10


@pytest.fixture
def deaf() -> Iterator[str]:
    """A server that accepts connections and never responds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL"])
def test_waiting_for_a_broker_can_be_stopped(deaf: str, protocol: str) -> None:
    looks = iter(range(100))
    with pytest.raises(BrokerUnreachableError, match="stopped while waiting"):
        KafkaSource.connect(
            deaf,
            "t",
            client={"security.protocol": protocol},
            request_timeout=FOR_EVER,
            should_stop=lambda: next(looks) == 3,
        )


def test_a_program_that_waits_for_its_first_broker_leaves_at_sigterm(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        bootstrap = f"127.0.0.1:{server.getsockname()[1]}"
        at = ("--store", f"sqlite:///{tmp_path}/s.db", "--bootstrap", bootstrap, "--topic", "t", "--fields", "x")
        with program(tmp_path / "log", "live", "m", *at) as owner:
            connection, _ = server.accept()  # the connection check is running
            with connection:
                assert owner.leave() == 0
    assert "no broker" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"security.protocol": "TLS"}, "security.protocol: 'TLS' is not a security protocol"),
        ({"security.protocol": "SASL_SSL"}, "sasl.mechanism: there is no mechanism"),
        ({"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "SCRAM"}, "'SCRAM' is not a mechanism"),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN"}, "sasl.username: .*PLAIN requires it"),
        (
            {"security.protocol": "SASL_SSL", "sasl.mechanism": "PLAIN", "sasl.username": "u"},
            "sasl.password: .*PLAIN requires it",
        ),
        ({"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}, "cannot be given as text"),
        ({"sasl.username": "u", "sasl.password": "p"}, "a login is given, and PLAINTEXT has none"),
        ({"security.protocol": "SSL", "ssl.ca.location": "/no/ca.pem"}, "ssl.ca.location: /no/ca.pem cannot be read"),
        ({"security.protocol": "SSL", "ssl.key.location": "/no/key"}, "ssl.key.location: /no/key cannot be read"),
        ({"security.protocol": "SSL", "ssl.ca.location": __file__}, "ssl.ca.location: it cannot be used"),
        ({"security.protocol": "SSL", "ssl.key.location": __file__}, "a key without a certificate"),
        ({"security.protocol": "SSL", "ssl.certificate.location": __file__}, "certificate.location: it cannot be used"),
    ],
)
def test_settings_that_no_broker_could_take_are_named_before_one_is_asked(
    properties: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingsError, match=words):
        checked(client_settings(properties))


def test_the_program_ends_with_the_status_of_wrong_settings(tmp_path: Path) -> None:
    at = ("--store", f"sqlite:///{tmp_path}/s.db", "--topic", "t", "--fields", "x")
    properties = ("--kafka-property", "security.protocol=SSL", "--kafka-property", "ssl.key.location=/no/such/key")
    ended = run_apart("live", "m", *at, *properties)
    assert ended.returncode == 2
    assert "/no/such/key cannot be read" in ended.stderr


def _forms(secret: str) -> set[str]:
    """Encodings of a secret."""
    return {secret, json.dumps(secret)[1:-1], repr(secret)[1:-1], urllib.parse.quote(secret)}


@pytest.mark.kafka
@pytest.mark.parametrize("verbosity", ["-v", "-vv"])
def test_no_log_of_a_login_holds_the_password_or_unasked_what_libraries_send(
    secured: Secured, tmp_path: Path, verbosity: str
) -> None:
    config, log = tmp_path / "c.toml", tmp_path / "log"
    client = [f"{name}={value}" for name, value in secured.login().items()]
    config.write_text(f"kafka_property = {json.dumps(client)}")
    at = ("--store", f"sqlite:///{tmp_path}/s.db", "--bootstrap", secured.sasl, "--config", str(config))
    with program(log, "live", "m", *at, "--topic", "points", "--fields", "x", "--k", "2", verbosity) as owner:
        owner.until(lambda: "epoch 1" in log.read_text())
        assert owner.leave() == 0
    text = log.read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    loud = [line for line in lines if line["level"] == "debug" and not line["logger"].startswith("streamkm")]
    assert bool(loud) == (verbosity == "-vv")
    assert not [form for form in _forms(PASSWORD) if form in text]


@pytest.mark.kafka
def test_a_failed_login_is_reported_without_its_password(secured: Secured, tmp_path: Path) -> None:
    login = secured.login(**{"sasl.password": "pass-9-word"})
    properties = [text for name, value in login.items() for text in ("--kafka-property", f"{name}={value}")]
    at = ("--store", f"sqlite:///{tmp_path}/s.db", "--bootstrap", secured.sasl, *properties)
    ended = run_apart("live", "m", *at, "--topic", "points", "--fields", "x", "-vv")
    assert ended.returncode == 4
    assert "the login failed" in ended.stderr
    assert "pass-9-word" not in ended.stdout + ended.stderr
