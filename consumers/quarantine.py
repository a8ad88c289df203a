"""``streamkm quarantine list | show | retry``: look at bad records, and try them again."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import re
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import click
from rich.table import Table

from consumers import logs, terminal
from consumers.factories import writer_opener
from consumers.options import example, with_settings
from streamkm.codecs import Codec, make_codec
from streamkm.connectors import KafkaSource, KafkaWriter, byte_records
from streamkm.engine import codec_for_model
from streamkm.errors import PartitionStalledError, PositionLostError, SettingsError, SourceError
from streamkm.records import BadRecord, ProducerRecord, RawRecord, TopicPartition
from streamkm.settings import LiveSettings, StoreSettings
from streamkm.stores import open_store
from streamkm.stores.base import QuarantinedRecord, RecordId, Store

FROM = "__streamkm.retry."
"""Headers that tell where a record that is tried again was first: topic, partition, offset."""

_LISTED_BYTES = 200
_SHOWN_BYTES = 2000
_AT_ONCE = 50
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 30.0
_PLACE = re.compile(r"(?P<topic>.+)-(?P<partition>\d+)[-@](?P<offset>\d+)")


class PlaceType(click.ParamType[RecordId]):
    """``topic-partition-offset``, or ``topic-partition@offset`` as messages write it."""

    name = "record"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> RecordId:
        """See click."""
        match = _PLACE.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is not TOPIC-PARTITION-OFFSET, such as orders-0-1234", param, ctx)
        return TopicPartition(match["topic"], int(match["partition"])), int(match["offset"])


@click.group(
    epilog=example(
        "streamkm quarantine list orders --reason not-json",
        "streamkm quarantine show orders orders-0-1234",
        "streamkm quarantine retry orders --all --dry-run",
    )
)
def quarantine() -> None:
    """Look at the records of a model that could not be learned, and try them again."""


@quarantine.command(
    "list", epilog=example("streamkm quarantine list orders", "streamkm quarantine list orders --limit 5 --json")
)
@click.argument("model")
@with_settings(StoreSettings)
@click.option("--reason", help="Only those of this reason, such as not-json.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(model: str, settings: StoreSettings, *, reason: str | None, limit: int, as_json: bool) -> None:
    """List the quarantine of MODEL, newest first, and count its reasons."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        counts = dict(store.quarantine_counts(model))
        found = store.newest_quarantined(model, limit=limit, reason=reason, max_bytes=_LISTED_BYTES)
    if as_json:
        terminal.say_json({"reasons": counts, "records": [record_json(bad) for bad in found]}, verbatim=True)
        return
    if not counts:
        terminal.say("the quarantine is empty")
        return
    told = (f"{n:,} {why}" for why, n in sorted(counts.items(), key=lambda item: -item[1]))
    terminal.say(f"{sum(counts.values()):,} in quarantine: {', '.join(told)}")
    table = Table("record", "reason", "field", "what was wrong", "value")
    for bad in found:
        r = bad.record
        value = "" if r.value is None else _readable(r.value, 40, r.size)
        table.add_row(f"{r.partition}-{r.offset}", bad.reason, bad.field, bad.message, value, style=None)
    terminal.show(table)


