"""``streamkm feed``: real records for a topic, to try things with."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import threading
import time
from collections.abc import Iterator
from typing import Self

import click
import kafka  # type: ignore[import-untyped]
import kafka.errors as ke  # type: ignore[import-untyped]

from consumers import logs, terminal
from consumers.options import example, takes
from consumers.signals import stop_on_signals
from streamkm.errors import BrokerUnreachableError
from streamkm.settings import SourceSettings
from streamkm.sources import why_away

PARTITIONS = 3
FIELDS = ("f1", "f3", "f5", "f7", "f8", "f9")
"""The others are 0, but for a reading of thousands now and then: those few would be clusters of their own."""
TELL_SECONDS = 10.0


@click.command(
    epilog=example(
        "streamkm feed shuttle",
        "streamkm feed shuttle --rate 20000 --records 1000000",
        f"streamkm live shuttle --topic shuttle --fields {','.join(FIELDS)} --k 7",
    )
)
@click.argument("topic")
@takes(SourceSettings, only=("bootstrap",))
@click.option("--rate", type=click.IntRange(1, 1_000_000), default=5000, show_default=True, help="Records a second.")
@click.option("--records", type=click.IntRange(min=0), help="End after so many; 0: only make the topic.")
def feed(topic: str, settings: SourceSettings, *, rate: int, records: int | None) -> None:
    """Write sample records into TOPIC, which is made if it is not there: sensor readings of the NASA shuttle.

    49,097 of them, over and over, as JSON with the fields f1 to f9. SIGTERM and SIGINT end it when all are written.
    """
    logs.configure()
    stop = stop_on_signals()
    make_topic(settings.bootstrap, topic)
    told = time.monotonic()
    with Producer(settings.bootstrap, topic, rate, records) as producer:
        while producer.thread.is_alive() and not stop.wait(0.1):
            if time.monotonic() - told > TELL_SECONDS:
                told = time.monotonic()
                terminal.say(f"{producer.sent:,} records written")
    if producer.error:
        raise BrokerUnreachableError(
            f"a record was not taken ({producer.error}), after {producer.sent:,} of them", where=settings.bootstrap
        ) from producer.error
    terminal.say(f"wrote {producer.sent:,} records into {topic}")


def make_topic(bootstrap: str, topic: str) -> None:
    """Make the topic if it is not there.

    Raises
    ------
    BrokerUnreachableError
        No broker answers.
    """
    from streamkm.broker.admin import create_topic

    if why := why_away(bootstrap):
        raise BrokerUnreachableError(why, where=bootstrap, hint="Is Kafka up, and --bootstrap its address?")
    create_topic(bootstrap, topic, PARTITIONS, {})


class Producer:
    """Streams the shuttle data into the topic at a steady rate, over and over, from a thread of its own."""

    def __init__(self, bootstrap: str, topic: str, rate: int, records: int | None = None) -> None:
        self.topic, self.rate, self.records = topic, rate, records
        self.sent = 0
        self.error: ke.KafkaError | None = None
        self.done = threading.Event()
        self.producer = kafka.KafkaProducer(bootstrap_servers=bootstrap, linger_ms=20, compression_type="lz4")
        self.thread = threading.Thread(target=self._run, name="producer", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until what was sent is written."""
        self.done.set()
        self.thread.join(5)
        self.producer.close(timeout=5)

    def _run(self) -> None:
        partitions = len(self.producer.partitions_for(self.topic) or range(PARTITIONS))
        rows = itertools.cycle([json.dumps(row).encode() for row in shuttle_rows()])
        began = time.monotonic()
        while self.sent != self.records and not self.done.wait(0.05):
            due = int((time.monotonic() - began) * self.rate)
            due = due if self.records is None else min(due, self.records)
            for value in itertools.islice(rows, due - self.sent):
                try:
                    self.producer.send(self.topic, value, partition=self.sent % partitions)
                except ke.KafkaError as e:
                    self.error = e
                    return
                self.sent += 1


def shuttle_rows() -> Iterator[dict[str, float]]:
    """Sensor readings of the Statlog (Shuttle) data, as river brings them: 49,097 rows of f1 ... f9, in file order."""
    from river.datasets import Shuttle

    with gzip.open(Shuttle().path, "rt", newline="") as file:
        for row in csv.DictReader(file):
            yield {name: float(row[name]) for name in row if name.startswith("f")}
