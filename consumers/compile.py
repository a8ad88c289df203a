"""``streamkm compile``: all kernels now, so that no start has to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click

from consumers import logs, terminal
from consumers.options import example


@click.command("compile", epilog=example("streamkm compile", "NUMBA_CACHE_DIR=/opt/kernels streamkm compile"))
def compile_() -> None:
    """Compile all kernels now, into numba's cache: those of the live models, of the codecs and of the exact algorithm.

    Takes a minute or two once on a machine, and seconds when all was there. The image of streamkm is built so, and what
    else cannot wait at its first start.
    """
    from consumers.factories import warm_up
    from streamkm.codecs import make_codec
    from streamkm.models import compile_kernels
    from streamkm.models.exact.compile import compile_exact

    logs.configure()
    codec = make_codec({"kind": "json", "fields": ["x"], "time_field": "t", "max_bytes": 1000})
    steps: dict[str, Callable[[], float]] = {
        "models": compile_kernels,
        "codecs": partial(warm_up, codec),
        "exact algorithm": compile_exact,
    }
    for what, run in steps.items():
        terminal.say(f"{what} ...", end="")
        terminal.say(f" {run():.1f} s")
