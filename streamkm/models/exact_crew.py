"""Threads that share one pass, and sleep between passes."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from streamkm.errors import SettingsError

_WORTH = 5e5
"""Nanoseconds of work below which waking another thread costs more than it saves."""


def available_threads() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Crew:
    """Runs kernels, which release the GIL, on a few threads of its own.

    Plain threads, not numba's: no OpenMP to spin beside a busy consumer, no setting to put back, no second pool in a
    process that has one, and none that a fork would break. Which thread takes what never changes a result. When a
    ``with`` block ends, so do its threads; it may be used again.

    Parameters
    ----------
    n_threads
        How many; the caller is one of them.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._pool: ThreadPoolExecutor | None = None

    @classmethod
    def checked(cls, n_threads: int | None) -> Self:
        """Make one of as many threads as were asked for; None for all cores that this process may use.

        Raises
        ------
        SettingsError
            That is no number of threads.
        """
        if n_threads is None:
            return cls(available_threads())
        if not isinstance(n_threads, numbers.Integral) or n_threads < 1:
            raise SettingsError(f"n_threads must be None or an integer of at least 1, not {n_threads!r}")
        return cls(int(n_threads))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def share(self, work: Callable[[int, int], object], nanoseconds: float) -> None:
        """Call ``work(part, parts)`` for each part.

        Parameters
        ----------
        work
            A call of a kernel.
        nanoseconds
            About how long all of it takes on one thread.
        """
        if self.n_threads == 1 or nanoseconds < _WORTH:
            work(0, 1)
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.n_threads - 1, "streamkm-exact")
        others = [self._pool.submit(work, part, self.n_threads) for part in range(1, self.n_threads)]
        work(0, self.n_threads)
        for other in others:
            other.result()
