"""All output of the programs; `tests/test_terminal.py` checks that no other module prints.

Names and values come from topics, files, databases and other services, and may contain anything: markup of rich, escape
sequences of terminals, line breaks that would forge a line, secrets. So text is printed literally: markup is not
interpreted, and characters that are not printable are escaped. Secrets are masked, except in records and in tokens that
were requested, which are printed ``verbatim``.

An error of writing is reported without a traceback: see `Stream`.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TextIO

from rich.console import Console as _RichConsole
from rich.console import ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import Progress, ProgressColumn, TextColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from streamkm.errors import StreamkmError
from streamkm.redaction import redact, redact_all

INTERRUPTED = 130
"""Exit status after Ctrl-C, as in shells."""
READER_GONE = 141
"""Exit status if the reader of the output has exited (``| head``): that of a program that SIGPIPE ends."""

_NON_ASCII = re.compile(r"[^\x20-\x7e]")
"""Characters that may not be printable."""


class OutputError(StreamkmError):
    """Output cannot be written: the disk is full, or standard output is closed."""


class ReaderGoneError(Exception):
    """The reader of standard output has exited."""


def clean(text: object, *, lines: bool = False) -> str:
    r"""Escape line breaks, and characters that a terminal would interpret.

    Parameters
    ----------
    lines
        Keep line breaks and tabs.

    Examples
    --------
    >>> clean("a\x1b[31mb\u202ec\nd")
    'a\\x1b[31mb\\u202ec\\nd'
    >>> clean("Zürich 東京")
    'Zürich 東京'
    """
    return _NON_ASCII.sub(lambda found: _printable(found[0], lines), str(text))


def _printable(character: str, lines: bool) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs" or (lines and character in "\n\t"):
        return character
    return character.encode("unicode_escape").decode()


class _Console(_RichConsole):
    """A console that prints all text literally."""

    def render_str(self, text: str, **options: Any) -> Text:
        options |= {"markup": False, "emoji": False, "highlight": False, "highlighter": None}
        return super().render_str(clean(redact(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape `Text` objects too; tables wrap long cells instead of truncating them."""
        if isinstance(renderable, Table):
            for column in renderable.columns:
                column.overflow = "fold"
        for segment in super().render(renderable, options):
            shown = segment.control or segment.text == "\n"
            yield segment if shown else Segment(clean(segment.text, lines=True), segment.style)


def console(*, err: bool = False, **options: Any) -> _RichConsole:
    """A console for tables; see `rich.console.Console` for its options."""
    return _Console(stderr=err, **{"highlight": False, "markup": False, "emoji": False} | options)


def say(*parts: object, err: bool = False, end: str = "\n", verbatim: bool = False) -> None:
    """Print one line; a part may be ``(text, style)``, styled on a terminal."""
    pairs = [part if isinstance(part, tuple) else (part, "") for part in parts]
    if not verbatim:
        pairs = [(redact(str(text)), style) for text, style in pairs]
    if any(style for _, style in pairs) and is_terminal(err=err):
        line = Text.assemble(*((clean(text), style) for text, style in pairs))
        console(err=err).print(line, soft_wrap=True, end=end)
    else:
        _write("".join(clean(text) for text, _ in pairs) + end, err=err)


def write(texts: Iterable[str]) -> None:
    """Print texts that include their line ends; escaped on a terminal only."""
    shown = (clean(text, lines=True) for text in texts) if is_terminal() else texts
    sys.stdout.writelines(shown)
    sys.stdout.flush()


def show(*renderables: RenderableType, width: int | None = None) -> None:
    """Print tables, or texts of one line each."""
    out = console(width=width)
    for renderable in renderables:
        out.print(renderable)


def say_json(value: Any, *, indent: int | None = 2, err: bool = False, verbatim: bool = False) -> None:
    """Print a JSON value; a number that is not finite is null."""
    plain = _plain(value)
    _write(json.dumps(plain if verbatim else redact_all(plain), indent=indent, allow_nan=False) + "\n", err=err)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def progress(*columns: str | ProgressColumn, shown: bool | None = None, transient: bool = False) -> Progress:
    """Progress bars on standard error, if it is a terminal; a column may be a format, such as ``{task.total}``."""
    made = (TextColumn(c, markup=False) if isinstance(c, str) else c for c in columns)
    hidden = not (is_terminal(err=True) if shown is None else shown)
    return Progress(*made, console=console(err=True), disable=hidden, transient=transient)


def live() -> Live:
    """A view on a terminal that is redrawn on request."""
    return Live(console=console(), auto_refresh=False)


def is_terminal(*, err: bool = False) -> bool:
    """Whether standard output (or standard error) is a terminal."""
    stream = sys.stderr if err else sys.stdout
    return bool(stream.isatty())


def fail(message: str, *, where: str = "", hint: str = "") -> None:
    """Print an error, its location and a hint to standard error."""
    say((f"error: {where}: {message}" if where else f"error: {message}", "red"), err=True)
    if hint:
        say(f"  what to do: {hint}", err=True)


def _write(text: str, *, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    stream.write(text)
    stream.flush()


class Stream(io.TextIOWrapper):
    """Standard output or standard error, with errors distinct from those of files and sockets.

    Raises, of `write` and `flush`
    ------------------------------
    OutputError
        Standard output cannot be written. Errors of standard error are ignored: they cannot be reported.
    ReaderGoneError
        The reader of standard output has exited.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        # Characters that the encoding lacks are escaped.
        super().__init__(
            stream.buffer, stream.encoding, "backslashreplace", line_buffering=name == "standard error" or _line(stream)
        )
        self._under = stream  # it would close the buffer when it is collected
        self._name = name

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as e:
            self._lost(e)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as e:
            self._lost(e)

    def _lost(self, error: OSError) -> None:
        # Buffered output would be written again at exit, with a traceback.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if self._name == "standard error":
            return
        if error.errno == errno.EPIPE:
            raise ReaderGoneError from error
        raise OutputError(
            f"the output cannot be written ({error.strerror})",
            where=self._name,
            hint="Free some space, or send it elsewhere",
        ) from error


class Closed(io.StringIO):
    """Standard output that was closed before the program started."""

    def write(self, _text: str, /) -> int:
        raise OutputError("standard output is closed", hint="Leave it open, or redirect it to a file or /dev/null")


def _line(stream: TextIO) -> bool:
    return isinstance(stream, io.TextIOWrapper) and stream.line_buffering


def open_streams() -> None:
    """Replace the standard streams by `Stream` objects."""
    for number in range(3):  # else the next opened file would become standard output
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # A closed stream is None.
    sys.stdout = Closed() if sys.stdout is None else Stream(sys.stdout, "standard output")
    sys.stderr = io.StringIO() if sys.stderr is None else Stream(sys.stderr, "standard error")


def flush() -> None:
    """Flush standard output."""
    sys.stdout.flush()


def exit_with(status: int) -> NoReturn:
    """Flush the output, and exit."""
    try:
        sys.stdout.flush()
    except ReaderGoneError:
        status = status or READER_GONE
    sys.stderr.flush()
    sys.exit(status)
