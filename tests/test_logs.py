"""Log levels and formats of the programs."""

from __future__ import annotations

import logging

import pytest

from consumers import logs

LIBRARIES = ("kafka", "kafka.conn", "httpx", "asyncio", "one.that.nobody.knows")


@pytest.fixture
def logging_as_before():
    """The levels of loggers are the process's."""
    names = ("", "streamkm", "kafka")
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.usefixtures("logging_as_before")
@pytest.mark.parametrize(("verbosity", "ours", "libraries"), [(0, 20, 30), (1, 10, 30), (2, 10, 10), (3, 10, 10)])
def test_libraries_tell_what_they_send_only_when_asked_twice(verbosity, ours, libraries):
    logs.configure(verbosity)
    assert logging.getLogger("streamkm.engine").getEffectiveLevel() == ours
    for name in LIBRARIES:
        quiet = logging.CRITICAL if name.startswith("kafka") and not verbosity else libraries
        assert logging.getLogger(name).getEffectiveLevel() == quiet, name
