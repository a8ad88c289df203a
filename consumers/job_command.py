"""How ``streamkm serve`` has ranges recomputed: the command and the environment of a child that runs `replay`."""

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

_ASKED = (("from", "--from"), ("to", "--to"), ("k", "--k"), ("init", "--init"), ("n_init", "--n-init"))
_OPTIONS = (*_ASKED, ("max_iter", "--max-iter"))


def replay_command(settings: ServeSettings) -> Callable[[str, Json], Sequence[str]]:
    """What makes the command of a job. Nothing secret is in it: arguments can be seen by every user of the machine."""

    def command(model: str, asked: Json) -> Sequence[str]:
        if not settings.bootstrap.strip():
            raise SettingsError(
                "this service knows no broker to read from",
                where="--bootstrap",
                hint="Start streamkm serve with --bootstrap HOST:PORT",
            )
        if any("," in p for p in settings.kafka_property):
            raise SettingsError(
                "a property of the Kafka client has a comma, and cannot be handed on to a job",
                where="--kafka-property",
                hint="Run streamkm replay by hand, with --config",
            )
        options = [f"{option}={asked[name]}" for name, option in _OPTIONS if asked.get(name) is not None]
        # Behind "--" no name can be taken for an option.
        return [sys.executable, "-P", "-m", "consumers", "replay", "--progress-json", *options, "--", model]

    return command


_KEPT = frozenset(
    (
        *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH"),
        *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "STREAMKM_CACHE"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "KRB5_CONFIG", "KRB5CCNAME", "KRB5_CLIENT_KTNAME"),
    )
)
_KEPT_KINDS = ("LC_", "NUMBA_", "OMP_", "KMP_", "OPENBLAS_", "MKL_")
_OF_POSTGRES = "PG"
_OF_AWS = "AWS_"
_FILES = frozenset(
    ["PGPASSFILE", "PGSERVICEFILE", "PGSYSCONFDIR", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT", "PGSSLCRL", "PGSSLCRLDIR"]
)
_FILES_OF_A_URL = ("passfile", "servicefile", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir")
_FILES_OF_A_CLIENT = ("file", "location")


def child_environment(settings: ServeSettings, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a job: the settings of store and broker, and of the service's own only what is known to serve.

    A job runs in a folder of nobody's, so that nothing which lies in that of the service is run, or read as its
    settings. Paths that are relative to that one are made absolute here.
    """
    environment = os.environ if environment is None else environment
    kept = {name: value for name, value in environment.items() if _serves(name, settings)}
    kept |= {name: _from_here(kept[name]) for name in _FILES & kept.keys()}
    # The same code as here, wherever it was found: -P leaves out the folder that a program is started in.
    folders = [str(Path(__file__).resolve().parents[1]), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    kept |= {"PYTHONPATH": os.pathsep.join(dict.fromkeys(_from_here(f) for f in folders if f)), "PYTHONSAFEPATH": "1"}
    given = {
        "STORE": _absolute_url(settings.store),
        "BOOTSTRAP": settings.bootstrap,
        "KAFKA_PROPERTY": ",".join(map(_absolute_property, settings.kafka_property)),
        "MEMORY": "" if settings.memory is None else str(int(settings.memory)),
        "THREADS": str(settings.threads),
    }
    return kept | {ENV_PREFIX + name: value for name, value in given.items()}


def _serves(name: str, settings: ServeSettings) -> bool:
    if name in _KEPT or name.startswith(_KEPT_KINDS):
        return True
    if name.startswith(_OF_POSTGRES):
        return settings.store.startswith("postgres")
    return name.startswith(_OF_AWS) and any(p.upper().endswith("AWS_MSK_IAM") for p in settings.kafka_property)


def _from_here(path: str) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # links stay what they are


def _absolute_url(store: str) -> str:
    """The URL of a store with paths that hold in any folder."""
    try:
        url = make_url(store)
    except ArgumentError:
        return store  # the child says what is wrong
    if url.get_backend_name() == "sqlite" and url.database and url.database != ":memory:":
        made = url.set(database=_from_here(url.database))
    else:
        made = url.update_query_dict({n: _from_here(str(url.query[n])) for n in _FILES_OF_A_URL if n in url.query})
    return store if made == url else made.render_as_string(hide_password=False)


def _absolute_property(text: str) -> str:
    name, _, value = text.partition("=")
    return f"{name}={_from_here(value)}" if value and name.endswith(_FILES_OF_A_CLIENT) else text
