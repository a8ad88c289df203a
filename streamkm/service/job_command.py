"""Command and environment of the child process in which ``streamkm serve`` runs a recomputation job."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from streamkm.errors import SettingsError
from streamkm.settings import ENV_PREFIX, ServeSettings
from streamkm.state import Json

_OPTIONS = ("from", "to", "k", "init", "n_init", "max_iter")
"""Options of a job; ``streamkm replay`` has the same."""


def replay_command(settings: ServeSettings) -> Callable[[str, Json], Sequence[str]]:
    """A function that makes the command of a job. It has no secrets: every user of the machine can see arguments."""

    def command(model: str, options: Json) -> Sequence[str]:
        if not settings.bootstrap.strip():
            raise SettingsError(
                "this service has no broker to read from",
                where="--bootstrap",
                hint="Start streamkm serve with --bootstrap HOST:PORT",
            )
        if any("," in p for p in settings.kafka_property):
            raise SettingsError(
                "a property of the Kafka client has a comma, and cannot be passed on to a job",
                where="--kafka-property",
                hint="Run streamkm replay by hand, with --config",
            )
        given = [(name.replace("_", "-"), options[name]) for name in _OPTIONS if options.get(name) is not None]
        arguments = [f"--{option}={value}" for option, value in given]
        # After "--" no name is parsed as an option.
        return [sys.executable, "-P", "-m", "consumers", "replay", "--progress-json", *arguments, "--", model]

    return command


_KEPT = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "STREAMKM_CACHE"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "KRB5_CONFIG", "KRB5CCNAME", "KRB5_CLIENT_KTNAME"),
    )
)
_KEPT_PREFIXES = ("LC_", "NUMBA_", "OMP_", "KMP_", "OPENBLAS_", "MKL_")
_POSTGRES_PREFIX = "PG"
_AWS_PREFIX = "AWS_"
_FILES = frozenset(
    ["PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR"]
)
_URL_FILE_PARAMETERS = ("passfile", "servicefile", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir")
_PROPERTY_FILE_SUFFIXES = ("file", "location")


def child_environment(settings: ServeSettings, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a job: the settings of store and broker, and the variables of the service that a job needs.

    A job runs in the root folder, so that no file in the working directory of the service is executed or read as its
    settings. Relative paths are made absolute here.
    """
    environment = os.environ if environment is None else environment
    kept = {name: value for name, value in environment.items() if _is_needed(name, settings)}
    kept |= {name: _absolute(kept[name]) for name in _FILES & kept.keys()}
    # The same code as here: -P excludes the working directory from the module search path.
    folders = [str(Path(__file__).resolve().parents[2]), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    kept |= {"PYTHONPATH": os.pathsep.join(dict.fromkeys(_absolute(f) for f in folders if f)), "PYTHONSAFEPATH": "1"}
    given = {
        "STORE": _absolute_url(settings.store),
        "BOOTSTRAP": settings.bootstrap,
        "KAFKA_PROPERTY": ",".join(map(_absolute_property, settings.kafka_property)),
        "MEMORY": "" if settings.memory is None else str(int(settings.memory)),
        "THREADS": str(settings.threads),
    }
    return kept | {ENV_PREFIX + name: value for name, value in given.items()}


def _is_needed(name: str, settings: ServeSettings) -> bool:
    if name in _KEPT or name.startswith(_KEPT_PREFIXES):
        return True
    if name.startswith(_POSTGRES_PREFIX):
        return settings.store.startswith("postgres")
    return name.startswith(_AWS_PREFIX) and any(p.upper().endswith("AWS_MSK_IAM") for p in settings.kafka_property)


def _absolute(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # does not resolve links


def _absolute_url(store: str) -> str:
    """The URL of a store with absolute paths."""
    try:
        url = make_url(store)
    except ArgumentError:
        return store  # the child reports the error
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        made = url.set(database=_absolute(url.database))
    else:
        made = url.update_query_dict({n: _absolute(str(url.query[n])) for n in _URL_FILE_PARAMETERS if n in url.query})
    return store if made == url else made.render_as_string(hide_password=False)


def _absolute_property(text: str) -> str:
    name, _, value = text.partition("=")
    return f"{name}={_absolute(value)}" if value and name.endswith(_PROPERTY_FILE_SUFFIXES) else text
