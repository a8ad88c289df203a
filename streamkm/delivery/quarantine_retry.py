"""Produces quarantined records to their topic again."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

from streamkm.codecs import Codec
from streamkm.connectors import KafkaSource, KafkaWriter, byte_records
from streamkm.errors import PartitionStalledError, PositionLostError, SourceError
from streamkm.records import ProducerRecord, RawRecord
from streamkm.stores.base import QuarantinedRecord, QuarantineStore
from streamkm.stores.quarantine import record_id

HEADER_PREFIX = "__streamkm.retry."
"""Prefix of the headers with the original topic, partition and offset of a retried record."""
_POLL_SECONDS = 0.5
_READ_SECONDS = 30.0
"""Maximum seconds to read one record again."""


class RecordReader:
    """Reads records of which the quarantine keeps only the beginning from their topics.

    Parameters
    ----------
    bootstrap
        Kafka brokers.
    properties
        Properties of the Kafka client.
    """

    def __init__(self, bootstrap: str, properties: Mapping[str, str]) -> None:
        self._bootstrap, self._properties = bootstrap, properties
        self._sources: dict[str, KafkaSource] = {}

    def complete(self, entry: QuarantinedRecord) -> QuarantinedRecord | None:
        """The entry with its whole record; None if the topic no longer has it.

        Raises
        ------
        PartitionStalledError
            The record does not arrive in time.
        """
        record = entry.bad.record
        if record.size is None:
            return entry
        partition, offset = record.partition, record.offset
        if partition.topic not in self._sources:
            self._sources[partition.topic] = KafkaSource.connect(
                self._bootstrap, partition.topic, client=self._properties, public_api_only=True
            )
        source = self._sources[partition.topic]
        try:
            source.seek({partition: offset})
        except PositionLostError:
            return None
        deadline = time.monotonic() + _READ_SECONDS
        while time.monotonic() < deadline:
            for records in source.poll(_POLL_SECONDS, 1):
                if len(records) and int(records.offsets[0]) == offset:
                    return entry._replace(bad=dataclasses.replace(entry.bad, record=records.record(0)))
                if records.stop > offset:  # removed by compaction
                    return None
        raise PartitionStalledError("the record does not arrive", where=f"{partition}@{offset}", hint="Try again")

    def close(self) -> None:
        """Close the connections."""
        for source in self._sources.values():
            source.close()


def can_decode(codec: Codec, record: RawRecord) -> bool:
    """Whether a codec decodes a record."""
    return len(codec.decode(byte_records(record.partition, record.offset, record.offset + 1, [record]))) == 1


def retry_batch(
    entries: Sequence[QuarantinedRecord],
    reader: RecordReader,
    codec: Codec,
    produce: Callable[[Sequence[QuarantinedRecord]], int],
) -> dict[str, int]:
    """Retry some entries of the quarantine.

    Parameters
    ----------
    entries
        The entries.
    reader
        Completes entries whose record was truncated.
    codec
        Codec of the model.
    produce
        Produces entries that can be decoded, and returns how many arrived.

    Returns
    -------
    Numbers of entries: tried, decoded, produced, and gone from their topic.
    """
    complete = [found for entry in entries if (found := reader.complete(entry)) is not None]
    decoded = [entry for entry in complete if can_decode(codec, entry.bad.record)]
    return {
        "tried": len(entries),
        "decoded": len(decoded),
        "produced": produce(decoded) if decoded else 0,
        "unavailable": len(entries) - len(complete),
    }


def produce_again(store: QuarantineStore, model: str, writer: KafkaWriter, entries: Sequence[QuarantinedRecord]) -> int:
    """Produce entries to their topics, and remove those that arrived from the quarantine.

    Returns
    -------
    Number of entries that arrived.

    Raises
    ------
    SourceError
        The broker did not accept all of them.
    """
    results = writer.write([retry_record(entry.bad.record) for entry in entries])
    produced = [record_id(entry.bad) for entry, error in zip(entries, results, strict=True) if error is None]
    store.remove_quarantined(model, produced)
    for error in results:
        if error is not None and not error.permanent:
            raise SourceError(
                f"the broker did not accept all of them ({error.message})",
                where=f"model {model}",
                hint=f"{len(produced)} were produced again; the others stay, so try again",
            )
    return len(produced)


def retry_record(record: RawRecord) -> ProducerRecord:
    """The record to produce: the original one, with headers that name its original offset."""
    origin = {"topic": record.partition.topic, "partition": record.partition.partition, "offset": record.offset}
    headers = (*record.headers, *((HEADER_PREFIX + name, str(value).encode()) for name, value in origin.items()))
    topic, partition = record.partition
    return ProducerRecord(topic, record.key, record.value, headers, record.timestamp, partition)
