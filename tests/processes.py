"""Our own programs as real processes, for tests that kill them."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from consumers import cli
from waiting import PATIENCE, wait_until


class Program:
    """A running ``streamkm`` command; its output goes to a file, shown when a wait fails.

    With a script that command is run by it.
    """

    def __init__(
        self, log: Path, *arguments: str, env: dict[str, str] | None = None, script: Path | None = None
    ) -> None:
        self.log = log
        command = ["-m", "consumers"] if script is None else [str(script)]
        with log.open("ab") as out:
            self.popen = subprocess.Popen(
                [sys.executable, *command, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: no last word."""
        self.popen.kill()
        self.popen.wait(PATIENCE)

    def leave(self) -> int:
        """SIGTERM, and the exit status."""
        self.popen.terminate()
        try:
            return self.popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not leave within {PATIENCE} s:\n{self.output()}") from None

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], object]) -> None:
        """Wait for a condition while the program lives."""
        try:
            wait_until(condition, check=self.alive)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.output()}") from None

    def alive(self) -> None:
        """Fail if it has ended."""
        assert self.popen.poll() is None, f"left with {self.popen.returncode}"


@contextlib.contextmanager
def program(
    log: Path, *arguments: str, env: dict[str, str] | None = None, script: Path | None = None
) -> Iterator[Program]:
    """A `Program` that is gone at the end, whatever happens."""
    p = Program(log, *arguments, env=env, script=script)
    try:
        yield p
    finally:
        if p.popen.poll() is None:
            p.kill()


def run_apart(
    *arguments: str, env: dict[str, str] | None = None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a ``streamkm`` command to its end in a process of its own, `text` on its standard input.

    It takes two seconds of a processor until it has all that it needs, so most tests take `run`.
    """
    return subprocess.run(
        [sys.executable, "-m", "consumers", *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **(env or {})},
    )


def run(
    *arguments: str, env: dict[str, str] | None = None, text: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a ``streamkm`` command to its end in this process: what it prints, and the status it would leave with."""
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(said), "utf-8") for said in ((text or "").encode(), b"", b""))
    given = {"argv": ["streamkm", *arguments], "stdin": stdin, "stdout": stdout, "stderr": stderr}
    before = {name: getattr(sys, name) for name in given}
    environment, handlers = dict(os.environ), {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    root = logging.getLogger()
    logs = root.handlers[:], {name: logging.getLogger(name).level for name in ("", "kafka", "streamkm")}
    root.handlers[:] = []  # or a new configuration closes them
    for name, value in given.items():
        setattr(sys, name, value)
    os.environ.update(env or {})
    try:
        status = cli._status()
    finally:
        for name, value in before.items():
            setattr(sys, name, value)
        os.environ.clear()
        os.environ.update(environment)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        root.handlers[:] = logs[0]
        for name, level in logs[1].items():
            logging.getLogger(name).setLevel(level)
    said = []
    for stream in (stdout, stderr):
        stream.flush()
        said.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess(arguments, status, *said)
