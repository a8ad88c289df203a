"""``streamkm feed``: write sample records to a topic."""

from __future__ import annotations

import contextlib
import csv
import gzip
import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Self

import click

from consumers import logs, terminal
from consumers.options import example, with_settings
from consumers.signals import stop_on_signals
from streamkm.connectors import KafkaWriter
from streamkm.errors import SourceError, StreamkmError
from streamkm.records import ProducerRecord
from streamkm.settings import KafkaClientSettings

PARTITIONS = 3
FIELDS = ("f1", "f3", "f5", "f7", "f8", "f9")
"""Fields to cluster. The others are 0 except for rare readings of thousands, which would be clusters of their own."""
REPORT_SECONDS = 10.0
"""Seconds between two lines of progress."""
BATCH_SIZE = 10_000
"""Records that are written before their acknowledgements are awaited."""


@click.command(
    epilog=example(
        "streamkm feed shuttle",
        "streamkm feed shuttle --rate 20000 --records 1000000",
        f"streamkm live shuttle --topic shuttle --fields {','.join(FIELDS)} --k 7",
    )
)
@click.argument("topic")
@with_settings(KafkaClientSettings)
@click.option("--rate", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="Records per second.")
@click.option("--records", type=click.IntRange(min=0), help="Stop after this number; 0: only create the topic.")
def feed(topic: str, settings: KafkaClientSettings, *, rate: int, records: int | None) -> None:
    """Write sensor readings of the NASA shuttle into TOPIC, which is created if it does not exist.

    49,097 records, repeated, as JSON with the fields f1 to f9. SIGTERM and SIGINT stop it after pending writes.
    """
    logs.configure()
    stop = stop_on_signals()
    with contextlib.closing(
        KafkaWriter(settings.bootstrap, client=settings.kafka_properties, should_stop=stop.is_set)
    ) as writer:
        writer.create_topic(topic, PARTITIONS)
        reported = time.monotonic()
        with Producer(writer, topic, rate, records) as producer:
            while producer.thread.is_alive() and not stop.wait(0.1):
                if time.monotonic() - reported > REPORT_SECONDS:
                    reported = time.monotonic()
                    terminal.say(f"{producer.sent:,} records written")
    if producer.refused:
        raise SourceError(
            f"a record was not accepted ({producer.refused}), after {producer.sent:,} records",
            where=f"{topic} at {settings.bootstrap}",
            hint="Is the broker running, and is writing to the topic allowed? --kafka-property sets the login",
        )
    terminal.say(f"wrote {producer.sent:,} records into {topic}")


class Producer:
    """Writes the shuttle data to a topic at a steady rate, repeatedly, in its own thread.

    Parameters
    ----------
    writer
        Used only by the thread until it has ended.
    topic
        An existing topic.
    rate
        Records per second.
    records
        Total number of records; None for no limit.
    """

    def __init__(self, writer: KafkaWriter, topic: str, rate: int, records: int | None = None) -> None:
        self.writer, self.topic, self.rate, self.records = writer, topic, rate, records
        self.sent = 0
        self.refused = ""
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, name="producer", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until pending records are written."""
        self.done.set()
        self.thread.join(15)

    def _run(self) -> None:
        try:
            self._write()
        except StreamkmError as e:
            self.refused = str(e)

    def _write(self) -> None:
        partitions = self.writer.partitions(self.topic)
        rows = itertools.cycle([json.dumps(row).encode() for row in shuttle_rows()])
        started = time.monotonic()
        while self.sent != self.records and not self.done.wait(0.05):
            due = int((time.monotonic() - started) * self.rate)
            due = min(due if self.records is None else min(due, self.records), self.sent + BATCH_SIZE)
            numbers = range(self.sent, due)
            records = [ProducerRecord(self.topic, None, next(rows), (), -1, n % partitions) for n in numbers]
            results = self.writer.write(records)
            refused = [error for error in results if error is not None]
            self.sent += len(results) - len(refused)
            if refused:
                self.refused = refused[0].message
                return


def shuttle_rows() -> Iterator[dict[str, float]]:
    """Sensor readings of the Statlog (Shuttle) data, from river: 49,097 rows of f1 ... f9, in file order."""
    from river.datasets import Shuttle

    with gzip.open(Shuttle().path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            yield {name: float(row[name]) for name in row if name.startswith("f")}
