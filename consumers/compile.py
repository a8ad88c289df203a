"""``streamkm compile``: compile all kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import click

from consumers import logs, terminal
from consumers.options import example


@click.command("compile", epilog=example("streamkm compile", "NUMBA_CACHE_DIR=/opt/kernels streamkm compile"))
def compile_() -> None:
    """Compile the kernels of live models, codecs and exact K-Means into numba's cache.

    Takes a minute or two once per machine, and seconds if all are cached. For images, and for programs that cannot wait
    at their first start.
    """
    from consumers.factories import warm_up
    from streamkm.codecs import make_codec
    from streamkm.models import compile_kernels
    from streamkm.models.exact.compile import compile_exact
    from streamkm.state import CodecSpec

    logs.configure()
    codec = make_codec(CodecSpec("json", ("x",), {"time_field": "t"}))
    steps: dict[str, Callable[[], float]] = {
        "models": compile_kernels,
        "codecs": partial(warm_up, codec),
        "exact algorithm": compile_exact,
    }
    for what, run in steps.items():
        terminal.say(f"{what} ...", end="")
        terminal.say(f" {run():.1f} s")
