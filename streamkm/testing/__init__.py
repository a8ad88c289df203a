"""Test support for this project and its users: fakes that fail on cue, and the broker that a test run uses."""

from streamkm.testing.broker import KAFKA_IMAGE, BrokerChoice, choose_broker
from streamkm.testing.codecs import FramedCodec, SchemaRegistryInMemory
from streamkm.testing.fakes import FlakySource, FlakyStore, FullStore, JumpingClock, KillAtCall, ManualClock, StopAfter

__all__ = [
    "KAFKA_IMAGE",
    "BrokerChoice",
    "FlakySource",
    "FlakyStore",
    "FramedCodec",
    "FullStore",
    "JumpingClock",
    "KillAtCall",
    "ManualClock",
    "SchemaRegistryInMemory",
    "StopAfter",
    "choose_broker",
]
