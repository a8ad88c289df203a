"""Where records come from: Kafka, files, memory."""

from streamkm.sources._columns import byte_records
from streamkm.sources._kafka_batches import compile_parser
from streamkm.sources._kafka_client import why_away
from streamkm.sources._kafka_writer import KafkaWriter
from streamkm.sources.base import Source, Writer
from streamkm.sources.files import FileSource
from streamkm.sources.kafka import KafkaSource
from streamkm.sources.memory import MemorySource

__all__ = [
    "FileSource",
    "KafkaSource",
    "KafkaWriter",
    "MemorySource",
    "Source",
    "Writer",
    "byte_records",
    "compile_parser",
    "why_away",
]
