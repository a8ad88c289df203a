"""Engines for PostgreSQL: connections, their settings and transactions, and the translation of errors.

Requires psycopg.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from psycopg.conninfo import conninfo_to_dict

from streamkm.errors import SettingsError
from streamkm.redaction import redact_url, remember, remember_url
from streamkm.stores.sql.database import Engines

_EXAMPLE = "Write postgresql://user:password@host:5432/database"
_ENCODE = "Percent-encode it where it has one of @ : / ? # %, or leave it out and set PGPASSWORD or use ~/.pgpass"

# Parameters of libpq that the URL can override. A lost peer is noticed within a minute, while receiving (keepalives)
# and while sending (tcp_user_timeout).
_DEFAULTS = {
    "application_name": "streamkm",
    "connect_timeout": "5",
    "client_encoding": "utf8",
    "keepalives_idle": "30",
    "keepalives_interval": "10",
    "keepalives_count": "3",
    "tcp_user_timeout": "60000",
}
# An owner that is stopped inside a transaction would keep the lock on its lease's row, and so block its successor. The
# server ends such a transaction after this time (the default duration of a lease); when the owner resumes, its commit
# fails, and later ones are rejected by the lease's epoch.
_IDLE_SECONDS = 10
# An arbitrary key of an advisory lock that other programs on this database do not use.
_MIGRATION_LOCK = int.from_bytes(b"streamkm")
_MAX_OVERFLOW = 8

_LOST = ("the connection was lost", "The next call makes a new one; look at the server's log if this goes on")
_STARTING = ("the server is starting or shutting down", "Wait until it takes connections again")
_FULL = ("the server has no connection left", "Close other programs' connections, or raise max_connections")
_USER = ("it does not let this user in", "Correct user and password: in the URL, in PGPASSWORD or in ~/.pgpass")
_DATABASE = ("this database does not exist", "Make it with createdb, or correct the URL")
_LOCKED = ("it was locked by another writer for too long", "Find the process that holds it in pg_stat_activity")
_AGAIN = ("other transactions came between", "Nothing of this one was kept: call again")
_STOOD_STILL = ("a transaction stood still for too long, and the server ended it", "Nothing of it was kept: call again")
_DISK = ("the disk is full", "Free some space on the server; nothing of this write was kept")
_MEMORY = ("the server ran out of memory", "Give it more, or lower what its connections may take")
_READ_ONLY = ("it is read-only", "Name the primary server, or a database that may be written")
_DENIED = ("access is denied", "GRANT this user USAGE and CREATE on the schema and all rights on tables streamkm_*")
_NO_SCHEMA = ("there is no schema to make tables in", "Make it with CREATE SCHEMA, or correct search_path")
_BROKEN = ("the server does not read or write its disk", "Look at the disk and at the server's log")
_CANCELLED = ("the server broke off the statement", "Raise statement_timeout, or call again")

# By SQLSTATE, or by its class (the first two characters).
_CODES = {
    "08": _LOST,
    "25P03": _STOOD_STILL,
    "25006": _READ_ONLY,
    "28": _USER,
    "3D000": _DATABASE,
    "3F000": _NO_SCHEMA,
    "40": _AGAIN,
    "42501": _DENIED,
    "53": ("the server lacks resources", "Look at its log"),
    "53100": _DISK,
    "53200": _MEMORY,
    "53300": _FULL,
    "55P03": _LOCKED,
    "57": _LOST,
    "57014": _CANCELLED,
    "57P03": _STARTING,
    "58": _BROKEN,
    "XX": _BROKEN,
}
# Without a connection there is only text, in which the server's part may be localised.
_WORDS = {
    r"authentication|no password supplied|pg_hba\.conf|role .* does not exist": _USER,
    r"database .* does not exist": _DATABASE,
    r"too many (clients|connections)|remaining connection slots": _FULL,
    r"starting up|shutting down|in recovery mode|not yet accepting": _STARTING,
    r"resolve host|translate host name": ("no host has this name", "Correct the host in the URL"),
    r"timeout": ("the server does not answer", "Look whether it runs and whether a firewall lets this machine through"),
    r"refused|No such file|unreachable": ("no server is there", "Start it, or correct host and port in the URL"),
    r"closed|lost|reset|Broken pipe|consuming input|sending": _LOST,
    r"invalid .* value|certificate|SSL": ("it cannot be connected to", "Correct the parameters of the URL"),
}


def engines(url: str, busy_timeout: float) -> Engines:
    """The engines of a PostgreSQL database.

    Parameters
    ----------
    url
        A URL of libpq: ``postgresql://user:password@host:port/database?sslmode=require``. Missing parts come from
        libpq's environment variables, password file and service file.
    busy_timeout
        Seconds that a statement waits for a lock.

    Raises
    ------
    SettingsError
        libpq cannot read the URL.
    """
    remember_url(url)
    named = _parse_url(url)
    remember(named.get("password", ""), named.get("sslpassword", ""))
    # The options of the URL come last and take precedence.
    options = {
        "lock_timeout": f"{max(1, round(1000 * busy_timeout))}ms",  # 0 would mean no limit
        "idle_in_transaction_session_timeout": f"{_IDLE_SECONDS}s",
        "extra_float_digits": "3",  # floats round-trip exactly, whatever the user's or database's setting
    }
    text = " ".join([*(f"-c {name}={value}" for name, value in options.items()), named.get("options", "")])
    engine = sa.create_engine(
        "postgresql+psycopg://",
        connect_args={**_DEFAULTS, **named, "options": text},
        pool_size=8,
        max_overflow=_MAX_OVERFLOW,
        pool_pre_ping=True,  # replaces connections that a restart of the server closed
    )
    sa.event.listen(engine, "do_connect", _connect)
    reader = engine.execution_options(isolation_level="REPEATABLE READ")
    writer, exclusive = (engine.execution_options(isolation_level="READ COMMITTED") for _ in range(2))
    sa.event.listen(reader, "begin", _read_only)
    sa.event.listen(writer, "begin", _server_default)
    sa.event.listen(exclusive, "begin", _one_at_a_time)
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    return Engines(reader, writer, exclusive, autocommit, _shown(named), _explain)


def _connect(dialect: sa.Dialect, _: object, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Connect, and close the socket of a failed attempt at once.

    An error of psycopg and its connection refer to each other through the traceback: without clearing the frames the
    socket would stay open, and the server would keep a process for it, until the next garbage collection.
    """
    try:
        return dialect.connect(*arguments, **named)
    except psycopg.Error as error:
        traceback.clear_frames(error.__traceback__)
        raise


