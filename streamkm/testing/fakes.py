"""Fakes for tests: clocks, a source and stores that fail as scripted, and a kill at a chosen call."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from streamkm.connectors.base import Source
from streamkm.errors import StoreUnavailableError, StreamkmError
from streamkm.records import Position, Records, TopicPartition
from streamkm.state import Commit, Json
from streamkm.stores.base import Lease, Store


class ManualClock:
    """A clock that only `advance` moves.

    >>> clock = ManualClock(1000.0)
    >>> clock.advance(2.5)
    >>> clock.time(), clock.monotonic()
    (1002.5, 1002.5)
    """

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def time(self) -> float:
        """Seconds since 1970."""
        return self.now

    def monotonic(self) -> float:
        """Monotonic seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


class JumpingClock:
    """The real clock with one jump of the wall time; monotonic time does not jump.

    Parameters
    ----------
    seconds
        Size of the jump; negative to go back.
    after
        Seconds from now until the jump.
    """

    def __init__(self, seconds: float, after: float) -> None:
        self.seconds, self.jumps_at = seconds, time.monotonic() + after

    def time(self) -> float:
        """Seconds since 1970, with the jump."""
        return time.time() + (self.seconds if time.monotonic() >= self.jumps_at else 0.0)

    def monotonic(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()


class KillAtCall:
    """A proxy that ends the process by SIGKILL at one call of a method, as a crash there would.

    Parameters
    ----------
    thing
        The proxied object.
    method
        Name of the fatal method.
    call
        Number of the fatal call, from 1.
    after
        Kill after the method has returned instead of before it is called.

    Examples
    --------
    >>> items = KillAtCall([1, 2], "append", 3)
    >>> items.append(3)
    >>> items.count(3)
    1
    """

    def __init__(self, thing: Any, method: str, call: int, *, after: bool = False) -> None:
        self._thing, self._method, self._left, self._after = thing, method, call, after

    def wrap(self, thing: Any) -> Self:
        """Proxy another object from now on, such as the next of several sources; the count of calls continues."""
        self._thing = thing
        return self

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._thing, name)
        return self._fatal(value) if name == self._method else value

    def _fatal(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*arguments, **options)
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


class StopAfter:
    """A stop signal that is set once a condition holds, which is evaluated at each query.

    Parameters
    ----------
    condition
        Evaluated until it is true for the first time.
    clock
        Advanced by `wait`, so that waiting takes no time.
    """

    def __init__(self, condition: Callable[[], bool], clock: ManualClock | None = None) -> None:
        self.condition, self.clock, self.done = condition, clock, False

    def is_set(self) -> bool:
        """Whether to stop."""
        self.done = self.done or self.condition()
        return self.done

    def wait(self, timeout: float) -> bool:
        """Advance the clock by `timeout` seconds; whether to stop."""
        if self.clock is not None:
            self.clock.advance(timeout)
        return self.is_set()


class FlakySource:
    """A source whose polls fail as scripted.

    Parameters
    ----------
    source
        The wrapped source.
    failures
        Error to raise, by number of the poll (from 1).
    """

    def __init__(self, source: Source, failures: dict[int, StreamkmError]) -> None:
        self.source, self.failures, self.polls = source, failures, 0

    def identity(self) -> Json:
        """See `Source`."""
        return self.source.identity()

    def partitions(self) -> tuple[TopicPartition, ...]:
        """See `Source`."""
        return self.source.partitions()

    def beginning(self) -> Position:
        """See `Source`."""
        return self.source.beginning()

    def end(self) -> Position:
        """See `Source`."""
        return self.source.end()

    def seek(self, position: Position) -> None:
        """See `Source`."""
        self.source.seek(position)

    def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
        """See `Source`; raises the scripted error, if any."""
        self.polls += 1
        if self.polls in self.failures:
            raise self.failures[self.polls]
        return self.source.poll(timeout, max_records)

    def position(self) -> Position:
        """See `Source`."""
        return self.source.position()

    def commit(self, position: Position) -> None:
        """See `Source`."""
        self.source.commit(position)

    def close(self) -> None:
        """See `Source`."""
        self.source.close()


class FlakyStore:
    """A store whose commits fail as scripted, before or after they take effect.

    Parameters
    ----------
    store
        The wrapped store.
    before, after
        Error to raise before or after the commit, by number of the call (from 1).
    """

    def __init__(
        self,
        store: Store,
        *,
        before: dict[int, BaseException] | None = None,
        after: dict[int, BaseException] | None = None,
    ) -> None:
        self.store, self.before, self.after, self.commits = store, before or {}, after or {}, 0

    def commit(self, lease: Lease, commit: Commit) -> int:
        """See `Store`."""
        self.commits += 1
        if self.commits in self.before:
            raise self.before[self.commits]
        result = self.store.commit(lease, commit)
        if self.commits in self.after:
            raise self.after[self.commits]
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class FullStore:
    """A store whose disk is full for a time: writes fail as with SQLite, reads succeed.

    Parameters
    ----------
    store
        The wrapped store.
    full
        Whether the disk is full now.
    writes
        Names of the methods that write.
    """

    WRITES = (
        "acquire",
        "renew",
        "commit",
        "request_promotion",
        "set_paused",
        "mark_delivered",
        "remove_quarantined",
        "trim_quarantine",
        "apply_retention",
        "advance_delivery",
    )

    def __init__(self, store: Store, full: Callable[[], bool], writes: Sequence[str] = WRITES) -> None:
        self.store, self.full, self.writes, self.refused = store, full, writes, 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.store, name)
        return self._guarded(value) if name in self.writes else value

    def _guarded(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if self.full():
                self.refused += 1
                raise StoreUnavailableError("the disk is full (database or disk is full)", hint="Free some space")
            return method(*arguments, **options)

        return call
