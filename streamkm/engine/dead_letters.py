"""Dead letters: quarantined records on a topic of their own, at least once each, without ever holding up the stream.

A letter is the record as it was (key, value, headers, timestamp) with the headers that Kafka Connect adds to its dead
letters, and two of ours. Of a record that the quarantine does not keep whole it has what is kept, and a header says
how large the whole value is, which stays in its topic at its offset. Topic, partition and offset in the headers tell a
letter apart, so a reader can drop repeats: a death between the acknowledgement and the note of it in the store sends
some letters again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from streamkm.connectors.base import Writer
from streamkm.engine.context import EngineContext
from streamkm.errors import SourceError
from streamkm.metrics import LETTERS
from streamkm.records import DeliveryError, ProducerRecord
from streamkm.stores.base import QuarantinedRecord

log = logging.getLogger("streamkm.engine")

PREFIX = "__connect.errors."
"""Of the headers that Kafka Connect's dead letters have; their numbers are decimal text."""
REASON, FIELD = "__streamkm.reason", "__streamkm.field"
"""Headers that Kafka Connect does not have: the words for machines."""
TRUNCATED = "__streamkm.value.cut"
"""Header of a letter that is not the whole record; says how many bytes the whole value has."""
OMITTED = "__streamkm.value.omitted"
"""Header of a letter that its topic took only without the value; says how many bytes that has."""
STAGE = "VALUE_CONVERTER"
"""Connect's name of the stage in which a value is decoded."""

BATCH_LETTERS = 500
"""Letters under way at a time."""
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0
CLOSE_SECONDS = 2.0
"""How long an owner that leaves waits for its last letters; the next owner sends the others."""


def dead_letter(topic: str, model: str, decoder: str, held: QuarantinedRecord) -> ProducerRecord:
    """The dead letter of a record.

    Parameters
    ----------
    topic
        Where it goes.
    decoder
        Kind of the codec that could not take it.
    """
    record = held.bad.record
    told = {
        "topic": record.partition.topic,
        "partition": record.partition.partition,
        "offset": record.offset,
        "connector.name": model,
        "task.id": 0,
        "stage": STAGE,
        "class.name": f"streamkm.codecs.{decoder}",
        "exception.class.name": "streamkm.errors.DataError",
        "exception.message": held.bad.message,
    }
    added = [(PREFIX + name, _text(value)) for name, value in told.items()]
    added += [(REASON, _text(held.bad.reason)), (FIELD, _text(held.bad.field))]
    if record.size is not None:
        added.append((TRUNCATED, _text(record.size)))
    return ProducerRecord(topic, record.key, record.value, (*record.headers, *added), record.timestamp)


def without_payload(full: ProducerRecord) -> ProducerRecord:
    """What is left of a letter that its topic does not take: all that tells which record it was."""
    first = next(i for i in reversed(range(len(full.headers))) if full.headers[i][0] == f"{PREFIX}topic")
    ours = dict(full.headers[first:])
    size = ours.pop(TRUNCATED, None) or ours.get(OMITTED) or _text(len(full.value or b""))
    return full._replace(value=b"", headers=tuple({**ours, OMITTED: size}.items()), key=None, timestamp=-1)


def _weight(one: ProducerRecord) -> int:
    """About the bytes that a record takes in a topic."""
    headers = sum(len(name) + len(value or b"") for name, value in one.headers)
    return len(one.value or b"") + len(one.key or b"") + headers


def _text(value: object) -> bytes:
    return str(value).encode("utf-8", "replace")


class DeadLetterSender:
    """A thread that sends what is in quarantine and not known to be delivered, and notes in the store what was.

    The broker may be slow or away: letters then wait in the store, and learning goes on.

    Parameters
    ----------
    context
        Of the engine; their option `dead_letters` names the topic, which is made with one partition if it is not there.
    open_writer
        Gives a fresh writer; called again after an error.
    """

    def __init__(self, context: EngineContext, open_writer: Callable[[], Writer]) -> None:
        self._context, self._open_writer = context, open_writer
        self._store, self._model, self._topic = context.store, context.spec.name, context.options.dead_letters
        self._decoder = str(context.spec.codec.get("kind", ""))
        self._writer: Writer | None = None
        self._changed = threading.Condition()
        self._woken, self._deadline = True, float("inf")  # what an owner before us left is sent first
        self._failing = False
        self._too_large: float = float("inf")  # bytes of the smallest letter that its topic was seen not to take
        self._thread = threading.Thread(target=self._run, name=f"streamkm-letters-{self._model}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new in quarantine."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        """Send what waits, for `CLOSE_SECONDS` at most."""
        with self._changed:
            self._deadline = time.monotonic() + CLOSE_SECONDS
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._woken or self._leaving)
                if not self._woken:
                    break
                self._woken = False
            if self._round():
                backoff = FIRST_BACKOFF
                continue
            with self._changed:
                self._changed.wait_for(lambda: self._leaving, backoff)
                if self._leaving:
                    break
                self._woken = True
            backoff = min(2 * backoff, LAST_BACKOFF)
        if self._writer is not None:
            self._writer.close()

    @property
    def _leaving(self) -> bool:
        return self._deadline < float("inf")

    def _round(self) -> bool:
        """Send all that waits; False if not all of it could be."""
        try:
            while waiting := self._store.undelivered(self._model, limit=BATCH_LETTERS):
                self._send(waiting)
                if time.monotonic() > self._deadline:
                    return False
        except Exception as error:  # noqa: BLE001  # whatever it was, it must not stop the stream
            self._context.count_error("letters")
            if not self._failing:  # once per outage, not once per attempt
                log.warning("%s: dead letters wait in the store: %s", self._model, error)
            self._failing = True
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            return False
        if self._failing:
            log.info("%s: dead letters are delivered again", self._model)
        self._failing = False
        return True

    def _send(self, waiting: Sequence[QuarantinedRecord]) -> None:
        """Send letters, and note those that arrived."""
        if self._writer is None:
            self._writer = self._open_writer()
            self._writer.create_topic(self._topic)
        letters = [dead_letter(self._topic, self._model, self._decoder, held) for held in waiting]
        # What is known to be too large goes reduced at once, with the others.
        letters = [without_payload(full) if _weight(full) >= self._too_large else full for full in letters]
        answers = list(self._writer.write(letters))
        # A letter that can never be written must not stand in the way of the others for ever. Whether it is this one
        # shows when it goes alone.
        for i in _never(answers):
            if _weight(letters[i]) < self._too_large:
                (answers[i],) = self._writer.write([letters[i]])
            if (answer := answers[i]) is not None and answer.too_large:
                self._too_large = min(self._too_large, _weight(letters[i]))
        if lacking := _never(answers):
            for i, answer in zip(
                lacking, self._writer.write([without_payload(letters[i]) for i in lacking]), strict=True
            ):
                answers[i] = answer
        arrived = [held for held, answer in zip(waiting, answers, strict=True) if answer is None]
        if arrived:
            places = [(held.bad.record.partition, held.bad.record.offset) for held in arrived]
            self._store.mark_delivered(self._model, places, time.time())
            self._store.trim_quarantine(self._model, self._context.options.quarantine_limits())
            self._context.metrics.add(LETTERS, len(arrived), model=self._model)
        refused = next((answer for answer in answers if answer is not None), None)
        if refused is not None:
            raise SourceError(refused.message, where=self._topic)


def _never(answers: Sequence[DeliveryError | None]) -> list[int]:
    """Which letters would be refused again as they are."""
    return [i for i, answer in enumerate(answers) if answer is not None and answer.permanent]
