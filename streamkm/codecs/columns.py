"""Rows of files: columns that are numbers already, or text that has to be."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamkm.cells import not_a_number, number
from streamkm.codecs._fields import LARGEST, checked_fields
from streamkm.codecs._times import checked_unit, from_iso, is_infinity, to_seconds
from streamkm.errors import FileFormatError, SettingsError
from streamkm.records import BadRecord, Batch, BatchRange, ColumnRecords, RawRecord, Records
from streamkm.state import Json


class ColumnsCodec:
    """Rows of a table as points.

    A row that has more cells than there are columns, or in which one of the columns has no value, an infinite one, one
    beyond 1e140, or text that is not a number, is a bad record; its neighbours are not. Which rows are bad does not
    depend on the other rows read with them.

    Parameters
    ----------
    fields
        Columns in the order of a point's coordinates.
    time_field
        Column with the event time: numbers since 1970 or ISO 8601 text. Without it a row has no time.
    time_unit
        Unit of a number there: "s", "ms", "us", "ns", or "auto", by its size.

    Raises
    ------
    SettingsError
        An argument is not usable.
    """

    def __init__(self, fields: Sequence[str], *, time_field: str | None = None, time_unit: str = "auto") -> None:
        self.fields = checked_fields(fields, time_field, dotted=False)
        self.time_field = time_field
        self.time_unit = checked_unit(time_unit)

    def spec(self) -> Json:
        return {
            "kind": "columns",
            "fields": list(self.fields),
            "time_field": self.time_field,
            "time_unit": self.time_unit,
        }

    def decode(self, records: Records) -> Batch:
        """See `Codec`.

        Raises
        ------
        FileFormatError
            The table has no such column at all.
        """
        if not isinstance(records, ColumnRecords):
            raise SettingsError(
                "these records are bytes without columns", where=str(records.partition), hint="Use the json codec"
            )
        n = len(records)
        flaws = {
            int(np.searchsorted(records.offsets, offset)): ("too-many-values", "", said)
            for offset, said in records.broken.items()
        }
        points = np.empty((n, len(self.fields)))
        for j, field in enumerate(self.fields):
            points[:, j] = self._numbers(field, self._column(records, field), flaws)
            for i in np.flatnonzero(np.isfinite(points[:, j]) & (np.abs(points[:, j]) > LARGEST)).tolist():
                said = f"{field} is {points[i, j]:g}, beyond the largest value taken, {LARGEST:g}"
                flaws.setdefault(i, ("out-of-range", field, said))
        times = self._times(records, flaws)
        good = np.ones(n, np.bool_)
        good[list(flaws)] = False
        bad = tuple(BadRecord(_raw(records, i), *flaws[i]) for i in sorted(flaws))
        return Batch(
            range=BatchRange(records.partition, records.start, records.stop),
            points=points if not bad else np.ascontiguousarray(points[good]),
            times=times[good],
            offsets=records.offsets[good],
            bad=bad,
        )

    @staticmethod
    def _column(records: ColumnRecords, field: str) -> NDArray[np.generic]:
        try:
            return records.columns[field]
        except KeyError:
            has = ", ".join(list(records.columns)[:20])
            raise FileFormatError(
                "there is no such column", where=f"{records.partition.topic}, column {field!r}", hint=f"It has {has}"
            ) from None

    @staticmethod
    def _numbers(
        field: str, column: NDArray[np.generic], flaws: dict[int, tuple[str, str, str]]
    ) -> NDArray[np.float64]:
        """A column as numbers; rows that are none are noted, the first flaw of a row only."""
        if column.dtype != object:
            numbers = column.astype(np.float64)
        else:
            numbers = np.full(len(column), np.nan)
            for i, text in enumerate(column):
                value = math.nan if text is None else number(str(text))
                if value is None:
                    flaws.setdefault(i, ("not-a-number", field, not_a_number(field, str(text))))
                else:
                    numbers[i] = value
        for i in np.flatnonzero(~np.isfinite(numbers)).tolist():
            said = "is missing" if np.isnan(numbers[i]) else "is infinite"
            flaws.setdefault(i, ("not-finite", field, f"{field} {said}"))
        return numbers

    def _times(self, records: ColumnRecords, flaws: dict[int, tuple[str, str, str]]) -> NDArray[np.float64]:
        if self.time_field is None:
            return np.where(records.timestamps < 0, np.nan, records.timestamps / 1000.0)
        column = self._column(records, self.time_field)
        if column.dtype != object:
            numbers = self._numbers(self.time_field, column, flaws)
            for i in np.flatnonzero(is_infinity(numbers)).tolist():
                message = f"{self.time_field} is {numbers[i]:.0f}: infinity, as Debezium writes it"
                flaws.setdefault(i, ("not-a-time", self.time_field, message))
            return to_seconds(numbers, self.time_unit)
        times = np.full(len(column), np.nan)
        for i, text in enumerate(column):
            stripped = "" if text is None else str(text).strip()
            value = number(stripped)
            if value is not None and math.isfinite(value):
                times[i] = to_seconds(np.array([value]), self.time_unit)[0]
                continue
            time = from_iso(stripped)
            if time is None:
                message = f"{self.time_field} is not a time: {stripped[:40]!r}"
                flaws.setdefault(i, ("not-a-time", self.time_field, message))
            else:
                times[i] = time
        return times


def _raw(records: ColumnRecords, i: int) -> RawRecord:
    """A row as a record, for the quarantine: its cells as csv."""
    cells = ["" if column[i] is None else str(column[i]) for column in records.columns.values()]
    quoted = ['"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\n\r') else cell for cell in cells]
    return RawRecord(
        records.partition, int(records.offsets[i]), -1, None, ",".join(quoted).encode(errors="surrogatepass")
    )
