"""Delivers cluster events: each at least once, in order, with an id that never changes.

The snapshots with events are the outbox, and the store keeps how far each target has received them. A target that fails
delays no other.
"""

from __future__ import annotations

import itertools
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import orjson

from streamkm.connectors.base import Writer
from streamkm.errors import NotFoundError, StreamkmError
from streamkm.event_format import event_json
from streamkm.records import ProducerRecord
from streamkm.reporting import ProgressReporter
from streamkm.state import Snapshot
from streamkm.stores.base import Store
from streamkm.stores.paging import iter_snapshots

log = logging.getLogger(__name__)

EVENT_RETENTION_SECONDS = 8 * 86400.0
"""Minimum age of a snapshot with events before retention may delete it, s."""
INITIAL_BACKOFF, MAX_BACKOFF = 1.0, 300.0
"""Delays between delivery attempts, s."""
POLL_SECONDS = 1.0
"""Time between two checks for new events, s."""
ID_HEADER = "id"
_JOIN_SECONDS = 15.0
"""Wait for the delivery threads at the end, s; longer than a delivery takes."""


class EventMessage(NamedTuple):
    """One event, serialized for delivery.

    Attributes
    ----------
    id
        Model and id of the event, such as ``orders/42.0``: the same for every attempt.
    model
        Name of the model.
    body
        The event as JSON.
    """

    id: str
    model: str
    body: bytes


class TargetGoneError(Exception):
    """The target accepts no more messages, permanently."""


