"""The source of a tenure: opened, checked, followed as it grows, and opened again when its broker was away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from streamkm.engine import guards
from streamkm.engine.options import Stop
from streamkm.engine.parts import Parts
from streamkm.engine.stalls import Stalls
from streamkm.errors import BrokerUnreachableError, SourceClosedError, SourceError
from streamkm.records import BatchRange, Position, Records, TopicPartition
from streamkm.sources.base import Confirms, Source
from streamkm.state import ModelSpec

log = logging.getLogger("streamkm.engine")

DISCOVERY_SECONDS = 1.0
"""How often new partitions are looked for: a source that has to ask a broker remembers the answer for some seconds."""
END_SECONDS = 5.0
"""How often the end of a topic is asked for by an owner that is far from it: an answer takes a tenth of a second."""
FIRST_BACKOFF, LAST_BACKOFF = 0.1, 5.0


class Inlet:
    """Gives a source at the model's position, or an error that says why there is none.

    Parameters
    ----------
    parts
        Of the engine.
    stored
        The model as stored: its source is what the model has read so far.
    """

    def __init__(self, parts: Parts, stored: ModelSpec) -> None:
        self.parts, self.stored, self.clock = parts, stored, parts.clock
        self.stalls = Stalls(stored.name)
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
        self, position: dict[TopicPartition, int], stop: Stop, keep: Callable[[Stop], bool]
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
            self.parts.pulse.beat("connecting to a broker")
            try:
                lost = self._enter(position)
            except BrokerUnreachableError as e:
                self.close()
                self.parts.failed("poll")
                self.parts.away("broker", e)
                log.warning("%s: no broker, trying again: %s", self.stored.name, e)
            except BaseException:
                self.close()
                raise
            else:
                self.parts.back("broker")
                return lost
            keep(stop)
            stop.wait(backoff)
            backoff = min(2 * backoff, LAST_BACKOFF)
        return None

    def _enter(self, position: dict[TopicPartition, int]) -> tuple[BatchRange, ...]:
        name, options = self.stored.name, self.parts.options
        source = self._source = self.parts.open_source()
        guards.same_stream(self.stored, source.identity())
        self._confirmed = True
        beginning, end = source.beginning(), source.end()
        known = position or (end if options.start == "end" else beginning)
        gone = guards.lost(name, known, beginning, end, skip=options.on_data_loss == "skip")
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
        if isinstance(self._source, Confirms):
            self._source.ask()

    def confirm(self) -> None:
        """Return if all that was polled came from the topic that the model has read; else raise."""
        if not self._confirmed and isinstance(self._source, Confirms):
            self._source.confirm()
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
