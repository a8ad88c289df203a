"""Our own programs as real processes, for tests that kill them."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from pathlib import Path

from consumers import cli
from waiting import PATIENCE, wait_until

# Half of the time that a program needs to start is for its imports. A server that has them forks one for each program,
# before anything runs in it that a fork would tear apart; what is forked is a process like any other.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["processes", "preloaded", "store_workers"])


def _ensure_server() -> None:
    """Start it, if it does not run; where it looks for what it is to import, Python 3.11 tells it by this alone."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _be(
    outputs: tuple[Path, Path],
    folder: Path,
    environment: dict[str, str],
    arguments: Sequence[str],
    script: Path | None = None,
) -> None:
    """Become a program, with these files as its standard output and standard error."""
    for number, file in enumerate(outputs, 1):
        out = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(out, number)
        os.close(out)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["streamkm" if script is None else str(script), *arguments]
    if script is None:
        cli.main()
    else:
        sys.path.insert(0, str(script.parent))
        runpy.run_path(str(script), run_name="__main__")


class Forked:
    """A process, with what `subprocess.Popen` has for it."""

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        _ensure_server()
        self._process = _SERVER.Process(target=target, args=arguments)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout or 0.0)
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _work(target: Callable[..., None], environment: dict[str, str], arguments: Sequence[object]) -> None:
    """Become a worker."""
    os.environ.clear()
    os.environ.update(environment)
    target(*arguments)


class Worker(Forked):
    """A function that runs in a process; its first argument is a connection to talk with the tests.

    Attributes
    ----------
    connection
        The other end of it. It ends when the process does.
    """

    def __init__(self, target: Callable[..., None], *arguments: object) -> None:
        self.connection, theirs = multiprocessing.Pipe()
        with theirs:
            super().__init__(_work, target, dict(os.environ), (theirs, *arguments))

    def said(self) -> object:
        """What it says next."""
        assert self.connection.poll(PATIENCE), "the process says nothing"
        return self.connection.recv()

    def ended(self) -> int:
        """Its exit status, when it has one."""
        return self.wait(PATIENCE)

    def stopped(self) -> None:
        """Wait until a SIGSTOP has stopped it."""

        def alive() -> None:
            assert self.poll() is None, f"left with {self.returncode}"

        wait_until(lambda: state(self.pid) == "T", check=alive)

    def close(self) -> None:
        """Kill it if it is there."""
        self.kill()
        self.wait(PATIENCE)
        self.connection.close()


def state(pid: int) -> str:
    """The state of a process in one letter, such as T for one that is stopped; empty for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


class Program:
    """A running ``streamkm`` command; its output goes to a file, shown when a wait fails.

    With a script that command is run by it.
    """

    def __init__(
        self, log: Path, *arguments: str, env: dict[str, str] | None = None, script: Path | None = None
    ) -> None:
        self.log = log
        log.touch()
        environment = {**os.environ, **(env or {})}
        self.popen = Forked(_be, (log, log), Path.cwd(), environment, arguments, script)

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


def run_apart(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a ``streamkm`` command to its end in a process of its own.

    `run` takes less, where it does not matter in which process a command runs.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder, "out"), Path(folder, "err")
        status = Forked(_be, outputs, Path.cwd(), dict(os.environ), arguments).wait(PATIENCE)
        return subprocess.CompletedProcess(arguments, status, *(file.read_text() for file in outputs))


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
