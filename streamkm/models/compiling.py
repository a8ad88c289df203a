"""Saying so while numba compiles: it happens once on a machine, and looks like a slow fit."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numba.core import event

log = logging.getLogger(__name__)


class _Notice(event.Listener):
    """Speaks up at the first kernel that is not in numba's cache."""

    def __init__(self) -> None:
        self.began: float | None = None

    def on_start(self, event: Any) -> None:  # noqa: ARG002
        if self.began is None:
            self.began = time.perf_counter()
            log.info("compiling the exact algorithm: once on this machine, up to twenty seconds")

    def on_end(self, event: Any) -> None:
        pass


@contextmanager
def announced() -> Iterator[None]:
    """Log it when kernels are compiled inside of this."""
    notice = _Notice()
    with event.install_listener("numba:compile", notice):
        yield
    if notice.began is not None:
        log.info("compiled, and kept for next time")
