"""A PostgreSQL server for tests, from Debian's package, in a temporary folder and on a free loopback port."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlencode

import psycopg
from psycopg import sql

from processes import state
from streamkm.broker.properties import free_ports
from streamkm.stores.sql.schema import metadata
from waiting import PATIENCE, pauses, wait_until

INSTALL = "apt-get install postgresql, or name a server that tests may use: STREAMKM_TEST_POSTGRES=postgresql://..."
USER, PASSWORD = "streamkm", "p@ss/w:rd"  # percent-encoded in URLs: see ENCODED
ENCODED = "p%40ss%2Fw%3Ard"
PORT_ATTEMPTS = 5
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "fsync": "off",  # a third of the time; only a power failure would lose data
    "shared_buffers": "16MB",
    "max_wal_size": "256MB",
    "autovacuum": "off",  # databases of tests exist for seconds
    "jit": "off",
}


class NoPostgresError(Exception):
    """PostgreSQL is not installed."""


def binaries() -> Path:
    """The folder with ``initdb`` and ``postgres``: Debian's newest, or that on the PATH."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    there = shutil.which("initdb")
    if there is None:
        raise NoPostgresError(f"There is no PostgreSQL server to test with. {INSTALL}")
    return Path(there).resolve().parent


class Databases:
    """Databases on a server, one per test.

    Parameters
    ----------
    url
        One that may create databases.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @contextlib.contextmanager
    def fresh(self, options: str = "") -> Iterator[str]:
        """The URL of a new database, which is dropped at the end, closing its connections."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        self.run(sql.SQL("CREATE DATABASE {} " + options).format(sql.Identifier(name)))
        try:
            yield re.sub(r"(://[^/]*/)[^?]*", lambda found: found[1] + name, self.url, count=1)
        finally:
            self.run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def empty(self, url: str) -> None:
        """Delete all rows of a store."""
        self.run(f"TRUNCATE {', '.join(metadata.tables)} RESTART IDENTITY", url)

    def run(self, statement: sql.Composed | str, url: str | None = None) -> None:
        """Run a statement outside a transaction."""
        with psycopg.connect(url or self.url, autocommit=True) as connection:
            connection.execute(statement)


class PostgresServer:
    """A server that can be killed and paused; as root it runs as Debian's user, because it refuses to run as root."""

    def __init__(self) -> None:
        self.bin = binaries()
        self._account = _account()
        # In /tmp whatever TMPDIR is: another user must have access, and the path of a socket is limited in length.
        self.folder = Path(tempfile.mkdtemp(prefix="streamkm-postgres-", dir="/tmp"))
        if self._account is not None:
            shutil.chown(self.folder, self._account)
        (self.port,) = free_ports(
            1
        )  # outside the range of outgoing connections, which could take it while the server is down
        self.process: subprocess.Popen[bytes] | None = None
        self.log, self._started = self.folder / "log", False
        try:
            self._initdb()
        except BaseException:
            shutil.rmtree(self.folder)
            raise

    def _initdb(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        # A linguistic collation, to show that results do not depend on it.
        major = int(re.search(r"\d+", self._call("postgres", "--version"))[0])  # type: ignore[index]
        language = ["--locale-provider=icu", "--icu-locale=en"] if major >= 15 else []
        self._call(
            *("initdb", "--pgdata", self.folder / "data", "--username", USER, "--pwfile", password, "--no-sync"),
            *("--auth-host", "scram-sha-256", "--auth-local", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8"),
            *language,
        )

    def _call(self, program: str, *arguments: object) -> str:
        done = subprocess.run(
            [self.bin / program, *map(str, arguments)], capture_output=True, text=True, check=False, **self._as_owner()
        )
        if done.returncode:
            raise NoPostgresError(f"{program} failed: {done.stderr or done.stdout}")
        return done.stdout

    def _as_owner(self) -> dict[str, Any]:
        if self._account is None:
            return {"cwd": self.folder}
        group = pwd.getpwnam(self._account).pw_gid
        return {"cwd": self.folder, "user": self._account, "group": group, "extra_groups": []}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The URL of the default database."""
        return f"postgresql://{USER}:{ENCODED}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start, and return when it accepts connections, after recovery from a kill."""
        for _ in range(PORT_ATTEMPTS):
            began = self.log.stat().st_size if self.log.exists() else 0
            if self._start_once():
                self._started = True
                return
            said = self.log.read_text(errors="replace")[began:]
            if "could not bind" not in said or self._started:  # later, others know the port
                break
            (self.port,) = free_ports(1)
        raise NoPostgresError(f"PostgreSQL did not start:\n{said[-2000:]}")

    def _start_once(self) -> bool:
        settings = {**SETTINGS, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        command = [self.bin / "postgres", "-D", self.folder / "data", *(f"--{k}={v}" for k, v in settings.items())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, **self._as_owner()
            )
        deadline = time.monotonic() + PATIENCE
        for pause in pauses():
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=int(PATIENCE)).close()
                return True
            if self.process.poll() is not None or time.monotonic() > deadline:
                break
            time.sleep(pause)
        if self.process.poll() is None:
            self.kill()
        self.process = None
        return False

    def heal(self) -> None:
        """Make it run and respond, whatever state a test left it in.

        Raises
        ------
        NoPostgresError
            It does not start any more.
        """
        if self.process is not None:
            if self.process.poll() is None:
                self.resume()
            try:
                psycopg.connect(self.url, connect_timeout=int(PATIENCE)).close()
            except psycopg.OperationalError:
                self.kill()
        if self.process is None:
            self.start()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop in mode "fast", as Debian does: closes connections and rolls transactions back."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.send_signal(signal.SIGCONT)  # a paused server would not handle the signal
            self.process.wait(PATIENCE)
            self.process = None

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL to all its processes; returns when all have ended, or a start would find shared memory in use."""
        assert self.process is not None
        postmaster = self.process.pid
        self.process.send_signal(signal.SIGSTOP)  # so that it starts no more children, and they still have a parent
        wait_until(lambda: state(postmaster) in {"T", "Z", ""})
        children = _children(postmaster)
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        self.process.wait(PATIENCE)
        self.process = None
        wait_until(lambda: {state(child) for child in children} <= {"Z", ""}, "the end of PostgreSQL's processes")

    def pause(self) -> None:
        """SIGSTOP to all its processes."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume after a pause."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Stop at once and remove all files."""
        if self.process is not None:
            self.kill()
        shutil.rmtree(self.folder)

    def _signal(self, number: signal.Signals) -> None:
        # The postmaster first, so that it does not see its children end. Each child has a session of its own.
        assert self.process is not None
        self.process.send_signal(number)
        for child in _children(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, number)


def _children(parent: int) -> Sequence[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            pid, rest = stat.read_text().split(" (", maxsplit=1)
            if int(rest.rpartition(") ")[2].split()[1]) == parent:
                found.append(int(pid))
    return found


def _account() -> str | None:
    """The user who runs the server; None: the current one."""
    if os.geteuid() != 0:
        return None
    there = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in there else "nobody"


def with_parameters(url: str, **parameters: str) -> str:
    """A URL with additional parameters of libpq."""
    return url + ("&" if "?" in url else "?") + urlencode(parameters, quote_via=quote)
