"""``streamkm``: the group of all commands. The module of a command is imported when it runs."""

from __future__ import annotations

import contextlib
import importlib
import sys
import threading
import traceback
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from consumers import terminal
from consumers.options import EXIT_CODES, exit_code
from streamkm.errors import SettingsError, StreamkmError
from streamkm.redaction import redact

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("consumers.demo:demo", "See it work: broker, real records, consumer, service and a live view."),
    "live": ("consumers.live:live", "Cluster the records of a topic as they arrive."),
    "replay": ("consumers.replay:replay", "Run exact K-Means over a range of a topic."),
    "serve": ("consumers.serve:serve", "Serve models, clusters and predictions over HTTP."),
    "tokens": ("consumers.tokens:tokens", "Manage the tokens of the HTTP service."),
    "fit": ("consumers.fit:fit", "Run exact K-Means over files, or over the rows of a database."),
    "feed": ("consumers.feed:feed", "Write real sample records into a topic."),
    "broker": ("consumers.broker:broker", "Run a local Apache Kafka."),
    "predict": ("consumers.predict:predict", "Predict the clusters of points from standard input."),
    "models": ("consumers.inspect:models", "List the models of a store."),
    "inspect": ("consumers.inspect:inspect", "Show progress and clusters of a model."),
    "snapshots": ("consumers.inspect:snapshots", "List the snapshots of a model."),
    "events": ("consumers.inspect:events", "List the events of clusters: births, deaths, splits, merges, drifts."),
    "diff": ("consumers.replay:diff", "Compare two snapshots of a model."),
    "promote": ("consumers.replay:promote", "Put a snapshot in charge: a recomputed or an older one."),
    "quarantine": ("consumers.quarantine:quarantine", "List, show and retry bad records."),
    "store": ("consumers.store:store", "Back up, check and compact a store."),
    "verify": ("consumers.verify:verify", "Prove a snapshot from its journal and its topic."),
    "compile": ("consumers.compile:compile_", "Compile all kernels, so that later starts are fast."),
    "config": ("consumers.config:config", "Show every setting, its value and its origin."),
    "assign": ("consumers.assign:assign", "Write the cluster of each record to another topic, exactly once."),
    "notify": ("consumers.notify:notify", "Send the events of clusters to a topic and to webhooks."),
    "doctor": ("consumers.doctor:doctor", "Check the installation."),
}
"""Name -> module and attribute, and description in ``streamkm --help``."""

OPTIONAL_PACKAGES = {"polars": "pip install polars, or use the image streamkm:files"}
"""Packages that an image may lack -> how to get them."""


UNEXPECTED = 1
"""Exit status of an unexpected error."""


class _BrokenPipeError(Exception):
    """A pipe or socket other than standard output broke; click would exit silently, as for standard output."""


class Commands(click.Group):
    """A group that imports the module of a command when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as e:
            raise _BrokenPipeError from e

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="\b\nExamples:\n"
    "  streamkm demo\n"
    "  streamkm live orders --topic orders --fields amount,lat,lon --k 8\n"
    "  streamkm serve --port 8000\n"
    "\b\nExit status: 0 success, 1 unexpected error, "
    + ", ".join(
        f"{n} {' or '.join(c.__name__ for c, m in EXIT_CODES if m == n)}"
        for n in sorted(set(dict(EXIT_CODES).values()))
    )
    + ", 10 a hanging loop (live) or no promotion in time (promote)"
    + f", {terminal.INTERRUPTED} Ctrl-C, {terminal.READER_GONE} the reader of the output has exited.",
)
@click.version_option(package_name="streamkm")
def cli() -> None:
    """Streaming K-Means on Apache Kafka: live centroids, exact counts, stable clusters."""


def main() -> NoReturn:
    """Entry point of ``streamkm``."""
    terminal.open_streams()
    threading.excepthook = _thread_failed
    terminal.exit_with(_status())


def _status() -> int:
    """Run the command line, report any error, and return the exit status."""
    try:
        try:
            result = cli(prog_name="streamkm", standalone_mode=False)
        except SystemExit as e:
            result = e.code
        terminal.flush()  # errors of writing are raised here
    except BaseException as e:  # noqa: BLE001 - reports every error
        return _report(e)
    return result if isinstance(result, int) else 0


def _report(error: BaseException) -> int:
    """Report the error that ended a command; returns the exit status."""
    match error:
        case StreamkmError():
            status = _failed(error, exit_code(error))
        case terminal.ReaderGoneError():
            status = terminal.READER_GONE
        case click.Abort() | KeyboardInterrupt():
            status = terminal.INTERRUPTED
        case NoArgsIsHelpError():
            for line in error.format_message().splitlines():
                terminal.say(line, err=True)
            status = error.exit_code
        case click.ClickException():
            context = error.ctx if isinstance(error, click.UsageError) else None
            hint = f"{context.command_path if context else 'streamkm'} --help shows the usage"
            status = _failed(SettingsError(error.format_message(), hint=hint), error.exit_code)
        case ModuleNotFoundError() if error.name in OPTIONAL_PACKAGES:
            missing = SettingsError(f"{error.name} is not installed", hint=OPTIONAL_PACKAGES[error.name])
            status = _failed(missing, exit_code(missing))
        case _:
            status = _unexpected(error.__cause__ or error if isinstance(error, _BrokenPipeError) else error)
    return status


def _failed(error: StreamkmError, status: int) -> int:
    terminal.fail(error.message, where=error.where, hint=error.hint)
    # With --json the error is JSON too: a command that fails has printed nothing yet.
    if "--json" in sys.argv[1:] and not isinstance(error, terminal.OutputError):
        content = {"kind": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        with contextlib.suppress(terminal.ReaderGoneError, terminal.OutputError):  # it is on standard error too
            terminal.say_json({"error": {**content, "status": status}})
    return status


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _unexpected(args.exc_value)


def _unexpected(error: BaseException) -> int:
    """Report a bug of streamkm, with its traceback."""
    for line in redact("".join(traceback.format_exception(error))).splitlines():
        terminal.say(line, err=True)
    return _failed(
        StreamkmError(
            f"unexpected {type(error).__name__}: {error}",
            hint="This is a bug of streamkm: please report it, with the lines above",
        ),
        UNEXPECTED,
    )


if __name__ == "__main__":
    main()
