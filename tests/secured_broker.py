"""A broker with login and TLS listeners, for all tests that need one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import kafka
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from kafka_fixtures import FOR_TESTS, local_broker
from streamkm.broker.properties import DEFAULT_PROPERTIES, free_ports

USER, PASSWORD = "reader", "a, 'pass' = of many; signs %41"
_ACCOUNTS = "org.apache.kafka.common.security.plain.PlainLoginModule required"


class Secured(NamedTuple):
    """Addresses of a broker by what they require, and the issuer of its certificate."""

    plain: str
    sasl: str
    tls: str
    sasl_tls: str
    misnamed: str
    """TLS, with the certificate of another host."""
    mutual: str
    """TLS, for those with a certificate of their own."""
    authority: Path

    def login(self, **more: str) -> dict[str, str]:
        """Properties of a valid client of `sasl`."""
        return {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": USER,
            "sasl.password": PASSWORD,
            **more,
        }


def _for_java(issued: trustme.LeafCert) -> bytes:
    """Key and certificate in Kafka's format."""
    key = load_pem_private_key(issued.private_key_pem.bytes(), None)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem + b"".join(blob.bytes() for blob in issued.cert_chain_pems)


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """Start the broker with listeners of all kinds, for the session."""
    folder = tmp_path_factory.mktemp("secured")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    for name, hosts in (("right", ("localhost", "127.0.0.1")), ("other", ("kafka.example.org",))):
        (folder / f"{name}.pem").write_bytes(_for_java(authority.issue_cert(*hosts)))
    names = ("TLS", "SASLTLS", "MISNAMED", "MUTUAL")
    port, *ports = free_ports(1 + len(names))
    protocols = {"CLIENT": "SASL_PLAINTEXT", "TLS": "SSL", "SASLTLS": "SASL_SSL", "MISNAMED": "SSL", "MUTUAL": "SSL"}
    quoted = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
    login = f'{_ACCOUNTS} user_{USER}="{quoted}";'
    properties = {
        **DEFAULT_PROPERTIES,
        **FOR_TESTS,
        "listener.security.protocol.map": ",".join(f"{k}:{v}" for k, v in protocols.items())
        + ",INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "right.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.client.plain.sasl.jaas.config": login,
        "listener.name.sasltls.plain.sasl.jaas.config": login,
        "listener.name.misnamed.ssl.keystore.location": str(folder / "other.pem"),
        "listener.name.misnamed.ssl.keystore.type": "PEM",
        "listener.name.mutual.ssl.client.auth": "required",
    }
    with local_broker(port=port, properties=properties, listeners=dict(zip(names, ports, strict=True))) as broker:
        broker.create_topic("points")
        internal = broker.internal
        with_topic = kafka.KafkaProducer(bootstrap_servers=internal)
        for i in range(10):
            with_topic.send("points", b'{"x": %d}' % i)
        with_topic.close()
        hosts = [f"127.0.0.1:{p}" for p in ports]
        yield Secured(internal, broker.bootstrap, *hosts, folder / "ca.pem")
