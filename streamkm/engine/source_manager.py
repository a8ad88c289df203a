"""Opens and verifies the source, discovers partitions, finds stalled ones, and reconnects after broker outages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from streamkm.connectors.base import IdentityCheck, Source
from streamkm.engine import source_checks
from streamkm.engine.context import EngineContext, StopRequest
from streamkm.errors import BrokerUnreachableError, PartitionStalledError, SourceClosedError, SourceError
from streamkm.records import BatchRange, Position, Records, TopicPartition
from streamkm.state import ModelSpec

log = logging.getLogger("streamkm.engine")

DISCOVERY_SECONDS = 1.0
"""Time between checks for new partitions; a source that has to ask a broker caches the answer for some seconds."""
END_SECONDS = 5.0
"""Time between requests for the end of a topic that is far ahead: each takes a tenth of a second."""
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 5.0
"""Seconds between attempts: the first wait, doubled up to the last."""


class SourceManager:
    """Holds the open source of a session, at the model's position.

    Parameters
    ----------
    context
        Of the engine.
    stored
        The stored spec, which has the source that the model has read so far.
    """

    def __init__(self, context: EngineContext, stored: ModelSpec) -> None:
        self.context, self.stored, self.clock = context, stored, context.clock
        self.stalls = StallDetector(stored.name)
        self._source: Source | None = None
        self._confirmed = True
        self._end: Position = {}
        self._end_read_at = self._discovered_at = float("-inf")

    @property
    def source(self) -> Source:
        """The current source, which may be closed.

        Raises
        ------
        SourceClosedError
            None was opened yet.
        """
        if self._source is None:
            raise SourceClosedError("the source was not opened yet", where=f"model {self.stored.name}")
        return self._source

    def close(self) -> None:
        """Close the source."""
        if self._source is not None:
            self._source.close()

    def connect(
        self, position: dict[TopicPartition, int], stop: StopRequest, keep_lease: Callable[[StopRequest], bool]
    ) -> tuple[BatchRange, ...] | None:
        """Open a source, check that it is the model's stream, and seek; repeat until a broker answers.

        Parameters
        ----------
        position
            The position of the model, updated in place: a new model starts at the beginning or end, new partitions are
            added, and lost ranges are passed over.
        keep_lease
            Called between attempts.

        Returns
        -------
        tuple or None
            The lost ranges that were skipped; None if `stop` was set before a broker answered.

        Raises
        ------
        TopicChangedError, TopicNotFoundError
            The source is not the stream that the model has read.
        PositionLostError
            Records are lost, and may not be skipped.
        """
        backoff = FIRST_BACKOFF
        while not stop.is_set():
            self.context.heartbeat.beat("connecting to a broker")
            try:
                lost = self._open(position)
            except BrokerUnreachableError as e:
                self.close()
                self.context.count_error("poll")
                self.context.mark_down("broker", e)
                log.warning("%s: no broker, trying again: %s", self.stored.name, e)
            except BaseException:
                self.close()
                raise
            else:
                self.context.mark_up("broker")
                return lost
            keep_lease(stop)
            stop.wait(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)
        return None

    def _open(self, position: dict[TopicPartition, int]) -> tuple[BatchRange, ...]:
        name, options = self.stored.name, self.context.options
        source = self._source = self.open_same_stream()
        self._confirmed = True
        beginning, end = source.beginning(), source.end()
        known = position or (end if options.start == "end" else beginning)
        lost = source_checks.lost_ranges(name, known, beginning, end, skip=options.on_data_loss == "skip")
        start = {**beginning, **known, **{r.partition: r.stop for r in lost}}
        source.seek(start)
        if new := [str(tp) for tp in start if tp not in known]:
            log.info("%s: new partitions %s", name, ", ".join(new))
        position.update(start)
        self._discovered_at = self.clock.monotonic()
        return lost

    def open_same_stream(self) -> Source:
        """Open another source of the model's stream; what is read from it has to be confirmed, as what is polled.

        Raises
        ------
        TopicChangedError, TopicNotFoundError
            The source is not the stream that the model has read.
        BrokerUnreachableError
            No broker answers.
        """
        source = self.context.open_source()
        try:
            source_checks.check_same_stream(self.stored, source.identity())
        except BaseException:
            source.close()
            raise
        self._confirmed = False
        return source

    def check_partitions(self, position: dict[TopicPartition, int]) -> None:
        """Detect stalled partitions, and start to read new ones from their beginning.

        Raises
        ------
        PartitionStalledError
            A partition does not advance.
        """
        now = self.clock.monotonic()
        self.stalls.check(position, self.source.end, now)
        if now - self._discovered_at < DISCOVERY_SECONDS:
            return
        self._discovered_at = now
        new = [tp for tp in self.source.partitions() if tp not in position]
        if new:
            beginning = self.source.beginning()
            position.update({tp: beginning[tp] for tp in new})
            log.info("%s: new partitions %s", self.stored.name, ", ".join(map(str, new)))
            self.source.seek(position)

    def poll(self, timeout: float, max_records: int) -> Sequence[Records]:
        """Poll the source; see `Source.poll`."""
        self._confirmed = False
        polled = self.source.poll(timeout, max_records)
        self.stalls.polled(sum(map(len, polled)), max_records)
        return polled

    def begin_identity_check(self) -> None:
        """Start the check of `confirm_identity` in the background, because a commit follows."""
        if isinstance(self._source, IdentityCheck):
            self._source.begin_identity_check()

    def confirm_identity(self) -> None:
        """Check that all records read so far came from the topic that the model has read.

        Raises
        ------
        TopicChangedError
            They did not.
        BrokerUnreachableError
            No broker confirms it.
        """
        if not self._confirmed and isinstance(self._source, IdentityCheck):
            self._source.confirm_identity()
            self.context.mark_up("broker")  # it may have been away only while an earlier commit was to be confirmed
        self._confirmed = True

    def pause(self) -> None:
        """Do not count the time without polls as a stall."""
        self.stalls.reset()

    @property
    def ends(self) -> Position:
        """End offset of each partition, as last read by `lag`; empty before that."""
        return self._end

    def lag(self, position: Position) -> dict[TopicPartition, int] | None:
        """Offsets between the position and the end of each partition; None when no broker answers."""
        now = self.clock.monotonic()
        near = any(at >= self._end.get(tp, 0) for tp, at in position.items())
        if near or now - self._end_read_at >= END_SECONDS:
            try:
                self._end, self._end_read_at = self.source.end(), now
            except SourceError:  # a dead source must not prevent the commit of what was learned
                return None
        return {tp: max(0, self._end.get(tp, at) - at) for tp, at in position.items()}


STALL_SECONDS = 60.0
"""Time without progress after which a partition with unread records is stalled."""
MAX_REOPENED = 3
"""Reopened sources after which a stall ends the run."""


class StallDetector:
    """Detects partitions that do not advance although they have records.

    Only while the owner keeps up with the stream: in a backlog a partition may have to wait for the others.

    Parameters
    ----------
    model
        Name of the model, for the error.

    Attributes
    ----------
    reopened
        Number of stalls since the stalled partitions last advanced.
    """

    def __init__(self, model: str) -> None:
        self.model, self.reopened = model, 0
        self._checked_at = float("-inf")
        self._last: dict[TopicPartition, int] = {}
        self._since: dict[TopicPartition, float] = {}
        self._stalled: set[TopicPartition] = set()
        self._polls = self._short_polls = 0

    def polled(self, records: int, wanted: int) -> None:
        """Count a poll, and whether it returned fewer records than wanted."""
        self._polls += 1
        self._short_polls += records < wanted

    def check(self, position: Position, end: Callable[[], Position], now: float) -> None:
        """Compare the position with that of the previous check, if a check is due.

        Parameters
        ----------
        position
            Of the model.
        end
            Reads the end of the topic; only called when a partition did not advance.
        now
            Monotonic seconds.

        Raises
        ------
        PartitionStalledError
            A partition has not advanced for `STALL_SECONDS` although it had records all the time.
        """
        if now - self._checked_at < STALL_SECONDS / 4:
            return
        self._checked_at = now
        keeps_up, self._polls, self._short_polls = 2 * self._short_polls >= self._polls, 0, 0
        still = {tp for tp, at in position.items() if self._last.get(tp) == at}
        self._last = dict(position)
        if self._stalled - still:
            self._stalled -= set(position) - still
            if not self._stalled:
                self.reopened = 0
        ends = end() if still and keeps_up else {}
        behind = {tp: ends[tp] - position[tp] for tp in still if ends.get(tp, 0) > position[tp]}
        self._since = {tp: self._since.get(tp, now) for tp in behind}
        stalled = sorted(tp for tp, since in self._since.items() if now - since >= STALL_SECONDS)
        if stalled:
            self.reopened += 1
            self._stalled |= set(stalled)
            self._since.clear()  # the next source gets the same time
            shown = ", ".join(f"{tp}@{position[tp]}, {behind[tp]} records before the end" for tp in stalled[:10])
            raise PartitionStalledError(
                f"{len(stalled)} partitions have not advanced for {STALL_SECONDS:g} s although they have records",
                where=f"model {self.model}, {shown}",
                hint="The source is opened again; if that does not help, check the leaders of these partitions",
            )

    def reset(self) -> None:
        """Start measuring anew."""
        self._last, self._polls, self._short_polls = {}, 0, 0
        self._since.clear()

    @property
    def exhausted(self) -> bool:
        """Whether reopening the source did not help."""
        return self.reopened > MAX_REOPENED
