"""The exported metrics, and the object that counts them.

`CONTRACT` lists every metric that streamkm exports to Prometheus under ``streamkm_``. Names, kinds and labels do not
change within a major version. They follow Prometheus' conventions: base units, ``_total`` on counters, few label values
(never a key or an offset).

There is no global registry: each program creates one `Metrics` and passes it on. Nothing here listens on a port.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import prometheus_client as prom
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from streamkm.records import BadRecord, TopicPartition
from streamkm.state import Progress, Snapshot

Family = prom.Metric
CONTENT_TYPE = prom.CONTENT_TYPE_LATEST
"""Media type of `Metrics.render`."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """Name, help text and labels of a metric.

    Attributes
    ----------
    emitter
        Which process exports it: the ``engine`` (consumer), the ``service``, or the service from the ``store`` at
        scrape time, which works without a running consumer.
    """

    name: str
    help: str
    labels: tuple[str, ...]
    emitter: Literal["engine", "service", "store"]


class CounterSpec(MetricSpec):
    """A counter: only increases."""


class GaugeSpec(MetricSpec):
    """A gauge: increases and decreases."""


@dataclass(frozen=True, slots=True)
class HistogramSpec(MetricSpec):
    """A histogram of durations.

    Attributes
    ----------
    buckets
        Upper bounds in seconds.
    """

    buckets: tuple[float, ...]


_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_PARTITION = ("model", "topic", "partition")

# The engine counts per mini-batch, not per record, so that counting costs nothing.
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
    "Records that were deleted from the topic before they were read, and skipped (--on-data-loss skip)",
    ("model",),
    "engine",
)
ALARMS = CounterSpec(
    "streamkm_alarms_total",
    "Alarms of the watchdogs, by alarm: stalled-partition, broker-unavailable, store-unavailable, codec-unavailable, "
    "hung",
    ("model", "alarm"),
    "engine",
)
ERRORS = CounterSpec(
    "streamkm_errors_total",
    "Failures that were retried or ended the run, by stage: poll, decode, commit, lease, promote, letters",
    ("model", "stage"),
    "engine",
)
DECODE_SECONDS = HistogramSpec(
    "streamkm_decode_seconds", "Time to decode the records of one poll", ("model",), "engine", _BUCKETS
)
LEARN_SECONDS = HistogramSpec("streamkm_learn_seconds", "Time to learn one mini-batch", ("model",), "engine", _BUCKETS)
COMMIT_SECONDS = HistogramSpec(
    "streamkm_commit_seconds", "Time of one commit to the store, retries included", ("model",), "engine", _BUCKETS
)
SNAPSHOTS = CounterSpec(
    "streamkm_snapshots_total",
    "Snapshots published, by reason: first, interval, points, stop, promoted",
    ("model", "reason"),
    "engine",
)
EVENTS = CounterSpec(
    "streamkm_cluster_events_total",
    "Events, by kind: birth, death, split, merge, drift, promotion, outliers",
    ("model", "kind"),
    "engine",
)
LAG = GaugeSpec("streamkm_lag_records", "Records of the source that are not committed yet", ("model",), "engine")
PARTITION_LAG = GaugeSpec(
    "streamkm_partition_lag_records", "Records of the partition that are not committed yet", _PARTITION, "engine"
)
PARTITION_POSITION = GaugeSpec(
    "streamkm_partition_position", "Offset of the next record to read, as committed", _PARTITION, "engine"
)
COMMIT_TIMESTAMP = GaugeSpec(
    "streamkm_last_commit_timestamp_seconds", "Time of the last commit, seconds since 1970", ("model",), "engine"
)
SNAPSHOT_TIMESTAMP = GaugeSpec(
    "streamkm_last_snapshot_timestamp_seconds",
    "Time of the last snapshot, seconds since 1970",
    ("model",),
    "engine",
)
INERTIA = GaugeSpec(
    "streamkm_inertia",
    "Mean squared distance of points to their centroids, between the last two snapshots",
    ("model",),
    "engine",
)
LEASE_HELD = GaugeSpec(
    "streamkm_lease_held", "1 while this process holds the lease of the model, else 0", ("model",), "engine"
)

HTTP_REQUESTS = CounterSpec(
    "streamkm_http_requests_total", "Requests answered, by route and status", ("method", "route", "status"), "service"
)
HTTP_SECONDS = HistogramSpec(
    "streamkm_http_request_seconds",
    "Time from the request to the end of the response",
    ("method", "route"),
    "service",
    _BUCKETS,
)
POINTS_PREDICTED = CounterSpec(
    "streamkm_points_predicted_total", "Points assigned to clusters by requests", ("model",), "service"
)

STORE_UP = GaugeSpec("streamkm_store_up", "1 if the store was readable at this scrape, else 0", (), "store")
MODEL_STATUS = GaugeSpec(
    "streamkm_model_status", "1 for the model's status (warming-up, running, paused, stale, stopped), 0 for the others",
    ("model", "status"), "store",
)  # fmt: skip
MODEL_RECORDS = CounterSpec(
    "streamkm_model_records_total", "Records accounted for since the model was created", ("model",), "store"
)
MODEL_POINTS = CounterSpec(
    "streamkm_model_points_total", "Points learned since the model was created", ("model",), "store"
)
MODEL_BAD = CounterSpec(
    "streamkm_model_bad_records_total", "Records quarantined since the model was created", ("model",), "store"
)
MODEL_TOMBSTONES = CounterSpec(
    "streamkm_model_tombstones_total", "Records with a null value since the model was created", ("model",), "store"
)
MODEL_LOST = CounterSpec(
    "streamkm_model_lost_records_total",
    "Records that were deleted before they were read, since the model was created",
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
MODEL_SNAPSHOT_ID = GaugeSpec("streamkm_model_snapshot_id", "Number of the last snapshot; 0: none", ("model",), "store")
MODEL_INERTIA = GaugeSpec(
    "streamkm_model_inertia",
    "Mean squared distance of points to their centroids, between the last two snapshots",
    ("model",),
    "store",
)
MODEL_SILHOUETTE = GaugeSpec(
    "streamkm_model_silhouette",
    "Simplified silhouette of the live centroids at the last snapshot, 0 to 1, higher is better",
    ("model",),
    "store",
)
MODEL_STALENESS = GaugeSpec(
    "streamkm_model_staleness",
    "Excess cost of the previously published centroids over the live ones at the last snapshot, as a share",
    ("model",),
    "store",
)
MODEL_OUTLIERS = CounterSpec(
    "streamkm_model_outliers_total", "Points not learned because they are outliers, as of the last snapshot",
    ("model",), "store",
)  # fmt: skip
MODEL_SUGGESTED_K = GaugeSpec(
    "streamkm_model_suggested_k", "Number of clusters that the last profile of k suggests; absent without one",
    ("model",), "store",
)  # fmt: skip
MODEL_CLUSTER_SHARE = GaugeSpec(
    "streamkm_model_cluster_share",
    "Share of the (decayed) points in a cluster of the last snapshot",
    ("model", "cluster"),
    "store",
)

CONTRACT: tuple[MetricSpec, ...] = tuple(spec for spec in globals().values() if isinstance(spec, MetricSpec))
"""Every metric that streamkm exports."""


class Metrics:
    """The metrics of one process.

    Safe to use from several threads. Unknown labels raise ValueError, so that a typo cannot create a new series.

    >>> metrics = Metrics()
    >>> metrics.add(POINTS_LEARNED, 500, model="orders")
    >>> metrics.value(POINTS_LEARNED, model="orders")
    500.0

    Parameters
    ----------
    process
        Also export memory, CPU time and open files of this process, with the standard ``process_`` names.
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
        """Increase a counter."""
        self._counters[spec.name].labels(**labels).inc(amount)

    def set(self, spec: GaugeSpec, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._gauges[spec.name].labels(**labels).set(value)

    def remove(self, spec: GaugeSpec, **labels: str) -> None:
        """Remove a series of a gauge."""
        self._gauges[spec.name].remove_by_labels(labels)

    def observe(self, spec: HistogramSpec, seconds: float, **labels: str) -> None:
        """Add a duration to a histogram."""
        self._histograms[spec.name].labels(**labels).observe(seconds)

    @contextmanager
    def time(self, spec: HistogramSpec, **labels: str) -> Iterator[None]:
        """Observe the duration of the body, also when it raises."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.observe(spec, time.perf_counter() - started, **labels)

    def value(self, spec: CounterSpec | GaugeSpec, **labels: str) -> float | None:
        """The present value of a counter or gauge; None if it was never set."""
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
        """Count a mini-batch that the engine learned.

        Parameters
        ----------
        model
            Name of the model.
        points, bad, tombstones
            The records of the mini-batch, by result.
        decode_seconds, learn_seconds
            Durations.
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
        progress: Progress,
        lag: Mapping[TopicPartition, int],
        snapshot: Snapshot | None,
        seconds: float,
    ) -> None:
        """Count a commit of the engine.

        Parameters
        ----------
        model
            Name of the model.
        progress, snapshot
            The content of the commit.
        lag
            Offsets between the position and the end of each partition; empty when unknown.
        seconds
            Duration of the commit.
        """
        self.observe(COMMIT_SECONDS, seconds, model=model)
        self.set(COMMIT_TIMESTAMP, progress.committed_at, model=model)
        # NaN for an unknown lag: the last known value would look like a healthy stream.
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
        """All metrics in Prometheus' text format, followed by `more`.

        Parameters
        ----------
        more
            Families of this scrape, from `family`.
        """
        return prom.generate_latest(_Scrape(self.registry, more))


