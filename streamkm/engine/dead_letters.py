"""Dead letters: quarantined records are written to a topic, at least once each, without delaying the stream.

A dead letter has the key, value, headers and timestamp of the record, the headers that Kafka Connect adds, and two of
streamkm. A record that the quarantine keeps truncated is sent truncated, with a header that gives the size of the whole
value; the original stays in its topic at its offset. Topic, partition and offset in the headers identify a letter, so
readers can drop repetitions: a crash between the acknowledgement and its note in the store sends some letters again.
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
"""Prefix of Kafka Connect's headers of dead letters; numbers in them are decimal text."""
REASON, FIELD = "__streamkm.reason", "__streamkm.field"
"""Headers that Kafka Connect does not have: reason and field of the bad record."""
TRUNCATED = "__streamkm.value.cut"
"""Header of a letter with a truncated record: bytes of the whole value."""
OMITTED = "__streamkm.value.omitted"
"""Header of a letter that the topic accepts only without its value: bytes of the value."""
STAGE = "VALUE_CONVERTER"
"""Kafka Connect's name of the stage that decodes values."""

BATCH_LETTERS = 500
"""Letters sent at a time."""
FIRST_BACKOFF, LAST_BACKOFF = 0.5, 30.0
"""Seconds between attempts: the first wait, doubled up to the last."""
CLOSE_SECONDS = 2.0
"""Seconds that a stopping owner waits for its last letters; the next owner sends the others."""


def dead_letter(topic: str, model: str, decoder: str, held: QuarantinedRecord) -> ProducerRecord:
    """The dead letter of a record.

    Parameters
    ----------
    topic
        Destination.
    model
        Name of the model.
    decoder
        Kind of the codec that rejected the record.
    held
        The record.
    """
    record = held.bad.record
    context = {
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
    added = [(PREFIX + name, _text(value)) for name, value in context.items()]
    added += [(REASON, _text(held.bad.reason)), (FIELD, _text(held.bad.field))]
    if record.size is not None:
        added.append((TRUNCATED, _text(record.size)))
    return ProducerRecord(topic, record.key, record.value, (*record.headers, *added), record.timestamp)


def without_payload(full: ProducerRecord) -> ProducerRecord:
    """A letter for a topic that rejects the whole one: only the headers that identify the record."""
    first = next(i for i in reversed(range(len(full.headers))) if full.headers[i][0] == f"{PREFIX}topic")
    ours = dict(full.headers[first:])
    size = ours.pop(TRUNCATED, None) or ours.get(OMITTED) or _text(len(full.value or b""))
    return full._replace(value=b"", headers=tuple({**ours, OMITTED: size}.items()), key=None, timestamp=-1)


def _n_bytes(one: ProducerRecord) -> int:
    """Approximate bytes of a record in a topic."""
    headers = sum(len(name) + len(value or b"") for name, value in one.headers)
    return len(one.value or b"") + len(one.key or b"") + headers


def _text(value: object) -> bytes:
    return str(value).encode("utf-8", "replace")


class DeadLetterSender:
    """A thread that sends the dead letters of undelivered records, and marks them in the store as delivered.

    While the broker is slow or unavailable, letters wait in the store and learning continues.

    Parameters
    ----------
    context
        Of the engine; option `dead_letters` names the topic, which is created with one partition if it does not exist.
    open_writer
        Opens a writer; called again after an error.
    """

    def __init__(self, context: EngineContext, open_writer: Callable[[], Writer]) -> None:
        self._context, self._open_writer = context, open_writer
        self._store, self._model, self._topic = context.store, context.spec.name, context.options.dead_letters
        self._decoder = context.spec.codec.kind
        self._writer: Writer | None = None
        self._changed = threading.Condition()
        self._woken, self._deadline = True, float("inf")  # starts with the letters that the previous owner left
        self._failing = False
        self._too_large: float = float("inf")  # bytes of the smallest letter that the topic rejected
        self._thread = threading.Thread(target=self._run, name=f"streamkm-letters-{self._model}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Signal that records were added to the quarantine."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def close(self) -> None:
        """Send the remaining letters, for `CLOSE_SECONDS` at most, and stop."""
        with self._changed:
            self._deadline = time.monotonic() + CLOSE_SECONDS
            self._changed.notify()
        self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        backoff = FIRST_BACKOFF
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._woken or self._closing)
                if not self._woken:
                    break
                self._woken = False
            if self._send_all():
                backoff = FIRST_BACKOFF
                continue
            with self._changed:
                self._changed.wait_for(lambda: self._closing, backoff)
                if self._closing:
                    break
                self._woken = True
            backoff = min(2 * backoff, LAST_BACKOFF)
        if self._writer is not None:
            self._writer.close()

    @property
    def _closing(self) -> bool:
        return self._deadline < float("inf")

    def _send_all(self) -> bool:
        """Send all undelivered letters; False if some remain."""
        try:
            while batch := self._store.undelivered(self._model, limit=BATCH_LETTERS):
                self._send(batch)
                if time.monotonic() > self._deadline:
                    return False
        except Exception as error:  # noqa: BLE001  # no error of dead letters may stop the stream
            self._context.count_error("letters")
            if not self._failing:  # once per outage
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

    def _send(self, batch: Sequence[QuarantinedRecord]) -> None:
        """Send letters, and mark the acknowledged ones as delivered.

        Raises
        ------
        SourceError
            Some were not acknowledged.
        """
        if self._writer is None:
            self._writer = self._open_writer()
            self._writer.create_topic(self._topic)
        letters = [dead_letter(self._topic, self._model, self._decoder, held) for held in batch]
        # Letters that are known to be too large are sent without payload at once.
        letters = [without_payload(full) if _n_bytes(full) >= self._too_large else full for full in letters]
        results = list(self._writer.write(letters))
        # A letter that can never be written must not block the others. A batch may fail as a whole, so each rejected
        # letter is tried on its own.
        for i in _permanent_failures(results):
            if _n_bytes(letters[i]) < self._too_large:
                (results[i],) = self._writer.write([letters[i]])
            if (result := results[i]) is not None and result.too_large:
                self._too_large = min(self._too_large, _n_bytes(letters[i]))
        if rejected := _permanent_failures(results):
            for i, result in zip(
                rejected, self._writer.write([without_payload(letters[i]) for i in rejected]), strict=True
            ):
                results[i] = result
        delivered = [held for held, result in zip(batch, results, strict=True) if result is None]
        if delivered:
            records = [(held.bad.record.partition, held.bad.record.offset) for held in delivered]
            self._store.mark_delivered(self._model, records, time.time())
            self._store.trim_quarantine(self._model, self._context.options.quarantine_limits())
            self._context.metrics.add(LETTERS, len(delivered), model=self._model)
        failed = next((result for result in results if result is not None), None)
        if failed is not None:
            raise SourceError(failed.message, where=self._topic)


def _permanent_failures(results: Sequence[DeliveryError | None]) -> list[int]:
    """Indexes of the letters that would be rejected again unchanged."""
    return [i for i, result in enumerate(results) if result is not None and result.permanent]
