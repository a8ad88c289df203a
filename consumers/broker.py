"""``streamkm broker``: a local Apache Kafka."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

import click

from consumers import terminal

_CHECK_SECONDS = 0.5
EPILOG = """\b
Examples:
  streamkm broker --topic orders:3
  streamkm broker --port 0 --data-dir ./kafka --property message.max.bytes=5000000
"""


def _pairs(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    """Parse NAME=VALUE pairs."""
    pairs = {}
    for value in values:
        name, sign, text = value.partition("=")
        if not (name and sign):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE", ctx, param)
        pairs[name] = text
    return pairs


def _topics(ctx: click.Context, param: click.Parameter, values: Sequence[str]) -> dict[str, int]:
    """Parse NAME or NAME:PARTITIONS."""
    topics = {}
    for value in values:
        name, sign, count = value.partition(":")
        if not name or (sign and not (count.isdecimal() and int(count) > 0)):
            raise click.BadParameter(f"{value!r} is not NAME or NAME:PARTITIONS", ctx, param)
        topics[name] = int(count or 1)
    return topics


@click.command(epilog=EPILOG)
@click.option(
    "--port",
    default=9092,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port on the loopback address; 0: any free one.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Data folder, kept for the next start.  [default: a temporary one]",
)
@click.option(
    "--property",
    "properties",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_pairs,
    help="Broker property, as in server.properties; may be repeated.",
)
@click.option(
    "--topic",
    "topics",
    metavar="NAME[:PARTITIONS]",
    multiple=True,
    callback=_topics,
    help="Create this topic if it does not exist; may be repeated.",
)
@click.option("--prepare", "only_prepare", is_flag=True, help="Download Kafka, prepare fast starts, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Print address and process as one JSON object.")
def broker(
    port: int,
    data_dir: Path | None,
    properties: dict[str, str],
    topics: dict[str, int],
    *,
    only_prepare: bool,
    as_json: bool,
) -> None:
    """Run a local Apache Kafka until Ctrl-C.

    Prints the bootstrap address when it is ready. Needs no Java, Maven or Docker; the first start downloads 44 MB.
    """
    from streamkm.broker import KAFKA_VERSION, LocalBroker, prepare

    prepare(fast_start=only_prepare)
    if only_prepare:
        return
    # SIGTERM ends it like Ctrl-C, during the start too.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    local = LocalBroker(port, data_dir, properties)
    try:
        with terminal.console(err=True).status(f"Starting Apache Kafka {KAFKA_VERSION}"):
            local.start()
        for name, partitions in topics.items():
            created = local.create_topic(name, partitions)
            terminal.say(f"Topic {name}: {'created' if created else 'exists'}", err=True)
        ready = {
            "bootstrap": local.bootstrap,
            "pid": local.pid,
            "data_dir": str(local.data_dir),
            "version": KAFKA_VERSION,
        }
        if as_json:
            terminal.say_json(ready, indent=None)
        else:
            terminal.say(local.bootstrap)
        terminal.say(f"Apache Kafka {KAFKA_VERSION} is ready. Ctrl-C stops it.", err=True)
        while True:
            time.sleep(_CHECK_SECONDS)
            local.check()
    except KeyboardInterrupt:
        terminal.say("Stopping Apache Kafka.", err=True)
    finally:
        local.stop()
        signal.signal(signal.SIGTERM, before)
