"""Resolves paths, folders, globs and URLs of pyarrow's filesystems to a sorted list of files."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from streamkm.errors import MissingFileError, SettingsError, SourceError, StreamkmError
from streamkm.redaction import MASK, redact_remembered, redact_url, remember_url

SUFFIXES = (
    *(".arrow", ".csv", ".csv.gz", ".feather", ".ipc", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz"),
    *(".npy", ".npz", ".parquet", ".pq", ".tsv", ".tsv.gz"),
)
"""Supported kinds of files."""
_PACKED = ".gz"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Place:
    """A file, local or remote.

    Attributes
    ----------
    name
        Path or URL, without credentials.
    filesystem
        pyarrow filesystem of the file; None for a local file.
    path
        Path in `filesystem`.
    """

    name: str
    filesystem: Any = None
    path: str = ""

    @property
    def suffix(self) -> str:
        """Kind of file by its name, in lower case, such as ".csv" or ".csv.gz"."""
        return _suffix(self.name)

    @property
    def packed(self) -> bool:
        """Whether it is compressed by gzip."""
        return self.suffix.endswith(_PACKED)

    def open(self) -> BinaryIO:
        """Open the file for reading, with seek."""
        if self.filesystem is None:
            return Path(self.name).open("rb")
        with remote_errors(self.name):
            return cast("BinaryIO", io.BufferedReader(self.filesystem.open_input_file(self.path), 1 << 20))

    def size(self) -> int:
        """Size in bytes."""
        with contextlib.closing(self.open()) as file:
            return file.seek(0, os.SEEK_END)

    @contextlib.contextmanager
    def on_disk(self) -> Iterator[str]:
        """Path to a local copy of the content; a temporary one for a remote file."""
        if self.filesystem is None:
            yield self.name
            return
        with tempfile.NamedTemporaryFile(suffix=self.suffix) as copy:
            with remote_errors(self.name), contextlib.closing(self.open()) as file:
                shutil.copyfileobj(file, copy, 1 << 20)
            copy.flush()
            yield copy.name

    def hive_keys(self) -> dict[str, str | None]:
        """Columns in the path as ``name=value`` (Hive partitions), in order."""
        parts = [part.partition("=") for part in Path(self.name).parts[:-1] if not part.startswith("=")]
        unquote = urllib.parse.unquote
        return {
            unquote(key): None if value == "__HIVE_DEFAULT_PARTITION__" else unquote(value)
            for key, sign, value in parts
            if sign
        }


def expand(paths: Sequence[str | Place]) -> list[Place]:
    """Find files, sorted by name.

    Parameters
    ----------
    paths
        Each a file, a folder (all files below it of a known kind, except hidden ones: names of files or folders that
        start with ``.`` or ``_``), a glob (``**`` for any depth), or a URL of any of these, such as
        ``s3://bucket/folder``; or a `Place`.

    Raises
    ------
    MissingFileError
        A path does not exist, or matches nothing.
    SettingsError
        There is no path, a file occurs twice, or a URL is given without pyarrow.
    SourceError
        The filesystem does not respond.
    """
    if not paths:
        raise SettingsError("give at least one path")
    places: dict[str, Place] = {}
    for path in paths:
        for place in _places(path):
            if place.name in places:
                raise SettingsError("the file is given twice; give each only once", where=place.name)
            places[place.name] = place
    return [places[name] for name in sorted(places)]


def _places(path: str | Place) -> list[Place]:
    if isinstance(path, Place):
        return [path]
    return _remote(path) if _URL.match(path) else [Place(file) for file in _local(path)]


def _local(path: str) -> list[str]:
    if Path(path).is_dir():
        found = [str(file) for file in Path(path).rglob("*") if file.is_file()]
        return _known(path, [file for file in found if not _hidden(os.path.relpath(file, path))])
    if _MAGIC.search(path) and not Path(path).exists():
        found = [file for file in glob.glob(path, recursive=True) if Path(file).is_file()]  # noqa: PTH207 -- keeps ./
        if not found:
            hint = "Put a glob in quotes and check its folder; ** stands for folders of any depth"
            raise MissingFileError("no file matches", where=path, hint=_check(hint, path))
        return found
    if not Path(path).is_file():
        raise MissingFileError("the file does not exist", where=path, hint=_check("Check the path", path))
    return [path]


def _check(hint: str, path: str) -> str:
    return hint if Path(path).is_absolute() else f"{hint}; relative paths start at {Path.cwd()}"


def _remote(url: str) -> list[Place]:
    try:
        from pyarrow import fs  # type: ignore[import-untyped] # noqa: PLC0415 -- only URLs need it
    except ImportError as error:
        raise SettingsError(
            "URLs are read with pyarrow, which is not installed",
            where=_without_secrets(url),
            hint="pip install 'streamkm[arrow]'",
        ) from error
    remember_url(url)
    shown = _without_secrets(url)
    with remote_errors(shown):
        filesystem, path = fs.FileSystem.from_uri(url)
        scheme = url.partition("://")[0]

        def places(infos: list[Any]) -> list[Place]:
            files = [info for info in infos if info.type == fs.FileType.File]
            return [Place(redact_remembered(f"{scheme}://{i.path}"), filesystem, i.path) for i in files]

        if "*" in path:  # other wildcards have another meaning in a URL
            base = path[: path.index("*")].rpartition("/")[0]
            pattern = re.compile(_glob_pattern(path))
            infos = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
            named = [info for info in infos if pattern.fullmatch(info.path)]
            # As for local files, a star does not match names that begin with a dot.
            found = places([info for info in named if not info.base_name.startswith(".")])
        else:
            info = filesystem.get_file_info(path)
            if info.type == fs.FileType.Directory:
                infos = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
                kept = [i for i in infos if not _hidden(i.path[len(path.rstrip("/")) + 1 :])]
                names = {place.name: place for place in places(kept)}
                return [names[name] for name in _known(shown, list(names))]
            found = places([info])
    if not found:
        raise MissingFileError("the file does not exist", where=shown, hint="Check the bucket or folder, and the name")
    return found


@contextlib.contextmanager
def remote_errors(where: str) -> Iterator[None]:
    """Translate errors of pyarrow's filesystems.

    Raises
    ------
    MissingFileError
        There is no such file.
    SettingsError
        The URL or the credentials are invalid.
    SourceError
        The filesystem failed otherwise.
    """
    try:
        yield
    except StreamkmError:  # some of them are ValueErrors too
        raise
    except FileNotFoundError as error:
        raise MissingFileError(
            "the file does not exist", where=where, hint="Check the bucket or folder, and the name"
        ) from error
    except OSError as error:
        raise SourceError(f"it cannot be read: {str(error).splitlines()[0]}", where=where) from error
    except (ValueError, NotImplementedError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise SettingsError(f"pyarrow does not support this URL: {type(error).__name__}", where=where) from error


def _known(folder: str, names: list[str]) -> list[str]:
    kept = [name for name in names if _suffix(name) in SUFFIXES]
    if not kept:
        raise MissingFileError(
            f"the folder has no file of a supported kind ({len(names)} others)",
            where=folder,
            hint=f"Known: {', '.join(SUFFIXES)}",
        )
    return kept


def _suffix(name: str) -> str:
    path = Path(name)
    suffix = path.suffix.lower()
    return path.with_suffix("").suffix.lower() + suffix if suffix == _PACKED else suffix


def _hidden(relative: str) -> bool:
    """Whether a path has a hidden part, such as ``_SUCCESS`` or ``.crc``."""
    return any(part.startswith((".", "_")) for part in Path(relative).parts)


def _glob_pattern(path: str) -> str:
    """A glob as a regular expression in which only ``**`` matches slashes."""
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return "".join(signs.get(part) or re.escape(part) for part in re.split(r"(\*\*/|\*\*|\*)", path))


def _without_secrets(url: str) -> str:
    """A URL without user, password and query."""
    return redact_url(url).replace(f"://{MASK}@", "://").partition("?")[0]
