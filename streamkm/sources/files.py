"""Records from files: rows of csv, npy and parquet."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

import numpy as np

from streamkm.errors import PositionLostError, SettingsError, SourceClosedError, TopicNotFoundError
from streamkm.records import ColumnRecords, Position, TopicPartition
from streamkm.sources._file_readers import Reader, open_reader
from streamkm.sources._position import check_position
from streamkm.state import Json

_SAMPLE_BYTES = 1 << 16


class FileSource:
    """Files as a `Source`: each path is a partition, each row a record, its number the offset.

    Memory stays bounded: a csv file is read 4 MB at a time, the others about a hundred thousand rows at a time. A file
    is taken as it is when it is opened; one that grows afterwards is read to its old end.

    Parameters
    ----------
    paths
        One path or several; the suffix says what each is.
    fields
        Columns to read, in any order; all when None. Columns of an npy array are named "0", "1", ...

    Raises
    ------
    TopicNotFoundError
        A file does not exist.
    FileFormatError
        A file is not what its name says, or has not these columns.
    """

    def __init__(
        self, paths: str | PathLike[str] | Sequence[str | PathLike[str]], *, fields: Sequence[str] | None = None
    ) -> None:
        listed = [paths] if isinstance(paths, str | PathLike) else list(paths)
        names = sorted(fspath(path) for path in listed)
        if not names or len(set(names)) < len(names):
            raise SettingsError("give at least one path, and each only once", where=", ".join(names))
        self._readers: dict[TopicPartition, Reader] = {}
        self._position: dict[TopicPartition, int] = {}
        self._closed = False
        try:
            for name in names:
                _check_exists(name)
                self._readers[TopicPartition(name, 0)] = open_reader(name, fields)
        except BaseException:
            self.close()
            raise

    def identity(self) -> Json:
        self._check()
        return {
            "kind": "files",
            "files": [{"path": tp.topic, **_fingerprint(Path(tp.topic))} for tp in self._readers],
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
            check_position(tp, row, 0, self._readers[tp].rows())
        self._position = {tp: position[tp] for tp in sorted(position)}

    def poll(self, timeout: float, max_records: int) -> Sequence[ColumnRecords]:
        del timeout  # a file never has more to wait for
        self._check()
        out = []
        for tp, start in self._position.items():
            reader = self._readers[tp]
            if max_records <= 0 or start >= reader.rows():
                continue
            block = reader.block(start)
            stop = min(block.stop, start + max_records)
            rows = slice(start - block.start, stop - block.start)
            columns = {name: column[rows] for name, column in block.columns.items()}
            out.append(
                ColumnRecords(tp, start, stop, columns, np.arange(start, stop), np.full(stop - start, -1, np.int64))
            )
            max_records -= stop - start
        self._position.update({records.partition: records.stop for records in out})
        return out

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


def _check_exists(name: str) -> None:
    if not Path(name).is_file():
        raise TopicNotFoundError("the file does not exist", where=name)


def _fingerprint(path: Path) -> Json:
    """Size and a checksum of both ends: tells another file under the same name, at any size, at once."""
    size = path.stat().st_size
    with path.open("rb") as file:
        crc = zlib.crc32(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        return {"bytes": size, "crc32": zlib.crc32(file.read(), crc)}
