"""``streamkm``: one command for everything. A sub-command's module is imported when it runs."""

from __future__ import annotations

import importlib
from typing import NoReturn

import click

from consumers.options import EXIT_CODES, leave
from streamkm.errors import SettingsError, StreamkmError

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
    "\b\nExit status: 0 done, 1 unexpected, " + ", ".join(f"{code} {cls.__name__}" for cls, code in EXIT_CODES) + ".",
)
@click.version_option(package_name="streamkm")
def cli() -> None:
    """Streaming K-Means on Apache Kafka: live centroids, exact counts, stable clusters."""


def main() -> NoReturn:
    """Entry point of ``streamkm``."""
    try:
        cli(prog_name="streamkm")
    except StreamkmError as e:
        leave(e)
    except ModuleNotFoundError as e:
        if e.name not in LEFT_OUT:
            raise
        leave(SettingsError(f"{e.name} is not installed", hint=LEFT_OUT[e.name]))
    raise AssertionError("click leaves by itself")


if __name__ == "__main__":
    main()
