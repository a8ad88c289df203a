"""The broker's server.properties and its ports."""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Mapping

from streamkm.errors import LocalBrokerError, PortTakenError, SettingsError

HOST = "127.0.0.1"
NODE_ID = 1

OWNED = frozenset(
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
"""Properties that LocalBroker sets itself: its own readiness and its data directory hang on them."""

SMALL = {
    # One node: every internal topic has one replica; one partition keeps the directory and the start small.
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
    # A broker that was killed is let in again only when its last session is over: 9 s by default.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "500",
    # Followers see by records without content, two a second, that a controller which has nothing to say is there. There
    # are none: without those records an idle node takes a third less of a processor.
    "metadata.max.idle.interval.ms": "0",
    "listener.security.protocol.map": "CLIENT:PLAINTEXT,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
}
"""What a small single node differs in from Kafka's defaults; a caller's own properties win."""

# Below the range that Linux takes the near end of outgoing connections from (net.ipv4.ip_local_port_range, 32768 and
# up): a client that knocks at a dead broker's port could otherwise be given that very port, and a restart would find it
# taken.
_PORTS = range(10240, 32768)


def server_properties(
    ports: tuple[int, int, int], log_dir: str, properties: Mapping[str, str], listeners: Mapping[str, int]
) -> dict[str, str]:
    """Return all properties of one start.

    The listener CLIENT is the one to be used; INTERNAL is the broker's own (its readiness, its talk with itself) and
    stays plain when a caller gives CLIENT TLS or SASL through ``listener.security.protocol.map``.

    Parameters
    ----------
    ports
        Of the listeners CLIENT, INTERNAL and CONTROLLER.
    log_dir
        Kafka's data.
    properties
        The caller's.
    listeners
        The caller's, by their names, with their ports.

    Raises
    ------
    SettingsError
        A property that LocalBroker sets itself.
    """
    check_properties(properties)
    client, internal, controller = ports
    open_to_clients = {"CLIENT": client, "INTERNAL": internal, **listeners}
    told = ",".join(f"{name}://{HOST}:{port}" for name, port in open_to_clients.items())
    return {
        **SMALL,
        **properties,
        "process.roles": "broker,controller",
        "node.id": str(NODE_ID),
        "controller.quorum.voters": f"{NODE_ID}@{HOST}:{controller}",
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "INTERNAL",
        "listeners": f"{told},CONTROLLER://{HOST}:{controller}",
        "advertised.listeners": told,
        "log.dirs": log_dir,
    }


def check_properties(properties: Mapping[str, str]) -> None:
    """Refuse the properties in :data:`OWNED`."""
    for name in properties:
        if name in OWNED:
            raise SettingsError(
                "The local broker sets this property itself", where=name, hint="Use its port and data_dir instead"
            )


def format_properties(properties: Mapping[str, str]) -> str:
    """Write the format of ``java.util.Properties``: escapes, and ASCII alone."""
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
    """Find ports of the loopback address that nobody listens on now, all different.

    They can be lost again before the broker has them: it is asked for other ones then.
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
    """Refuse a port that another program has, or that we may not have.

    Raises
    ------
    PortTakenError
        Another program listens there.
    LocalBrokerError
        The system does not let us have it.
    """
    with socket.socket() as sock:
        # As Java does: what lingers of the connections of a broker that was killed does not count.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((HOST, port))
        except (OSError, OverflowError) as error:
            if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                raise port_taken(port) from error
            raise LocalBrokerError(
                f"The port cannot be used ({error})", where=f"{HOST}:{port}", hint="Take one from 1024 to 65535, or 0"
            ) from error


def port_taken(port: int) -> PortTakenError:
    """Return the error for a port that is in use."""
    return PortTakenError(
        "Another program listens on this port",
        where=f"{HOST}:{port}",
        hint="Stop it, or take another port; 0 finds a free one",
    )
