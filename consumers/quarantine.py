"""``streamkm quarantine list | show | retry``: bad records."""

from __future__ import annotations

import base64
import contextlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import click
from rich.table import Table

from consumers import logs, terminal
from consumers.factories import codec_resources, writer_opener
from consumers.options import example, with_settings
from streamkm.codecs import make_codec
from streamkm.connectors import KafkaWriter
from streamkm.delivery.quarantine_retry import RecordReader, produce_again, retry_batch
from streamkm.engine import codec_for_model
from streamkm.errors import SettingsError
from streamkm.records import TopicPartition
from streamkm.settings import LiveSettings, StoreSettings
from streamkm.stores import open_store
from streamkm.stores.base import QuarantinedRecord, RecordId
from streamkm.times import format_time

_LISTED_BYTES = 200
_SHOWN_BYTES = 2000
_BATCH_SIZE = 50
"""Records that are retried at a time."""
_RECORD_ID = re.compile(r"(?P<topic>.+)-(?P<partition>\d+)[-@](?P<offset>\d+)")


class RecordIdType(click.ParamType[RecordId]):
    """``topic-partition-offset``, or ``topic-partition@offset`` as in messages."""

    name = "record"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> RecordId:
        """See click."""
        match = _RECORD_ID.fullmatch(str(value))
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
    """List, show and retry the bad records of a model."""


