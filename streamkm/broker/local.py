"""A local Apache Kafka as a context manager."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from streamkm.broker.admin import create_topic, is_ready
from streamkm.broker.data_dir import open_data_dir
from streamkm.broker.distribution import HERE, Distribution, get_distribution, java_command
from streamkm.broker.properties import (
    HOST,
    check_port,
    check_properties,
    format_properties,
    free_ports,
    port_taken_error,
    server_properties,
)
from streamkm.errors import LocalBrokerError

_STARTED = "Kafka Server started"
_POLL_SECONDS = 0.02
_PORT_ATTEMPTS = 5
_TAIL_BYTES = 64 * 1024


class LocalBroker:
    """One node of Apache Kafka (KRaft, broker and controller in one JVM), bound to the loopback address.

    The JVM ends when this process ends, for whatever reason. A terminal's Ctrl-C does not reach it: it is ended by
    :meth:`stop`, after the clients.

    Parameters
    ----------
    port
        Port for clients; 0 selects a free one, which stays the same across restarts.
    data_dir
        Persistent data directory; formatted only once. None creates a temporary one, which is removed by :meth:`stop`,
        or when this process ends.
    properties
        Broker properties by Kafka's names; they override :data:`streamkm.broker.properties.DEFAULT_PROPERTIES`. For TLS
        or SASL set the protocol of the listener ``CLIENT`` in ``listener.security.protocol.map``.
    listeners
        Additional listeners: ports by name. Their protocols are in ``listener.security.protocol.map``.
    heap_mb
        Maximum Java heap, MiB. The process takes about 320 MiB in all.
    start_timeout
        Maximum time until the broker is ready, s.
    jvm_options
        Additional options of Java.
    quiet
        Do not report the progress of a download.

    Raises
    ------
    SettingsError
        A property is reserved for LocalBroker.

    Examples
    --------
    >>> from streamkm.broker import LocalBroker
    >>> broker = LocalBroker(properties={"message.max.bytes": "2000000"})
    >>> broker.alive()
    False

    ``with broker: ...`` starts it; ``broker.bootstrap`` is its address.
    """

    def __init__(
        self,
        port: int = 0,
        data_dir: str | os.PathLike[str] | None = None,
        properties: Mapping[str, str] | None = None,
        *,
        listeners: Mapping[str, int] | None = None,
        heap_mb: int = 512,
        start_timeout: float = 60.0,
        jvm_options: Sequence[str] = (),
        quiet: bool = False,
    ) -> None:
        self._properties = dict(properties or {})
        check_properties(self._properties)
        self._listeners = dict(listeners or {})
        self._port = port
        self._internal_port = 0
        self._temporary = data_dir is None
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._heap_mb = heap_mb
        self._start_timeout = start_timeout
        self._jvm_options = tuple(jvm_options)
        self._quiet = quiet
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._log_start: dict[Path, int] = {}

    # State

    @property
    def port(self) -> int:
        """Port for clients; 0 before the first start if it is selected automatically."""
        return self._port

    @property
    def bootstrap(self) -> str:
        """Address for ``bootstrap.servers``: ``127.0.0.1:port``."""
        return f"{HOST}:{self._port}"

    @property
    def internal(self) -> str:
        """Address of the internal listener, which is always plaintext."""
        return f"{HOST}:{self._internal_port}"

    @property
    def pid(self) -> int:
        """Process id of the JVM of the last start (0 before the first), for signals: SIGKILL, SIGSTOP, SIGCONT."""
        return self._pid

    @property
    def data_dir(self) -> Path:
        """Data directory: ``kafka/`` for records, ``logs/``, ``server.properties``.

        Raises
        ------
        LocalBrokerError
            It is temporary, and the broker was not started or was stopped.
        """
        if self._data_dir is None:
            raise LocalBrokerError("The broker has no data directory", hint="Start it, or give it one")
        return self._data_dir

    def alive(self) -> bool:
        """Whether the process exists (it may be paused by a signal)."""
        return self._watchdog is not None and self._watchdog.poll() is None

    def check(self) -> None:
        """Raise if the broker was started and has died.

        Raises
        ------
        LocalBrokerError
            The broker has died; with its last log lines, and a hint for known causes.
        """
        if self._watchdog is not None and not self.alive():
            raise self._exit_error()

    def log_tail(self, lines: int = 20) -> str:
        """Last lines that Kafka and Java have logged since the last start."""
        if self._data_dir is None:
            return ""
        tail: list[str] = []
        for path in (self._console, self._server_log):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._log_start.get(path, 0)
                # A file that is shorter than before was rotated: all of it is new.
                file.seek(max(start if start <= size else 0, size - _TAIL_BYTES))
                tail += file.read().decode("utf-8", "replace").splitlines()[-lines:]
        return "\n".join(tail[-lines:])

    # Lifecycle

    def start(self) -> Self:
        """Start the broker, and return when it is ready; does nothing if it is running.

        Raises
        ------
        DownloadError
            Kafka is not in the cache and cannot be downloaded.
        PortTakenError
            Another program uses the port.
        LocalBrokerError
            The extra ``broker`` is not installed, the data directory cannot be used, or the broker died or was not
            ready in time: the message has its last log lines.
        """
        if self.alive():
            return self
        first = self._pid == 0
        # Step 1. Kafka and Java, from the cache or the network.
        distribution = get_distribution(quiet=self._quiet)
        # Step 2. A given or previously used port must be free.
        find_port = self._port == 0
        if not find_port:
            check_port(self._port)
        try:
            # Step 3. A formatted data directory.
            if self._data_dir is None:
                self._data_dir = _temporary_dir()
            with open_data_dir(self._data_dir, distribution.checkpoint) as lock:
                # Step 4. The process, until it is ready. It holds the lock from then on.
                self._launch(distribution, lock, find_port=find_port)
        except BaseException:
            self._terminate(signal.SIGKILL, 0.0)
            if first:  # a failed restart keeps the data of an earlier run
                self._remove_temporary_dir()
            if find_port:
                self._port = 0
            raise
        return self

    def stop(self, timeout: float = 15.0) -> None:
        """Stop the broker cleanly, and remove a temporary data directory; does nothing if it is stopped.

        Parameters
        ----------
        timeout
            Time until it is killed, s.
        """
        self._terminate(signal.SIGTERM, timeout)
        self._remove_temporary_dir()

    def kill(self) -> None:
        """End the process with SIGKILL, like a crash. :meth:`start` starts it again on the same port and data."""
        self._terminate(signal.SIGKILL, 0.0)

    def restart(self) -> None:
        """Stop the broker cleanly, and start it again on the same port and data."""
        self._terminate(signal.SIGTERM, 15.0)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Topics

    def create_topic(self, name: str, partitions: int = 1, configs: Mapping[str, str] | None = None) -> bool:
        """Create a topic, and wait until its partitions have leaders.

        Parameters
        ----------
        name
            Name of the topic.
        partitions
            Number of partitions.
        configs
            Topic configuration by Kafka's names.

        Returns
        -------
        bool
            False if the topic existed, whatever its partitions.

        Raises
        ------
        LocalBrokerError
            Kafka rejected the name or the configuration.
        """
        return create_topic(f"{HOST}:{self._internal_port}", name, partitions, configs or {})

    # Implementation

    @property
    def _console(self) -> Path:
        return self.data_dir / "logs" / "console.log"

    @property
    def _server_log(self) -> Path:
        return self.data_dir / "logs" / "server.log"

    def _launch(self, distribution: Distribution, lock: int, *, find_port: bool) -> None:
        """Start the process and wait until it is ready; repeat if another program takes its port first."""
        for _ in range(_PORT_ATTEMPTS):
            try:
                self._launch_once(distribution, lock, find_port=find_port)
            except _PortLostError:
                if not find_port:
                    check_port(self._port)
            else:
                return
        raise port_taken_error(self._port)

    def _launch_once(self, distribution: Distribution, lock: int, *, find_port: bool) -> None:
        ports = free_ports(3) if find_port else [self._port, *free_ports(2)]
        self._port, self._internal_port, controller_port = ports
        where = self.data_dir
        settings = where / "server.properties"
        own = self._port, self._internal_port, controller_port
        properties = server_properties(own, "kafka", self._properties, self._listeners)
        settings.touch(mode=0o600)  # may contain passwords of key stores
        settings.write_text(format_properties(properties), encoding="ascii")
        options = [
            f"-Xmx{self._heap_mb}m",
            "-Dstreamkm.logs=logs",
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
            "-Djava.io.tmpdir=tmp",  # codecs extract native code there; it must not remain after SIGKILL
            "-Djava.awt.headless=true",
            "-XX:+ExitOnOutOfMemoryError",
            *self._jvm_options,
        ]
        if distribution.aot_cache.exists():
            # If it does not match (another path or CPU) Java continues without it; its messages are not errors.
            options += [f"-XX:AOTCache={distribution.aot_cache}", "-Xlog:aot*=off", "-Xlog:cds*=off"]
        command = [
            *(sys.executable, "-I", "-S", str(HERE / "watchdog.py"), str(os.getpid())),
            str(where) if self._temporary else "",
            *java_command(distribution, *options),
            *("kafka.Kafka", settings.name),
        ]
        self._log_start = {path: path.stat().st_size for path in (self._console, self._server_log) if path.exists()}
        with self._console.open("ab") as console:
            self._watchdog = subprocess.Popen(  # noqa: S603 - our own watchdog, our own Java
                command,
                # The paths above are relative to it: Kafka does not support commas in paths.
                cwd=where,
                env={**os.environ, "LC_ALL": "C.UTF-8"},  # else Java cannot decode ü in the paths of its jars
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
                start_new_session=True,  # a terminal's Ctrl-C must reach only the clients, which stop first
            )
        assert self._watchdog.stdout is not None  # noqa: S101 - a pipe was requested
        with self._watchdog.stdout as pipe:
            self._pid = int(pipe.readline() or 0)
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            # Logged when all listeners are bound: INTERNAL may be ready while CLIENT's port is taken.
            if _STARTED in self.log_tail(200) and is_ready(HOST, self._internal_port, left):
                return
            time.sleep(_POLL_SECONDS)
        raise LocalBrokerError(
            f"Kafka was not ready within {self._start_timeout:g} s. Its last log lines:\n{self._log_summary()}\n",
            where=self.bootstrap,
            hint="Increase start_timeout, or look into " + str(self.data_dir / "logs"),
        )

    def _exit_error(self) -> LocalBrokerError:
        """The cause of the process's end, by its logs."""
        tail = self.log_tail(200)
        if "Address already in use" in tail:
            return _PortLostError("A port was taken")
        hint = f"Complete log: {self._data_dir}/logs" if not self._temporary else ""
        for sign, advice in _HINTS.items():
            if sign in tail:
                hint = advice
        code = self._watchdog.returncode if self._watchdog is not None else "?"
        return LocalBrokerError(
            f"Kafka ended with status {code}. Its last log lines:\n{self._log_summary()}\n",
            where=self.bootstrap,
            hint=hint,
        )

    def _log_summary(self) -> str:
        """Last log lines without stack frames."""
        return "\n".join([line for line in self.log_tail(200).splitlines() if not line.startswith("\tat ")][-12:])

    def _terminate(self, how: signal.Signals, timeout: float) -> None:
        watchdog = self._watchdog
        if watchdog is None:
            return
        if watchdog.poll() is None and self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, how)
                os.kill(self._pid, signal.SIGCONT)  # a paused process does not receive SIGTERM
            try:
                watchdog.wait(timeout if how != signal.SIGKILL else None)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
        watchdog.wait()
        self._watchdog = None

    def _remove_temporary_dir(self) -> None:
        if self._temporary and self._data_dir is not None:
            shutil.rmtree(self._data_dir, ignore_errors=True)
            self._data_dir = None
            self._pid = 0


def _temporary_dir() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="streamkm-kafka-"))
    except OSError as error:
        raise LocalBrokerError(
            f"A temporary directory cannot be created ({error.strerror})",
            where=tempfile.gettempdir(),
            hint="Free some space, or give a data directory",
        ) from error


class _PortLostError(LocalBrokerError):
    """A free port was taken before Kafka bound it; never leaves this module."""


_HINTS = {
    "ConfigException": "One of the properties is wrong",
    "OutOfMemoryError": "Give it more memory (heap_mb)",
    "No space left on device": "The disk is full: free some space, or give another data directory",
}
"""Hints by log text; the last match applies."""
