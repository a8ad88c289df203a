"""Partitions that have records to read, and do not move."""

from __future__ import annotations

from collections.abc import Callable

from streamkm.errors import PartitionStalledError
from streamkm.records import Position, TopicPartition

STALL_SECONDS = 60.0
"""How long a partition may stand still before records that could be read."""
REBUILDS = 3
"""Sources that are made anew for it before the run ends."""


class Stalls:
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
        return self.rebuilds > REBUILDS
