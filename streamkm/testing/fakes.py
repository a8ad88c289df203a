"""Behavioural fakes for tests, ours and our users': clocks, a source and a store that fail on cue, death at a call."""

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
    """A clock that stands still until it is told to go on.

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
        """Seconds that never jump back."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


class JumpingClock:
    """The real clock, whose time of day jumps once; seconds that never jump do not.

    Parameters
    ----------
    seconds
        How far; negative to go back.
    after
        When, in seconds from now.
    """

    def __init__(self, seconds: float, after: float) -> None:
        self.seconds, self.jumps_at = seconds, time.monotonic() + after

    def time(self) -> float:
        """Seconds since 1970, perhaps."""
        return time.time() + (self.seconds if time.monotonic() >= self.jumps_at else 0.0)

    def monotonic(self) -> float:
        """Seconds that never jump."""
        return time.monotonic()


class KillAtCall:
    """Anything, whose process dies by SIGKILL at one call of one of its methods: what a crash there would leave.

    Parameters
    ----------
    thing
        What it stands for.
    method
        The fatal one.
    call
        Which call of it, from 1.
    after
        Die when the method has returned instead of before it is called.

    Examples
    --------
    >>> mortal = KillAtCall([1, 2], "append", 3)
    >>> mortal.append(3)
    >>> mortal.count(3)
    1
    """

    def __init__(self, thing: Any, method: str, call: int, *, after: bool = False) -> None:
        self._thing, self._method, self._left, self._after = thing, method, call, after

    def around(self, thing: Any) -> Self:
        """Stand for another thing from now on, such as the next of several sources; calls are counted together."""
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
    """A stop request that comes when a condition holds, asked each time the loop looks.

    Parameters
    ----------
    condition
        Called at each look; once it was true it stays so.
    clock
        Advanced by `wait`, so that backing off takes no time.
    """

    def __init__(self, condition: Callable[[], bool], clock: ManualClock | None = None) -> None:
        self.condition, self.clock, self.done = condition, clock, False

    def is_set(self) -> bool:
        """Whether the loop should leave."""
        self.done = self.done or self.condition()
        return self.done

    def wait(self, timeout: float) -> bool:
        """Let `timeout` seconds pass on the clock."""
        if self.clock is not None:
            self.clock.advance(timeout)
        return self.is_set()


class FlakySource:
    """A source whose polls fail on cue.

    Parameters
    ----------
    source
        The real one, or one in memory.
    failures
        Number of the poll (from 1, over all its life) -> what it raises.
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
        """See `Source`; raises what was scripted for this poll."""
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
    """A store whose commits fail on cue, before or after they took effect.

    Parameters
    ----------
    store
        The real one, or one in memory.
    before, after
        Number of the commit call (from 1) -> what is raised before the commit is made, or after it was.
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
    """A store whose disk is full for a time: what would write fails as SQLite does there, and reading goes on.

    Parameters
    ----------
    store
        The real one, or one in memory.
    full
        Whether it is full now.
    writes
        Which methods need room.
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
