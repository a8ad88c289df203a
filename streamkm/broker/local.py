"""A real Apache Kafka on this machine, as a context manager."""

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

from streamkm.broker.admin import answers, create_topic
from streamkm.broker.data_dir import open_data_dir
from streamkm.broker.distribution import HERE, Distribution, get_distribution, java_command
from streamkm.broker.properties import (
    HOST,
    check_port,
    check_properties,
    format_properties,
    free_ports,
    port_taken,
    server_properties,
)
from streamkm.errors import LocalBrokerError

_STARTED = "Kafka Server started"
_POLL_SECONDS = 0.02
_PORT_ATTEMPTS = 5
_TAIL_BYTES = 64 * 1024


class LocalBroker:
    """One node of Apache Kafka (KRaft, broker and controller in one JVM), bound to the loopback address.

    The JVM ends when this process ends, however that happens. A terminal's Ctrl-C does not reach it: it ends when
    :meth:`stop` says so, after the clients.

    Parameters
    ----------
    port
        Where clients connect; 0 finds a free one, which stays the same through restarts.
    data_dir
        Kept, and used again by the next broker that is given it; formatted only once. None makes a temporary one, which
        is removed by :meth:`stop`, or when this process ends.
    properties
        Broker properties by Kafka's names, over those of :data:`streamkm.broker.properties.SMALL`. For TLS or SASL set
        the protocol of the listener ``CLIENT`` in ``listener.security.protocol.map``.
    listeners
        More listeners: their names and ports. Their protocols stand in ``listener.security.protocol.map``.
    heap_mb
        Largest Java heap, MiB. The process takes about 320 MiB in all.
    start_timeout
        Seconds until the broker must answer.
    jvm_options
        More options for Java.
    quiet
        Show no progress of a download.

    Raises
    ------
    SettingsError
        A property that LocalBroker sets itself.

    Examples
    --------
    >>> from streamkm.broker import LocalBroker
    >>> broker = LocalBroker(properties={"message.max.bytes": "2000000"})
    >>> broker.alive()
    False

    ``with broker: ...`` starts it and gives ``broker.bootstrap``.
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
        self._own_dir = data_dir is None
        self._data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._heap_mb = heap_mb
        self._start_timeout = start_timeout
        self._jvm_options = tuple(jvm_options)
        self._quiet = quiet
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._pid = 0
        self._log_start: dict[Path, int] = {}

    # What it is

    @property
    def port(self) -> int:
        """Where clients connect; 0 before a first start that was left to find one."""
        return self._port

    @property
    def bootstrap(self) -> str:
        """Address for ``bootstrap.servers``: ``127.0.0.1:port``."""
        return f"{HOST}:{self._port}"

    @property
    def internal(self) -> str:
        """Address of its own listener, which stays plain whatever clients have to bring."""
        return f"{HOST}:{self._internal_port}"

    @property
    def pid(self) -> int:
        """Process id of the JVM of the last start (0 before the first), for signals: SIGKILL, SIGSTOP, SIGCONT."""
        return self._pid

    @property
    def data_dir(self) -> Path:
        """Everything the broker writes: ``kafka/`` the records, ``logs/``, ``server.properties``.

        Raises
        ------
        LocalBrokerError
            It is a temporary one, and the broker was not started or was stopped.
        """
        if self._data_dir is None:
            raise LocalBrokerError("The broker has no data directory", hint="Start it, or give it one")
        return self._data_dir

    def alive(self) -> bool:
        """Whether the process runs (it may be paused by a signal)."""
        return self._watchdog is not None and self._watchdog.poll() is None

    def check(self) -> None:
        """Raise when the broker was started and has died since.

        Raises
        ------
        LocalBrokerError
            With its last log lines, and what to do where that is known.
        """
        if self._watchdog is not None and not self.alive():
            raise self._death()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines that Kafka and Java wrote since the last start."""
        if self._data_dir is None:
            return ""
        tail: list[str] = []
        for path in (self._console, self._server_log):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._log_start.get(path, 0)
                # A file shorter than it was has been rotated: all of it is new.
                file.seek(max(start if start <= size else 0, size - _TAIL_BYTES))
                tail += file.read().decode("utf-8", "replace").splitlines()[-lines:]
        return "\n".join(tail[-lines:])

    # Its life

    def start(self) -> Self:
        """Start the broker, and return when it answers; does nothing when it runs.

        Raises
        ------
        DownloadError
            First start, and Kafka cannot be downloaded.
        PortTakenError
            Another program has the port.
        LocalBrokerError
            The extra ``broker`` is not installed, the data directory cannot be used, or the broker died or did not
            answer in time: its last log lines are in the message.
        """
        if self.alive():
            return self
        first = self._pid == 0
        # Step 1. Kafka and Java, from the cache or the network.
        distribution = get_distribution(quiet=self._quiet)
        # Step 2. A port that was asked for, or used before, must be free.
        find_port = self._port == 0
        if not find_port:
            check_port(self._port)
        try:
            # Step 3. A data directory that is formatted.
            if self._data_dir is None:
                self._data_dir = _temporary_dir()
            with open_data_dir(self._data_dir, distribution.checkpoint) as lock:
                # Step 4. The process, and its answer. It holds the lock from then on.
                self._launch(distribution, lock, find_port=find_port)
        except BaseException:
            self._end(signal.SIGKILL, 0.0)
            if first:  # what an earlier run left is not thrown away because a restart failed
                self._remove_own_dir()
            if find_port:
                self._port = 0
            raise
        return self

    def stop(self, timeout: float = 15.0) -> None:
        """Stop the broker cleanly, and remove a temporary data directory; does nothing when it was stopped.

        Parameters
        ----------
        timeout
            Seconds until it is killed.
        """
        self._end(signal.SIGTERM, timeout)
        self._remove_own_dir()

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would. :meth:`start` starts it again on the same port and data."""
        self._end(signal.SIGKILL, 0.0)

    def restart(self) -> None:
        """Stop the broker cleanly, and start it again on the same port and data."""
        self._end(signal.SIGTERM, 15.0)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Its use

    def create_topic(self, name: str, partitions: int = 1, configs: Mapping[str, str] | None = None) -> bool:
        """Create a topic, and wait until its partitions have leaders.

        Parameters
        ----------
        name
            Of the topic.
        partitions
            Number of partitions.
        configs
            Topic configuration by Kafka's names.

        Returns
        -------
        bool
            False when the topic was there, whatever its partitions.

        Raises
        ------
        LocalBrokerError
            Kafka refuses the name or the configuration.
        """
        return create_topic(f"{HOST}:{self._internal_port}", name, partitions, configs or {})

    # How

    @property
    def _console(self) -> Path:
        return self.data_dir / "logs" / "console.log"

    @property
    def _server_log(self) -> Path:
        return self.data_dir / "logs" / "server.log"

    def _launch(self, distribution: Distribution, lock: int, *, find_port: bool) -> None:
        """Start the process and wait for its answer; again, when a port that was free is lost before Kafka has it."""
        for _ in range(_PORT_ATTEMPTS):
            try:
                self._launch_once(distribution, lock, find_port=find_port)
            except _PortLostError:
                if not find_port:
                    check_port(self._port)
            else:
                return
        raise port_taken(self._port)

    def _launch_once(self, distribution: Distribution, lock: int, *, find_port: bool) -> None:
        ports = free_ports(3) if find_port else [self._port, *free_ports(2)]
        self._port, self._internal_port, controller_port = ports
        where = self.data_dir
        settings = where / "server.properties"
        own = self._port, self._internal_port, controller_port
        properties = server_properties(own, "kafka", self._properties, self._listeners)
        settings.touch(mode=0o600)  # passwords of key stores may stand in it
        settings.write_text(format_properties(properties), encoding="ascii")
        options = [
            f"-Xmx{self._heap_mb}m",
            "-Dstreamkm.logs=logs",
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
            "-Djava.io.tmpdir=tmp",  # codecs unpack native code there; SIGKILL must not leave it behind
            "-Djava.awt.headless=true",
            "-XX:+ExitOnOutOfMemoryError",
            *self._jvm_options,
        ]
        if distribution.start_cache.exists():
            # Where it does not fit (another path, another CPU) Java goes on without it; what it says then is no error.
            options += [f"-XX:AOTCache={distribution.start_cache}", "-Xlog:aot*=off", "-Xlog:cds*=off"]
        command = [
            *(sys.executable, "-I", "-S", str(HERE / "watchdog.py"), str(os.getpid())),
            str(where) if self._own_dir else "",
            *java_command(distribution, *options),
            *("kafka.Kafka", settings.name),
        ]
        self._log_start = {path: path.stat().st_size for path in (self._console, self._server_log) if path.exists()}
        with self._console.open("ab") as console:
            self._watchdog = subprocess.Popen(  # noqa: S603 - our own watchdog, our own Java
                command,
                # All paths above are relative to here: Kafka would take a comma in one for the end of it.
                cwd=where,
                env={**os.environ, "LC_ALL": "C.UTF-8"},  # else Java cannot say ü in the paths of its jars
                pass_fds=(lock,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
                start_new_session=True,  # a terminal's Ctrl-C is for the clients; they stop first
            )
        assert self._watchdog.stdout is not None  # noqa: S101 - a pipe was asked for
        with self._watchdog.stdout as pipe:
            self._pid = int(pipe.readline() or 0)
        self._wait_ready()

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            # The line comes when every listener is bound: INTERNAL alone may answer while CLIENT's port is lost.
            if _STARTED in self.log_tail(200) and answers(HOST, self._internal_port, left):
                return
            time.sleep(_POLL_SECONDS)
        raise LocalBrokerError(
            f"Kafka did not answer within {self._start_timeout:g} s. Its last log lines:\n{self._last_words()}\n",
            where=self.bootstrap,
            hint="Give it more time (start_timeout), or look into " + str(self.data_dir / "logs"),
        )

    def _death(self) -> LocalBrokerError:
        """Say why the process ended, from what it wrote."""
        tail = self.log_tail(200)
        if "Address already in use" in tail:
            return _PortLostError("A port was taken")
        hint = f"All of its log: {self._data_dir}/logs" if not self._own_dir else ""
        for sign, advice in _ADVICE.items():
            if sign in tail:
                hint = advice
        code = self._watchdog.returncode if self._watchdog is not None else "?"
        return LocalBrokerError(
            f"Kafka ended with status {code}. Its last log lines:\n{self._last_words()}\n",
            where=self.bootstrap,
            hint=hint,
        )

    def _last_words(self) -> str:
        """Return the end of the log without stack frames: what is wrong, not where in Kafka."""
        return "\n".join([line for line in self.log_tail(200).splitlines() if not line.startswith("\tat ")][-12:])

    def _end(self, how: signal.Signals, timeout: float) -> None:
        watchdog = self._watchdog
        if watchdog is None:
            return
        if watchdog.poll() is None and self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, how)
                os.kill(self._pid, signal.SIGCONT)  # a paused process would not see SIGTERM
            try:
                watchdog.wait(timeout if how != signal.SIGKILL else None)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
        watchdog.wait()
        self._watchdog = None

    def _remove_own_dir(self) -> None:
        if self._own_dir and self._data_dir is not None:
            shutil.rmtree(self._data_dir, ignore_errors=True)
            self._data_dir = None
            self._pid = 0


def _temporary_dir() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="streamkm-kafka-"))
    except OSError as error:
        raise LocalBrokerError(
            f"There is no temporary directory to be had ({error.strerror})",
            where=tempfile.gettempdir(),
            hint="Free some space, or give a data directory",
        ) from error


class _PortLostError(LocalBrokerError):
    """A port was free when we looked, and taken when Kafka wanted it; never leaves this module."""


_ADVICE = {
    "ConfigException": "One of the properties is wrong",
    "OutOfMemoryError": "Give it more memory (heap_mb)",
    "No space left on device": "The disk is full: free some space, or give another data directory",
}
"""What to do, by what Kafka logs; the last that fits holds."""