# SQLAlchemy's own option would set READ WRITE on the other connections, which a standby rejects with an error of its
# own, and which overrides the settings of the user or the database.
def _read_only(connection: sa.Connection) -> None:
    _driver(connection).read_only = True


def _server_default(connection: sa.Connection) -> None:
    _driver(connection).read_only = None


def _one_at_a_time(connection: sa.Connection) -> None:
    _server_default(connection)
    connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")


def _driver(connection: sa.Connection) -> psycopg.Connection:
    return cast("psycopg.Connection", connection.connection.dbapi_connection)


def _parse_url(url: str) -> dict[str, str]:
    """The parts of a URL by libpq's names. Errors never contain any part of a password.

    Raises
    ------
    SettingsError
        The URL cannot be parsed.
    """
    rest = url.partition("://")[2]
    authority, _, database = rest.partition("?")[0].partition("/")
    if authority.count("@") > 1 or "@" in database:  # libpq would read the end of the password as the host
        raise SettingsError("the password in the URL is not encoded", hint=_ENCODE)
    found = _parse(rest)
    if isinstance(found, str):
        # libpq's message quotes the text. Without the part before the @ it can be shown.
        found = _parse(re.sub(".*@", "", rest, flags=re.DOTALL))
        if isinstance(found, str):
            shown = "" if "password" in rest else f" ({found})"
            raise SettingsError(f"this URL cannot be read{shown}", hint=_EXAMPLE)
        raise SettingsError("user and password in the URL cannot be read", hint=_ENCODE)
    return found


def _parse(rest: str) -> dict[str, str] | str:
    try:
        return {name: str(value) for name, value in conninfo_to_dict(f"postgresql://{rest}").items()}
    except psycopg.ProgrammingError as e:
        return str(e).strip()


def _shown(named: Mapping[str, str]) -> str:
    user = f"{named['user']}@" if "user" in named else ""
    port = f":{named['port']}" if "port" in named else ""
    return redact_url(f"postgresql://{user}{named.get('host', '')}{port}/{named.get('dbname', '')}")


def _explain(error: BaseException) -> tuple[str, str] | None:
    code = getattr(error, "sqlstate", None)
    if code is not None:
        return _CODES.get(code) or _CODES.get(code[:2])
    if not isinstance(error, psycopg.OperationalError):
        return None
    text = str(error)
    fitting = (meaning for words, meaning in _WORDS.items() if re.search(words, text))
    return next(fitting, ("it cannot be reached", "Look whether the server runs, and correct the URL"))
