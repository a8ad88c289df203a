"""Logging and garbage-collector settings while numba compiles, which happens once per machine and is slow."""

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
"""Minimum thresholds of the garbage collector while numba compiles."""


@contextmanager
def reduced_gc() -> Iterator[None]:
    """Raise the thresholds of Python's garbage collector inside the context.

    Numba creates millions of objects while it compiles, and repeated collections would take an eighth of the time.
    """
    before = gc.get_threshold()
    if before[0]:  # 0 if it is disabled
        gc.set_threshold(*(max(pair) for pair in zip(before, GC_THRESHOLDS, strict=True)))
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _CompileListener(event.Listener):
    """Logs when the first kernel that is not in numba's cache is compiled."""

    def __init__(self, until: ExitStack) -> None:
        self.started: float | None = None
        self.until = until

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        if self.started is None:
            self.started = time.perf_counter()
            self.until.enter_context(reduced_gc())
            log.info("compiling the exact algorithm, once on this machine: takes about ten seconds")

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def log_compilation() -> Iterator[None]:
    """Log the start and the end of compilation inside the context."""
    with ExitStack() as until, event.install_listener("numba:compile", listener := _CompileListener(until)):
        yield
    if listener.started is not None:
        log.info("compiled, and cached on disk")
