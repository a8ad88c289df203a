"""The work of one lease: the numbered loop poll -> decode -> learn -> commit."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

from streamkm.engine import source_checks
from streamkm.engine.bad_records import BadRecordLimit
from streamkm.engine.context import EngineContext, StopRequest
from streamkm.engine.event_times import decays_by_event_time, decode, look_like_seconds
from streamkm.engine.learn import learn
from streamkm.engine.maintenance import Maintenance
from streamkm.engine.promotion import catch_up, model_from_snapshot, ranges_between
from streamkm.engine.recent import RecentSample
from streamkm.engine.snapshots import SnapshotPublisher
from streamkm.engine.source_manager import FIRST_BACKOFF, LAST_BACKOFF, SourceManager
from streamkm.engine.store_outage import StoreOutage
from streamkm.errors import (
    BadRecordsError,
    BrokerUnreachableError,
    CodecUnavailableError,
    CorruptBatchError,
    PartitionStalledError,
    PositionLostError,
    SourceClosedError,
    SourceError,
    StoreError,
    StoreUnavailableError,
)
from streamkm.metrics import ALARMS, RECORDS_LOST
from streamkm.models import ARITHMETIC
from streamkm.models.spec import new_learner, restore_learner
from streamkm.records import BadRecord, Batch, BatchRange, Position, Records, TopicPartition, truncate_for_quarantine
from streamkm.reporting import ProgressReporter
from streamkm.state import Commit, Counters, EventTimeLimit, JournalEntry, MiniBatch, Progress
from streamkm.stores.base import Lease, Promotion
from streamkm.tracing import span

log = logging.getLogger("streamkm.engine")

WORKER_WAIT_SECONDS = 0.01
"""Wait for a background worker of this process."""
POLL_SECONDS = 0.2
"""Longest wait for records, and so the longest delay of a stop."""
MAX_PENDING_BAD_BYTES = 16 << 20
"""Bytes of uncommitted bad records at which a commit is due: bounds the memory that they take."""
MIN_CHECKPOINT_RATIO = 10.0
"""Minimum ratio of checkpoint interval to commit duration: the state of a thousand clusters is large."""


class LeaseSession:
    """The state and the loop of an owner while it holds the lease.

    The commit protocol, whose steps are marked in the code:

    1. *Poll*: records of some partitions, each continuing from the previous poll.
    2. *Decode*: points, bad records, tombstones. Too many bad records stop the engine here, before the
       mini-batch is counted. Records of which the codec needs a service that is away wait, and nothing is polled.
    3. *Learn*: one mini-batch. Position, counters, journal and quarantine advance with the model.
    4. *Commit*: state, position, counters, journal, quarantine and sometimes a snapshot in one transaction of the
       store, which succeeds only if epoch and position are those of this session's last commit. A snapshot is first
       prepared in the background while learning continues; no commit happens meanwhile, so a state never has
       unfinished work.
    5. *Report to Kafka*: the committed position, for monitoring tools only. It is never read back.

    While the model is paused, step 1 is skipped: learned mini-batches are committed, the lease is renewed, and
    requested promotions are carried out.

    Before the first poll, and after each reconnect, the source is checked against the stored spec and position
    (`source_checks`).

    After a crash before step 4 the next owner reads the mini-batches since the last commit again. A crash after step 4
    loses nothing.

    Parameters
    ----------
    context
        Of the engine.
    lease
        The acquired lease.
    store_outage
        Of the engine.
    """

    def __init__(self, context: EngineContext, lease: Lease, store_outage: StoreOutage) -> None:
        self.context, self.store_outage = context, store_outage
        self.store, self.options = context.store, context.options
        self.clock, self.metrics = context.clock, context.metrics
        self.name = context.spec.name
        self.lease = lease
        info = self.store.model(self.name)
        self.source_manager = SourceManager(context, info.spec)
        checkpoint = self.store.load_checkpoint(self.name)
        if checkpoint is None:
            self.learner = new_learner(context.spec)
            self.committed: Position = {}
            self.position: dict[TopicPartition, int] = {}
            self.counters, self.commit_seq = Counters(), 0
        else:
            self.learner = restore_learner(checkpoint.state)
            self.committed = checkpoint.progress.position
            self.position = dict(self.committed)
            self.counters, self.commit_seq = checkpoint.progress.counters, checkpoint.progress.commit_seq
            self._keep_checkpoint_of_other_arithmetic()
        self.undecoded: Sequence[Records] = ()
        self.codec_backoff = FIRST_BACKOFF
        self.journal: list[MiniBatch] = []
        self.by_event_time = decays_by_event_time(info.spec)
        self.limit: EventTimeLimit | None = None
        self.warned_of_seconds = False
        self.lost: tuple[BatchRange, ...] = ()
        self.commit_seconds = 0.0
        self.quarantine: list[BadRecord] = []
        self.pending_bad_bytes = 0
        self.bad_record_limit = BadRecordLimit(self.name, self.options)
        self.maintenance = Maintenance(context)
        self.committed_at = self.renewed_at = self.requests_read_at = self.clock.monotonic()
        self.paused = info.paused
        last = self.store.snapshot(self.name) if info.last_snapshot else None
        self.publisher = SnapshotPublisher(context, last, self.counters.points)
        self.snapshot_number, self.total_lag = info.last_snapshot, -1
        self.has_committed = False
        consequence = "it is in the quarantine; more with this reason are counted once a minute"
        self.reporter = ProgressReporter(
            log, self.name, self.clock.monotonic, consequence=consequence, records=self.counters.records
        )
        self.recent_sample = RecentSample(len(context.spec.fields))
        with contextlib.suppress(StoreError):  # for display only
            self.recent_sample = RecentSample(len(context.spec.fields), self.store.recent(self.name))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.heartbeat.mark_up("codec")  # only an owner uses it
        self.reporter.finish(self.counters.records, self._status())
        self.maintenance.close()
        self.source_manager.close()

    def work(self, stop: StopRequest) -> None:
        """Poll, decode, learn and commit until `stop` is set or an error ends the session.

        Raises
        ------
        LeaseLostError, ConflictError
            Another process owns the model.
        StoreUnavailableError, SourceError, BadRecordsError
            See `Engine.run`.
        """
        try:
            if not self._connect(stop):
                return
            if self.commit_seq == 0:
                self._commit(stop)  # fixes the start position of a new model before its first poll
            while not stop.is_set():
                self._step(stop)
            if self.position != self.committed or self.counters.points > self.publisher.points_at:
                if not self.publisher.reason and self.learner.warmup_ is None:
                    self.publisher.prepare(self.learner, "stop", len(self.journal))
                try:
                    self._commit(stop)
                except BrokerUnreachableError as e:
                    log.warning(
                        "%s: stopped without a last commit; the next owner reads these records again: %s", self.name, e
                    )
        except (BadRecordsError, SourceError):
            if self.journal:
                with contextlib.suppress(SourceError):  # the first error is the one to report
                    self._commit(stop)  # what was learned before the error is valid
            raise
        finally:
            with contextlib.suppress(StoreUnavailableError):
                self.store.release(self.lease)

    def _status(self) -> str:
        """Lag, clusters and the last snapshot, for the log."""
        warmup = self.learner.warmup_
        clusters = (
            f"{len(self.learner.ids_)} clusters" if warmup is None else "warming up ({:,} of {:,})".format(*warmup)
        )
        lag = f"{self.total_lag:,}" if self.total_lag >= 0 else "unknown"
        snapshot = f"snapshot {self.snapshot_number}" if self.snapshot_number else "no snapshot yet"
        return f"lag {lag}, {clusters}, {snapshot}" + (", paused" if self.paused else "")

    def _step(self, stop: StopRequest) -> None:
        self.reporter.update(self.counters.records, self._status)
        # There is no commit while a snapshot is prepared, so too many bad records stop polling until then.
        full = self.pending_bad_bytes > MAX_PENDING_BAD_BYTES and self.publisher.reason
        if self.paused or full:
            self.context.heartbeat.beat("paused" if self.paused else "finishing a snapshot")
            self.source_manager.pause()
            stop.wait(POLL_SECONDS if self.paused else WORKER_WAIT_SECONDS)
            self._commit_when_due(stop)
            return
        try:
            if not self.undecoded:
                self.context.heartbeat.beat("polling")
                self.source_manager.check_partitions(self.position)
                # Step 1: poll.
                self.undecoded = self.source_manager.poll(POLL_SECONDS, self.options.batch)
        except CorruptBatchError as e:
            self._skip_unreadable(stop, e)
            return
        except (BrokerUnreachableError, PositionLostError, PartitionStalledError) as e:
            self._reopen(stop, e)
            return
        if self.undecoded:
            self._learn_polled(stop)
        self._commit_when_due(stop)

    def _learn_polled(self, stop: StopRequest) -> None:
        """Steps 2 and 3; without the codec a pause instead, and the records stay."""
        if self._commit_due(self.clock.monotonic()):
            self.source_manager.begin_identity_check()  # runs while these records are learned
        # Step 2: decode.
        started = time.perf_counter()
        if not self.journal:
            self.limit = self._event_time_limit()
        try:
            batches = [decode(self.context.codec, r, self.limit) for r in self.undecoded]
        except CodecUnavailableError as e:
            self.context.count_error("decode")
            self._mark_codec_down(e)
            self.context.heartbeat.beat("waiting for the codec")
            self.source_manager.pause()
            stop.wait(self.codec_backoff)
            self.codec_backoff = min(2 * self.codec_backoff, LAST_BACKOFF)
            return
        self._mark_codec_up()
        polled, self.undecoded = self.undecoded, ()
        decoded = time.perf_counter()
        bad = [b for batch in batches for b in batch.bad]
        tombstones = sum(b.tombstones for b in batches)
        self.bad_record_limit.check(sum(map(len, polled)), batches)
        self._warn_of_seconds(batches)
        # Step 3: learn.
        points = learn(self.learner, batches, self.limit)
        self.position.update({b.range.partition: b.range.stop for b in batches})
        self.counters = self.counters.plus(points=points, bad=len(bad), tombstones=tombstones)
        self.journal.append(tuple(b.range for b in batches))
        self.recent_sample.add([b.points for b in batches])
        truncated = [replace(b, record=truncate_for_quarantine(b.record)) for b in bad]
        self.quarantine += truncated
        self.reporter.bad_records(truncated)
        self.pending_bad_bytes += sum(b.record.n_bytes for b in truncated)
        self.metrics.batch(self.name, points, bad, tombstones, decoded - started, time.perf_counter() - decoded)

    def _mark_codec_down(self, error: CodecUnavailableError) -> None:
        self.reporter.mark_down("codec", error)
        self.context.mark_down("codec", error)

    def _mark_codec_up(self) -> None:
        self.codec_backoff = FIRST_BACKOFF
        self.reporter.mark_up("codec")
        self.context.mark_up("codec")

    def _keep_checkpoint_of_other_arithmetic(self) -> None:
        """Keep a checkpoint of another arithmetic, so that later snapshots can be verified from there on."""
        last = dict(self.store.journal(self.name, self.commit_seq, after_seq=self.commit_seq - 1)).get(self.commit_seq)
        if last is not None and last.arithmetic != ARITHMETIC:
            self.store.keep_checkpoint(self.name, self.clock.time(), always=True)
            log.info("%s: continues with arithmetic %d, after %d", self.name, ARITHMETIC, last.arithmetic)

    def _event_time_limit(self) -> EventTimeLimit | None:
        """The limit of event times until the next commit; None: the model does not use event times."""
        return EventTimeLimit(self.options.max_event_time_lead, self.clock.time()) if self.by_event_time else None

    def _warn_of_seconds(self, batches: list[Batch]) -> None:
        """Warn once if timestamps seem to be in seconds, which makes the half-life wrong by a factor of 1000."""
        if self.limit is None or self.warned_of_seconds:
            return
        wrong = [b for b in batches if len(b) and look_like_seconds(b.times, self.limit.read_at)]
        if wrong:
            self.warned_of_seconds = True
            log.warning(
                "%s: the event times of %s are in January 1970 as milliseconds, but in this year as seconds: the "
                "half-life is then 1000 times too long. Let the producer write milliseconds",
                self.name,
                ", ".join(str(b.range.partition) for b in wrong),
            )

    def _commit_when_due(self, stop: StopRequest) -> None:
        now, publisher = self.clock.monotonic(), self.publisher
        if not publisher.reason and now - self.requests_read_at >= self.options.checkpoint_every:
            self._follow_requests(stop)
        if not publisher.reason and (reason := publisher.due(self.learner, self.counters.points)):
            publisher.prepare(self.learner, reason, len(self.journal))
        moved = self.position != self.committed
        if self.learner.prepared_ if publisher.reason else moved and self._commit_due(now):
            try:
                self._commit(stop)
            except BrokerUnreachableError as e:
                self.context.count_error("commit")
                self.context.mark_down("broker", e)  # the commit waits, and the next poll reconnects
                if self.paused:
                    self._reopen(stop, e)  # there is no next poll
        self._keep_lease(stop)

    def _commit_due(self, now: float) -> bool:
        pause = max(self.options.checkpoint_every, MIN_CHECKPOINT_RATIO * self.commit_seconds)
        due = self.paused or self.publisher.reason != "" or self.pending_bad_bytes > MAX_PENDING_BAD_BYTES
        return due or now - self.committed_at >= pause

    def _follow_requests(self, stop: StopRequest) -> None:
        """Pause, resume, or promote a snapshot, as requested."""
        self.requests_read_at = self.clock.monotonic()
        try:
            requests = self.store.control_requests(self.name)
        except StoreUnavailableError:
            return  # the next commit reports it
        if requests.paused != self.paused:
            self.paused = requests.paused
            self.source_manager.pause()
            log.info("%s: %s at %s", self.name, "paused" if self.paused else "resumed", _text(self.position))
        if requests.promotion is not None:
            self._promote(requests.promotion, stop)

    def _promote(self, promotion: Promotion, stop: StopRequest) -> None:
        """Promote a snapshot and learn the records since it, in one commit."""
        try:
            learner = model_from_snapshot(self.store, self.context.spec, promotion.snapshot)
            snapshot = self.store.snapshot(self.name, promotion.snapshot)
        except StoreUnavailableError:
            return  # the next commit reports it
        if any(self.position.get(tp, 0) < at for tp, at in snapshot.position.items()):
            return  # the snapshot is ahead; learning on from it now would learn records twice
        try:
            if self.journal:
                self._commit(stop)
            self.limit = self._event_time_limit()
            ranges = ranges_between(
                snapshot.position, self.source_manager.source.beginning(), self.position, self.options.batch
            )
            batches = catch_up(
                learner,
                iter(()) if promotion.skip else ranges,
                self.source_manager.open_same_stream,
                self.context.codec,
                self.limit,
                lambda: self._keep_lease(stop),
            )
            if batches is None:
                return
            self._mark_codec_up()
            self.source_manager.confirm_identity()  # while the model can still stay as it was
        except BrokerUnreachableError as e:
            log.warning("%s: the promotion of snapshot %d waits for a broker: %s", self.name, promotion.snapshot, e)
            if self.paused:
                self._reopen(stop, e)  # no poll does
            return
        except CodecUnavailableError as e:
            self.context.count_error("promote")
            self._mark_codec_down(e)
            return
        except PositionLostError as e:
            self.context.count_error("promote")
            log.error("%s: snapshot %d cannot be promoted: %s", self.name, promotion.snapshot, e)  # noqa: TRY400
            self.store.request_promotion(self.name, None)
            return
        log.info(
            "%s: snapshot %d promoted, %d mini-batches learned after it", self.name, promotion.snapshot, len(batches)
        )
        self.learner, self.journal = learner, batches
        self.publisher.promote(promotion.snapshot)
        self._commit(stop)

    def _keep_lease(self, stop: StopRequest) -> bool:
        """Renew the lease if due; False when `stop` is set."""
        self.context.heartbeat.beat("renewing the lease")
        now = self.clock.monotonic()
        if now - self.renewed_at >= self.options.lease / 3:
            try:
                self.lease = self.store.renew(self.lease, self.options.lease, self.clock.time())
                self.renewed_at = now
                self.store_outage.answered()
            except StoreUnavailableError as e:
                self.store_outage.failed(e)
                if now - self.renewed_at >= 2 * self.options.lease:
                    raise
                self.context.count_error("lease")
        return not stop.is_set()

    def _commit(self, stop: StopRequest) -> None:
        """Steps 4 and 5, with a snapshot if one was prepared."""
        # Step 4: commit, once it is certain that all records came from this topic.
        if self.journal:
            self.source_manager.confirm_identity()
        now = self.clock.time()
        self.commit_seq += 1
        lag = self.source_manager.lag(self.position)
        total_lag = sum(lag.values()) if lag is not None else -1
        publisher, snapshot = self.publisher, None
        if publisher.reason:
            snapshot = publisher.snapshot(self.learner, self.lease, self.counters, self.position, now)
        progress = Progress(dict(self.position), self.counters, self.commit_seq, now, total_lag, self.learner.warmup_)
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
            recent=self.recent_sample.take(self.source_manager.ends),
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
        self.pending_bad_bytes = 0
        self.committed_at = self.clock.monotonic()
        self.commit_seconds = self.committed_at - started
        if snapshot is not None:
            publisher.published(snapshot, self.counters.points)
            self.snapshot_number = number
        self.total_lag = total_lag
        self.metrics.commit(self.name, progress, lag or {}, snapshot, self.commit_seconds)
        self.maintenance.after_commit(len(commit.quarantine))
        # Step 5: report to Kafka.
        with contextlib.suppress(SourceClosedError):
            self.source_manager.source.commit(self.committed)

    def _write(self, commit: Commit, stop: StopRequest) -> int:
        """`Store.commit`, retried while the store is unavailable, for as long as a lease lasts."""
        deadline = self.clock.monotonic() + self.options.lease
        backoff = FIRST_BACKOFF
        while True:
            self.context.heartbeat.beat("committing")
            try:
                number = self.store.commit(self.lease, commit)
            except StoreUnavailableError as e:
                self.store_outage.failed(e, commit=self.commit_seq)
                if self.clock.monotonic() >= deadline:
                    raise
                self.context.count_error("commit")
                stop.wait(backoff)
                backoff = min(2 * backoff, LAST_BACKOFF)
            else:
                self.store_outage.committed()
                return number

    def _connect(self, stop: StopRequest, unreadable: tuple[BatchRange, ...] = ()) -> bool:
        """Open a source behind `unreadable` ranges, and count lost ranges; False when `stop` is set.

        The position passes over lost ranges only together with their record: if this fails, it is as before.
        """
        position = {**self.position, **{r.partition: r.stop for r in unreadable}}
        deleted = self.source_manager.connect(position, stop, self._keep_lease)
        if deleted is None:
            return False
        self.position, self.undecoded = position, ()
        if lost := (*unreadable, *deleted):
            self.lost, size = lost, source_checks.count_offsets(lost)
            self.counters = self.counters.plus(lost=size)
            self.metrics.add(RECORDS_LOST, size, model=self.name)
            why = "could not be read" if unreadable else "were deleted before they were read"
            log.error("%s: %d records %s, skipped: %s", self.name, size, why, source_checks.format_ranges(lost))
            self._commit(stop)  # the gap is recorded before anything behind it is learned
        return True

    def _skip_unreadable(self, stop: StopRequest, error: CorruptBatchError) -> None:
        """Continue behind an unreadable record batch, if the options allow it and its end is known."""
        self.context.count_error("poll")
        if self.options.on_data_loss != "skip" or error.lost is None:
            raise error
        topic, partition, _, until = error.lost
        tp = TopicPartition(topic, partition)
        self.source_manager.close()
        if not stop.wait(FIRST_BACKOFF):
            self._connect(stop, (BatchRange(tp, self.position[tp], until),))

    def _reopen(self, stop: StopRequest, error: SourceError) -> None:
        """Open a new source at the current position; retries until it succeeds or `stop` is set."""
        self.context.count_error("poll")
        if isinstance(error, BrokerUnreachableError):
            self.context.mark_down("broker", error)
        if isinstance(error, PartitionStalledError):
            self.metrics.add(ALARMS, model=self.name, alarm="stalled-partition")
            if self.source_manager.stalls.exhausted:
                raise error
        log.warning("%s: %s; reading again from %s", self.name, error, _text(self.position))
        self.source_manager.close()
        lost = self.counters.lost
        if not stop.wait(FIRST_BACKOFF) and self._connect(stop) and isinstance(error, PositionLostError):
            if self.counters.lost == lost:
                raise error  # no records are missing, so trying again would not help
            log.info("%s: continuing behind the gap", self.name)


def _text(position: Position) -> str:
    return ", ".join(f"{tp}@{at}" for tp, at in sorted(position.items()))
