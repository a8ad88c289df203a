"""Reads parquet files, and Arrow IPC files (feather) and streams."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import polars as pl

from streamkm.connectors.files import tables
from streamkm.connectors.files.panics import suppress_panic_output
from streamkm.connectors.files.places import Place, remote_errors
from streamkm.connectors.files.tables import (
    Block,
    Column,
    ColumnSelection,
    ColumnStatistics,
    KnownRowCount,
    Profile,
    from_series,
)
from streamkm.errors import FileFormatError

_MAGIC = b"ARROW1"
_FLOAT32_TYPES = (pl.Float32, pl.Int8, pl.Int16, pl.UInt8, pl.UInt16)
_BROKEN = (
    *(pl.exceptions.PolarsError, pl.exceptions.PanicException),
    *(OSError, ValueError, KeyError, NotImplementedError, MemoryError, StopIteration),
)
"""Exceptions that polars and pyarrow raise for damaged files; MemoryError if a damaged length is too large."""
_KINDS = {".parquet": "parquet", ".pq": "parquet"}
_STREAM = "an Arrow IPC stream"
_LIST_SAMPLE_ROWS = 1000
"""Rows from which the length of lists in a column is inferred."""


def kind_of(place: Place) -> str:
    """Format by the file name and, to distinguish Arrow's two formats, by the first bytes; as text for messages."""
    if place.suffix in _KINDS:
        return _KINDS[place.suffix]
    with contextlib.closing(place.open()) as file:
        start = file.read(len(_MAGIC))
    # A stream begins with a marker of four bytes, or before version 0.15 with a length of four bytes.
    return (
        _STREAM
        if len(start) == len(_MAGIC) and (start[:4] == b"\xff" * 4 or start[3:4] == b"\0")
        else "an Arrow IPC file"
    )


def frame_reader(place: Place, selection: ColumnSelection) -> ArrowReader | PolarsReader:
    """Open a file with pyarrow, or with polars if pyarrow is not installed."""
    return (PolarsReader if find_spec("pyarrow") is None else ArrowReader)(place, selection)


