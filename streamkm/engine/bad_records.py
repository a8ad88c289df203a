"""When bad records are too many: a share of all, or too many in a row of one partition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from streamkm.engine.context import EngineOptions
from streamkm.errors import BadRecordsError
from streamkm.records import BadRecord, Batch, TopicPartition

BAD_WINDOW = 1000
"""Records after which the share of bad ones is judged."""


class BadRecordLimit:
    """Watches the records of a stream, and stops it when it looks broken.

    Parameters
    ----------
    model
        Its name, for the message.
    """

    def __init__(self, model: str, options: EngineOptions) -> None:
        self.model = model
        self.max_ratio, self.max_in_a_row = options.max_bad_ratio, options.max_bad_in_a_row
        self.records = self.bad = 0
        self.in_a_row: dict[TopicPartition, int] = {}
        """Bad records at the end of what was read of each partition."""

    def check(self, records: int, batches: Sequence[Batch]) -> None:
        """Look at the next mini-batch, before it is learned.

        Parameters
        ----------
        records
            How many it has, tombstones included.
        batches
            The same, decoded.

        Raises
        ------
        BadRecordsError
            The share of bad ones in the last `BAD_WINDOW` or more, or their number in a row, is too high.
        """
        self._check_in_a_row(batches)
        self.records += records
        self.bad += sum(len(b.bad) for b in batches)
        if self.records >= BAD_WINDOW:
            share = self.bad / self.records
            if share > self.max_ratio:
                said = f"{share:.0%} of the last {self.records} records are bad"
                raise self._too_many(said, [bad for b in batches for bad in b.bad], "--max-bad-ratio")
            self.records = self.bad = 0

    def _check_in_a_row(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            partition = batch.range.partition
            before = self.in_a_row.get(partition, 0)
            if not batch.bad:
                self.in_a_row[partition] = 0 if len(batch) else before
                continue
            # Bad records with equally many good ones before them follow each other; tombstones do not count.
            good_before = np.searchsorted(batch.offsets, [bad.record.offset for bad in batch.bad])
            counts = np.bincount(good_before, minlength=len(batch) + 1)
            counts[0] += before
            self.in_a_row[partition] = int(counts[-1])
            if 0 < self.max_in_a_row <= counts.max():
                said = f"{counts.max()} records of {partition} in a row are bad"
                raise self._too_many(said, batch.bad, "--max-bad-in-a-row")

    def _too_many(self, said: str, bad: Sequence[BadRecord], option: str) -> BadRecordsError:
        return BadRecordsError(
            said + (f", such as {bad[-1]}" if bad else ""),
            where=f"model {self.model}",
            hint=f"Nothing of this batch was counted. Mend the producer or the fields, or raise {option}",
        )
