"""What the engine is told, and the time it lives in."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, field
from typing import Protocol

from streamkm.state import QuarantineBounds


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def time(self) -> float:
        """Seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...


class Stop(Protocol):
    """A request to leave; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether it was made."""
        ...

    def wait(self, timeout: float) -> bool:
        """Sleep, unless it is made."""
        ...


def owner_name() -> str:
    """A name that no two running processes share."""
    return f"{socket.gethostname()}:{os.getpid()}:{time.monotonic_ns() & 0xFFFFFF:x}"


@dataclass(frozen=True)
class EngineOptions:
    """How often what is done.

    Attributes
    ----------
    batch
        Most records of one mini-batch.
    checkpoint_every, snapshot_every
        Seconds.
    snapshot_points
        Points between snapshots; 0: by time only.
    max_bad_ratio
        Share of bad records, over windows of `judging.BAD_WINDOW` records or more, above which the engine stops.
    max_bad_in_a_row
        Bad records of one partition without a good one between them at which the engine stops; 0: never.
    dead_letters
        Topic for letters of quarantined records; none when empty.
    quarantine_keep
        Records that the quarantine keeps; the oldest go first, but none whose letter is still to be delivered.
    quarantine_keep_bytes
        Bytes that it keeps of them; what waits for its letter loses its value instead, from the oldest on.
    keep_snapshots
        ``all``, or ``thin``: fewer and fewer as they grow old (see `streamkm.stores.retention`).
    lease
        Seconds after which a silent owner loses the model.
    start
        ``beginning`` or ``end``: where a new model starts to read.
    max_event_time_lead
        Seconds that an event time may lie ahead of its record's timestamp and of the clock. Where decay goes by event
        time, what lies beyond is a bad record.
    on_data_loss
        What to do when the topic no longer has records that were not read yet: ``fail``, or ``skip`` them and count
        them.
    """

    batch: int = 8192
    checkpoint_every: float = 1.0
    snapshot_every: float = 10.0
    snapshot_points: int = 0
    max_bad_ratio: float = 0.5
    max_bad_in_a_row: int = 1000
    dead_letters: str = ""
    quarantine_keep: int = 10_000
    quarantine_keep_bytes: int = 256 << 20
    keep_snapshots: str = "thin"
    lease: float = 10.0
    start: str = "beginning"
    max_event_time_lead: float = 3600.0
    on_data_loss: str = "fail"
    owner: str = field(default_factory=owner_name)

    def quarantine_bounds(self) -> QuarantineBounds:
        """What the quarantine of a model may hold."""
        return QuarantineBounds(self.quarantine_keep, self.quarantine_keep_bytes, bool(self.dead_letters))
