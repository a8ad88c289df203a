"""Connectors read and write records: Kafka, files, databases, memory."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamkm.connectors.base import Source, Writer
from streamkm.connectors.columns import byte_records
from streamkm.connectors.kafka.client import connection_error
from streamkm.connectors.kafka.record_batches import compile_parser
from streamkm.connectors.kafka.source import KafkaSource
from streamkm.connectors.kafka.transactions import KafkaTransactionalWriter
from streamkm.connectors.kafka.writer import KafkaWriter
from streamkm.connectors.memory import MemorySource

if TYPE_CHECKING:
    from streamkm.connectors.files.source import FileSource

__all__ = [
    "FileSource",
    "KafkaSource",
    "KafkaTransactionalWriter",
    "KafkaWriter",
    "MemorySource",
    "Source",
    "Writer",
    "byte_records",
    "compile_parser",
    "connection_error",
]


def __getattr__(name: str) -> Any:
    """Import the reader of files on first use: polars takes long to import, and a restart need not wait for it."""
    if name == "FileSource":
        return import_module("streamkm.connectors.files.source").FileSource
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
