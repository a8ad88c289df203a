"""The compose file as a user runs it, under a project of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamkm.broker.properties import free_ports

FILE = Path(__file__).parents[2] / "compose" / "docker-compose.yml"
PROJECT = "streamkm-test"


def docker(*arguments: str, check: bool = True, timeout: float = 300, error: bool = False) -> str:
    """Run docker; what it printed, on standard error if that is asked for."""
    done = subprocess.run(("docker", *arguments), capture_output=True, text=True, timeout=timeout, check=False)
    assert not check or done.returncode == 0, (
        f"docker {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return (done.stderr if error else done.stdout).strip()


def until(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Wait for a condition, and give what it gave."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)
    return found


def kinds() -> list[str]:
    """Which Compose there is: v2 is a part of docker, v1 a program of its own."""
    v2 = subprocess.run(("docker", "compose", "version"), capture_output=True, check=False).returncode == 0
    return ["v2"] * v2 + ["v1"] * (shutil.which("docker-compose") is not None)


class Compose:
    """The project: its ports are free ones, its images those of the tests."""

    def __init__(self, kind: str) -> None:
        self.command = ("docker", "compose") if kind == "v2" else ("docker-compose",)
        self.ports = dict(zip(("PORT", "KAFKA_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"), free_ports(4), strict=True))

    def run(self, *arguments: str, timeout: float = 300, check: bool = True) -> str:
        """Run docker compose; what it printed."""
        done = subprocess.run(
            (*self.command, "--file", str(FILE), "--project-name", PROJECT, *arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env={**os.environ, **{name: str(port) for name, port in self.ports.items()}},
        )
        told = done.stdout[-3000:] + done.stderr[-6000:]
        assert not check or done.returncode == 0, f"compose {' '.join(arguments)}: {told}"
        return done.stdout.strip()

    def container(self, service: str) -> str:
        """Id of the container of a service."""
        return docker(
            *("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}"),
            *("--filter", f"label=com.docker.compose.service={service}"),
        )

    def health(self, service: str) -> str:
        """What Docker says of it."""
        return docker("inspect", "--format", "{{.State.Health.Status}}", self.container(service), check=False)

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """Run a command in the container of a service."""
        return docker("exec", self.container(service), *command, check=check)

    def left(self) -> dict[str, str]:
        """What there is of the project: containers, volumes, networks."""
        only = ("--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}")
        return {
            "containers": docker("ps", "--all", *only),
            "volumes": docker("volume", "ls", *only),
            "networks": docker("network", "ls", *only),
        }

    def get(self, path: str, token: str = "", port: str = "PORT", body: Any = None) -> Any:
        """Ask over HTTP from outside, with a body by POST; the answer, or the status if it is none."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ports[port]}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return None
