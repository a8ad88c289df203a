"""Tables with columns of their own types: parquet, and Arrow's IPC files (feather)."""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import polars as pl

from streamkm.errors import FileFormatError
from streamkm.sources import _tables
from streamkm.sources._file_places import Place, remote_edge
from streamkm.sources._tables import Block, Counted, Wanted, from_series

_SINGLE = (pl.Float32, pl.Int8, pl.Int16, pl.UInt8, pl.UInt16)
_BROKEN = (
    *(pl.exceptions.PolarsError, pl.exceptions.PanicException),
    *(OSError, ValueError, KeyError, NotImplementedError, MemoryError, StopIteration),
)
"""What polars and pyarrow raise for a broken file; the last one where a damaged length asks for too much."""
_KINDS = {".parquet": "parquet", ".pq": "parquet"}


def kind_of(place: Place) -> str:
    """What a file should be by its name, in words."""
    return _KINDS.get(place.suffix, "an Arrow IPC file")


def frame_reader(place: Place, wanted: Wanted) -> ArrowReader | PolarsReader:
    """Open a file by pyarrow, or by polars where that is not installed."""
    return (PolarsReader if find_spec("pyarrow") is None else ArrowReader)(place, wanted)


class PolarsReader(Counted):
    """A file on this machine, where pyarrow is not installed. Times come as seconds since 1970.

    Polars ends the process where a damaged file asks for more memory than there is.
    """

    def __init__(self, place: Place, wanted: Wanted) -> None:
        self._path, self._kind = place.name, kind_of(place)
        scan = pl.scan_parquet if self._kind == "parquet" else pl.scan_ipc
        with frame_edge(self._path, self._kind):
            self._frame = scan(self._path, glob=False, hive_partitioning=False)
            schema = self._frame.collect_schema()
            self._rows = int(self._frame.select(pl.len()).collect().item())
        self.names, self.single = _chosen(self._path, schema, wanted)
        self._last: Block | None = None

    def block(self, row: int) -> Block:
        if self._last is None or not self._last.start <= row < self._last.stop:
            start = row - row % _tables.BLOCK_ROWS
            with frame_edge(self._path, self._kind):
                frame = self._frame.select(self.names).slice(start, _tables.BLOCK_ROWS).collect()
                columns = {name: from_series(frame[name]) for name in self.names}
            if frame.height != min(_tables.BLOCK_ROWS, self._rows - start):
                raise FileFormatError("it changed while it was read", where=f"{self._path}, row {start}")
            self._last = Block(start, start + frame.height, columns)
        return self._last

    def close(self) -> None:
        self._last = None


class ArrowReader(Counted):
    """A file, here or elsewhere, read by pyarrow: no more at a time than a row group (parquet) or a batch (Arrow)."""

    def __init__(self, place: Place, wanted: Wanted) -> None:
        import pyarrow as pa  # type: ignore[import-untyped] # noqa: PLC0415 -- an extra
        import pyarrow.parquet as pq  # type: ignore[import-untyped] # noqa: PLC0415

        self._path, self._kind = place.name, kind_of(place)
        if place.filesystem is None:
            with frame_edge(self._path, self._kind):
                self._file: Any = pa.OSFile(place.name)
        else:
            with remote_edge(self._path):
                self._file = place.filesystem.open_input_file(place.path)
        try:
            with frame_edge(self._path, self._kind):
                if self._kind == "parquet":
                    self._parts: Any = pq.ParquetFile(self._file, buffer_size=1 << 20)
                    groups = range(self._parts.num_row_groups)
                    sizes = [self._parts.metadata.row_group(i).num_rows for i in groups]
                    arrow_schema = self._parts.schema_arrow
                else:
                    self._parts = pa.ipc.open_file(self._file)
                    # Batches keep no count of rows where it can be read without them.
                    sizes = [self._parts.get_batch(i).num_rows for i in range(self._parts.num_record_batches)]
                    arrow_schema = self._parts.schema
                schema = pl.DataFrame(arrow_schema.empty_table()).schema
            self.names, self.single = _chosen(self._path, schema, wanted)
        except BaseException:
            self._file.close()
            raise
        self._starts = [0]
        for size in sizes:
            self._starts.append(self._starts[-1] + size)
        self._rows = self._starts[-1]
        self._stream: Iterator[Any] = iter(())
        self._next = -1  # row that the stream goes on with
        self._last: Block | None = None

    def block(self, row: int) -> Block:
        if self._last is None or not self._last.start <= row < self._last.stop:
            i = bisect.bisect_right(self._starts, row) - 1
            first = self._starts[i]
            at = (row - first) // _tables.BLOCK_ROWS
            start = first + at * _tables.BLOCK_ROWS
            stop = min(start + _tables.BLOCK_ROWS, self._starts[i + 1])
            with remote_edge(self._path), frame_edge(self._path, self._kind):
                if self._next != start:
                    self._stream = itertools.islice(self._batches(i), at, None)
                batch = next(self._stream)
                batch.validate(full=True)  # else lengths and places that a damaged file tells are believed
                frame = pl.DataFrame(batch)
                columns = {name: from_series(frame[name]) for name in self.names}
            if frame.height != stop - start:
                raise FileFormatError("it has other rows than it says", where=f"{self._path}, row {start}")
            self._next = -1 if stop == self._starts[i + 1] else stop
            self._last = Block(start, stop, columns)
        return self._last

    def _batches(self, i: int) -> Iterator[Any]:
        names = list(self.names)
        if self._kind == "parquet":
            yield from self._parts.iter_batches(_tables.BLOCK_ROWS, row_groups=[i], columns=names, use_threads=False)
        else:
            batch = self._parts.get_batch(i).select(names)
            for at in range(0, batch.num_rows, _tables.BLOCK_ROWS):
                yield batch.slice(at, _tables.BLOCK_ROWS)

    def close(self) -> None:
        self._last, self._stream = None, iter(())
        self._file.close()


def _chosen(path: str, schema: Mapping[str, Any], wanted: Wanted) -> tuple[tuple[str, ...], bool]:
    names = wanted.among(path, list(schema), [name for name, kind in schema.items() if kind.is_numeric()])
    for name in names:
        kind = schema[name]
        if kind.is_nested() or kind == pl.Binary:
            raise FileFormatError(
                f"{kind} is not a number", where=f"{path}, column {name!r}", hint="Name the columns to read"
            )
    return names, all(schema[name] in _SINGLE for name in names)


@contextlib.contextmanager
def frame_edge(path: str, kind: str) -> Iterator[None]:
    """Map what polars and pyarrow raise for a broken file."""
    try:
        yield
    except _BROKEN as error:
        if isinstance(error, FileFormatError):
            raise
        said = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileFormatError(f"it is not {kind}, or ends in the middle: {said}", where=path) from error
