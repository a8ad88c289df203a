"""Threads that share one pass, and sleep between passes."""

from __future__ import annotations

import numbers
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from streamkm.errors import SettingsError

_MIN_PARALLEL_NS = 5e5
"""Nanoseconds of work below which waking another thread costs more than it saves."""


def available_threads() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker(threading.Thread):
    """One more thread, woken and waited for by a lock: half of what an executor's queue and future take."""

    def __init__(self, part: int) -> None:
        super().__init__(name=f"streamkm-exact-{part}", daemon=True)
        self._part = part
        self._work: Callable[[int, int], object] | None = None
        self._parts = 0
        self._error: BaseException | None = None
        self._wanted, self._done = threading.Lock(), threading.Lock()
        self._wanted.acquire()
        self._done.acquire()
        self.start()

    def run(self) -> None:
        while True:
            self._wanted.acquire()
            if self._work is None:
                return
            try:
                self._work(self._part, self._parts)
            except BaseException as e:  # noqa: BLE001  # raised by whoever waits
                self._error = e
            self._done.release()

    def begin(self, work: Callable[[int, int], object] | None, parts: int) -> None:
        """Start a part of some work; None ends the thread."""
        self._work, self._parts = work, parts
        self._wanted.release()

    def wait(self) -> None:
        """Wait for the part, and raise what it raised."""
        self._done.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error


class ThreadTeam:
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
        self._workers: list[_Worker] = []

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
        for worker in self._workers:
            worker.begin(None, 0)
        for worker in self._workers:
            worker.join()
        self._workers = []

    def parts(self, nanoseconds: float) -> int:
        """How many threads share work that takes one of them so long."""
        return self.n_threads if nanoseconds >= _MIN_PARALLEL_NS else 1

    def share(self, work: Callable[[int, int], object], nanoseconds: float) -> None:
        """Call ``work(part, parts)`` for each part.

        Parameters
        ----------
        work
            A call of a kernel.
        nanoseconds
            About how long all of it takes on one thread.
        """
        if self.parts(nanoseconds) == 1:
            work(0, 1)
            return
        if not self._workers:
            self._workers = [_Worker(part) for part in range(1, self.n_threads)]
        for worker in self._workers:
            worker.begin(work, self.n_threads)
        try:
            work(0, self.n_threads)
        finally:
            for worker in self._workers:
                worker.wait()

    def divide(self, start: int, stop: int, work: Callable[[int, int, int], object], nanoseconds: float) -> None:
        """Call ``work(part, first, last)`` for ranges that make up a range; none is empty.

        Parameters
        ----------
        start, stop
            The range.
        work, nanoseconds
            As in `share`.
        """

        def some(part: int, parts: int) -> None:
            first, last = (start + (stop - start) * p // parts for p in (part, part + 1))
            if last > first:
                work(part, first, last)

        self.share(some, nanoseconds)
