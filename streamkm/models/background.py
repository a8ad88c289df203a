"""A background thread for work whose result is needed at a fixed position in the stream."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _RunningTasks:
    """Counts running tasks, and delays forks until none is running.

    A task may hold locks, for example numba's while it loads a kernel. In a forked process its thread would be missing,
    and the locks would never be released.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._changed.release, after_in_child=self._changed.release
        )

    def _before_fork(self) -> None:
        self._changed.acquire()
        while self._count:
            self._changed.wait()

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()


_RUNNING_TASKS = _RunningTasks()


class Task(Generic[T]):
    """A function that runs at most once: in the worker thread, or in the first caller of `result`.

    `result` never waits for other tasks in the queue: a task that the worker has not started runs in the caller. So a
    result is never later than without a worker, and is available in a forked process without the thread.

    Parameters
    ----------
    work
        Called without arguments. It should release the GIL for most of its time.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work: Callable[[], T] | None = work
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._result: T | None = None
        self._error: BaseException | None = None

    def result(self) -> T:
        """Return the function's result, or raise its exception."""
        self.run()
        if not self._done.is_set():
            self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result  # type: ignore[return-value]  # set together with `_done`

    @property
    def done(self) -> bool:
        """Whether the result is available."""
        return self._done.is_set()

    def run(self) -> None:
        """Run the function, unless it was started before."""
        with _RUNNING_TASKS:
            with self._lock:
                work, self._work = self._work, None
            if work is None:
                return
            try:
                self._result = work()
            except BaseException as e:  # noqa: BLE001  # raised in `result`
                self._error = e
            self._done.set()


class Worker:
    """A daemon thread that runs tasks in order; started with the first task, and again after a fork.

    Parameters
    ----------
    name
        Name of the thread.
    """

    def __init__(self, name: str = "streamkm") -> None:
        self._name = name
        self._queue: queue.SimpleQueue[Task[Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pid = 0

    def submit(self, work: Callable[[], T]) -> Task[T]:
        """Queue a function, and return its task."""
        task = Task(work)
        if self._pid != os.getpid():
            with self._lock:
                if self._pid != os.getpid():
                    self._queue = queue.SimpleQueue()
                    threading.Thread(target=self._serve, args=(self._queue,), name=self._name, daemon=True).start()
                    self._pid = os.getpid()
        self._queue.put(task)
        return task

    @staticmethod
    def _serve(tasks: queue.SimpleQueue[Task[Any]]) -> None:
        while True:
            tasks.get().run()


WORKER = Worker()
"""The worker of this process."""
