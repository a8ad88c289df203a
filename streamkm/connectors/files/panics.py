"""What polars' panics leave on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

import polars as pl


@contextlib.contextmanager
def suppress_panic_output() -> Iterator[None]:
    """Keep what polars' panics write to standard error, beside the exception, from those who look there.

    Its text comes from Rust, to the descriptor itself. What comes without a panic is passed on.
    """
    try:
        saved = os.dup(2)
    except OSError:  # there is no standard error
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
