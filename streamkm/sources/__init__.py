"""Where records come from: Kafka, files, memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamkm.sources._columns import byte_records
from streamkm.sources._kafka_batches import compile_parser
from streamkm.sources._kafka_client import why_away
from streamkm.sources._kafka_transactions import KafkaTransactions
from streamkm.sources._kafka_writer import KafkaWriter
from streamkm.sources.base import Source, Writer
from streamkm.sources.kafka import KafkaSource
from streamkm.sources.memory import MemorySource

if TYPE_CHECKING:
    from streamkm.sources.files import FileSource

__all__ = [
    "FileSource",
    "KafkaSource",
    "KafkaTransactions",
    "KafkaWriter",
    "MemorySource",
    "Source",
    "Writer",
    "byte_records",
    "compile_parser",
    "why_away",
]


def __getattr__(name: str) -> Any:
    """Import what reads files when it is asked for: polars takes a while, for which a restart need not wait."""
    if name == "FileSource":
        return import_module("streamkm.sources.files").FileSource
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