@quarantine.command(
    epilog=example(
        "streamkm quarantine show orders orders-0-1234", "streamkm quarantine show orders orders-0-1234 --json"
    )
)
@click.argument("model")
@click.argument("record", type=PlaceType(), metavar="TOPIC-PARTITION-OFFSET")
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, key and value whole, in base64 too.")
def show(model: str, record: RecordId, settings: StoreSettings, *, as_json: bool) -> None:
    """Show all that is known of one quarantined record of MODEL."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        held = store.quarantined_record(model, record)
    if as_json:
        r = held.bad.record
        whole = {
            "key_base64": None if r.key is None else base64.b64encode(r.key).decode(),
            "value_base64": None if r.value is None else base64.b64encode(r.value).decode(),
        }
        more = {"commit": held.commit_seq, "delivered_at": held.delivered_at}
        terminal.say_json({**record_json(held.bad, None), **whole, **more}, verbatim=True)
        return
    for line in lines_of(held):
        terminal.say(line, verbatim=True)


def lines_of(held: QuarantinedRecord) -> Iterator[str]:
    """A record for people."""
    bad, r = held.bad, held.bad.record
    yield f"{r.partition}-{r.offset}: {bad.message}"
    yield f"reason     {bad.reason}" + (f", field {bad.field}" if bad.field else "")
    yield f"timestamp  {r.timestamp}" + ("" if r.timestamp >= 0 else " (none)")
    yield f"commit     {held.commit_seq}"
    yield f"letter     {'not delivered' if held.delivered_at is None else 'delivered'}"
    for name, value in r.headers:
        yield f"header     {name}: {_said(value)}"
    yield f"key        {_said(r.key)}"
    yield f"value      {_said(r.value, r.size)}"
    if r.size is not None:
        kept = f"{len(r.value or b''):,} of {r.size:,} bytes of the value are kept"
        yield f"cut        {kept}; the whole record is in its topic at its offset, as long as that keeps it"


def _said(value: bytes | None, size: int | None = None) -> str:
    shown = as_text(value, _SHOWN_BYTES, size)
    if value is None:
        return "null"
    if not value and not size:
        return "(empty)"
    more = f" ... ({shown['bytes']:,} bytes)" if shown["cut"] else ""
    return _readable(value, _SHOWN_BYTES, size) + more


def _readable(value: bytes, limit: int, size: int | None) -> str:
    """Bytes for people: text with a few signs that cannot be printed is text still, and those are shown as escapes."""
    shown = as_text(value, limit, size)
    if shown["text"] is not None:
        return str(shown["text"])
    text = value[:limit].decode("utf-8", "replace")
    if "\ufffd" not in text and 2 * sum(map(str.isprintable, text)) > len(text):
        return text
    return f"{shown['hex']} (hex)"


def as_text(value: bytes | None, limit: int | None, size: int | None = None) -> dict[str, Any]:
    """Bytes as text where they are UTF-8 that can be printed, else as hexadecimal digits.

    Parameters
    ----------
    limit
        Bytes that are shown at most.
    size
        Bytes of the whole, if `value` is only its beginning.
    """
    if value is None:
        return {"text": None, "hex": None, "bytes": None, "cut": False}
    part, size = value[:limit], len(value) if size is None else size
    cut = len(part) < size
    text: str | None
    try:
        text = part.decode()
    except UnicodeDecodeError as e:
        in_a_letter = cut and e.reason == "unexpected end of data"
        text = part[: e.start].decode() if in_a_letter else None
    if text is not None and not text.replace("\n", "").replace("\t", "").isprintable():
        text = None
    return {"text": text, "hex": None if text is not None else part.hex(), "bytes": size, "cut": cut}


def record_json(bad: BadRecord, limit: int | None = _LISTED_BYTES) -> dict[str, Any]:
    """A bad record as JSON values."""
    r = bad.record
    return {
        "topic": r.partition.topic,
        "partition": r.partition.partition,
        "offset": r.offset,
        "timestamp": r.timestamp if r.timestamp >= 0 else None,
        "reason": bad.reason,
        "field": bad.field,
        "message": bad.message,
        "headers": [{"name": name, **as_text(value, limit)} for name, value in r.headers],
        "key": as_text(r.key, limit),
        "value": as_text(r.value, limit, r.size),
    }


@quarantine.command(
    epilog=example(
        "streamkm quarantine retry orders --all --dry-run",
        "streamkm quarantine retry orders --reason too-large",
        "streamkm quarantine retry orders orders-0-1234",
    )
)
@click.argument("model")
@click.argument("records", type=PlaceType(), metavar="[TOPIC-PARTITION-OFFSET]...", nargs=-1)
@with_settings(LiveSettings, only=("store", "bootstrap", "kafka_property"))
@click.option("--all", "every", is_flag=True, help="All of the quarantine.")
@click.option("--reason", help="All of this reason, such as too-large.")
@click.option("--dry-run", is_flag=True, help="Only say which would be tried again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def retry(
    model: str,
    records: tuple[RecordId, ...],
    settings: LiveSettings,
    *,
    every: bool,
    reason: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Try quarantined records of MODEL again: those that can be decoded now are produced to their topic once more.

    Those of which the quarantine keeps a part only are read from their topic again; what that has no longer stays, and
    is counted as gone.

    They are decoded with the codec of the model as this streamkm has it. Those that pass go to the partition they came
    from, with key, value, headers and timestamp as they were and three headers that tell where they were first. The
    live consumer learns them as new records, and they leave the quarantine. A death between the two produces some of
    them twice (at least once). Those that still cannot be decoded stay.
    """
    logs.configure()
    if sum((every, reason is not None, bool(records))) != 1:
        raise SettingsError("say which records", hint="Name some, or give --reason REASON, or --all")
    counts = {"tried": 0, "decoded": 0, "produced": 0, "gone": 0}
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(open_store(settings.store, create=False)))
        spec = store.model(model).spec
        held = (
            (store.quarantined_record(model, place) for place in records) if records else store.iter_quarantine(model)
        )
        wanted = (h for h in held if reason in (None, h.bad.reason))
        codec = codec_for_model(make_codec(spec.codec), spec)
        writer: KafkaWriter | None = None
        rereader = stack.enter_context(contextlib.closing(Rereader(settings)))
        while group := list(islice(wanted, _AT_ONCE)):
            whole = [w for h in group if (w := rereader.whole(h)) is not None]
            passed = [h for h in whole if decodes(codec, h.bad.record)]
            counts["tried"] += len(group)
            counts["gone"] += len(group) - len(whole)
            counts["decoded"] += len(passed)
            if passed and not dry_run:
                writer = writer or stack.enter_context(contextlib.closing(writer_opener(settings)()))
                counts["produced"] += _produce(store, model, writer, passed)
    stay = counts["tried"] - counts["produced"]
    if counts["gone"]:
        terminal.say(
            f"{counts['gone']:,} are not kept whole, and no longer in their topic: they cannot be tried again", err=True
        )
    if as_json:
        terminal.say_json({**counts, "stay": stay, "dry_run": dry_run}, indent=None)
    elif dry_run:
        terminal.say(f"{counts['decoded']:,} of {counts['tried']:,} can be decoded now, and would be produced again")
    else:
        terminal.say(f"{counts['produced']:,} of {counts['tried']:,} were produced again, {stay:,} stay in quarantine")


