"""Waiting for what must come, however busy the machine is: for a condition, never for a number of seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
PATIENCE = 180.0
"""Seconds until a wait is given up. Only a test that fails takes as long, so it is far beyond any load."""
FIRST, LAST = 0.002, 0.2
"""Seconds between two looks: some conditions open a store or ask a broker, which is not for nothing."""


def pauses() -> Iterator[float]:
    """Pauses between looks, each longer than the one before."""
    pause = FIRST
    while True:
        yield pause
        pause = min(1.4 * pause, LAST)


def wait_until(
    condition: Callable[[], T], what: str = "", *, check: Callable[[], object] = bool, patience: float = PATIENCE
) -> T:
    """Look until a condition holds, and return what it then was.

    Parameters
    ----------
    condition
        True, or anything that counts as it, when the wait is over.
    what
        What was waited for, to be told when it never came.
    check
        Called between the looks; raises when waiting has become pointless, such as for a process that has ended.
    patience
        Seconds after which the wait fails.
    """
    deadline = time.monotonic() + patience
    for pause in pauses():
        if found := condition():
            return found
        check()
        assert time.monotonic() < deadline, f"waited {patience:g} s in vain for {what or condition}"
        time.sleep(pause)
    raise AssertionError


async def eventually(condition: Callable[[], T], what: str = "") -> T:
    """The same for asyncio."""
    deadline = time.monotonic() + PATIENCE
    for pause in pauses():
        if found := condition():
            return found
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s in vain for {what or condition}"
        await asyncio.sleep(pause)
    raise AssertionError
