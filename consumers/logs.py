"""Logs of the programs: readable on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import logging
import sys

from consumers import terminal
from streamkm.redaction import redact, redact_all
from streamkm.times import format_time

_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class PlainLines(logging.Formatter):
    """A line for people; the lines of an exception follow it."""

    def format(self, record: logging.LogRecord) -> str:
        line = (
            f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<7} {terminal.clean(redact(record.getMessage()))}"
        )
        if record.exc_info:
            line += "\n" + terminal.clean(redact(self.formatException(record.exc_info)), lines=True)
        return line


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and what was passed as ``extra``."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": format_time(record.created, "milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **{k: v for k, v in vars(record).items() if k not in _PLAIN},
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # Before the quotes of JSON are around each text, which would hide where a secret ends.
        return json.dumps(redact_all(json.loads(json.dumps(entry, default=str))))


def configure(verbosity: int = 0) -> None:
    """Send the logs of streamkm, and the warnings of everybody else, to stderr.

    Parameters
    ----------
    verbosity
        0: what an operator wants to know; 1: all that streamkm does; 2 or more: what libraries do too. Those tell what
        they send and receive, so they are never mixed into less.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainLines() if terminal.is_terminal(err=True) else JsonLines())
    logging.captureWarnings(capture=True)
    libraries = logging.DEBUG if verbosity > 1 else logging.WARNING
    logging.basicConfig(level=libraries, handlers=[handler], force=True)
    logging.getLogger("streamkm").setLevel(logging.DEBUG if verbosity else logging.INFO)
    # kafka-python reports every reconnect attempt as an error; the engine says once what matters.
    logging.getLogger("kafka").setLevel(libraries if verbosity else logging.CRITICAL)
