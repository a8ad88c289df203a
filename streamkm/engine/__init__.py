"""The live loop (`Engine`), and its verification by replaying the journal (`JournalReplay`)."""

from streamkm.engine.context import EngineOptions
from streamkm.engine.health import Heartbeat, Watchdog
from streamkm.engine.learn import codec_for_model
from streamkm.engine.loop import Engine
from streamkm.engine.promotion import model_from_snapshot
from streamkm.engine.proof import Proof, prove_snapshot
from streamkm.engine.source_checks import check_same_stream
from streamkm.engine.verification import (
    JournalReplay,
    OffsetLedger,
    SnapshotComparison,
    audit,
    best_replay_start,
    compare_snapshot,
    find_replay_starts,
)

__all__ = [
    "Engine",
    "EngineOptions",
    "Heartbeat",
    "JournalReplay",
    "OffsetLedger",
    "Proof",
    "SnapshotComparison",
    "Watchdog",
    "audit",
    "best_replay_start",
    "check_same_stream",
    "codec_for_model",
    "compare_snapshot",
    "find_replay_starts",
    "model_from_snapshot",
    "prove_snapshot",
]
