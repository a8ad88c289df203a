"""How ``streamkm serve`` has ranges recomputed: the command and the environment of a child that runs `replay`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

from streamkm.errors import SettingsError
from streamkm.settings import ENV_PREFIX, TABLE, ServeSettings
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
        if any("," in p for p in settings.client):
            raise SettingsError(
                "a property of the Kafka client has a comma, and cannot be handed on to a job",
                where="--client",
                hint="Run streamkm replay by hand, with --config",
            )
        options = [f"{option}={asked[name]}" for name, option in _OPTIONS if asked.get(name) is not None]
        # Behind "--" no name can be taken for an option.
        return [sys.executable, "-m", "consumers", "replay", "--progress-json", *options, "--", model]

    return command


def child_environment(settings: ServeSettings, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a job: that of the service, with its settings of store and broker, and without its token."""
    environment = os.environ if environment is None else environment
    own = {ENV_PREFIX + name.upper() for name in (*TABLE, "config")}
    kept = {n: v for n, v in environment.items() if n not in own and n.removesuffix("_FILE") not in own}
    given = {
        "STORE": settings.store,
        "BOOTSTRAP": settings.bootstrap,
        "CLIENT": ",".join(settings.client),
        "MEMORY": "" if settings.memory is None else str(int(settings.memory)),
        "THREADS": str(settings.threads),
    }
    return kept | {ENV_PREFIX + name: value for name, value in given.items()}
