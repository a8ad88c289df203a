"""What every part of an engine shares: its options, clock, collaborators and error counters."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from streamkm.codecs.base import Codec
from streamkm.connectors.base import Source, Writer
from streamkm.engine.health import Heartbeat
from streamkm.errors import StreamkmError
from streamkm.metrics import ALARMS, ERRORS, Metrics
from streamkm.state import ModelSpec, QuarantineLimits
from streamkm.stores.base import Store


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def time(self) -> float:
        """Seconds since 1970."""
        ...

    def monotonic(self) -> float:
        """Seconds that never jump."""
        ...


class StopSignal(Protocol):
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

    def quarantine_limits(self) -> QuarantineLimits:
        """What the quarantine of a model may hold."""
        return QuarantineLimits(self.quarantine_keep, self.quarantine_keep_bytes, bool(self.dead_letters))


log = logging.getLogger("streamkm.engine")


@dataclass(frozen=True)
class EngineContext:
    """What an engine is put together from.

    Attributes
    ----------
    open_source
        Gives a fresh source; called again after an error of the source.
    open_writer
        Gives a fresh writer for dead letters; called again after an error of the writer.
    heartbeat
        Where the loop says that it goes on, for probes and watchdogs.
    """

    spec: ModelSpec
    open_source: Callable[[], Source]
    codec: Codec
    store: Store
    options: EngineOptions
    metrics: Metrics
    clock: Clock
    open_writer: Callable[[], Writer] | None = None
    heartbeat: Heartbeat = field(default_factory=Heartbeat)

    def count_error(self, stage: str) -> None:
        """Count a failure that is dealt with."""
        self.metrics.add(ERRORS, model=self.spec.name, stage=stage)

    def mark_down(self, what: str, error: StreamkmError) -> None:
        """The ``broker`` or the ``store`` does not answer: an alarm once for each time that it goes away."""
        if self.heartbeat.mark_down(what, error.message):
            self.metrics.add(ALARMS, model=self.spec.name, alarm=f"{what}-away")

    def mark_up(self, what: str) -> None:
        """It answers."""
        if self.heartbeat.mark_up(what):
            log.info("%s: the %s is back", self.spec.name, what)
