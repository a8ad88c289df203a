"""Command-line options from the table of settings, and exit statuses of errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from consumers import terminal
from consumers.terminal import OutputError
from streamkm import errors, settings
from streamkm.times import parse_duration

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES: tuple[tuple[type[errors.StreamkmError], int], ...] = (
    (errors.SettingsError, 2),
    (errors.ModelMismatchError, 2),
    (errors.NotFoundError, 3),
    (errors.TopicNotFoundError, 3),
    (errors.MissingFileError, 3),
    (errors.WriterFencedError, 12),
    (errors.SourceError, 4),
    (errors.CodecUnavailableError, 4),
    (errors.StoreError, 5),
    (errors.BadRecordsError, 6),
    (errors.DataError, 6),
    (errors.LocalBrokerError, 7),
    (errors.NotReadyError, 8),
    (errors.ServiceError, 11),
    (OutputError, 13),
)
"""Error -> exit status; 1 for any other error."""


def exit_code(error: errors.StreamkmError) -> int:
    """Exit status of a program that fails with this error."""
    return next((code for cls, code in EXIT_CODES if isinstance(error, cls)), 1)


def with_settings(cls: type[settings.S], *, only: tuple[str, ...] = ()) -> Callable[[F], F]:
    """Add an option for each setting of `cls` (or only those of `only`), and ``--config``, to a command.

    The command gets an argument ``settings``, an instance of `cls`. Options are text; the table of settings parses and
    validates them, so that command line, environment and file have the same errors.
    """

    def decorate(command: F) -> F:
        def wrapped(config: Path | None, **kwargs: Any) -> Any:
            values = {name: kwargs.pop(name) for name in chosen}
            given = {name: None if value == () else value for name, value in values.items()}  # (): not repeated once
            for name, value in given.items():
                texts = value if isinstance(value, tuple) else (value,)
                if any(text is not None and settings.holds_secret(name, text) for text in texts):
                    variable = f"{settings.ENV_PREFIX}{name.upper()}_FILE"
                    warn_of_argument("--" + name.replace("_", "-"), f"set {variable} to a file that holds it")
            return command(settings=settings.load(cls, given, file=config), **kwargs)

        wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
        result: Any = wrapped
        result.__click_params__ = list(getattr(command, "__click_params__", []))
        for name in reversed(chosen):
            result = _option(own[name])(result)
        result = click.option(
            "--config",
            type=click.Path(path_type=Path, exists=True, dir_okay=False),
            envvar=settings.ENV_PREFIX + "CONFIG",
            help="TOML file with any of these settings.",
        )(result)
        return cast("F", result)

    # The help of a setting may differ between programs.
    own: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    chosen = only or settings.names(cls)
    return decorate


def warn_of_argument(what: str, instead: str) -> None:
    """Warn that a secret on the command line is visible to other users."""
    text = f"warning: {what}: every user of this machine can see the secret in it, in the list of processes; {instead}"
    terminal.say((text, "yellow"), err=True)


def _option(f: dataclasses.Field[Any]) -> Callable[[Any], Any]:
    default = settings.shown(f, f.default)
    text = f.metadata["help"] + (f"  [{default}]" if default else "")
    name, metavar = "--" + f.name.replace("_", "-"), f.metadata["metavar"]
    repeated = metavar == settings.PROPERTY_METAVAR
    return click.option(name, f.name, default=None, metavar=metavar or None, multiple=repeated, help=text)


class DurationType(click.ParamType[float]):
    """A duration as in settings: 500ms, 30s, 5m; a bare number is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """See click."""
        try:
            return parse_duration(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)


def verbose(more: str = "More log lines") -> Callable[[F], F]:
    """Add the option ``-v``; the command gets its count as ``verbosity``."""
    text = f"{more}; -vv: those of libraries too."
    return click.option("-v", "--verbose", "verbosity", count=True, metavar="", help=text)


def example(*lines: str) -> str:
    """An epilog with examples, whose lines click does not wrap."""
    return "\b\n" + "\n".join(("Example:" if len(lines) == 1 else "Examples:", *("  " + x for x in lines)))