class DeliveryFailedError(Exception):
    """A message was not delivered; a later attempt may succeed.

    Attributes
    ----------
    retry_after
        Minimum delay before the next attempt that the target asks for, s.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Target(Protocol):
    """A receiver of events. Used by one thread."""

    @property
    def name(self) -> str:
        """Key under which the store keeps the delivery progress; contains no secrets."""

    def deliver(self, message: EventMessage) -> None:
        """Send a message, and return once the target has acknowledged it.

        Raises
        ------
        DeliveryFailedError
            It was not acknowledged.
        TargetGoneError
            The target accepts no more messages.
        """

    def close(self) -> None:
        """Close the connections."""


def event_messages(s: Snapshot) -> list[EventMessage]:
    """The events of a snapshot, in order."""
    events = (event_json(s, i) for i in range(len(s.events)))
    return [
        EventMessage(f"{s.model}/{e['id']}", s.model, orjson.dumps(e, option=orjson.OPT_SERIALIZE_NUMPY))
        for e in events
    ]


class TopicTarget:
    """Writes events to a Kafka topic: the key is the model's name, the header ``id`` the message id.

    Parameters
    ----------
    topic
        Name of the topic; created with one partition if it does not exist.
    open_writer
        Opens a new writer; called at the first message and after each error.
    """

    def __init__(self, topic: str, open_writer: Callable[[], Writer]) -> None:
        self.name = f"topic:{topic}"
        self._topic, self._open_writer = topic, open_writer
        self._writer: Writer | None = None

    def deliver(self, message: EventMessage) -> None:
        try:
            if self._writer is None:
                self._writer = self._open_writer()
                self._writer.create_topic(self._topic)
            headers = ((ID_HEADER, message.id.encode()),)
            (refused,) = self._writer.write(
                [ProducerRecord(self._topic, message.model.encode(), message.body, headers)]
            )
        except StreamkmError as error:
            self.close()
            raise DeliveryFailedError(str(error)) from error
        if refused is not None:
            self.close()
            raise DeliveryFailedError(refused.message)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


@dataclass(frozen=True)
class NotifyOptions:
    """Settings of a `Notifier`.

    Attributes
    ----------
    start
        Where a new target begins: ``now``, or ``beginning`` with the oldest event kept.
    poll_interval
        Time between two checks for new events, s.
    initial_backoff, max_backoff
        Delay before the next attempt after the first failure, and its maximum, s; doubled with each failure. The
        actual delay is drawn uniformly from 0.5 to 1.5 times that.
    """

    start: Literal["now", "beginning"] = "now"
    poll_interval: float = POLL_SECONDS
    initial_backoff: float = INITIAL_BACKOFF
    max_backoff: float = MAX_BACKOFF


DEFAULTS = NotifyOptions()


class Notifier:
    """Delivers the events of a model to targets, each in its own thread.

    Parameters
    ----------
    model
        Name of the model.
    store
        Store that has the model's snapshots.
    targets
        Receivers; closed at the end.
    options
        Settings.
    clock
        Time since the epoch, s.

    Attributes
    ----------
    delivered
        Number of messages delivered, by target name.
    """

    def __init__(
        self,
        model: str,
        store: Store,
        targets: Sequence[Target],
        *,
        options: NotifyOptions = DEFAULTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model, self._store, self._options, self._clock = model, store, options, clock
        self._targets = targets
        self.delivered: dict[str, int] = dict.fromkeys((t.name for t in targets), 0)

    def run(self, stop: threading.Event) -> None:
        """Deliver until `stop` is set or no target is left."""
        threads = [
            threading.Thread(target=self._serve, args=(target, stop), name=f"streamkm-{target.name}", daemon=True)
            for target in self._targets
        ]
        for thread in threads:
            thread.start()
        reporter = ProgressReporter(log, self._model, self._clock, unit="events delivered")
        while any(thread.is_alive() for thread in threads) and not stop.wait(0.1):
            reporter.update(sum(self.delivered.values()), lambda: describe(self.delivered))
        for thread in threads:
            thread.join(_JOIN_SECONDS)
        reporter.finish(sum(self.delivered.values()), describe(self.delivered))

    def _serve(self, target: Target, stop: threading.Event) -> None:
        """Deliver to one target, with retries, until `stop` is set or the target is gone."""
        backoff, registered, failing = self._options.initial_backoff, False, False
        sent: set[str] = set()  # ids of messages of the current snapshot that the target has acknowledged
        before = 0
        try:
            while not stop.is_set():
                try:
                    if not registered:
                        self._register(target)
                        registered = True
                    self._deliver_pending(target, sent, stop)
                    if failing:
                        log.info("%s: %s accepts events again", self._model, target.name)
                    backoff, failing = self._options.initial_backoff, False
                    stop.wait(self._options.poll_interval)
                except TargetGoneError as error:
                    log.warning("%s: no more events are delivered to %s: %s", self._model, target.name, error)
                    return
                except (DeliveryFailedError, StreamkmError) as error:
                    if not failing:  # one log line per outage
                        log.warning("%s: events for %s wait in the store: %s", self._model, target.name, error)
                    failing = True
                    if self.delivered[target.name] > before:
                        before, backoff = self.delivered[target.name], self._options.initial_backoff
                    retry_after = min(getattr(error, "retry_after", 0.0), self._options.max_backoff)
                    stop.wait(max(retry_after, backoff * random.uniform(0.5, 1.5)))
                    backoff = min(2 * backoff, self._options.max_backoff)
        except Exception:
            log.exception("%s: no more events are delivered to %s until the next start", self._model, target.name)
        finally:
            target.close()

    def _register(self, target: Target) -> None:
        """Set the start of a new target, or log how many events a known one has missed."""
        delivered_until = self._store.delivered_until(self._model, target.name)
        if delivered_until:
            lost = self._count_lost(delivered_until)
            if lost:
                log.warning(
                    "%s: retention deleted %d snapshots before their events were delivered to %s: they are lost",
                    self._model,
                    lost,
                    target.name,
                )
        elif self._options.start == "now":
            try:
                newest = self._store.snapshot(self._model).id
            except NotFoundError:
                return  # there are no events yet, so all of them will be new
            self._store.advance_delivery(self._model, target.name, 0, newest)

    def _count_lost(self, delivered_until: int) -> int:
        """Number of deleted snapshots after `delivered_until` that may have had events."""
        old = self._clock() - EVENT_RETENTION_SECONDS
        lost, above = 0, None
        for s in self._snapshots_above(delivered_until - 1, eventful=False):
            if above is not None and above[1] < old:
                lost += above[0] - s.id - 1
            if s.id == delivered_until:
                return lost
            above = s.id, s.created_at
        if above is not None and above[1] < old:
            lost += above[0] - delivered_until - 1
        return lost

    def _snapshots_above(self, above: int, *, eventful: bool) -> Iterator[Snapshot]:
        """Snapshots with a number above a given one, newest first."""
        found = iter_snapshots(self._store, self._model, eventful=eventful)
        return itertools.takewhile(lambda s: s.id > above, found)

    def _deliver_pending(self, target: Target, sent: set[str], stop: threading.Event) -> None:
        """Deliver all events that the target has not received."""
        delivered_until = self._store.delivered_until(self._model, target.name)
        pending = [s.id for s in self._snapshots_above(delivered_until, eventful=True)]
        for number in reversed(pending):
            try:
                s = self._store.snapshot(self._model, number)
            except NotFoundError:
                log.warning(
                    "%s: retention deleted snapshot %d before its events were delivered to %s",
                    self._model,
                    number,
                    target.name,
                )
                continue
            for message in event_messages(s):
                if stop.is_set():
                    return
                if message.id not in sent:
                    target.deliver(message)
                    sent.add(message.id)
                    self.delivered[target.name] += 1
            if self._store.advance_delivery(self._model, target.name, delivered_until, number):
                delivered_until = number
            else:
                log.info("%s: another process delivers to %s too", self._model, target.name)
                delivered_until = self._store.delivered_until(self._model, target.name)
            sent.clear()


def describe(delivered: Mapping[str, int]) -> str:
    """Numbers of deliveries by target, for the log."""
    return ", ".join(f"{count:,} to {name}" for name, count in delivered.items())
