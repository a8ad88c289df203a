"""One ownership of a model: the numbered loop poll -> decode -> learn -> commit."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from typing import Self

from streamkm.engine import source_checks
from streamkm.engine.bad_records import BadRecordLimit
from streamkm.engine.context import EngineContext, StopSignal
from streamkm.engine.event_times import decays_by_event_time, decode, look_like_seconds
from streamkm.engine.learn import learn
from streamkm.engine.maintenance import Maintenance
from streamkm.engine.promotion import catch_up, model_from_snapshot, ranges_between
from streamkm.engine.recent import RecentSample
from streamkm.engine.snapshots import SnapshotPublisher
from streamkm.engine.source_manager import FIRST_BACKOFF, LAST_BACKOFF, SourceManager
from streamkm.errors import (
    BadRecordsError,
    BrokerUnreachableError,
    CorruptBatchError,
    PartitionStalledError,
    PositionLostError,
    SourceClosedError,
    SourceError,
    StoreError,
    StoreUnavailableError,
)
from streamkm.metrics import ALARMS, RECORDS_LOST
from streamkm.models import ARITHMETIC, OnlineKMeans
from streamkm.models.spec import new_learner
from streamkm.records import BadRecord, Batch, BatchRange, Position, TopicPartition, truncate_for_quarantine
from streamkm.reporting import ProgressReporter
from streamkm.state import Commit, Counters, EventTimeLimit, JournalEntry, MiniBatch, Progress
from streamkm.stores.base import Lease, Promotion
from streamkm.tracing import span

log = logging.getLogger("streamkm.engine")

WORKER_WAIT_SECONDS = 0.01
"""Wait for a worker of our own."""
POLL_SECONDS = 0.2
"""Longest wait for a record: how long a stop may go unnoticed."""
MAX_PENDING_BAD_BYTES = 16 << 20
"""Bytes of bad records that wait for a commit, beyond which it is due: they come as fast as they are decompressed."""
MIN_CHECKPOINT_RATIO = 10.0
"""Checkpoints are at least so many times as far apart as one takes: the state of a thousand clusters is large."""


class LeaseSession:
    """What an owner knows while it owns the model.

    The commit protocol, whose steps the body names:

    1. *Poll*: records of some partitions, each from where the poll before stopped.
    2. *Decode*: points, bad records, tombstones. Too many bad ones stop here, before anything is counted.
    3. *Learn*: one mini-batch. Position, counters, journal and quarantine move on with the model.
    4. *Commit*: state, position, counters, journal, quarantine and perhaps a snapshot in one transaction of the store,
       which holds only if the epoch and the position are those this tenure left there. A snapshot is worked on beside
       the learning first; no commit comes between, so that no state has to hold work that is not done.
    5. *Tell Kafka*: the committed position, for other people's tools. Nothing ever reads it back.

    While the model is paused there is no step 1: what was learned is committed, the lease is kept, and snapshots that
    are asked for are put in charge.

    Before the first poll, and after each reconnect, the source is checked against what the model has read (`guards`).

    A death before 4 forgets the mini-batches since the last commit, and the next owner reads them again. A death after
    4 loses nothing.
    """

    def __init__(self, context: EngineContext, lease: Lease) -> None:
        self.context = context
        self.store, self.options = context.store, context.options
        self.clock, self.metrics = context.clock, context.metrics
        self.name = context.spec.name
        self.lease = lease
        info = self.store.model(self.name)
        self.sources = SourceManager(context, info.spec)
        checkpoint = self.store.load_checkpoint(self.name)
        if checkpoint is None:
            self.learner = new_learner(context.spec)
            self.committed: Position = {}
            self.position: dict[TopicPartition, int] = {}
            self.counters, self.seq = Counters(), 0
        else:
            self.learner = OnlineKMeans.from_state(checkpoint.state)
            self.committed = checkpoint.progress.position
            self.position = dict(self.committed)
            self.counters, self.seq = checkpoint.progress.counters, checkpoint.progress.commit_seq
            self._keep_where_arithmetic_changes()
        self.journal: list[MiniBatch] = []
        self.by_event_time = decays_by_event_time(info.spec)
        self.limit: EventTimeLimit | None = None
        self.told_of_seconds = False
        self.lost: tuple[BatchRange, ...] = ()
        self.commit_seconds = 0.0
        self.quarantine: list[BadRecord] = []
        self.kept_bytes = 0
        self.bad_record_limit = BadRecordLimit(self.name, self.options)
        self.maintenance = Maintenance(context)
        self.committed_at = self.renewed_at = self.asked_at = self.clock.monotonic()
        self.paused = info.paused
        last = self.store.snapshot(self.name) if info.last_snapshot else None
        self.publisher = SnapshotPublisher(context, last, self.counters.points)
        self.number, self.total_lag = info.last_snapshot, -1
        self.has_committed = False
        fate = "it is in the quarantine; others of its kind are counted once a minute"
        self.report = ProgressReporter(log, self.name, self.clock.monotonic, fate=fate, records=self.counters.records)
        self.recent_sample = RecentSample(len(context.spec.fields))
        with contextlib.suppress(StoreError):  # nothing depends on it
            self.recent_sample = RecentSample(len(context.spec.fields), self.store.recent(self.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.report.end(self.counters.records, self._how_far())
        self.maintenance.close()
        self.sources.close()

    def work(self, stop: StopSignal) -> None:
        """Poll, decode, learn and commit until `stop`, an error, or the loss of the lease."""
        try:
            if not self._connect(stop):
                return
            if self.seq == 0:
                self._commit(stop)  # the start of a new model holds, whatever its first poll brings
            while not stop.is_set():
                self._step(stop)
            if self.position != self.committed or self.counters.points > self.publisher.points_at:
                if not self.publisher.reason and self.learner.warmup_ is None:
                    self.publisher.prepare(self.learner, "stop", len(self.journal))
                try:
                    self._commit(stop)
                except BrokerUnreachableError as e:
                    log.warning(
                        "%s: left without a last commit, so the next owner reads on from there: %s", self.name, e
                    )
        except (BadRecordsError, SourceError):
            if self.journal:
                with contextlib.suppress(SourceError):  # the first one is the one to tell
                    self._commit(stop)  # what was learned before the trouble is good
            raise
        finally:
            with contextlib.suppress(StoreUnavailableError):
                self.store.release(self.lease)

    def _how_far(self) -> str:
        """Lag, clusters and the last snapshot, for people."""
        warmup = self.learner.warmup_
        clusters = (
            f"{len(self.learner.ids_)} clusters" if warmup is None else "warming up ({:,} of {:,})".format(*warmup)
        )
        lag = f"{self.total_lag:,}" if self.total_lag >= 0 else "unknown"
        snapshot = f"snapshot {self.number}" if self.number else "no snapshot yet"
        return f"lag {lag}, {clusters}, {snapshot}" + (", paused" if self.paused else "")

    def _step(self, stop: StopSignal) -> None:
        self.report.look(self.counters.records, self._how_far)
        # While a snapshot is worked on there is no commit, so that bad records may have to wait where they are.
        full = self.kept_bytes > MAX_PENDING_BAD_BYTES and self.publisher.reason
        if self.paused or full:
            self.context.heartbeat.beat("paused" if self.paused else "finishing a snapshot")
            self.sources.rest()
            stop.wait(POLL_SECONDS if self.paused else WORKER_WAIT_SECONDS)
            self._commit_when_due(stop)
            return
        try:
            self.context.heartbeat.beat("polling")
            self.sources.look(self.position)
            # Step 1: poll.
            polled = self.sources.poll(POLL_SECONDS, self.options.batch)
        except CorruptBatchError as e:
            self._pass_over(stop, e)
            return
        except (BrokerUnreachableError, PositionLostError, PartitionStalledError) as e:
            self._reopen(stop, e)
            return
        if polled:
            if self._commit_due(self.clock.monotonic()):
                self.sources.ask()  # the answer comes while this is learned
            # Step 2: decode.
            started = time.perf_counter()
            if not self.journal:
                self.limit = self._limit_now()
            batches = [decode(self.context.codec, r, self.limit) for r in polled]
            decoded = time.perf_counter()
            bad = [b for batch in batches for b in batch.bad]
            tombstones = sum(b.tombstones for b in batches)
            self.bad_record_limit.check(sum(map(len, polled)), batches)
            self._look_at_times(batches)
            # Step 3: learn.
            points = learn(self.learner, batches, self.limit)
            self.position.update({b.range.partition: b.range.stop for b in batches})
            self.counters = self.counters.plus(points=points, bad=len(bad), tombstones=tombstones)
            self.journal.append(tuple(b.range for b in batches))
            self.recent_sample.add([b.points for b in batches])
            kept = [replace(b, record=truncate_for_quarantine(b.record)) for b in bad]
            self.quarantine += kept
            self.report.bad(kept)
            self.kept_bytes += sum(b.record.n_bytes for b in kept)
            self.metrics.batch(self.name, points, bad, tombstones, decoded - started, time.perf_counter() - decoded)
        self._commit_when_due(stop)

    def _keep_where_arithmetic_changes(self) -> None:
        """Keep the checkpoint of another arithmetic: what is published from here on can be proven from there."""
        last = dict(self.store.journal(self.name, self.seq, after_seq=self.seq - 1)).get(self.seq)
        if last is not None and last.arithmetic != ARITHMETIC:
            self.store.keep_checkpoint(self.name, self.clock.time(), always=True)
            log.info("%s: goes on by arithmetic %d, it was %d", self.name, ARITHMETIC, last.arithmetic)

    def _limit_now(self) -> EventTimeLimit | None:
        """Which event times are taken until the next commit; None: all, because none is used."""
        return EventTimeLimit(self.options.max_event_time_lead, self.clock.time()) if self.by_event_time else None

    def _look_at_times(self, batches: list[Batch]) -> None:
        """Say once that timestamps seem to be in another unit: all of a half-life would be wrong by a thousand."""
        if self.limit is None or self.told_of_seconds:
            return
        wrong = [b for b in batches if len(b) and look_like_seconds(b.times, self.limit.read_at)]
        if wrong:
            self.told_of_seconds = True
            log.warning(
                "%s: the event times of %s are milliseconds of January 1970, but would be of this year as seconds: the "
                "half-life is then a thousand times too long. Let the producer write milliseconds",
                self.name,
                ", ".join(str(b.range.partition) for b in wrong),
            )

    def _commit_when_due(self, stop: StopSignal) -> None:
        now, publisher = self.clock.monotonic(), self.publisher
        if not publisher.reason and now - self.asked_at >= self.options.checkpoint_every:
            self._do_as_asked(stop)
        if not publisher.reason and (reason := publisher.due(self.learner, self.counters.points)):
            publisher.prepare(self.learner, reason, len(self.journal))
        moved = self.position != self.committed
        if self.learner.prepared_ if publisher.reason else moved and self._commit_due(now):
            try:
                self._commit(stop)
            except BrokerUnreachableError as e:
                self.context.count_error("commit")
                self.context.mark_down("broker", e)  # what it cannot confirm waits, and the next poll finds it away
                if self.paused:
                    self._reopen(stop, e)  # there is no next poll
        self._keep_lease(stop)

    def _commit_due(self, now: float) -> bool:
        pause = max(self.options.checkpoint_every, MIN_CHECKPOINT_RATIO * self.commit_seconds)
        due = self.paused or self.publisher.reason != "" or self.kept_bytes > MAX_PENDING_BAD_BYTES
        return due or now - self.committed_at >= pause

    def _do_as_asked(self, stop: StopSignal) -> None:
        """Pause, go on, or put a snapshot in charge if somebody wants that."""
        self.asked_at = self.clock.monotonic()
        try:
            asked = self.store.control_requests(self.name)
        except StoreUnavailableError:
            return  # the next commit will say so
        if asked.paused != self.paused:
            self.paused = asked.paused
            self.sources.rest()
            log.info("%s: %s at %s", self.name, "paused" if self.paused else "going on", _text(self.position))
        if asked.promotion is not None:
            self._adopt(asked.promotion, stop)

    def _adopt(self, promotion: Promotion, stop: StopSignal) -> None:
        """Put a snapshot in charge, with all that came since it, in one commit."""
        try:
            learner = model_from_snapshot(self.store, self.context.spec, promotion.snapshot)
            snapshot = self.store.snapshot(self.name, promotion.snapshot)
        except StoreUnavailableError:
            return  # the next commit will say so
        if any(self.position.get(tp, 0) < at for tp, at in snapshot.position.items()):
            return  # what it knows already would be learned again: when we have come so far, then
        try:
            if self.journal:
                self._commit(stop)
            self.limit = self._limit_now()
            ranges = ranges_between(
                snapshot.position, self.sources.source.beginning(), self.position, self.options.batch
            )
            batches = catch_up(
                learner,
                iter(()) if promotion.skip else ranges,
                self.context.open_source,
                self.context.codec,
                self.limit,
                lambda: self._keep_lease(stop),
            )
        except BrokerUnreachableError as e:
            log.warning("%s: snapshot %d waits for a broker: %s", self.name, promotion.snapshot, e)
            if self.paused:
                self._reopen(stop, e)  # no poll will
            return
        except PositionLostError as e:
            self.context.count_error("promote")
            log.error("%s: snapshot %d cannot be put in charge: %s", self.name, promotion.snapshot, e)  # noqa: TRY400
            self.store.request_promotion(self.name, None)
            return
        if batches is None:
            return
        log.info("%s: snapshot %d is in charge, %d mini-batches after it", self.name, promotion.snapshot, len(batches))
        self.learner, self.journal = learner, batches
        self.publisher.promote(promotion.snapshot)
        self._commit(stop)

    def _keep_lease(self, stop: StopSignal) -> bool:
        """Renew the lease if it is time; False when it is time to stop."""
        self.context.heartbeat.beat("keeping the lease")
        now = self.clock.monotonic()
        if now - self.renewed_at >= self.options.lease / 3:
            try:
                self.lease = self.store.renew(self.lease, self.options.lease, self.clock.time())
                self.renewed_at = now
                self.context.mark_up("store")
            except StoreUnavailableError as e:
                self.context.mark_down("store", e)
                if now - self.renewed_at >= 2 * self.options.lease:
                    raise
                self.context.count_error("lease")
                log.warning("%s: the store is away, the lease is renewed later: %s", self.name, e)
        return not stop.is_set()

    def _commit(self, stop: StopSignal) -> None:
        """Steps 4 and 5; a snapshot that was prepared goes along."""
        # Step 4: commit, when it is sure that all of it came from this topic.
        if self.journal:
            self.sources.confirm()
        now = self.clock.time()
        self.seq += 1
        lag = self.sources.lag(self.position)
        total_lag = sum(lag.values()) if lag is not None else -1
        publisher, snapshot = self.publisher, None
        if publisher.reason:
            snapshot = publisher.snapshot(self.learner, self.lease, self.counters, self.position, now)
        progress = Progress(dict(self.position), self.counters, self.seq, now, total_lag, self.learner.warmup_)
        commit = Commit(
            state=self.learner.state(),
            expected=self.committed,
            progress=progress,
            journal_entry=JournalEntry(
                tuple(self.journal),
                publisher.prepared_after,
                publisher.promoted_snapshot,
                self.lost,
                self.limit,
                ARITHMETIC,
            ),
            snapshot=snapshot,
            quarantine=tuple(self.quarantine),
            recent=self.recent_sample.take(self.sources.ends),
            quarantine_limits=self.options.quarantine_limits(),
        )
        started = self.clock.monotonic()
        c = self.counters
        with span("commit", model=self.name, records=c.records, points=c.points, lag=total_lag) as traced:
            number = self._write(commit, stop)
            traced.set_attribute("snapshot", snapshot is not None)
        self.committed, self.has_committed = progress.position, True
        self.journal.clear()
        self.lost = ()
        self.quarantine.clear()
        self.kept_bytes = 0
        self.committed_at = self.clock.monotonic()
        self.commit_seconds = self.committed_at - started
        if snapshot is not None:
            publisher.published(snapshot, self.counters.points)
            self.number = number
        self.total_lag = total_lag
        self.metrics.commit(self.name, progress, lag or {}, snapshot, self.commit_seconds)
        self.maintenance.committed(len(commit.quarantine))
        # Step 5: tell Kafka.
        with contextlib.suppress(SourceClosedError):
            self.sources.source.commit(self.committed)

    def _write(self, commit: Commit, stop: StopSignal) -> int:
        """`Store.commit`, tried again while the store is away, for as long as the lease would hold."""
        deadline = self.clock.monotonic() + self.options.lease
        backoff = FIRST_BACKOFF
        while True:
            self.context.heartbeat.beat("committing")
            try:
                number = self.store.commit(self.lease, commit)
            except StoreUnavailableError as e:
                self.context.mark_down("store", e)
                if self.clock.monotonic() >= deadline:
                    raise
                self.context.count_error("commit")
                log.warning("%s: the store is away, trying again: %s", self.name, e)
                stop.wait(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF)
            else:
                self.context.mark_up("store")
                return number

    def _connect(self, stop: StopSignal, unreadable: tuple[BatchRange, ...] = ()) -> bool:
        """Read on from the position, by a new source; False when it is time to stop."""
        gone = self.sources.connect(self.position, stop, self._keep_lease)
        if gone is None:
            return False
        if lost := (*unreadable, *gone):
            self.lost, size = lost, source_checks.count_offsets(lost)
            self.counters = self.counters.plus(lost=size)
            self.metrics.add(RECORDS_LOST, size, model=self.name)
            why = "could not be read" if unreadable else "were gone before they were read"
            log.error("%s: %d records %s, skipped: %s", self.name, size, why, source_checks.format_ranges(lost))
            self._commit(stop)  # the gap is on record before anything behind it is learned
        return True

    def _pass_over(self, stop: StopSignal, error: CorruptBatchError) -> None:
        """Go on behind a batch that cannot be read, if that is wanted and it is known where it ends."""
        self.context.count_error("poll")
        if self.options.on_data_loss != "skip" or error.lost is None:
            raise error
        topic, partition, _, until = error.lost
        tp = TopicPartition(topic, partition)
        at = self.position[tp]
        self.sources.close()
        self.position[tp] = until
        if stop.wait(FIRST_BACKOFF) or not self._connect(stop, (BatchRange(tp, at, until),)):
            self.position[tp] = at  # for whoever comes next

    def _reopen(self, stop: StopSignal, error: SourceError) -> None:
        """A new source at the position that was learned last; tries until it is there or somebody says stop."""
        self.context.count_error("poll")
        if isinstance(error, BrokerUnreachableError):
            self.context.mark_down("broker", error)
        if isinstance(error, PartitionStalledError):
            self.metrics.add(ALARMS, model=self.name, alarm="stalled-partition")
            if self.sources.stalls.hopeless:
                raise error
        log.warning("%s: %s; reading again from %s", self.name, error, _text(self.position))
        self.sources.close()
        lost = self.counters.lost
        if not stop.wait(FIRST_BACKOFF) and self._connect(stop) and isinstance(error, PositionLostError):
            if self.counters.lost == lost:
                raise error  # nothing that we can see is missing, so trying again would not help
            log.info("%s: going on behind the gap", self.name)


def _text(position: Position) -> str:
    return ", ".join(f"{tp}@{at}" for tp, at in sorted(position.items()))
