"""Opens and verifies the source, discovers partitions, finds stalled ones, and reconnects after broker outages."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from streamkm.connectors.base import IdentityCheck, Source
from streamkm.engine import source_checks
from streamkm.engine.context import EngineContext, StopSignal
from streamkm.errors import BrokerUnreachableError, PartitionStalledError, SourceClosedError, SourceError
from streamkm.records import BatchRange, Position, Records, TopicPartition
from streamkm.state import ModelSpec

log = logging.getLogger("streamkm.engine")

DISCOVERY_SECONDS = 1.0
"""How often new partitions are looked for: a source that has to ask a broker remembers the answer for some seconds."""
END_SECONDS = 5.0
"""How often the end of a topic is asked for by an owner that is far from it: an answer takes a tenth of a second."""
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 5.0


class SourceManager:
    """Gives a source at the model's position, or an error that says why there is none.

    Parameters
    ----------
    context
        Of the engine.
    stored
        The model as stored: its source is what the model has read so far.
    """

    def __init__(self, context: EngineContext, stored: ModelSpec) -> None:
        self.context, self.stored, self.clock = context, stored, context.clock
        self.stalls = StallDetector(stored.name)
        self._source: Source | None = None
        self._confirmed = True
        self._end: Position = {}
        self._asked_end_at = self._discovered_at = float("-inf")

    @property
    def source(self) -> Source:
        """The source of now; after `close` a closed one."""
        if self._source is None:
            raise SourceClosedError("the source was not opened yet", where=f"model {self.stored.name}")
        return self._source

    def close(self) -> None:
        """Give the source back."""
        if self._source is not None:
            self._source.close()

    def connect(
        self, position: dict[TopicPartition, int], stop: StopSignal, keep: Callable[[StopSignal], bool]
    ) -> tuple[BatchRange, ...] | None:
        """Open a source, check that it is what the model has read, and seek; again until a broker answers.

        Parameters
        ----------
        position
            Where the model stands; empty for a new one, whose start it becomes. Partitions that were added are added to
            it, and what is lost moves it on.
        keep
            Called between tries.

        Returns
        -------
        tuple | None
            The ranges that are lost and were skipped; None if it was time to stop before a broker answered.

        Raises
        ------
        TopicChangedError, TopicNotFoundError
            It is not what the model has read.
        PositionLostError
            Records are gone, and nothing may be skipped.
        """
        backoff = FIRST_BACKOFF
        while not stop.is_set():
            self.context.heartbeat.beat("connecting to a broker")
            try:
                lost = self._enter(position)
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
            keep(stop)
            stop.wait(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)
        return None

    def _enter(self, position: dict[TopicPartition, int]) -> tuple[BatchRange, ...]:
        name, options = self.stored.name, self.context.options
        source = self._source = self.context.open_source()
        source_checks.check_same_stream(self.stored, source.identity())
        self._confirmed = True
        beginning, end = source.beginning(), source.end()
        known = position or (end if options.start == "end" else beginning)
        gone = source_checks.lost_ranges(name, known, beginning, end, skip=options.on_data_loss == "skip")
        there = {**beginning, **known, **{r.partition: r.stop for r in gone}}
        source.seek(there)
        if new := [str(tp) for tp in there if tp not in known]:
            log.info("%s: new partitions %s", name, ", ".join(new))
        position.update(there)
        self._discovered_at = self.clock.monotonic()
        return gone

    def look(self, position: dict[TopicPartition, int]) -> None:
        """See whether all partitions move, and start to read those that were added, from their beginning.

        Raises
        ------
        PartitionStalledError
            One does not move.
        """
        now = self.clock.monotonic()
        self.stalls.look(position, self.source.end, now)
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
        """Records, as `Source.poll` gives them."""
        self._confirmed = False
        polled = self.source.poll(timeout, max_records)
        self.stalls.polled(sum(map(len, polled)), max_records)
        return polled

    def ask(self) -> None:
        """Begin to confirm what was polled: a commit is due when it is learned."""
        if isinstance(self._source, IdentityCheck):
            self._source.begin_identity_check()

    def confirm(self) -> None:
        """Return if all that was polled came from the topic that the model has read; else raise."""
        if not self._confirmed and isinstance(self._source, IdentityCheck):
            self._source.confirm_identity()
        self._confirmed = True

    def rest(self) -> None:
        """Nothing was or will be polled for a while, because somebody wants that: no partition stalls."""
        self.stalls.rest()

    @property
    def ends(self) -> Position:
        """The ends that `lag` knows: one above the newest record of each partition; empty before the first answer."""
        return self._end

    def lag(self, position: Position) -> dict[TopicPartition, int] | None:
        """Records between the position and the end of each partition; None when no broker answers."""
        now = self.clock.monotonic()
        near = any(at >= self._end.get(tp, 0) for tp, at in position.items())
        if near or now - self._asked_end_at >= END_SECONDS:
            try:
                self._end, self._asked_end_at = self.source.end(), now
            except SourceError:  # one that has died must not keep what was learned from being committed
                return None
        return {tp: max(0, self._end.get(tp, at) - at) for tp, at in position.items()}


STALL_SECONDS = 60.0
"""How long a partition may stand still before records that could be read."""
MAX_REBUILDS = 3
"""Sources that are made anew for it before the run ends."""


class StallDetector:
    """Watches the position, partition by partition.

    Only where the owner keeps up: one that has more than it can learn may come to a partition late.

    Parameters
    ----------
    model
        Its name, for the error.

    Attributes
    ----------
    rebuilds
        How often the same trouble was met without a move of the partitions in between.
    """

    def __init__(self, model: str) -> None:
        self.model, self.rebuilds = model, 0
        self._looked_at = float("-inf")
        self._last: dict[TopicPartition, int] = {}
        self._since: dict[TopicPartition, float] = {}
        self._stalled: set[TopicPartition] = set()
        self._polls = self._hungry = 0

    def polled(self, records: int, wanted: int) -> None:
        """The source gave some of the records that it was asked for."""
        self._polls += 1
        self._hungry += records < wanted

    def look(self, position: Position, end: Callable[[], Position], now: float) -> None:
        """Compare with the look before, if it is time for one.

        Parameters
        ----------
        position
            Of the model.
        end
            Asks the source for the end; only called when a partition did not move.
        now
            Seconds that never jump.

        Raises
        ------
        PartitionStalledError
            A partition has not moved for `STALL_SECONDS` although it had records all the time.
        """
        if now - self._looked_at < STALL_SECONDS / 4:
            return
        self._looked_at = now
        keeps_up, self._polls, self._hungry = 2 * self._hungry >= self._polls, 0, 0
        still = {tp for tp, at in position.items() if self._last.get(tp) == at}
        self._last = dict(position)
        if self._stalled - still:
            self._stalled -= set(position) - still
            if not self._stalled:
                self.rebuilds = 0
        ends = end() if still and keeps_up else {}
        behind = {tp: ends[tp] - position[tp] for tp in still if ends.get(tp, 0) > position[tp]}
        self._since = {tp: self._since.get(tp, now) for tp in behind}
        stalled = sorted(tp for tp, since in self._since.items() if now - since >= STALL_SECONDS)
        if stalled:
            self.rebuilds += 1
            self._stalled |= set(stalled)
            self._since.clear()  # the next source gets as much time
            shown = ", ".join(f"{tp}@{position[tp]}, {behind[tp]} records before the end" for tp in stalled[:10])
            raise PartitionStalledError(
                f"{len(stalled)} partitions have not moved for {STALL_SECONDS:g} s although there is something to read",
                where=f"model {self.model}, {shown}",
                hint="The source is made anew; if that does not help, look at the leaders of these partitions",
            )

    def rest(self) -> None:
        """What did not move so far was not asked to."""
        self._last, self._polls, self._hungry = {}, 0, 0
        self._since.clear()

    @property
    def hopeless(self) -> bool:
        """Whether new sources did not help."""
        return self.rebuilds > MAX_REBUILDS
