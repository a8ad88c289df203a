"""Test support for this project and its users: fakes that fail on cue, and the broker that a test run uses."""

from streamkm.testing.broker import BrokerChoice, choose_broker
from streamkm.testing.fakes import FlakySource, FlakyStore, FullStore, JumpingClock, ManualClock, KillAtCall, StopAfter

__all__ = [
    "BrokerChoice",
    "FlakySource",
    "FlakyStore",
    "FullStore",
    "JumpingClock",
    "ManualClock",
    "KillAtCall",
    "StopAfter",
    "choose_broker",
]
