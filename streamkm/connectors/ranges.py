"""Reads exact offset ranges of a partition."""

from __future__ import annotations

from collections.abc import Callable

from streamkm.connectors.base import Source
from streamkm.errors import CorruptBatchError, PositionLostError
from streamkm.records import BatchRange, Records, TopicPartition

POLL_SECONDS = 0.2
"""Maximum wait of one poll, s."""

RECORD_TIMEOUT_SECONDS = 30.0
"""Maximum wait for a record that the journal names, s."""


class RangeReader:
    """Reads consecutive offset ranges of one partition, with the boundaries that the journal has.

    Parameters
    ----------
    source
        Source to read from.
    partition
        Partition to read.
    batch
        Maximum number of records per poll.
    on_lost
        Called with each range that cannot be read and is skipped. If None, such a range raises an error.
    reopen
        Opens a new source: one that has met an unreadable batch cannot be used any more.

    Attributes
    ----------
    source
        The source in use.
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
        self._pending: Records | None = None
        self._offset: int | None = None

    def read(self, offsets: BatchRange) -> list[Records]:
        """Read the records of [start, stop).

        Raises
        ------
        PositionLostError
            The records were deleted, or did not arrive in time.
        CorruptBatchError
            A record batch cannot be read.
        """
        if self._offset != offsets.start:
            self.source.seek({self.partition: offsets.start})
            self._pending, self._offset = None, offsets.start
        parts: list[Records] = []
        waited = 0.0
        while self._offset < offsets.stop:
            if self._pending is None:
                try:
                    polled = self.source.poll(POLL_SECONDS, self.batch)
                except CorruptBatchError as error:
                    self._offset = self._skip_lost(error, self._offset, offsets.stop)
                    continue
                if not polled:
                    waited += POLL_SECONDS
                    if waited > RECORD_TIMEOUT_SECONDS:
                        raise PositionLostError(
                            f"the journal has records up to {offsets.stop}, none arrived after offset {self._offset}",
                            where=str(self.partition),
                        )
                    continue
                self._pending = polled[0]
            records, self._pending = self._pending, None
            if records.stop > offsets.stop:
                records, self._pending = records.split(offsets.stop)
            parts.append(records)
            self._offset = records.stop
        return parts

    def _skip_lost(self, error: CorruptBatchError, at: int, stop: int) -> int:
        """The offset behind an unreadable batch, at most `stop`, after the source was reopened."""
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
