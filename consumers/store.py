"""``streamkm store backup | vacuum | check``: care of a store by hand."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from consumers import terminal
from consumers.options import EXIT_CODES, example, with_settings
from streamkm.engine import audit
from streamkm.errors import StoreError
from streamkm.settings import StoreSettings
from streamkm.stores import maintenance, open_store

DAMAGED = dict(EXIT_CODES)[StoreError]
"""Exit status when something is wrong with a store."""


@click.group(epilog=example("streamkm store backup backup.db", "streamkm store check --json", "streamkm store vacuum"))
def store() -> None:
    """Back a store up, check it, and give room back. Consumers and services may be at work meanwhile."""


@store.command(epilog=example("streamkm store backup backup.db", "streamkm live orders --store sqlite:///backup.db"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_settings(StoreSettings)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backup(file: Path, settings: StoreSettings, *, force: bool, as_json: bool) -> None:
    """Copy an SQLite store to FILE as it is at this moment, while it is in use.

    The copy is a store: a consumer that is started on it goes on from there. For PostgreSQL use pg_dump.
    """
    with contextlib.closing(open_store(settings.store, create=False)) as opened:
        size = maintenance.backup(opened, file, overwrite=force)
    if as_json:
        terminal.say_json({"file": str(file), "bytes": size}, indent=None)
    else:
        terminal.say(f"{file}: {size:,} bytes")


@store.command(epilog=example("streamkm store vacuum"))
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def vacuum(settings: StoreSettings, *, as_json: bool) -> None:
    """Give the room of removed snapshots and records back to the disk.

    It needs the room of a second copy for a moment, and consumers wait while it runs. SQLite uses free room again by
    itself, so this is only for a store that will not grow back. PostgreSQL does it by itself.
    """
    with contextlib.closing(open_store(settings.store, create=False)) as opened:
        before, after = maintenance.vacuum(opened)
    if as_json:
        terminal.say_json({"before": before, "after": after}, indent=None)
    else:
        terminal.say(f"{before:,} bytes before, {after:,} after")


@store.command(epilog=example("streamkm store check", "streamkm store check --json"))
@with_settings(StoreSettings)
@click.option("--quick", is_flag=True, help="Do not compare indexes with their tables.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(settings: StoreSettings, *, quick: bool, as_json: bool) -> None:
    """Check that the database is whole, and that what it holds of each model agrees with itself.

    Counters with each other, the journal with the offsets, snapshots with the journal. `streamkm verify` proves more,
    and reads the topic for it. Exit status 5 if anything is wrong.
    """
    with contextlib.closing(open_store(settings.store, create=False)) as opened:
        damaged = maintenance.find_damage(opened, quick=quick)
        names = [] if damaged else [info.spec.name for info in opened.models()]
        wrong = {name: found for name in names if (found := audit(opened, name))}
    if as_json:
        terminal.say_json({"damage": damaged, "models": {name: wrong.get(name, []) for name in names}})
    else:
        for line in damaged:
            terminal.say(f"damaged: {line}")
        for name in names:
            for line in wrong.get(name, ["all agrees"]):
                terminal.say(f"{name}: {line}")
        if not damaged and not names:
            terminal.say("whole, and without models")
    sys.exit(DAMAGED if damaged or wrong else 0)
