"""What all readers of tables have in common: blocks of rows, columns chosen by name, polars series as arrays."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from streamkm.errors import FileFormatError

Column = NDArray[np.generic]

BLOCK_BYTES = 4 << 20
"""Bytes of a csv file read at once."""
LONGEST_ROW_BYTES = 64 << 20
BLOCK_ROWS = 1 << 17
"""Rows of any other file read at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The rows [start, stop) of a file, by column."""

    start: int
    stop: int
    columns: dict[str, Column]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which columns of a file are read.

    Attributes
    ----------
    fields
        These; None for all.
    numeric
        Without `fields`, only those that are numbers.
    elsewhere
        Columns that come from the file's path, so that it is no mistake if the file has not got them.
    """

    fields: Sequence[str] | None = None
    numeric: bool = False
    elsewhere: Collection[str] = ()

    def among(self, path: str, names: Sequence[str], numbers: Collection[str]) -> tuple[str, ...]:
        """Choose among the names a file has, of which some are numbers.

        Raises
        ------
        FileFormatError
            There is no such column.
        """
        if self.fields is None:
            return tuple(name for name in names if name in numbers) if self.numeric else tuple(names)
        for field in self.fields:
            if field not in names and field not in self.elsewhere:
                known = [*names, *(name for name in self.elsewhere if name not in names)]
                shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
                raise FileFormatError(
                    "there is no such column", where=f"{path}, column {field!r}", hint=f"It has {shown}"
                )
        # Rows are counted by some column, even if none of those asked for is in the file itself.
        return tuple(field for field in self.fields if field in names) or tuple(names[:1])


class Reader(Protocol):
    """One file."""

    names: tuple[str, ...]
    single: bool
    """Whether float32 holds all of its values exactly."""

    def rows(self) -> int:
        """How many rows it has."""
        ...

    def ended(self, row: int) -> bool:
        """Whether there is no such row: ``row >= rows()``, without looking further than needed."""
        ...

    def share(self, row: int) -> float:
        """About which share of the file lies before this row, 0 to 1; for progress."""
        ...

    def block(self, row: int) -> Block:
        """A block that contains this row, ``0 <= row < rows()``."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


class Counted:
    """A reader that knows its number of rows from the start."""

    _rows: int

    def rows(self) -> int:
        """See `Reader`."""
        return self._rows

    def ended(self, row: int) -> bool:
        """See `Reader`."""
        return row >= self._rows

    def share(self, row: int) -> float:
        """See `Reader`."""
        return row / max(1, self._rows)


def from_series(series: pl.Series) -> Column:
    """A column as `ColumnRecords` wants it: numbers with NaN for missing ones, times as seconds, else text."""
    kind = series.dtype
    if kind.is_temporal() and not isinstance(kind, pl.Duration | pl.Time):
        series = series.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 1e6
        kind = series.dtype
    if kind.is_numeric():
        if series.null_count() and kind == pl.Float32:
            series = series.fill_null(float("nan"))
        elif kind.is_decimal() or series.null_count():
            series = series.cast(pl.Float64).fill_null(float("nan"))
        return series.to_numpy()
    return np.array(series.cast(pl.String).to_list(), dtype=object)
