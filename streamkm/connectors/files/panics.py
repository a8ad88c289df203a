"""Suppression of the messages that panics in polars print."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

import polars as pl


@contextlib.contextmanager
def suppress_panic_output() -> Iterator[None]:
    """Suppress what panics in polars print to standard error in addition to the exception.

    Rust writes the message to the file descriptor itself. Output without a panic is passed on.
    """
    try:
        saved = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    with tempfile.TemporaryFile() as kept:
        sys.stderr.flush()
        os.dup2(kept.fileno(), 2)
        panicked = False
        try:
            yield
        except pl.exceptions.PanicException:
            panicked = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            kept.seek(0)
            if not panicked and (text := kept.read()):
                os.write(2, text)
