"""The metric names, which are a contract, and the one object that counts.

`CONTRACT` lists every name that streamkm exports to Prometheus; nothing else is exported under ``streamkm_``. A name,
its kind and its labels do not change within a major version. Names follow Prometheus: base units, ``_total`` on
counters. Labels are few and bounded: never a key, never an offset.

There is no registry at module level: whoever composes a program makes one `Metrics` and hands it down. Nothing here
listens on a port.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import prometheus_client as prom
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from streamkm.records import BadRecord, Position, TopicPartition

Family = prom.Metric
CONTENT_TYPE = prom.CONTENT_TYPE_LATEST
"""Media type of what `Metrics.render` gives."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One name of the contract.

    Attributes
    ----------
    emitter
        Who exports it: the ``engine`` (the process that learns), the ``service`` (the process that answers), or the
        service from the ``store`` at scrape time, so that it is there even when no consumer runs.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    emitter: Literal["engine", "service", "store"]


class CounterSpec(MetricSpec):
    """Only grows; its rate is what one looks at."""


class GaugeSpec(MetricSpec):
    """Goes up and down."""


@dataclass(frozen=True, slots=True)
class HistogramSpec(MetricSpec):
    """Seconds, in buckets."""

    buckets: tuple[float, ...]


_STEP = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_PARTITION = ("model", "topic", "partition")

# The engine counts batches, never single records, so that counting costs nothing.
RECORDS_RECEIVED = CounterSpec("streamkm_records_received_total", "Records read from the source", ("model",), "engine")
POINTS_LEARNED = CounterSpec("streamkm_points_learned_total", "Points the model learned", ("model",), "engine")
RECORDS_BAD = CounterSpec(
    "streamkm_records_bad_total",
    "Records quarantined, by reason: not-json, missing-field, ...",
    ("model", "reason"),
    "engine",
)
LETTERS = CounterSpec("streamkm_dead_letters_total", "Dead letters that the broker acknowledged", ("model",), "engine")
TOMBSTONES = CounterSpec("streamkm_tombstones_total", "Records with a null value", ("model",), "engine")
RECORDS_LOST = CounterSpec(
    "streamkm_records_lost_total",
    "Records that were gone from the topic before they could be read, and were skipped (--on-data-loss skip)",
    ("model",),
    "engine",
)
ALARMS = CounterSpec(
    "streamkm_alarms_total",
    "What the watchdogs noticed, by alarm: stalled-partition, broker-away, store-away, hung",
    ("model", "alarm"),
    "engine",
)
ERRORS = CounterSpec(
    "streamkm_errors_total",
    "Failures that were retried or ended the run, by stage: poll, decode, learn, commit, lease",
    ("model", "stage"),
    "engine",
)
DECODE_SECONDS = HistogramSpec(
    "streamkm_decode_seconds", "Time to decode the records of one poll", ("model",), "engine", _STEP
)
LEARN_SECONDS = HistogramSpec("streamkm_learn_seconds", "Time to learn one mini-batch", ("model",), "engine", _STEP)
COMMIT_SECONDS = HistogramSpec(
    "streamkm_commit_seconds", "Time of one commit to the store, retries included", ("model",), "engine", _STEP
)
SNAPSHOTS = CounterSpec(
    "streamkm_snapshots_total",
    "Snapshots published, by reason: first, interval, points, stop",
    ("model", "reason"),
    "engine",
)
EVENTS = CounterSpec(
    "streamkm_cluster_events_total",
    "What happened to clusters, by kind: birth, death, split, merge, drift, promotion, outliers",
    ("model", "kind"),
    "engine",
)
LAG = GaugeSpec("streamkm_lag_records", "Records in the source that are not committed yet", ("model",), "engine")
PARTITION_LAG = GaugeSpec("streamkm_partition_lag_records", "The same for each partition", _PARTITION, "engine")
PARTITION_POSITION = GaugeSpec(
    "streamkm_partition_position", "Offset of the next record to read, as committed", _PARTITION, "engine"
)
COMMIT_TIMESTAMP = GaugeSpec(
    "streamkm_last_commit_timestamp_seconds", "When the engine last committed, seconds since 1970", ("model",), "engine"
)
SNAPSHOT_TIMESTAMP = GaugeSpec(
    "streamkm_last_snapshot_timestamp_seconds",
    "When the engine last published, seconds since 1970",
    ("model",),
    "engine",
)
INERTIA = GaugeSpec(
    "streamkm_inertia",
    "Mean squared distance of the points before the last snapshot to their centroids",
    ("model",),
    "engine",
)
LEASE_HELD = GaugeSpec("streamkm_lease_held", "1 while this process owns the model, else 0", ("model",), "engine")

