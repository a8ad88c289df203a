"""Records from files: rows of csv, npy, npz, parquet and Arrow."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Sequence
from os import PathLike, fspath

import numpy as np

from streamkm.errors import PositionLostError, SourceClosedError
from streamkm.records import ColumnRecords, Position, TopicPartition
from streamkm.sources import _file_readers
from streamkm.sources._array_readers import array_headers
from streamkm.sources._file_places import Place, expand
from streamkm.sources._file_readers import profile
from streamkm.sources._position import check_position
from streamkm.sources._tables import LeftOut, Profile, Reader
from streamkm.state import Json

__all__ = ["FileSource", "LeftOut", "Place", "Profile", "array_headers", "expand", "numeric_columns", "profile"]

Path = str | PathLike[str] | Place

_SAMPLE_BYTES = 1 << 16


class FileSource:
    """Files as a `Source`: each is a partition, each row a record, its number the offset.

    Memory stays bounded: text is read 4 MB at a time, the others about a hundred thousand rows at a time, or by row
    groups or batches where pyarrow is installed. A file is taken as it is when it is opened; one that grows afterwards
    is read to its old end.

    Parameters
    ----------
    paths
        One or several: files, folders, globs, or URLs of these such as ``s3://bucket/folder`` (with pyarrow). The
        suffix says what a file is: csv, tsv, jsonl, ndjson (these also with gz behind it), npy, npz, parquet, pq,
        arrow, feather, ipc.
    fields
        Columns to read, in any order; all when None. Columns of an npy array are named "0", "1", ... What stands in
        a path as ``year=2026/`` is a column too. A column of arrays is read as one column for each dimension, called
        ``name[0]``, ``name[1]``, ...: its name stands for all of them. A column without a name is called ``index``.

    Raises
    ------
    MissingFileError
        A file does not exist.
    SettingsError
        No path, a file twice, or a URL without pyarrow.
    FileFormatError
        A file is not what its name says, or has not these columns.
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
                self._readers[tp] = _file_readers.open_reader(place, fields)
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
                raise PositionLostError(f"row {row} is wanted of a file that is not read", where=str(tp))
            if row:  # the beginning is there without looking for the end
                check_position(tp, row, 0, self._readers[tp].rows())
        self._position = {tp: position[tp] for tp in sorted(position)}

    def poll(self, timeout: float, max_records: int) -> Sequence[ColumnRecords]:
        del timeout  # a file never has more to wait for
        self._check()
        out = []
        for tp, start in self._position.items():
            reader = self._readers[tp]
            if max_records <= 0 or reader.ended(start):
                continue
            block = reader.block(start)
            stop = min(block.stop, start + max_records)
            rows = slice(start - block.start, stop - block.start)
            columns = {name: column[rows] for name, column in block.columns.items()}
            offsets, times = np.arange(start, stop), np.full(stop - start, -1, np.int64)
            broken = {row: said for row, said in block.broken.items() if start <= row < stop}
            out.append(ColumnRecords(tp, start, stop, columns, offsets, times, broken))
            max_records -= stop - start
        self._position.update({records.partition: records.stop for records in out})
        return out

    def is_single(self) -> bool:
        """Whether float32 holds all values of the columns that are read exactly."""
        self._check()
        return all(reader.single for reader in self._readers.values())

    def share(self) -> float:
        """About which share of the files was read, 0 to 1; for progress."""
        self._check()
        return sum(self._readers[tp].share(row) for tp, row in self._position.items()) / max(1, len(self._readers))

    def names(self) -> tuple[str, ...]:
        """Columns that are read, one for each dimension; those of the first file."""
        self._check()
        return next(iter(self._readers.values())).names

    def notes(self) -> tuple[str, ...]:
        """What was assumed of the files, or passed over, each with its file."""
        self._check()
        return tuple(f"{tp.topic}: {note}" for tp, reader in self._readers.items() for note in reader.notes)

    def line(self, tp: TopicPartition, row: int) -> int | None:
        """In which line of its file a row begins, from 1; None where it has no lines."""
        self._check()
        return None if self._readers[tp].ended(row) else self._readers[tp].line(row)

    def rows_of_headers(self) -> int | None:
        """Rows of all files, where their headers tell how many these are."""
        self._check()
        readers = self._readers.values()
        return sum(reader.rows() for reader in readers) if all(reader.counted for reader in readers) else None

    def position(self) -> Position:
        self._check()
        return dict(self._position)

    def commit(self, position: Position) -> None:
        del position  # nobody else watches a file
        self._check()

    def close(self) -> None:
        self._closed = True
        for reader in self._readers.values():
            reader.close()

    def _check(self) -> None:
        if self._closed:
            raise SourceClosedError("the source was closed", where=", ".join(tp.topic for tp in self._readers))


def _fingerprint(place: Place) -> Json:
    """Size and a checksum of both ends: tells another file under the same name, at any size, at once."""
    with contextlib.closing(place.open()) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        crc = zlib.crc32(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        return {"bytes": size, "crc32": zlib.crc32(file.read(), crc)}


def numeric_columns(place: Place) -> tuple[str, ...]:
    """Columns that are clustered where none is named: those of numbers that are no identifiers.

    Raises
    ------
    FileFormatError
        The file is not what its name says.
    """
    return profile(place).choose()[0]
