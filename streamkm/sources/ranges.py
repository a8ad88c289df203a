"""Reading exact ranges of a partition."""

from __future__ import annotations

from streamkm.errors import PositionLostError
from streamkm.records import BatchRange, Records, TopicPartition
from streamkm.sources.base import Source

POLL_SECONDS = 0.2
"""Longest wait for a record at a time."""

PATIENCE_SECONDS = 30.0
"""How long a record that the journal names may take to come."""


class RangeReader:
    """Reads ranges of one partition, each after the one before, exactly as the journal cut them."""

    def __init__(self, source: Source, partition: TopicPartition, batch: int = 8192) -> None:
        self.source, self.partition, self.batch = source, partition, batch
        self.rest: Records | None = None
        self.at: int | None = None

    def read(self, wanted: BatchRange) -> list[Records]:
        """Records of [start, stop).

        Raises
        ------
        PositionLostError
            The topic no longer has them, or they do not come.
        """
        if self.at != wanted.start:
            self.source.seek({self.partition: wanted.start})
            self.rest, self.at = None, wanted.start
        parts: list[Records] = []
        waited = 0.0
        while self.at < wanted.stop:
            if self.rest is None:
                polled = self.source.poll(POLL_SECONDS, self.batch)
                if not polled:
                    waited += POLL_SECONDS
                    if waited > PATIENCE_SECONDS:
                        raise PositionLostError(
                            f"the journal names records up to {wanted.stop}, the topic gives none after {self.at}",
                            where=str(self.partition),
                        )
                    continue
                self.rest = polled[0]
            taken, self.rest = self.rest.split(wanted.stop) if self.rest.stop > wanted.stop else (self.rest, None)
            parts.append(taken)
            self.at = taken.stop
        return parts