@quarantine.command(
    "list", epilog=example("streamkm quarantine list orders", "streamkm quarantine list orders --limit 5 --json")
)
@click.argument("model")
@with_settings(StoreSettings)
@click.option("--reason", help="Only records with this reason, such as not-json.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True, help="Maximum of records.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as /v1/models/MODEL/quarantine.")
def list_(model: str, settings: StoreSettings, *, reason: str | None, limit: int, as_json: bool) -> None:
    """List the bad records of MODEL, newest first, with their number by reason."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        counts = dict(store.quarantine_counts(model))
        found = store.newest_quarantined(model, limit=limit, reason=reason, max_bytes=_LISTED_BYTES)
    if as_json:
        from streamkm.service.serializers import quarantined

        records = [quarantined(bad).model_dump() for bad in found]
        terminal.say_json({"total": sum(counts.values()), "reasons": counts, "records": records}, verbatim=True)
        return
    if not counts:
        terminal.say("the quarantine is empty")
        return
    by_reason = (f"{n:,} {name}" for name, n in sorted(counts.items(), key=lambda item: -item[1]))
    terminal.say(f"{sum(counts.values()):,} in quarantine: {', '.join(by_reason)}")
    table = Table("record", "reason", "field", "message", "value")
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
@click.argument("record", type=RecordIdType(), metavar="TOPIC-PARTITION-OFFSET")
@with_settings(StoreSettings)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with the whole key and value in base64.")
def show(model: str, record: RecordId, settings: StoreSettings, *, as_json: bool) -> None:
    """Show one bad record of MODEL."""
    with contextlib.closing(open_store(settings.store, create=False)) as store:
        entry = store.quarantined_record(model, record)
    if as_json:
        terminal.say_json(entry_json(entry), verbatim=True)
        return
    for line in entry_lines(entry):
        terminal.say(line, verbatim=True)


def entry_json(entry: QuarantinedRecord) -> dict[str, Any]:
    """An entry as JSON: as the service lists it, with headers, bytes, commit and delivery of its dead letter."""
    from streamkm.service.serializers import quarantined

    r, delivered_at = entry.bad.record, entry.delivered_at
    return {
        **quarantined(entry.bad).model_dump(),
        "headers": [{"name": name, "value_base64": _base64(value)} for name, value in r.headers],
        "key_base64": _base64(r.key),
        "value_base64": _base64(r.value),
        "commit_seq": entry.commit_seq,
        "delivered_at": None if delivered_at is None else format_time(delivered_at),
    }


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def entry_lines(entry: QuarantinedRecord) -> Iterator[str]:
    """An entry as lines of text."""
    bad, r = entry.bad, entry.bad.record
    yield f"{r.partition}-{r.offset}: {bad.message}"
    yield f"reason     {bad.reason}" + (f", field {bad.field}" if bad.field else "")
    yield f"timestamp  {r.timestamp}" + ("" if r.timestamp >= 0 else " (none)")
    yield f"commit     {entry.commit_seq}"
    yield f"letter     {'not delivered' if entry.delivered_at is None else 'delivered'}"
    for name, value in r.headers:
        yield f"header     {name}: {_shown(value)}"
    yield f"key        {_shown(r.key)}"
    yield f"value      {_shown(r.value, r.size)}"
    if r.size is not None:
        kept = f"{len(r.value or b''):,} of {r.size:,} bytes of the value are kept"
        yield f"truncated  {kept}; the topic has the whole record at its offset, as long as it retains it"


def _shown(value: bytes | None, size: int | None = None) -> str:
    if value is None:
        return "null"
    if not value and not size:
        return "(empty)"
    size = len(value) if size is None else size
    rest = f" ... ({size:,} bytes)" if min(len(value), _SHOWN_BYTES) < size else ""
    return _readable(value, _SHOWN_BYTES, size) + rest


def _readable(value: bytes, limit: int, size: int | None) -> str:
    """Bytes as text: UTF-8 if most characters are printable, else hexadecimal; `size` is that of the whole value."""
    text = decoded(value, limit, size)
    if text is None:
        part = value[:limit].decode("utf-8", "replace")
        mostly_text = "\ufffd" not in part and 2 * sum(map(str.isprintable, part)) > len(part)
        return part if mostly_text else f"{value[:limit].hex()} (hex)"
    return text


def decoded(value: bytes, limit: int | None, size: int | None = None) -> str | None:
    """Bytes as printable text; None if they are not UTF-8, or have characters that cannot be printed.

    Parameters
    ----------
    value
        The bytes, or the beginning of them.
    limit
        Maximum of bytes; a character that is cut there is dropped.
    size
        Bytes of the whole value, if `value` is only its beginning.
    """
    part, size = value[:limit], len(value) if size is None else size
    try:
        text = part.decode()
    except UnicodeDecodeError as e:
        if len(part) == size or e.reason != "unexpected end of data":
            return None
        text = part[: e.start].decode()
    return text if text.replace("\n", "").replace("\t", "").isprintable() else None


@quarantine.command(
    epilog=example(
        "streamkm quarantine retry orders --all --dry-run",
        "streamkm quarantine retry orders --reason too-large",
        "streamkm quarantine retry orders orders-0-1234",
    )
)
@click.argument("model")
@click.argument("records", type=RecordIdType(), metavar="[TOPIC-PARTITION-OFFSET]...", nargs=-1)
@with_settings(LiveSettings, only=("store", "bootstrap", "kafka_property"))
@click.option("--all", "every", is_flag=True, help="All records of the quarantine.")
@click.option("--reason", help="All records with this reason, such as too-large.")
@click.option("--dry-run", is_flag=True, help="Only count the records that can be decoded now.")
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
    """Produce bad records of MODEL that can be decoded now to their topic again.

    They are decoded with the codec of the model in this version. A record of which the quarantine keeps only a part is
    read from its topic; if the topic no longer has it, it stays and counts as gone.

    Records that can be decoded go to their partition with the same key, value, headers and timestamp, and three headers
    with their original offset. They leave the quarantine, and the consumer learns them as new records. A crash between
    the two produces some of them twice (at least once). Other records stay.
    """
    logs.configure()
    if sum((every, reason is not None, bool(records))) != 1:
        raise SettingsError("say which records", hint="Name some, or give --reason REASON, or --all")
    counts = Counter(tried=0, decoded=0, produced=0, unavailable=0)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(contextlib.closing(open_store(settings.store, create=False)))
        spec = store.model(model).spec
        codec = codec_for_model(make_codec(spec.codec, codec_resources()), spec)
        reader = RecordReader(settings.bootstrap, settings.kafka_properties)
        stack.enter_context(contextlib.closing(reader))
        writer: KafkaWriter | None = None

        def produce(entries: Sequence[QuarantinedRecord]) -> int:
            nonlocal writer
            if dry_run:
                return 0
            writer = writer or stack.enter_context(contextlib.closing(writer_opener(settings)()))
            return produce_again(store, model, writer, entries)

        found = (store.quarantined_record(model, r) for r in records) if records else store.iter_quarantine(model)
        selected = (entry for entry in found if reason in (None, entry.bad.reason))
        while batch := list(islice(selected, _BATCH_SIZE)):
            counts.update(retry_batch(batch, reader, codec, produce))
    remaining = counts["tried"] - counts["produced"]
    if counts["unavailable"]:
        terminal.say(
            f"{counts['unavailable']:,} are truncated, and no longer in their topic: they cannot be retried", err=True
        )
    if as_json:
        terminal.say_json({**counts, "remaining": remaining, "dry_run": dry_run}, indent=None)
    elif dry_run:
        terminal.say(f"{counts['decoded']:,} of {counts['tried']:,} can be decoded now, and would be produced again")
    else:
        terminal.say(
            f"{counts['produced']:,} of {counts['tried']:,} were produced again, {remaining:,} stay in quarantine"
        )
