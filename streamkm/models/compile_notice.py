"""Numba at work: it says so, for it happens once on a machine and looks like a slow fit, and is not held up."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from numba.core import event

log = logging.getLogger(__name__)


GC_THRESHOLDS = (50_000, 20, 20)


@contextmanager
def reduced_gc() -> Iterator[None]:
    """Have Python look for garbage seldom inside of this.

    Numba makes millions of objects while it compiles, and looking through them again and again takes an eighth of the
    time.
    """
    before = gc.get_threshold()
    if before[0]:  # else somebody has switched it off
        gc.set_threshold(*(max(pair) for pair in zip(before, GC_THRESHOLDS, strict=True)))
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _CompileListener(event.Listener):
    """Speaks up at the first kernel that is not in numba's cache."""

    def __init__(self, until: ExitStack) -> None:
        self.started: float | None = None
        self.until = until

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        if self.started is None:
            self.started = time.perf_counter()
            self.until.enter_context(reduced_gc())
            log.info("compiling the exact algorithm: once on this machine, ten seconds or so")

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def log_compilation() -> Iterator[None]:
    """Log it when kernels are compiled inside of this."""
    with ExitStack() as until, event.install_listener("numba:compile", listener := _CompileListener(until)):
        yield
    if listener.started is not None:
        log.info("compiled, and kept for next time")
