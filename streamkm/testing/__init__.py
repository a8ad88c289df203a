"""Test support for this project and its users: fakes that fail on cue, and the broker that a test run uses."""

from streamkm.testing.broker import KAFKA_IMAGE, BrokerChoice, choose_broker
from streamkm.testing.codecs import FramedCodec, SchemaRegistryInMemory
from streamkm.testing.fakes import FlakySource, FlakyStore, FullStore, JumpingClock, KillAtCall, ManualClock, StopAfter
from streamkm.testing.kafka import InMemoryKafkaError, KafkaClusterInMemory, KafkaDriverInMemory

__all__ = [
    "KAFKA_IMAGE",
    "BrokerChoice",
    "FlakySource",
    "FlakyStore",
    "FramedCodec",
    "FullStore",
    "InMemoryKafkaError",
    "JumpingClock",
    "KafkaClusterInMemory",
    "KafkaDriverInMemory",
    "KillAtCall",
    "ManualClock",
    "SchemaRegistryInMemory",
    "StopAfter",
    "choose_broker",
]
