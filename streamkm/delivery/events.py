"""What happened to clusters, told to others: each event at least once, in order, with an id that never changes.

The snapshots with events are the outbox, and how far each target was told is in the store. A target that does not take
them holds up nobody else.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import orjson

from streamkm.errors import NotFoundError, StreamkmError
from streamkm.records import Outgoing, Refused
from streamkm.reporting import Report
from streamkm.state import Snapshot

log = logging.getLogger(__name__)

KEPT_SECONDS = 8 * 86400.0
"""Retention removes no snapshot with events that is younger."""
FIRST_BACKOFF, LAST_BACKOFF = 1.0, 300.0
LOOK_SECONDS = 1.0
AT_ONCE = 100
ID_HEADER = "id"


class Message(NamedTuple):
    """One event as it is told."""

    id: str
    model: str
    body: bytes


class TargetGoneError(Exception):
    """A target wants nothing more."""


class DeliveryFailedError(Exception):
    """A target did not take a message, this time.

    Attributes
    ----------
    after
        Seconds that it asks us to wait.
    """

    def __init__(self, why: str, after: float = 0.0) -> None:
        super().__init__(why)
        self.after = after


class Target(Protocol):
    """Somebody who is told. Belongs to one thread."""

    @property
    def name(self) -> str:
        """Under which the store keeps how far it was told; without secrets."""
        ...

    def deliver(self, message: Message) -> None:
        """Return once it has the message.

        Raises
        ------
        DeliveryFailedError
            It has not; that may change.
        TargetGoneError
            It wants no messages any more.
        """
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


class Outbox(Protocol):
    """What is needed of a store; see `stores.base.Store`."""

    def snapshot(self, model: str, snapshot_id: int | None = None, *, at: float | None = None) -> Snapshot: ...
    def snapshots(
        self, model: str, *, before: int | None = None, limit: int = 100, eventful: bool = False
    ) -> Sequence[Snapshot]: ...
    def told(self, model: str, target: str) -> int: ...
    def tell(self, model: str, target: str, expected: int, snapshot: int) -> bool: ...


class Writes(Protocol):
    """What is needed of a writer of records; see `sources.Writer`."""

    def make_topic(self, topic: str) -> None: ...
    def write(self, records: Sequence[Outgoing]) -> Sequence[Refused | None]: ...
    def close(self) -> None: ...


def event_json(s: Snapshot, index: int) -> dict[str, Any]:
    """Event `index` of a snapshot as JSON values."""
    return {
        "id": f"{s.model}/{s.id}/{index}",
        "model": s.model,
        "snapshot": s.id,
        "created_at": s.created_at,
        **s.events[index].to_json(),
    }


def messages(s: Snapshot) -> list[Message]:
    """The events of a snapshot, in order."""
    told = (event_json(s, i) for i in range(len(s.events)))
    return [Message(e["id"], s.model, orjson.dumps(e, option=orjson.OPT_SERIALIZE_NUMPY)) for e in told]


class TopicTarget:
    """A topic: the key is the model, the id a header.

    Parameters
    ----------
    topic
        Its name; made with one partition if it is not there.
    open_writer
        Gives a fresh writer; called again after an error.
    """

    def __init__(self, topic: str, open_writer: Callable[[], Writes]) -> None:
        self.name = f"topic:{topic}"
        self._topic, self._open_writer = topic, open_writer
        self._writer: Writes | None = None

    def deliver(self, message: Message) -> None:
        try:
            if self._writer is None:
                self._writer = self._open_writer()
                self._writer.make_topic(self._topic)
            headers = ((ID_HEADER, message.id.encode()),)
            (refused,) = self._writer.write([Outgoing(self._topic, message.model.encode(), message.body, headers)])
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
    """How targets are told.

    Attributes
    ----------
    start
        Where a target begins that was never told: ``now``, or ``beginning``: with the oldest event kept.
    look_every
        Seconds between two looks for new events.
    first_backoff, last_backoff
        Seconds before the first attempt after a failure, doubled with each up to the last; half to one and a half
        times that are waited.
    """

    start: Literal["now", "beginning"] = "now"
    look_every: float = LOOK_SECONDS
    first_backoff: float = FIRST_BACKOFF
    last_backoff: float = LAST_BACKOFF


DEFAULTS = NotifyOptions()


class Notifier:
    """Tells the events of a model to targets, each in a thread of its own.

    Parameters
    ----------
    model
        Its name.
    store
        Where its snapshots are.
    targets
        Who is told; closed by the notifier.
    options
        How.
    clock
        Seconds since 1970.
    """

    def __init__(
        self,
        model: str,
        store: Outbox,
        targets: Sequence[Target],
        *,
        options: NotifyOptions = DEFAULTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._model, self._store, self._options, self._clock = model, store, options, clock
        self._targets = targets
        self.delivered: dict[str, int] = dict.fromkeys((t.name for t in targets), 0)
        """Messages delivered so far, by target."""

    def run(self, stop: threading.Event) -> None:
        """Tell until `stop` is set or no target is left."""
        threads = [
            threading.Thread(target=self._tell, args=(target, stop), name=f"streamkm-{target.name}", daemon=True)
            for target in self._targets
        ]
        for thread in threads:
            thread.start()
        report = Report(log, self._model, self._clock, unit="events told")
        while any(thread.is_alive() for thread in threads) and not stop.wait(0.1):
            report.look(sum(self.delivered.values()), lambda: describe(self.delivered))
        for thread in threads:
            thread.join(15.0)  # longer than a delivery takes
        report.end(sum(self.delivered.values()), describe(self.delivered))

    def _tell(self, target: Target, stop: threading.Event) -> None:
        backoff, first, failing = self._options.first_backoff, True, False
        sent: set[str] = set()  # ids of the snapshot under way that the target has
        before = 0
        try:
            while not stop.is_set():
                try:
                    if first:
                        self._begin(target)
                        first = False
                    self._round(target, sent, stop)
                    if failing:
                        log.info("%s: %s takes events again", self._model, target.name)
                    backoff, failing = self._options.first_backoff, False
                    stop.wait(self._options.look_every)
                except TargetGoneError as error:
                    log.warning("%s: %s is told nothing more: %s", self._model, target.name, error)
                    return
                except (DeliveryFailedError, StreamkmError) as error:
                    if not failing:  # once an outage
                        log.warning("%s: events for %s wait in the store: %s", self._model, target.name, error)
                    failing = True
                    if self.delivered[target.name] > before:
                        before, backoff = self.delivered[target.name], self._options.first_backoff
                    asked = min(getattr(error, "after", 0.0), self._options.last_backoff)
                    stop.wait(max(asked, backoff * random.uniform(0.5, 1.5)))
                    backoff = min(2 * backoff, self._options.last_backoff)
        except Exception:
            log.exception("%s: %s is told nothing more, until the next start", self._model, target.name)
        finally:
            target.close()

    def _begin(self, target: Target) -> None:
        """Start a new target, or say what an old one has missed."""
        told = self._store.told(self._model, target.name)
        if told:
            lost = self._lost(told)
            if lost:
                log.warning(
                    "%s: retention removed %d snapshots before %s was told of them: their events are lost",
                    self._model,
                    lost,
                    target.name,
                )
        elif self._options.start == "now":
            try:
                newest = self._store.snapshot(self._model).id
            except NotFoundError:
                return  # nothing has happened yet, so that all is new
            self._store.tell(self._model, target.name, 0, newest)

    def _lost(self, told: int) -> int:
        """How many snapshots after `told` are gone that may have had events."""
        old = self._clock() - KEPT_SECONDS
        lost, above = 0, None
        for s in self._pages(told - 1, eventful=False):
            if above is not None and above[1] < old:
                lost += above[0] - s.id - 1
            if s.id == told:
                return lost
            above = s.id, s.created_at
        if above is not None and above[1] < old:
            lost += above[0] - told - 1
        return lost

    def _pages(self, above: int, *, eventful: bool) -> Iterator[Snapshot]:
        """Snapshots with numbers above `above`, the newest first."""
        before: int | None = None
        while page := self._store.snapshots(self._model, before=before, limit=AT_ONCE, eventful=eventful):
            for s in page:
                if s.id <= above:
                    return
                yield s
            before = page[-1].id

    def _round(self, target: Target, sent: set[str], stop: threading.Event) -> None:
        """Tell all that there is to tell."""
        told = self._store.told(self._model, target.name)
        waiting = [s.id for s in self._pages(told, eventful=True)]
        for number in reversed(waiting):
            try:
                s = self._store.snapshot(self._model, number)
            except NotFoundError:
                log.warning("%s: retention removed snapshot %d before %s was told", self._model, number, target.name)
                continue
            for message in messages(s):
                if stop.is_set():
                    return
                if message.id not in sent:
                    target.deliver(message)
                    sent.add(message.id)
                    self.delivered[target.name] += 1
            if not self._store.tell(self._model, target.name, told, number):
                log.info("%s: another process tells %s too", self._model, target.name)
                told = self._store.told(self._model, target.name)
            else:
                told = number
            sent.clear()


def describe(delivered: Mapping[str, int]) -> str:
    """The deliveries as a sentence."""
    return ", ".join(f"{count:,} to {name}" for name, count in delivered.items())
