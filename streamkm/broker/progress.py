"""Progress messages on stderr: a bar on a terminal, else a few lines."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_STEPS = 4


@dataclass
class ByteCounter:
    """Counts bytes from several threads and shows the sum.

    Attributes
    ----------
    show
        Called with the sum.
    done
        Bytes so far.
    """

    show: Callable[[int], None]
    done: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        """Add a number of bytes."""
        with self._lock:
            self.done += count
            self.show(self.done)


def announce(text: str, *, quiet: bool = False) -> None:
    """Print a line on stderr."""
    if not quiet:
        print(f"streamkm: {text}", file=sys.stderr, flush=True)  # noqa: T201 - the only place that prints


@contextlib.contextmanager
def count_bytes(text: str, total: int, *, quiet: bool = False) -> Iterator[ByteCounter]:
    """Show the progress of a download.

    Parameters
    ----------
    text
        Description of the download.
    total
        Total number of bytes.
    quiet
        Show nothing.

    Yields
    ------
    ByteCounter
        Counter of the downloaded bytes.
    """
    if quiet:
        yield ByteCounter(lambda _done: None)
    elif sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415 - a first start only
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(text, total=total)
            yield ByteCounter(lambda done: bar.update(task, completed=done))
    else:
        announce(f"{text} ({total / 1e6:.0f} MB)")
        shown = 0

        def show(done: int) -> None:
            nonlocal shown
            if done * _STEPS // total > shown:
                shown = done * _STEPS // total
                announce(f"{text}: {100 * shown // _STEPS} %")

        yield ByteCounter(show)
