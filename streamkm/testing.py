"""Behavioural fakes for tests, ours and our users': a clock set by hand, a source and a store that fail on cue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from streamkm.errors import StreamkmError
from streamkm.records import Position, Records, TopicPartition
from streamkm.sources.base import Source
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
