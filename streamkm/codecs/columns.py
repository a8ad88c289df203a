"""Decodes rows of tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamkm.cells import non_number_message, parse_number
from streamkm.codecs.fields import MAX_ABS_VALUE, validate_fields
from streamkm.codecs.times import is_debezium_infinity, parse_iso_or_none, to_seconds, validate_unit
from streamkm.errors import FileFormatError, SettingsError
from streamkm.records import BadRecord, Batch, BatchRange, ColumnRecords, RawRecord, Records
from streamkm.state import CodecSpec


class ColumnsCodec:
    """Decodes rows of tables into points.

    A row is bad if it has more cells than the header, or one of the columns is missing, infinite, of an absolute value
    above 1e140, or text that is not a number; its neighbours are decoded. Whether a row is bad does not depend on the
    other rows.

    Parameters
    ----------
    fields
        Columns in the order of a point's coordinates.
    time_field
        Column with the event time: a number since the epoch, or ISO 8601 text. Without it rows have no time.
    time_unit
        Unit of a number in `time_field`: "s", "ms", "us", "ns", or "auto" to infer it from the size.

    Raises
    ------
    SettingsError
        An argument is not valid.
    """

    def __init__(self, fields: Sequence[str], *, time_field: str | None = None, time_unit: str = "auto") -> None:
        self.fields = validate_fields(fields, time_field, dotted=False)
        self.time_field = time_field
        self.time_unit = validate_unit(time_unit)

    def spec(self) -> CodecSpec:
        return CodecSpec("columns", self.fields, {"time_field": self.time_field, "time_unit": self.time_unit})

    def decode(self, records: Records) -> Batch:
        """See `Codec.decode`.

        Raises
        ------
        FileFormatError
            The table does not have a column.
        """
        if not isinstance(records, ColumnRecords):
            raise SettingsError(
                "these records have bytes and no columns", where=str(records.partition), hint="Use the json codec"
            )
        n = len(records)
        defects = {
            int(np.searchsorted(records.offsets, offset)): ("too-many-values", "", message)
            for offset, message in records.malformed_rows.items()
        }
        points = np.empty((n, len(self.fields)))
        for j, field in enumerate(self.fields):
            points[:, j] = self._numbers(field, self._column(records, field), defects)
            for i in np.flatnonzero(np.isfinite(points[:, j]) & (np.abs(points[:, j]) > MAX_ABS_VALUE)).tolist():
                message = f"{field} is {points[i, j]:g}, beyond the maximum of {MAX_ABS_VALUE:g}"
                defects.setdefault(i, ("out-of-range", field, message))
        times = self._times(records, defects)
        good = np.ones(n, np.bool_)
        good[list(defects)] = False
        bad = tuple(BadRecord(_raw(records, i), *defects[i]) for i in sorted(defects))
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
                "the column does not exist", where=f"{records.partition.topic}, column {field!r}", hint=f"It has {has}"
            ) from None

    @staticmethod
    def _numbers(
        field: str, column: NDArray[np.generic], defects: dict[int, tuple[str, str, str]]
    ) -> NDArray[np.float64]:
        """Convert a column to numbers; adds the first defect of each row to `defects`."""
        if column.dtype != object:
            numbers = column.astype(np.float64)
        else:
            numbers = np.full(len(column), np.nan)
            for i, text in enumerate(column):
                value = math.nan if text is None else parse_number(str(text))
                if value is None:
                    defects.setdefault(i, ("not-a-number", field, non_number_message(field, str(text))))
                else:
                    numbers[i] = value
        for i in np.flatnonzero(~np.isfinite(numbers)).tolist():
            reason = "is missing" if np.isnan(numbers[i]) else "is infinite"
            defects.setdefault(i, ("not-finite", field, f"{field} {reason}"))
        return numbers

    def _times(self, records: ColumnRecords, defects: dict[int, tuple[str, str, str]]) -> NDArray[np.float64]:
        if self.time_field is None:
            return np.where(records.timestamps < 0, np.nan, records.timestamps / 1000.0)
        column = self._column(records, self.time_field)
        if column.dtype != object:
            numbers = self._numbers(self.time_field, column, defects)
            for i in np.flatnonzero(is_debezium_infinity(numbers)).tolist():
                message = f"{self.time_field} is {numbers[i]:.0f}: infinity, as Debezium writes it"
                defects.setdefault(i, ("not-a-time", self.time_field, message))
            return to_seconds(numbers, self.time_unit)
        times = np.full(len(column), np.nan)
        for i, text in enumerate(column):
            stripped = "" if text is None else str(text).strip()
            value = parse_number(stripped)
            if value is not None and math.isfinite(value):
                times[i] = to_seconds(np.array([value]), self.time_unit)[0]
                continue
            time = parse_iso_or_none(stripped)
            if time is None:
                message = f"{self.time_field} is not a time: {stripped[:40]!r}"
                defects.setdefault(i, ("not-a-time", self.time_field, message))
            else:
                times[i] = time
        return times


def _raw(records: ColumnRecords, i: int) -> RawRecord:
    """A row as a record for the quarantine: its cells as csv."""
    cells = ["" if column[i] is None else str(column[i]) for column in records.columns.values()]
    quoted = ['"' + cell.replace('"', '""') + '"' if any(c in cell for c in ',"\n\r') else cell for cell in cells]
    return RawRecord(
        records.partition, int(records.offsets[i]), -1, None, ",".join(quoted).encode(errors="surrogatepass")
    )
