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
    """One line per record, followed by its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line = (
            f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:<7} {terminal.clean(redact(record.getMessage()))}"
        )
        if record.exc_info:
            line += "\n" + terminal.clean(redact(self.formatException(record.exc_info)), lines=True)
        return line


class JsonLines(logging.Formatter):
    """One JSON object per line: time, level, logger, message and ``extra``."""

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
        # Redacted before the encoding: the quotes of JSON would hide where a secret ends.
        return json.dumps(redact_all(json.loads(json.dumps(entry, default=str))))


def configure(verbosity: int = 0) -> None:
    """Log streamkm, and the warnings of libraries, to standard error.

    Parameters
    ----------
    verbosity
        0: information for operators; 1: debug messages of streamkm; 2 or more: those of libraries too, which log the
        data that they send and receive.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PlainLines() if terminal.is_terminal(err=True) else JsonLines())
    logging.captureWarnings(capture=True)
    libraries = logging.DEBUG if verbosity > 1 else logging.WARNING
    logging.basicConfig(level=libraries, handlers=[handler], force=True)
    logging.getLogger("streamkm").setLevel(logging.DEBUG if verbosity else logging.INFO)
    # kafka-python logs every reconnect attempt as an error; the engine logs an outage once.
    logging.getLogger("kafka").setLevel(libraries if verbosity else logging.CRITICAL)