class _FrameReader(KnownRowCount):
    """Base of both readers: names and types of columns."""

    _path: str
    _kind: str
    _last: Block | None

    def _set_columns(
        self, schema: Mapping[str, Any], names: Sequence[str], selection: ColumnSelection, first: pl.DataFrame
    ) -> None:
        """Select columns; `first` has sample rows of list columns."""
        self._schema, self._all = dict(schema), list(names)
        self._widths = _widths(self._schema, first)
        self._chosen = selection.resolve(self._path, self._all, self._widths)
        self.names = tuple(self._chosen)
        self._columns = list(dict.fromkeys(column for column, _ in self._chosen.values()))
        for name in self._columns:
            kind = schema[name]
            if _is_nested(kind) and name not in self._widths and (selection.fields is None or name in selection.fields):
                raise FileFormatError(
                    f"{kind} is not a number", where=f"{self._path}, column {name!r}", hint="Name the columns to read"
                )
        inner = [getattr(schema[name], "inner", schema[name]) for name in self._columns]
        self.fits_float32 = all(kind in _FLOAT32_TYPES for kind in inner)

    def _block(self, start: int, frame: pl.DataFrame) -> Block:
        spread: dict[str, list[Column]] = {
            name: _dimensions(frame[name], self._widths[name]) for name in self._columns if name in self._widths
        }
        columns = {
            name: spread[column][part] if part is not None else from_series(frame[column])
            for name, (column, part) in self._chosen.items()
        }
        return Block(start, start + frame.height, columns)

    def _frames(self, names: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """Columns in bounded blocks of rows, each with its first row."""
        raise NotImplementedError

    def profile(self) -> Profile:
        """See `Reader.profile`: only integer and text columns are read, of others the type is enough."""
        known = [name for name in self._all if name in self._widths or not _is_nested(self._schema[name])]
        found = Profile(self._path, known, widths=self._widths)
        looked = [f for f in found.columns if f.width is None and not _is_measure(self._schema[f.name])]
        done = 0
        for facts in found.columns:
            if facts not in looked:
                facts.numbers, facts.integers = max(1, self._rows), False
        if looked:
            for start, frame in self._frames([facts.name for facts in looked]):
                for facts in looked:
                    facts.add(start, frame[facts.name])
                done = start + frame.height
                if done * len(looked) * 8 > tables.PROFILE_BYTES:
                    break
        found.finish(done or self._rows, whole=not looked or done == self._rows)
        for name in self._all:
            if name not in known:
                facts = ColumnStatistics(name)
                facts.others, facts.reason = 1, f"it holds {self._schema[name]}"
                found.columns.append(facts)
        return found


def _is_measure(kind: Any) -> bool:
    return bool(kind.is_float() or kind.is_decimal())


def _is_nested(kind: Any) -> bool:
    return bool(kind.is_nested() or kind == pl.Binary)


def _widths(schema: Mapping[str, Any], first: pl.DataFrame) -> dict[str, int]:
    """Columns with arrays of numbers, and the length of the arrays in the first row."""
    found = {}
    for name, kind in schema.items():
        if isinstance(kind, pl.Array) and kind.inner is not None and len(kind.shape) == 1 and kind.inner.is_numeric():
            found[name] = kind.shape[0]
        elif isinstance(kind, pl.List) and kind.inner is not None and kind.inner.is_numeric() and name in first.columns:
            lengths = first[name].list.len().drop_nulls()
            if len(lengths):
                found[name] = int(lengths[0])
    return {name: width for name, width in found.items() if 0 < width <= tables.MAX_DIMENSIONS}


def _dimensions(series: pl.Series, width: int) -> list[Column]:
    """An array column as one column per dimension; arrays of another length become text that says so."""
    inner: Any = series.dtype
    values = series.cast(pl.List(inner.inner))
    lengths = values.list.len()
    wrong = (lengths != width).fill_null(value=False)
    good = pl.select(pl.when(~wrong).then(values)).to_series() if wrong.any() else values
    columns = [from_series(good.list.get(i, null_on_oob=True)) for i in range(width)]
    if not wrong.any():
        return columns
    messages = [f"{n} values, not {width}" for n in lengths.filter(wrong)]
    at = np.flatnonzero(wrong.to_numpy())
    out: list[Column] = []
    for column in columns:
        texts = np.array([None if np.isnan(x) else repr(float(x)) for x in column], dtype=object)
        texts[at] = messages
        out.append(texts)
    return out


class PolarsReader(_FrameReader):
    """Reads a local file with polars. Times are converted to seconds since the epoch.

    Polars aborts the process if a damaged file makes it allocate more memory than there is.
    """

    def __init__(self, place: Place, selection: ColumnSelection) -> None:
        self._path, self._kind = place.name, kind_of(place)
        with frame_errors(self._path, self._kind), suppress_panic_output():
            if self._kind == _STREAM:
                self._frame = pl.read_ipc_stream(self._path).lazy()
            else:
                scan = pl.scan_parquet if self._kind == "parquet" else pl.scan_ipc
                self._frame = scan(self._path, glob=False, hive_partitioning=False)
            schema = self._frame.collect_schema()
            self._rows = int(self._frame.select(pl.len()).collect().item())
            lists = [name for name, kind in schema.items() if isinstance(kind, pl.List)]
            first = self._frame.select(lists).head(_LIST_SAMPLE_ROWS).collect() if lists else pl.DataFrame()
        self._last = None
        self._set_columns(schema, list(schema), selection, first)

    def block(self, row: int) -> Block:
        if self._last is None or not self._last.start <= row < self._last.stop:
            start = row - row % tables.BLOCK_ROWS
            self._last = self._block(start, self._part(self._columns, start))
        return self._last

    def _part(self, names: list[str], start: int) -> pl.DataFrame:
        with frame_errors(self._path, self._kind), suppress_panic_output():
            frame = self._frame.select(names).slice(start, tables.BLOCK_ROWS).collect()
        if frame.height != min(tables.BLOCK_ROWS, self._rows - start):
            raise FileFormatError("the file changed while it was read", where=f"{self._path}, row {start}")
        return frame

    def _frames(self, names: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        for start in range(0, self._rows, tables.BLOCK_ROWS):
            yield start, self._part(names, start)

    def close(self) -> None:
        self._last = None


class ArrowReader(_FrameReader):
    """Reads a local or remote file with pyarrow: at most a row group (parquet) or a batch (Arrow) at a time."""

    def __init__(self, place: Place, selection: ColumnSelection) -> None:
        import pyarrow as pa  # type: ignore[import-untyped] # noqa: PLC0415 -- an extra

        self._path, self._kind = place.name, kind_of(place)
        if place.filesystem is None:
            with frame_errors(self._path, self._kind):
                self._file: Any = pa.OSFile(place.name)
        else:
            with remote_errors(self._path):
                self._file = place.filesystem.open_input_file(place.path)
        try:
            with frame_errors(self._path, self._kind):
                sizes, arrow_schema = self._opened()
                self._starts = [0, *itertools.accumulate(sizes)]
                self._rows = self._starts[-1]
                schema = pl.DataFrame(_without_duplicates(arrow_schema).empty_table()).schema
                lists = [name for name, kind in schema.items() if isinstance(kind, pl.List)]
                first = self._first(lists) if lists and self._rows else pl.DataFrame()
            self._last = None
            self._set_columns(schema, arrow_schema.names, selection, first)
        except BaseException:
            self._file.close()
            raise
        self._stream: Iterator[Any] = iter(())
        self._next = -1  # next row of the stream

    def _opened(self) -> tuple[list[int], Any]:
        """Number of rows of each part, and the schema."""
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # type: ignore[import-untyped] # noqa: PLC0415

        if self._kind == "parquet":
            self._parts: Any = pq.ParquetFile(self._file, buffer_size=1 << 20)
            groups = range(self._parts.num_row_groups)
            return [self._parts.metadata.row_group(i).num_rows for i in groups], self._parts.schema_arrow
        if self._kind == _STREAM:
            stream = pa.ipc.open_stream(self._file)
            self._parts, self._part_next = stream, -1
            # The number of rows in a stream is only known after reading it; its batches are read one by one.
            return [batch.num_rows for batch in stream], stream.schema
        self._parts = pa.ipc.open_file(self._file)
        # The number of rows of a batch is not in the file's footer.
        return [self._parts.get_batch(i).num_rows for i in range(self._parts.num_record_batches)], self._parts.schema

    def _first(self, names: list[str]) -> pl.DataFrame:
        part = next(i for i, start in enumerate(self._starts[1:]) if start)
        batch = next(iter(self._batches(part, names)))
        batch.validate(full=True)
        return pl.DataFrame(batch.slice(0, _LIST_SAMPLE_ROWS))

    def block(self, row: int) -> Block:
        if self._last is None or not self._last.start <= row < self._last.stop:
            i = bisect.bisect_right(self._starts, row) - 1
            first = self._starts[i]
            at = (row - first) // tables.BLOCK_ROWS
            start = first + at * tables.BLOCK_ROWS
            stop = min(start + tables.BLOCK_ROWS, self._starts[i + 1])
            with remote_errors(self._path), frame_errors(self._path, self._kind):
                if self._next != start:
                    self._stream = itertools.islice(self._batches(i, self._columns), at, None)
                batch = next(self._stream)
                batch.validate(full=True)  # else lengths and offsets of a damaged file are trusted
                found = self._block(start, pl.DataFrame(batch))
            if found.stop != stop:
                raise FileFormatError("the number of rows differs from the header", where=f"{self._path}, row {start}")
            self._next = -1 if stop == self._starts[i + 1] else stop
            self._last = found
        return self._last

    def _frames(self, names: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        for i, start in enumerate(self._starts[:-1]):
            at = start
            with remote_errors(self._path), frame_errors(self._path, self._kind):
                for batch in self._batches(i, names):
                    batch.validate(full=True)
                    yield at, pl.DataFrame(batch)
                    at += batch.num_rows

    def _batches(self, i: int, names: list[str]) -> Iterator[Any]:
        if self._kind == "parquet":
            yield from self._parts.iter_batches(tables.BLOCK_ROWS, row_groups=[i], columns=names, use_threads=False)
            return
        batch = (self._streamed(i) if self._kind == _STREAM else self._parts.get_batch(i)).select(names)
        for at in range(0, batch.num_rows, tables.BLOCK_ROWS):
            yield batch.slice(at, tables.BLOCK_ROWS)

    def _streamed(self, i: int) -> Any:
        """A batch of a stream; the stream is read from its start again to go back."""
        import pyarrow as pa  # noqa: PLC0415

        if not 0 <= self._part_next <= i:
            self._file.seek(0)
            self._parts, self._part_next = pa.ipc.open_stream(self._file), 0
        while True:
            batch = self._parts.read_next_batch()
            self._part_next += 1
            if self._part_next == i + 1:
                return batch

    def close(self) -> None:
        self._last, self._stream = None, iter(())
        self._file.close()


def _without_duplicates(schema: Any) -> Any:
    """An Arrow schema in which each name occurs once; duplicates raise an error when such a column is selected."""
    import pyarrow as pa  # noqa: PLC0415

    return pa.schema(list({field.name: field for field in schema}.values()))


@contextlib.contextmanager
def frame_errors(path: str, kind: str) -> Iterator[None]:
    """Translate exceptions that polars and pyarrow raise for damaged files.

    Raises
    ------
    FileFormatError
        The file is damaged, or not of this kind.
    """
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, FileFormatError):
            raise
        message = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileFormatError(f"the file is not {kind}, or truncated: {message}", where=path) from error
