"""``streamkm tokens create | list | revoke``: tokens of the HTTP service."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, Literal

import click
from rich.table import Table

from consumers import terminal
from consumers.options import example, with_settings
from streamkm.errors import SettingsError
from streamkm.settings import StoreSettings
from streamkm.stores import open_store
from streamkm.stores.base import Token
from streamkm.times import format_time


@click.group(
    epilog=example(
        "streamkm tokens create reports --model orders",
        "streamkm tokens create ops --right write",
        "streamkm tokens list",
        "streamkm tokens revoke reports",
    )
)
def tokens() -> None:
    """Manage the tokens of the HTTP service. Changes take effect within five seconds."""


@tokens.command(
    epilog=example(
        "streamkm tokens create ops --right write",
        "streamkm tokens create reports --model orders --model payments",
        "streamkm tokens create prometheus --file /run/secrets/prometheus",
    )
)
@click.argument("name")
@click.option(
    "--right",
    type=click.Choice(["read", "write"]),
    default="read",
    show_default=True,
    help="write: also promote, pause, resume, delete and recompute.",
)
@click.option("--model", "models", multiple=True, metavar="MODEL", help="Restrict it to this model; may be repeated.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Register the token in this file instead of making one; repeating it changes nothing.",
)
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def create(
    name: str,
    settings: StoreSettings,
    *,
    right: Literal["read", "write"],
    models: tuple[str, ...],
    file: Path | None,
    as_json: bool,
) -> None:
    """Make a token called NAME and print it. It is shown only once: the store keeps its SHA-256."""
    from streamkm.service.auth import issue

    text, token = issue(name, right, models, time.time(), None if file is None else _read(file))
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        if file is None or token not in [there._replace(created_at=token.created_at) for there in store.tokens()]:
            store.add_token(token)
    if file is not None:
        if as_json:
            terminal.say_json(_json(token), indent=None)
        else:
            terminal.say(f"the token in {file} is registered as {name}")
        return
    if as_json:
        terminal.say_json({"token": text, **_json(token)}, indent=None, verbatim=True)
        return
    terminal.say(text, verbatim=True)
    terminal.say("Send it as: Authorization: Bearer TOKEN. It is not shown again.", err=True)


@tokens.command("list", epilog=example("streamkm tokens list", "streamkm tokens list --json"))
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(settings: StoreSettings, *, as_json: bool) -> None:
    """List the tokens: names and rights, not the tokens themselves."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        found = store.tokens()
    if as_json:
        terminal.say_json([_json(t) for t in found])
        return
    if not found:
        terminal.say("no tokens: streamkm tokens create NAME makes one")
        return
    table = Table("name", "right", "models", "made")
    for t in found:
        made = format_time(t.created_at, "seconds")
        table.add_row(t.name, t.right, ", ".join(t.models) or "all", made)
    terminal.show(table)


@tokens.command(epilog=example("streamkm tokens revoke reports"))
@click.argument("name")
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def revoke(name: str, settings: StoreSettings, *, as_json: bool) -> None:
    """Revoke the token NAME; streams that it opened end too."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        store.remove_token(name)
    if as_json:
        terminal.say_json({"revoked": name}, indent=None)
    else:
        terminal.say(f"{name} is revoked, within 5 s in all services")


def _read(file: Path) -> str:
    from streamkm.service.auth import TOKEN_COMMAND

    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as e:
        raise SettingsError("no token can be read from this file", where=str(file), hint=TOKEN_COMMAND) from e


def _json(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "right": token.right,
        "models": list(token.models) or None,
        "created_at": format_time(token.created_at),
    }