HTTP_REQUESTS = CounterSpec(
    "streamkm_http_requests_total", "Requests answered, by route and status", ("method", "route", "status"), "service"
)
HTTP_SECONDS = HistogramSpec(
    "streamkm_http_request_seconds", "Time from request to the end of the answer", ("method", "route"), "service", _STEP
)
POINTS_PREDICTED = CounterSpec(
    "streamkm_points_predicted_total", "Points whose cluster was asked for", ("model",), "service"
)

STORE_UP = GaugeSpec("streamkm_store_up", "1 if the store answered this scrape, else 0", (), "store")
MODEL_STATUS = GaugeSpec(
    "streamkm_model_status", "1 for the model's status (warming-up, running, paused, stale, stopped), 0 for the others",
    ("model", "status"), "store",
)  # fmt: skip
MODEL_RECORDS = CounterSpec(
    "streamkm_model_records_total", "Records accounted for since the model was made", ("model",), "store"
)
MODEL_POINTS = CounterSpec(
    "streamkm_model_points_total", "Points learned since the model was made", ("model",), "store"
)
MODEL_BAD = CounterSpec(
    "streamkm_model_bad_records_total", "Records quarantined since the model was made", ("model",), "store"
)
MODEL_TOMBSTONES = CounterSpec(
    "streamkm_model_tombstones_total", "Records with a null value since the model was made", ("model",), "store"
)
MODEL_LOST = CounterSpec(
    "streamkm_model_lost_records_total",
    "Records that were gone before they could be read, since the model was made",
    ("model",),
    "store",
)
MODEL_LAG = GaugeSpec(
    "streamkm_model_lag_records",
    "Records behind the end of the source at the last commit; absent if unknown",
    ("model",),
    "store",
)
MODEL_POSITION = GaugeSpec("streamkm_model_position", "Offset of the next record to read", _PARTITION, "store")
MODEL_COMMIT_AGE = GaugeSpec("streamkm_model_commit_age_seconds", "Time since the last commit", ("model",), "store")
MODEL_SNAPSHOT_AGE = GaugeSpec(
    "streamkm_model_snapshot_age_seconds", "Time since the last snapshot", ("model",), "store"
)
MODEL_SNAPSHOT_ID = GaugeSpec(
    "streamkm_model_snapshot_id", "Number of the last snapshot; 0: none yet", ("model",), "store"
)
MODEL_INERTIA = GaugeSpec(
    "streamkm_model_inertia", "Mean squared distance of the points before the last snapshot", ("model",), "store"
)
MODEL_SILHOUETTE = GaugeSpec(
    "streamkm_model_silhouette",
    "Simplified silhouette of the live centroids at the last snapshot, 0 to 1, higher is better",
    ("model",),
    "store",
)
MODEL_STALENESS = GaugeSpec(
    "streamkm_model_staleness",
    "By which share the centroids published before cost more than the live ones at the last snapshot",
    ("model",),
    "store",
)
MODEL_OUTLIERS = CounterSpec(
    "streamkm_model_outliers_total", "Points kept out of the centroids as outliers, as of the last snapshot",
    ("model",), "store",
)  # fmt: skip
MODEL_SUGGESTED_K = GaugeSpec(
    "streamkm_model_suggested_k", "Number of clusters that the last profile suggests; absent without one", ("model",),
    "store",
)  # fmt: skip
MODEL_CLUSTER_SHARE = GaugeSpec(
    "streamkm_model_cluster_share",
    "Share of the (decayed) points in a cluster of the last snapshot",
    ("model", "cluster"),
    "store",
)