class _Scrape(Collector):
    """One scrape, without the ``_created`` series, which would double the number of series."""

    def __init__(self, registry: prom.CollectorRegistry, more: Iterable[Family]) -> None:
        self.registry = registry
        self.more = more

    def collect(self) -> Iterator[Family]:
        for f in self.registry.collect():
            f.samples = [s for s in f.samples if not s.name.endswith("_created")]
            yield f
        yield from self.more


def family(spec: CounterSpec | GaugeSpec, samples: Mapping[tuple[str, ...], float]) -> Family:
    """A family of given values, for `Metrics.render`.

    Parameters
    ----------
    spec
        The metric.
    samples
        Value by label values, in the order of ``spec.labels``.
    """
    make = CounterMetricFamily if isinstance(spec, CounterSpec) else GaugeMetricFamily
    result = make(spec.name, spec.help, labels=spec.labels)
    for labels, value in samples.items():
        result.add_metric(labels, value)
    return result


def markdown_table() -> str:
    """The contract as a table for the docs."""
    rows = ["| Metric | Kind | Labels | From | Meaning |", "| --- | --- | --- | --- | --- |"]
    for spec in CONTRACT:
        kind = type(spec).__name__.removesuffix("Spec").lower()
        labels = ", ".join(f"`{name}`" for name in spec.labels)
        rows.append(f"| `{spec.name}` | {kind} | {labels} | {spec.emitter} | {spec.help} |")
    return "\n".join(rows) + "\n"
