"""``streamkm``: one command for everything. A sub-command's module is imported when it runs."""

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
    "live": ("consumers.live:live", "Cluster a topic as its records come."),
    "replay": ("consumers.replay:replay", "Run the exact algorithm over a range of a topic."),
    "serve": ("consumers.serve:serve", "Answer queries about the clusters over HTTP."),
    "tokens": ("consumers.tokens:tokens", "Say who may read, and who may act, over HTTP."),
    "fit": ("consumers.fit:fit", "Run the exact algorithm over files, or over the rows of a database."),
    "feed": ("consumers.feed:feed", "Write real sample records into a topic, to try things with."),
    "broker": ("consumers.broker:broker", "Run a real local Apache Kafka."),
    "predict": ("consumers.predict:predict", "Ask a service where points of standard input belong."),
    "models": ("consumers.inspect:models", "List the models of a store."),
    "inspect": ("consumers.inspect:inspect", "Show a model: progress and clusters."),
    "snapshots": ("consumers.inspect:snapshots", "List what a model has published."),
    "events": ("consumers.inspect:events", "Tell what happened to clusters: births, deaths, splits, merges, drifts."),
    "diff": ("consumers.replay:diff", "Compare two snapshots of a model."),
    "promote": ("consumers.replay:promote", "Put a snapshot in charge: a recomputed or an older one."),
    "quarantine": ("consumers.quarantine:quarantine", "Look at records that could not be learned, and try them again."),
    "store": ("consumers.store:store", "Back a store up, check it, give room back."),
    "verify": ("consumers.verify:verify", "Prove a snapshot: learn the topic again by the journal and compare."),
    "compile": ("consumers.compile:compile_", "Compile all kernels now, so that no start has to."),
    "config": ("consumers.config:config", "Show every setting, its value and where it comes from."),
    "assign": ("consumers.assign:assign", "Write the cluster of each record to another topic, exactly once."),
    "notify": ("consumers.notify:notify", "Tell others what happens to the clusters: by a topic, by webhooks."),
    "doctor": ("consumers.doctor:doctor", "Say what is installed, what is missing, and how to get it."),
}
"""Name -> where it is, and its line in ``streamkm --help``."""

LEFT_OUT = {"polars": "pip install polars; of the containers take the image streamkm:files"}
"""Packages that an image may do without, and how to get them."""


UNEXPECTED = 1
"""Exit status of an error that is none of ours."""


class _BrokenPipeError(Exception):
    """A pipe or socket other than our output broke: click would leave without a word, as if a reader had left."""


class Commands(click.Group):
    """A group that imports a command when it is used."""

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
    "\b\nExit status: 0 done, 1 unexpected, "
    + ", ".join(
        f"{n} {' or '.join(c.__name__ for c, m in EXIT_CODES if m == n)}"
        for n in sorted(set(dict(EXIT_CODES).values()))
    )
    + f", {terminal.INTERRUPTED} Ctrl-C, {terminal.READER_GONE} nobody reads the output any more.",
)
@click.version_option(package_name="streamkm")
def cli() -> None:
    """Streaming K-Means on Apache Kafka: live centroids, exact counts, stable clusters."""


def main() -> NoReturn:
    """Entry point of ``streamkm``."""
    terminal.open_streams()
    threading.excepthook = _thread_ended
    terminal.exit_with(_status())


def _status() -> int:
    """Run the command of the command line; its exit status. However it ends, that is said, and not by a traceback."""
    try:
        try:
            result = cli(prog_name="streamkm", standalone_mode=False)
        except SystemExit as e:
            result = e.code
        terminal.flush()  # what cannot be written shows here
    except BaseException as e:  # noqa: BLE001 - the last place that can say it in order
        return _said(e)
    return result if isinstance(result, int) else 0


def _said(error: BaseException) -> int:
    """Say why a command ended; the exit status."""
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
            hint = f"{context.command_path if context else 'streamkm'} --help says what there is"
            status = _failed(SettingsError(error.format_message(), hint=hint), error.exit_code)
        case ModuleNotFoundError() if error.name in LEFT_OUT:
            missing = SettingsError(f"{error.name} is not installed", hint=LEFT_OUT[error.name])
            status = _failed(missing, exit_code(missing))
        case _:
            status = _unexpected(error.__cause__ or error if isinstance(error, _BrokenPipeError) else error)
    return status


def _failed(error: StreamkmError, status: int) -> int:
    terminal.fail(error.message, where=error.where, hint=error.hint)
    # Whoever asked for JSON gets JSON; there is none yet, for a command that fails has printed nothing.
    if "--json" in sys.argv[1:] and not isinstance(error, terminal.OutputError):
        told = {"kind": type(error).__name__, "message": error.message, "where": error.where, "hint": error.hint}
        with contextlib.suppress(terminal.ReaderGoneError, terminal.OutputError):  # it stands on standard error too
            terminal.say_json({"error": {**told, "status": status}})
    return status


def _thread_ended(how: threading.ExceptHookArgs) -> None:
    if how.exc_value is not None:
        _unexpected(how.exc_value)


def _unexpected(error: BaseException) -> int:
    """An error of ours: it is said in full, for whoever mends it."""
    for line in redact("".join(traceback.format_exception(error))).splitlines():
        terminal.say(line, err=True)
    return _failed(
        StreamkmError(
            f"unexpected {type(error).__name__}: {error}",
            hint="This is a mistake in streamkm: please report it, with the lines above",
        ),
        UNEXPECTED,
    )


if __name__ == "__main__":
    main()
