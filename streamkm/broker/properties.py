"""Properties and ports of a local broker."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Mapping

from streamkm.errors import LocalBrokerError, PortTakenError, SettingsError

HOST = "127.0.0.1"
NODE_ID = 1

RESERVED_PROPERTIES = frozenset(
    {
        "process.roles",
        "node.id",
        "broker.id",
        "controller.quorum.voters",
        "controller.quorum.bootstrap.servers",
        "controller.listener.names",
        "inter.broker.listener.name",
        "listeners",
        "advertised.listeners",
        "log.dir",
        "log.dirs",
        "metadata.log.dir",
    }
)
"""Properties set by LocalBroker: its readiness check and its data directory depend on them."""

DEFAULT_PROPERTIES = {
    # One node: internal topics have one replica; one partition keeps the directory small and the start short.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "group.initial.rebalance.delay.ms": "0",
    "auto.create.topics.enable": "false",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "16777216",  # 128 MB by default, a quarter of the heap
    # After a kill the broker can register again only when its last session has expired: 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # An idle controller writes two empty records per second for its followers. A single node has none; without these
    # records it uses a third less CPU when idle.
    "metadata.max.idle.interval.ms": "0",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
}
"""Differences of a small single node from Kafka's defaults; a caller's properties take precedence."""

# Below the range of ephemeral ports (net.ipv4.ip_local_port_range, from 32768): otherwise a client that connects to the
# port of a stopped broker could get the same port as its local port, and a restart would find it in use.
_PORTS = range(10240, 32768)


def server_properties(
    ports: tuple[int, int, int], log_dir: str, properties: Mapping[str, str], listeners: Mapping[str, int]
) -> dict[str, str]:
    """All properties of one start.

    Clients use the listener CLIENT. INTERNAL is the broker's own (readiness check, inter-broker) and stays plaintext
    when a caller sets TLS or SASL for CLIENT in ``listener.security.protocol.map``.

    Parameters
    ----------
    ports
        Ports of the listeners CLIENT, INTERNAL and CONTROLLER.
    log_dir
        Directory of Kafka's data.
    properties
        The caller's properties.
    listeners
        The caller's listeners: ports by name.

    Raises
    ------
    SettingsError
        A property is reserved for LocalBroker.
    """
    check_properties(properties)
    client, internal, controller = ports
    open_to_clients = {"CLIENT": client, "INTERNAL": internal, **listeners}
    advertised = ",".join(f"{name}://{HOST}:{port}" for name, port in open_to_clients.items())
    return {
        **DEFAULT_PROPERTIES,
        **properties,
        "process.roles": "broker,controller",
        "node.id": str(NODE_ID),
        "controller.quorum.voters": f"{NODE_ID}@{HOST}:{controller}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INTERNAL",
        "listeners": f"{advertised},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": advertised,
        "log.dirs": log_dir,
    }


def check_properties(properties: Mapping[str, str]) -> None:
    """Reject the properties in :data:`RESERVED_PROPERTIES`.

    Raises
    ------
    SettingsError
        A property is reserved.
    """
    for name in properties:
        if name in RESERVED_PROPERTIES:
            raise SettingsError(
                "The local broker sets this property itself", where=name, hint="Use its port and data_dir instead"
            )


def format_properties(properties: Mapping[str, str]) -> str:
    """Format as ``java.util.Properties``: escaped, ASCII only."""
    return "".join(f"{_escape(name)}={_escape(value)}\n" for name, value in properties.items())


def _escape(text: str) -> str:
    units = text.encode("utf-16-be")  # Java's \uXXXX is a UTF-16 unit, not a code point
    out = []
    for i in range(0, len(units), 2):
        unit = int.from_bytes(units[i : i + 2], "big")
        char = chr(unit)
        if char in "\\=:#! ":
            out.append("\\" + char)
        elif 0x20 < unit < 0x7F:
            out.append(char)
        else:
            out.append(f"\\u{unit:04x}")
    return "".join(out)


def free_ports(count: int) -> list[int]:
    """Find distinct free ports of the loopback address.

    Another program may take one before the broker binds it; the broker then tries others.

    Raises
    ------
    PortTakenError
        There are not enough free ports.
    """
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.sample(_PORTS, len(_PORTS)):
            sock = held.enter_context(socket.socket())
            try:
                sock.bind((HOST, port))
            except OSError:
                continue
            ports.append(port)
            if len(ports) == count:
                return ports
    raise PortTakenError(f"No {count} free ports from {_PORTS[0]} to {_PORTS[-1]}", where=HOST)


def check_port(port: int) -> None:
    """Check that a port can be bound.

    Raises
    ------
    PortTakenError
        Another program uses it.
    LocalBrokerError
        The system does not allow it.
    """
    with socket.socket() as sock:
        # Like Java: connections of a killed broker in TIME_WAIT do not count.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise port_taken_error(port) from error
            raise LocalBrokerError(
                f"The port cannot be used ({error})", where=f"{HOST}:{port}", hint="Choose one from 1024 to 65535, or 0"
            ) from error


def port_taken_error(port: int) -> PortTakenError:
    """The error for a port in use."""
    return PortTakenError(
        "Another program listens on this port",
        where=f"{HOST}:{port}",
        hint="Stop it, or choose another port; 0 selects a free one",
    )
