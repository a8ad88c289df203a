"""What the parts of an engine share: options, clock, collaborators and error counters."""

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
    """A source of time, which tests replace."""

    def time(self) -> float:
        """Seconds since 1970."""

    def monotonic(self) -> float:
        """Seconds on a monotonic clock."""


class StopRequest(Protocol):
    """A request to stop; `threading.Event` is one."""

    def is_set(self) -> bool:
        """Whether to stop."""

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the request; whether it was made."""


def owner_name() -> str:
    """A name that is unique to this process: host, process id and start time."""
    return f"{socket.gethostname()}:{os.getpid()}:{time.monotonic_ns() & 0xFFFFFF:x}"


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine that do not change the model.

    Attributes
    ----------
    batch
        Maximum number of records in a mini-batch.
    checkpoint_every, snapshot_every
        Seconds between checkpoints and between snapshots.
    snapshot_points
        Points between snapshots; 0: by time only.
    max_bad_ratio
        Share of bad records, over windows of `bad_records.BAD_WINDOW` records or more, above which the engine stops.
    max_bad_in_a_row
        Consecutive bad records of one partition at which the engine stops; 0: no limit.
    dead_letters
        Topic for dead letters of quarantined records; empty: none.
    quarantine_keep
        Records that the quarantine keeps; the oldest are removed first, but none whose dead letter is undelivered.
    quarantine_keep_bytes
        Bytes that the quarantine keeps; undelivered records lose their values instead, the oldest first.
    keep_snapshots
        ``all``, or ``thin``: fewer with age (see `streamkm.stores.retention`).
    lease
        Seconds without a renewal after which another engine may take over.
    start
        ``beginning`` or ``end``: where a new model starts to read.
    max_event_time_lead
        Seconds that an event time may be ahead of its record's timestamp and of the clock. In a model that decays by
        event time, a record with a later event time is bad.
    on_data_loss
        What to do when the topic deleted records before they were read: ``fail``, or ``skip`` and count them.
    owner
        Name of this engine in the lease.
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
        """The limits of the quarantine."""
        return QuarantineLimits(self.quarantine_keep, self.quarantine_keep_bytes, bool(self.dead_letters))


log = logging.getLogger("streamkm.engine")


@dataclass(frozen=True)
class EngineContext:
    """The collaborators of an engine.

    Attributes
    ----------
    open_source
        Opens a source; called again after an error of the source.
    open_writer
        Opens a writer for dead letters; called again after an error of the writer.
    heartbeat
        Progress of the loop, for probes and watchdogs.
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
        """Count a failure that is handled."""
        self.metrics.add(ERRORS, model=self.spec.name, stage=stage)

    def mark_down(self, what: str, error: StreamkmError) -> None:
        """Note that the ``broker``, the ``store`` or the ``codec`` is unavailable; one alarm per outage."""
        if self.heartbeat.mark_down(what, error.message):
            self.metrics.add(ALARMS, model=self.spec.name, alarm=f"{what}-unavailable")

    def mark_up(self, what: str) -> None:
        """Note that it is available."""
        if self.heartbeat.mark_up(what):
            log.info("%s: the %s is back", self.spec.name, what)
