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


SELDOM = (50_000, 20, 20)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Have Python look for garbage seldom inside of this.

    Numba makes millions of objects while it compiles, and looking through them again and again takes an eighth of the
    time.
    """
    before = gc.get_threshold()
    if before[0]:  # else somebody has switched it off
        gc.set_threshold(*(max(pair) for pair in zip(before, SELDOM, strict=True)))
    try:
        yield
    finally:
        gc.set_threshold(*before)


class _Notice(event.Listener):
    """Speaks up at the first kernel that is not in numba's cache."""

    def __init__(self, until: ExitStack) -> None:
        self.began: float | None = None
        self.until = until

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        if self.began is None:
            self.began = time.perf_counter()
            self.until.enter_context(seldom_collected())
            log.info("compiling the exact algorithm: once on this machine, ten seconds or so")

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def announced() -> Iterator[None]:
    """Log it when kernels are compiled inside of this."""
    with ExitStack() as until, event.install_listener("numba:compile", notice := _Notice(until)):
        yield
    if notice.began is not None:
        log.info("compiled, and kept for next time")
