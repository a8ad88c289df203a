"""Reads files of rows as a source of records."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from os import PathLike, fspath

import numpy as np

from streamkm.connectors.files import readers as file_readers
from streamkm.connectors.files.arrays import array_headers
from streamkm.connectors.files.places import Place, expand
from streamkm.connectors.files.readers import profile
from streamkm.connectors.files.tables import ExcludedColumn, Profile, Reader
from streamkm.connectors.positions import check_position
from streamkm.errors import PositionLostError, SourceClosedError
from streamkm.records import ColumnRecords, Position, TopicPartition
from streamkm.state import Json

__all__ = ["ExcludedColumn", "FileSource", "Place", "Profile", "array_headers", "expand", "numeric_columns", "profile"]

Path = str | PathLike[str] | Place

_SAMPLE_BYTES = 1 << 16


class FileSource:
    """Files as a `Source`: each file is a partition, each row a record, and its number the offset.

    Memory is bounded: text is read 4 MB at a time, other files about a hundred thousand rows at a time, or by row
    groups or batches if pyarrow is installed. The size of a file is fixed when it is opened: rows added later are not
    read.

    Parameters
    ----------
    paths
        One or more files, folders, globs, or URLs of these such as ``s3://bucket/folder`` (requires pyarrow). The
        suffix is the kind of file: csv, tsv, jsonl, ndjson (these also with .gz), npy, npz, parquet, pq, arrow,
        feather, ipc.
    fields
        Columns to read, in any order; None for all. Columns of an npy array are named "0", "1", ... A part
        ``year=2026`` of a path is a column too. A column of arrays is read as one column per dimension, ``name[0]``,
        ``name[1]``, ...; its name stands for all of them. A column without a name is called ``index``.

    Raises
    ------
    MissingFileError
        A file does not exist.
    SettingsError
        There is no path, a file occurs twice, or a URL is given without pyarrow.
    FileFormatError
        A file is not valid, or does not have the columns.
    """

    def __init__(self, paths: Path | Sequence[Path], *, fields: Sequence[str] | None = None) -> None:
        listed: list[Path] = [paths] if isinstance(paths, str | PathLike | Place) else list(paths)
        self._readers: dict[TopicPartition, Reader] = {}
        self._places: dict[TopicPartition, Place] = {}
        self._position: dict[TopicPartition, int] = {}
        self._closed = False
        try:
            for place in expand([path if isinstance(path, Place) else fspath(path) for path in listed]):
                tp = TopicPartition(place.name, 0)
                self._readers[tp] = file_readers.open_reader(place, fields)
                self._places[tp] = place
        except BaseException:
            self.close()
            raise

    def identity(self) -> Json:
        self._check()
        return {
            "kind": "files",
            "files": [{"path": place.name, **_fingerprint(place)} for place in self._places.values()],
        }

    def partitions(self) -> tuple[TopicPartition, ...]:
        self._check()
        return tuple(self._readers)

    def beginning(self) -> Position:
        self._check()
        return dict.fromkeys(self._readers, 0)

    def end(self) -> Position:
        self._check()
        return {tp: reader.rows() for tp, reader in self._readers.items()}

    def seek(self, position: Position) -> None:
        self._check()
        for tp, row in position.items():
            if tp not in self._readers:
                raise PositionLostError(f"row {row} belongs to a file that is not read", where=str(tp))
            if row:  # row 0 needs no search for the end
                check_position(tp, row, 0, self._readers[tp].rows())
        self._position = {tp: position[tp] for tp in sorted(position)}

    def poll(self, timeout: float, max_records: int) -> Sequence[ColumnRecords]:
        del timeout  # all records of a file are available at once
        self._check()
        out = []
        for tp, start in self._position.items():
            reader = self._readers[tp]
            if max_records <= 0 or reader.is_past_end(start):
                continue
            block = reader.block(start)
            stop = min(block.stop, start + max_records)
            rows = slice(start - block.start, stop - block.start)
            columns = {name: column[rows] for name, column in block.columns.items()}
            offsets, times = np.arange(start, stop), np.full(stop - start, -1, np.int64)
            malformed = {row: message for row, message in block.malformed_rows.items() if start <= row < stop}
            out.append(ColumnRecords(tp, start, stop, columns, offsets, times, malformed))
            max_records -= stop - start
        self._position.update({records.partition: records.stop for records in out})
        return out

    def fits_float32(self) -> bool:
        """Whether float32 holds all values of the columns exactly."""
        self._check()
        return all(reader.fits_float32 for reader in self._readers.values())

    def progress(self) -> float:
        """Approximate share of the files that was read, 0 to 1."""
        self._check()
        return sum(self._readers[tp].progress(row) for tp, row in self._position.items()) / max(1, len(self._readers))

    def names(self) -> tuple[str, ...]:
        """Columns of the first file, one per dimension."""
        self._check()
        return next(iter(self._readers.values())).names

    def notes(self) -> tuple[str, ...]:
        """Assumptions about the files and skipped content, each with its file."""
        self._check()
        return tuple(f"{tp.topic}: {note}" for tp, reader in self._readers.items() for note in reader.notes)

    def line(self, tp: TopicPartition, row: int) -> int | None:
        """Line number of a row in its file, from 1; None if the file has no lines."""
        self._check()
        return None if self._readers[tp].is_past_end(row) else self._readers[tp].line(row)

    def row_count_of_headers(self) -> int | None:
        """Total number of rows if all headers have it, else None."""
        self._check()
        readers = self._readers.values()
        return sum(reader.rows() for reader in readers) if all(reader.row_count_known for reader in readers) else None

    def position(self) -> Position:
        self._check()
        return dict(self._position)

    def commit(self, position: Position) -> None:
        del position  # files have no consumer groups
        self._check()

    def close(self) -> None:
        self._closed = True
        for reader in self._readers.values():
            reader.close()

    def _check(self) -> None:
        if self._closed:
            raise SourceClosedError("the source was closed", where=", ".join(tp.topic for tp in self._readers))


def _fingerprint(place: Place) -> Json:
    """Size, and a checksum of both ends: detects another file under the same name without reading all of it."""
    with contextlib.closing(place.open()) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        crc = zlib.crc32(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        return {"bytes": size, "crc32": zlib.crc32(file.read(), crc)}


def numeric_columns(place: Place) -> tuple[str, ...]:
    """Columns to cluster by default: numeric ones that are not identifiers.

    Raises
    ------
    FileFormatError
        The file is not valid.
    """
    return profile(place).choose()[0]
