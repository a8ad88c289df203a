"""``streamkm config``: the settings of a program that would start now."""

from __future__ import annotations

import os
from pathlib import Path

import click
from rich.table import Table

from consumers import terminal
from consumers.options import example
from streamkm import settings


@click.command(epilog=example("streamkm config", "STREAMKM_K=12 streamkm config --config streamkm.toml --json"))
@click.option(
    "--config",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    envvar=settings.ENV_PREFIX + "CONFIG",
    help="TOML file with settings.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def config(file: Path | None, *, as_json: bool) -> None:
    """Show every setting, its value and its origin. Secrets are masked."""
    rows: dict[str, tuple[str, str]] = {}
    for cls in (settings.FitSettings, settings.LiveSettings, settings.ServeSettings):
        resolved = settings.resolve(cls, {}, env=os.environ, file=file)
        shown = settings.show(cls(**{name: value for name, (value, _) in resolved.items()}))
        rows |= {name: (shown[name], resolved[name][1]) for name in settings.names(cls)}
    if as_json:
        terminal.say_json({n: {"value": v, "from": o} for n, (v, o) in rows.items()})
        return
    table = Table("setting", "value", "from")
    for name, (value, origin) in rows.items():
        table.add_row(name, value, origin)
    terminal.show(table)
