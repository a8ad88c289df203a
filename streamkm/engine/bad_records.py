"""The limits of bad records: a share of all records, and consecutive ones of a partition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamkm.engine.context import EngineOptions
from streamkm.errors import BadRecordsError
from streamkm.records import BadRecord, Batch, TopicPartition

BAD_WINDOW = 1000
"""Number of records after which the share of bad ones is checked."""


class BadRecordLimit:
    """Stops an engine whose stream has too many bad records.

    Parameters
    ----------
    model
        Name of the model, for the message.
    options
        Of the engine.
    """

    def __init__(self, model: str, options: EngineOptions) -> None:
        self.model = model
        self.max_ratio, self.max_in_a_row = options.max_bad_ratio, options.max_bad_in_a_row
        self.records = self.bad = 0
        self.in_a_row: dict[TopicPartition, int] = {}
        """Consecutive bad records at the current end of each partition."""

    def check(self, records: int, batches: Sequence[Batch]) -> None:
        """Check the next mini-batch before it is learned.

        Parameters
        ----------
        records
            Number of records, tombstones included.
        batches
            The decoded records.

        Raises
        ------
        BadRecordsError
            The share of bad ones among the last `BAD_WINDOW` or more, or the number of consecutive ones, is too high.
        """
        self._check_in_a_row(batches)
        self.records += records
        self.bad += sum(len(b.bad) for b in batches)
        if self.records >= BAD_WINDOW:
            share = self.bad / self.records
            if share > self.max_ratio:
                message = f"{share:.0%} of the last {self.records} records are bad"
                raise self._error(message, [bad for b in batches for bad in b.bad], "--max-bad-ratio")
            self.records = self.bad = 0

    def _check_in_a_row(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            partition = batch.range.partition
            before = self.in_a_row.get(partition, 0)
            if not batch.bad:
                self.in_a_row[partition] = 0 if len(batch) else before
                continue
            # Bad records with the same number of good ones before them are consecutive; tombstones do not count.
            good_before = np.searchsorted(batch.offsets, [bad.record.offset for bad in batch.bad])
            counts = np.bincount(good_before, minlength=len(batch) + 1)
            counts[0] += before
            self.in_a_row[partition] = int(counts[-1])
            if 0 < self.max_in_a_row <= counts.max():
                message = f"{counts.max()} records of {partition} in a row are bad"
                raise self._error(message, batch.bad, "--max-bad-in-a-row")

    def _error(self, message: str, bad: Sequence[BadRecord], option: str) -> BadRecordsError:
        return BadRecordsError(
            message + (f", such as {bad[-1]}" if bad else ""),
            where=f"model {self.model}",
            hint=f"Nothing of this batch was counted. Fix the producer or --fields, or raise {option}",
        )