CONTRACT: tuple[MetricSpec, ...] = (
    RECORDS_RECEIVED, POINTS_LEARNED, RECORDS_BAD, LETTERS, TOMBSTONES, RECORDS_LOST, ALARMS, ERRORS,
    DECODE_SECONDS, LEARN_SECONDS, COMMIT_SECONDS, SNAPSHOTS, EVENTS, LAG, PARTITION_LAG, PARTITION_POSITION,
    COMMIT_TIMESTAMP, SNAPSHOT_TIMESTAMP, INERTIA, LEASE_HELD,
    HTTP_REQUESTS, HTTP_SECONDS, POINTS_PREDICTED,
    STORE_UP, MODEL_STATUS, MODEL_RECORDS, MODEL_POINTS, MODEL_BAD, MODEL_TOMBSTONES, MODEL_LOST, MODEL_LAG,
    MODEL_POSITION, MODEL_COMMIT_AGE, MODEL_SNAPSHOT_AGE, MODEL_SNAPSHOT_ID, MODEL_INERTIA, MODEL_SILHOUETTE,
    MODEL_STALENESS, MODEL_OUTLIERS, MODEL_SUGGESTED_K, MODEL_CLUSTER_SHARE,
)  # fmt: skip
"""Every metric that streamkm exports."""


class Committed(Protocol):
    """What `Metrics.commit` needs of a `streamkm.state.Progress`."""

    @property
    def position(self) -> Position: ...
    @property
    def committed_at(self) -> float: ...
    @property
    def lag(self) -> int: ...


class Happened(Protocol):
    """What `Metrics.commit` needs of a `streamkm.state.Event`."""

    @property
    def kind(self) -> str: ...


class Published(Protocol):
    """What `Metrics.commit` needs of a `streamkm.state.Snapshot`."""

    @property
    def reason(self) -> str: ...
    @property
    def created_at(self) -> float: ...
    @property
    def inertia(self) -> float: ...
    @property
    def events(self) -> Sequence[Happened]: ...


