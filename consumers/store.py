"""``streamkm store backup | vacuum | check``: maintenance of a store."""

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
"""Exit status if a store is damaged or inconsistent."""


@click.group(epilog=example("streamkm store backup backup.db", "streamkm store check --json", "streamkm store vacuum"))
def store() -> None:
    """Back up, check and compact a store. Consumers and services may run meanwhile."""


@store.command(epilog=example("streamkm store backup backup.db", "streamkm live orders --store sqlite:///backup.db"))
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_settings(StoreSettings)
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def backup(file: Path, settings: StoreSettings, *, force: bool, as_json: bool) -> None:
    """Copy an SQLite store to FILE while it is in use.

    The copy is a consistent store: a consumer can continue from it. For PostgreSQL use pg_dump.
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
    """Return the space of deleted snapshots and records to the filesystem.

    Temporarily needs the space of a second copy, and consumers wait meanwhile. SQLite reuses free space by itself, so
    this is only for a store that will not grow again. PostgreSQL does it by itself.
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
    """Check the database for damage, and the data of each model for consistency.

    Compares counters, journal, offsets and snapshots with each other. `streamkm verify` proves more, and reads the
    topic for it. Exit status 5 if anything is wrong.
    """
    with contextlib.closing(open_store(settings.store, create=False)) as opened:
        damaged = maintenance.find_damage(opened, quick=quick)
        names = [] if damaged else [info.spec.name for info in opened.models()]
        inconsistent = {name: found for name in names if (found := audit(opened, name))}
    if as_json:
        terminal.say_json({"damage": damaged, "models": {name: inconsistent.get(name, []) for name in names}})
    else:
        for line in damaged:
            terminal.say(f"damaged: {line}")
        for name in names:
            for line in inconsistent.get(name, ["consistent"]):
                terminal.say(f"{name}: {line}")
        if not damaged and not names:
            terminal.say("undamaged, without models")
    sys.exit(DAMAGED if damaged or inconsistent else 0)
