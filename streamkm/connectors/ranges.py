"""Reading exact ranges of a partition."""

from __future__ import annotations

from collections.abc import Callable

from streamkm.connectors.base import Source
from streamkm.errors import CorruptBatchError, PositionLostError
from streamkm.records import BatchRange, Records, TopicPartition

POLL_SECONDS = 0.2
"""Longest wait for a record at a time."""

RECORD_TIMEOUT_SECONDS = 30.0
"""How long a record that the journal names may take to come."""


class RangeReader:
    """Reads ranges of one partition, each after the one before, exactly as the journal cut them.

    Parameters
    ----------
    source, partition
        What is read.
    batch
        Most records of a poll.
    on_lost
        Told each range that cannot be read, which is passed over; if None, it is an error.
    reopen
        Opens the source anew: one that has met what it cannot read gives nothing more.

    Attributes
    ----------
    source
        The one that is read now.
    """

    def __init__(
        self,
        source: Source,
        partition: TopicPartition,
        batch: int = 8192,
        *,
        on_lost: Callable[[BatchRange], None] | None = None,
        reopen: Callable[[], Source] | None = None,
    ) -> None:
        self.source, self.partition, self.batch = source, partition, batch
        self._on_lost, self._reopen = on_lost, reopen
        self.rest: Records | None = None
        self.at: int | None = None

    def read(self, wanted: BatchRange) -> list[Records]:
        """Records of [start, stop).

        Raises
        ------
        PositionLostError
            The topic no longer has them, or they do not come.
        CorruptBatchError
            They cannot be read.
        """
        if self.at != wanted.start:
            self.source.seek({self.partition: wanted.start})
            self.rest, self.at = None, wanted.start
        parts: list[Records] = []
        waited = 0.0
        while self.at < wanted.stop:
            if self.rest is None:
                try:
                    polled = self.source.poll(POLL_SECONDS, self.batch)
                except CorruptBatchError as error:
                    self.at = self._behind(error, self.at, wanted.stop)
                    continue
                if not polled:
                    waited += POLL_SECONDS
                    if waited > RECORD_TIMEOUT_SECONDS:
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

    def _behind(self, error: CorruptBatchError, at: int, stop: int) -> int:
        """Where reading goes on behind what cannot be read, `stop` at most."""
        if (
            self._on_lost is None
            or self._reopen is None
            or error.lost is None
            or error.lost[:2] != tuple(self.partition)
        ):
            raise error
        until = min(error.lost[3], stop)
        if until <= at:
            raise error
        self._on_lost(BatchRange(self.partition, at, until))
        self.source.close()
        self.source = self._reopen()
        self.source.seek({self.partition: until})
        return until
