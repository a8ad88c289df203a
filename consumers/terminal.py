"""The one place that writes to the terminal; see `test_terminal.py` for the rule that holds all others to it.

Names and values are data. They come from topics, files, databases and other people's services, and may hold anything:
rich's markup, the escape sequences that terminals obey, line breaks that would forge a line of ours, secrets. So all
text is shown as what it is: no markup is read in it, and what is not printable is written as its escape. What may be a
secret is masked, but for records themselves and for a token that was asked for: these are marked as ``verbatim``.

What cannot be written is an error, and never a traceback: see `Stream`.
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
"""Exit status after Ctrl-C, as shells have it."""
READER_GONE = 141
"""Exit status when whoever read our output has left (``| head``), as of a program that SIGPIPE ends."""

_UNSEEN = re.compile(r"[^\x20-\x7e]")
"""What may need a look; the rest is plain."""


class OutputError(StreamkmError):
    """What a program prints cannot be written: the disk is full, or standard output is closed."""


class ReaderGoneError(Exception):
    """Whoever read our output has left."""


def clean(text: object, *, lines: bool = False) -> str:
    r"""Text as it may be shown: in one line, and nothing in it that a terminal obeys.

    Parameters
    ----------
    lines
        Keep line breaks: for text of our own that has several lines.

    Examples
    --------
    >>> clean("a\x1b[31mb\u202ec\nd")
    'a\\x1b[31mb\\u202ec\\nd'
    >>> clean("Zürich 東京")
    'Zürich 東京'
    """
    return _UNSEEN.sub(lambda found: _seen(found[0], lines), str(text))


def _seen(character: str, lines: bool) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs" or (lines and character in "\n\t"):
        return character
    return character.encode("unicode_escape").decode()


class _Console(_RichConsole):
    """One for which every text is data."""

    def render_str(self, text: str, **options: Any) -> Text:
        options |= {"markup": False, "emoji": False, "highlight": False, "highlighter": None}
        return super().render_str(clean(redact(text)), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Also what was made into a `Text` before it came here; tables break what has no room, and cut nothing off."""
        if isinstance(renderable, Table):
            for column in renderable.columns:
                column.overflow = "fold"
        for segment in super().render(renderable, options):
            shown = segment.control or segment.text == "\n"
            yield segment if shown else Segment(clean(segment.text, lines=True), segment.style)


def console(*, err: bool = False, **options: Any) -> _RichConsole:
    """One for tables and the like; see `rich.console.Console` for its options."""
    return _Console(stderr=err, **{"highlight": False, "markup": False, "emoji": False} | options)


def say(*parts: object, err: bool = False, end: str = "\n", verbatim: bool = False) -> None:
    """Write one line; a part may be ``(text, style)``, and has that style on a terminal."""
    pairs = [part if isinstance(part, tuple) else (part, "") for part in parts]
    if not verbatim:
        pairs = [(redact(str(text)), style) for text, style in pairs]
    if any(style for _, style in pairs) and is_terminal(err=err):
        line = Text.assemble(*((clean(text), style) for text, style in pairs))
        console(err=err).print(line, soft_wrap=True, end=end)
    else:
        _write("".join(clean(text) for text, _ in pairs) + end, err=err)


def write(texts: Iterable[str]) -> None:
    """Write texts with their ends of lines, for other programs as they are."""
    shown = (clean(text, lines=True) for text in texts) if is_terminal() else texts
    sys.stdout.writelines(shown)
    sys.stdout.flush()


def show(*renderables: RenderableType, width: int | None = None) -> None:
    """Write tables, or texts of one line each."""
    out = console(width=width)
    for renderable in renderables:
        out.print(renderable)


def say_json(value: Any, *, indent: int | None = 2, err: bool = False, verbatim: bool = False) -> None:
    """Write a JSON value; a number that is not finite is null."""
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
    """Bars on standard error, if that is a terminal; a column that is a text is a format, such as ``{task.total}``."""
    made = (TextColumn(c, markup=False) if isinstance(c, str) else c for c in columns)
    hidden = not (is_terminal(err=True) if shown is None else shown)
    return Progress(*made, console=console(err=True), disable=hidden, transient=transient)


def live() -> Live:
    """A view on a terminal that is drawn anew when told."""
    return Live(console=console(), auto_refresh=False)


def is_terminal(*, err: bool = False) -> bool:
    """Whether people look at it."""
    stream = sys.stderr if err else sys.stdout
    return bool(stream.isatty())


def fail(message: str, *, where: str = "", hint: str = "") -> None:
    """Say what was wrong, where, and what to do, on standard error."""
    say((f"error: {where}: {message}" if where else f"error: {message}", "red"), err=True)
    if hint:
        say(f"  what to do: {hint}", err=True)


def _write(text: str, *, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    stream.write(text)
    stream.flush()


class Stream(io.TextIOWrapper):
    """Standard output or standard error, with errors that can be told apart from those of files and sockets.

    Raises, of `write` and `flush`
    ------------------------------
    OutputError
        What is printed cannot be written. Standard error stays quiet instead: there is nowhere to say it.
    ReaderGoneError
        Whoever read standard output has left.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        # What the encoding of a terminal lacks is written as an escape, not a traceback.
        super().__init__(
            stream.buffer, stream.encoding, "backslashreplace", line_buffering=name == "standard error" or _line(stream)
        )
        self._under, self._name = stream, name

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
        # What waits in buffers would be tried once more at the end, with a traceback.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        if self._name == "standard error":
            return
        if error.errno == errno.EPIPE:
            raise ReaderGoneError from error
        raise OutputError(
            f"what was to be printed cannot be written ({error.strerror})",
            where=self._name,
            hint="Free some space, or send it elsewhere",
        ) from error


class Closed(io.StringIO):
    """Standard output that was closed before the program began."""

    def write(self, _text: str, /) -> int:
        raise OutputError(
            "standard output is closed", hint="Leave it open, or send it to a file (/dev/null forgets it)"
        )


def _line(stream: TextIO) -> bool:
    return isinstance(stream, io.TextIOWrapper) and stream.line_buffering


def open_streams() -> None:
    """Make the process's standard streams ones that fail as `Stream` says."""
    for number in range(3):  # else the next file that is opened would be standard output
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    # A stream that is closed is None.
    sys.stdout = Closed() if sys.stdout is None else Stream(sys.stdout, "standard output")
    sys.stderr = io.StringIO() if sys.stderr is None else Stream(sys.stderr, "standard error")


def flush() -> None:
    """Have all that was printed written."""
    sys.stdout.flush()


def exit_with(status: int) -> NoReturn:
    """End the process, when all that was printed is written."""
    try:
        sys.stdout.flush()
    except ReaderGoneError:
        status = status or READER_GONE
    sys.stderr.flush()
    sys.exit(status)
