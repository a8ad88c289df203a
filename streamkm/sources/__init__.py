"""Where records come from: Kafka, files, memory."""

from streamkm.sources._kafka_batches import compile_parser
from streamkm.sources.base import Source
from streamkm.sources.files import FileSource
from streamkm.sources.kafka import KafkaSource
from streamkm.sources.memory import MemorySource

__all__ = ["FileSource", "KafkaSource", "MemorySource", "Source", "compile_parser"]
