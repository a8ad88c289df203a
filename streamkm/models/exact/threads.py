"""A team of threads that share each pass over the rows, and sleep between passes."""

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
    """Count the cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Worker(threading.Thread):
    """A thread that is woken and awaited by locks: takes half as long as an executor's queue and future."""

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
            except BaseException as e:  # noqa: BLE001  # raised in `wait`
                self._error = e
            self._done.release()

    def begin(self, work: Callable[[int, int], object] | None, parts: int) -> None:
        """Start a part of the work; None ends the thread."""
        self._work, self._parts = work, parts
        self._wanted.release()

    def wait(self) -> None:
        """Wait for the part, and raise its exception, if any."""
        self._done.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error


class ThreadTeam:
    """Runs kernels, which release the GIL, on several threads.

    These are plain threads, not numba's: no OpenMP threads that spin beside a busy consumer, no global setting to
    restore, no second pool, and none that a fork breaks. The assignment of work to threads never changes a result. The
    threads end with a ``with`` block; the team may be used again.

    Parameters
    ----------
    n_threads
        Number of threads, including the caller's.
    """

    def __init__(self, n_threads: int) -> None:
        self.n_threads = n_threads
        self._workers: list[_Worker] = []

    @classmethod
    def checked(cls, n_threads: int | None) -> Self:
        """Make a team of a validated number of threads; None for all cores available to this process.

        Raises
        ------
        SettingsError
            The number is not an integer of at least 1.
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
        """Number of threads that share work of this duration on one thread."""
        return self.n_threads if nanoseconds >= _MIN_PARALLEL_NS else 1

    def share(self, work: Callable[[int, int], object], nanoseconds: float) -> None:
        """Call ``work(part, parts)`` for each part, one per thread.

        Parameters
        ----------
        work
            Calls a kernel.
        nanoseconds
            Approximate duration of all work on one thread.
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
        """Call ``work(part, first, last)`` for non-empty ranges that partition a range.

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