class Metrics:
    """The counters of one process.

    Safe to use from several threads. Wrong labels raise ValueError at once, so that a typo cannot make a new series.

    >>> metrics = Metrics()
    >>> metrics.add(POINTS_LEARNED, 500, model="orders")
    >>> metrics.value(POINTS_LEARNED, model="orders")
    500.0

    Parameters
    ----------
    process
        Also export memory, CPU time and open files of this process, under the usual ``process_`` names.
    """

    def __init__(self, *, process: bool = False) -> None:
        self.registry = prom.CollectorRegistry()
        self._counters: dict[str, prom.Counter] = {}
        self._gauges: dict[str, prom.Gauge] = {}
        self._histograms: dict[str, prom.Histogram] = {}
        for spec in CONTRACT:
            if spec.emitter == "store":
                continue
            if isinstance(spec, CounterSpec):
                self._counters[spec.name] = prom.Counter(spec.name, spec.help, spec.labels, registry=self.registry)
            elif isinstance(spec, GaugeSpec):
                self._gauges[spec.name] = prom.Gauge(spec.name, spec.help, spec.labels, registry=self.registry)
            elif isinstance(spec, HistogramSpec):
                self._histograms[spec.name] = prom.Histogram(
                    spec.name, spec.help, spec.labels, buckets=spec.buckets, registry=self.registry
                )
        if process:
            prom.ProcessCollector(registry=self.registry)

    def add(self, spec: CounterSpec, amount: float = 1, **labels: str) -> None:
        """Count `amount` more."""
        self._counters[spec.name].labels(**labels).inc(amount)

    def set(self, spec: GaugeSpec, value: float, **labels: str) -> None:
        """Say what a gauge is now."""
        self._gauges[spec.name].labels(**labels).set(value)

    def drop(self, spec: GaugeSpec, **labels: str) -> None:
        """Forget a gauge's series: what it measured is not ours any more."""
        self._gauges[spec.name].remove_by_labels(labels)

    def observe(self, spec: HistogramSpec, seconds: float, **labels: str) -> None:
        """Put one duration into its bucket."""
        self._histograms[spec.name].labels(**labels).observe(seconds)

    @contextmanager
    def time(self, spec: HistogramSpec, **labels: str) -> Iterator[None]:
        """Observe how long the body takes, however it ends."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.observe(spec, time.perf_counter() - started, **labels)

    def value(self, spec: CounterSpec | GaugeSpec, **labels: str) -> float | None:
        """What a counter or gauge is now; None if it was never touched."""
        return self.registry.get_sample_value(spec.name, labels)

    def batch(
        self,
        model: str,
        points: int,
        bad: Sequence[BadRecord],
        tombstones: int,
        decode_seconds: float,
        learn_seconds: float,
    ) -> None:
        """The engine learned one mini-batch.

        Parameters
        ----------
        model
            Its name.
        points, bad, tombstones
            What the records of the mini-batch were; together they are the records received.
        decode_seconds, learn_seconds
            How long it took.
        """
        self.add(RECORDS_RECEIVED, points + len(bad) + tombstones, model=model)
        self.add(POINTS_LEARNED, points, model=model)
        for record in bad:
            self.add(RECORDS_BAD, model=model, reason=record.reason)
        self.add(TOMBSTONES, tombstones, model=model)
        self.observe(DECODE_SECONDS, decode_seconds, model=model)
        self.observe(LEARN_SECONDS, learn_seconds, model=model)

    def commit(
        self,
        model: str,
        progress: Committed,
        lag: Mapping[TopicPartition, int],
        snapshot: Published | None,
        seconds: float,
    ) -> None:
        """The engine committed.

        Parameters
        ----------
        model
            Its name.
        progress, snapshot
            What was committed.
        lag
            Records between the position and the end of each partition; empty when no broker told.
        seconds
            How long the commit took.
        """
        self.observe(COMMIT_SECONDS, seconds, model=model)
        self.set(COMMIT_TIMESTAMP, progress.committed_at, model=model)
        # NaN for an unknown lag: the last number known would look like a stream that is well.
        self.set(LAG, progress.lag if progress.lag >= 0 else math.nan, model=model)
        for tp, offset in progress.position.items():
            labels = {"model": model, "topic": tp.topic, "partition": str(tp.partition)}
            self.set(PARTITION_POSITION, offset, **labels)
            self.set(PARTITION_LAG, lag.get(tp, math.nan), **labels)
        if snapshot is not None:
            self.add(SNAPSHOTS, model=model, reason=snapshot.reason)
            self.set(SNAPSHOT_TIMESTAMP, snapshot.created_at, model=model)
            self.set(INERTIA, snapshot.inertia, model=model)
            for event in snapshot.events:
                self.add(EVENTS, model=model, kind=event.kind)

    def render(self, more: Iterable[Family] = ()) -> bytes:
        """Everything in Prometheus' text format, `more` at its end.

        Parameters
        ----------
        more
            Families made for this scrape, by `family`.
        """
        return prom.generate_latest(_Scrape(self.registry, more))


class _Scrape(Collector):
    """One scrape, without the ``_created`` series that no dashboard reads and that double the number of series."""

    def __init__(self, registry: prom.CollectorRegistry, more: Iterable[Family]) -> None:
        self.registry = registry
        self.more = more

    def collect(self) -> Iterator[Family]:
        for f in self.registry.collect():
            f.samples = [s for s in f.samples if not s.name.endswith("_created")]
            yield f
        yield from self.more


def family(spec: CounterSpec | GaugeSpec, samples: Mapping[tuple[str, ...], float]) -> Family:
    """Values read elsewhere, as a family for `Metrics.render`.

    Parameters
    ----------
    spec
        The name.
    samples
        Values of the labels, in the spec's order -> value.
    """
    make = CounterMetricFamily if isinstance(spec, CounterSpec) else GaugeMetricFamily
    result = make(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples.items():
        result.add_metric(labels, value)
    return result


def markdown_table() -> str:
    """The contract as the table that stands in the docs."""
    rows = ["| Metric | Kind | Labels | From | Meaning |", "| --- | --- | --- | --- | --- |"]
    for spec in CONTRACT:
        kind = type(spec).__name__.removesuffix("Spec").lower()
        labels = ", ".join(f"`{name}`" for name in spec.labels)
        rows.append(f"| `{spec.name}` | {kind} | {labels} | {spec.emitter} | {spec.help} |")
    return "\n".join(rows) + "\n"