class Rereader:
    """Reads records that the quarantine does not keep whole from their topics again.

    Parameters
    ----------
    settings
        Where the brokers are.
    """

    def __init__(self, settings: LiveSettings) -> None:
        self._settings = settings
        self._sources: dict[str, KafkaSource] = {}

    def whole(self, held: QuarantinedRecord) -> QuarantinedRecord | None:
        """A quarantined record with all that it has; None: its topic no longer has it."""
        place = held.bad.record.partition, held.bad.record.offset
        if held.bad.record.size is None:
            return held
        topic, offset = place[0].topic, place[1]
        if topic not in self._sources:
            client = self._settings.kafka_properties
            self._sources[topic] = KafkaSource(self._settings.bootstrap, topic, client=client, plain=True)
        source = self._sources[topic]
        try:
            source.seek({place[0]: offset})
        except PositionLostError:
            return None
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            for records in source.poll(_POLL_SECONDS, 1):
                if len(records) and int(records.offsets[0]) == offset:
                    return held._replace(bad=dataclasses.replace(held.bad, record=records.record(0)))
                if records.stop > offset:  # compaction has taken it
                    return None
        raise PartitionStalledError("the record does not come", where=f"{place[0]}@{offset}", hint="Try again")

    def close(self) -> None:
        """Give back the connections."""
        for source in self._sources.values():
            source.close()


def decodes(codec: Codec, record: RawRecord) -> bool:
    """Whether a record is a point now."""
    return len(codec.decode(byte_records(record.partition, record.offset, record.offset + 1, [record]))) == 1


def _produce(store: Store, model: str, writer: KafkaWriter, passed: Iterable[QuarantinedRecord]) -> int:
    """Produce records again and take those that arrived out of quarantine; how many did."""
    listed = list(passed)
    answers = writer.write([again(held.bad.record) for held in listed])
    places = [
        (held.bad.record.partition, held.bad.record.offset)
        for held, answer in zip(listed, answers, strict=True)
        if answer is None
    ]
    store.remove_quarantined(model, places)
    for answer in answers:
        if answer is not None and not answer.permanent:
            raise SourceError(
                f"the broker did not take all of them ({answer.message})",
                where=f"model {model}",
                hint=f"{len(places)} were produced again; the others stay, so try once more",
            )
    return len(places)


def again(record: RawRecord) -> ProducerRecord:
    """The record as it is produced once more."""
    first = {"topic": record.partition.topic, "partition": record.partition.partition, "offset": record.offset}
    headers = (*record.headers, *((FROM + name, str(value).encode()) for name, value in first.items()))
    topic, partition = record.partition
    return ProducerRecord(topic, record.key, record.value, headers, record.timestamp, partition)
