"""The live loop (`Engine`), and the proof that it did what it says (`Rerun`)."""

from streamkm.engine.context import EngineOptions
from streamkm.engine.health import Pulse, Watchdog
from streamkm.engine.learn import suited
from streamkm.engine.loop import Engine
from streamkm.engine.promotion import from_snapshot
from streamkm.engine.source_checks import same_stream
from streamkm.engine.verification import Books, Rerun, Verdict, audit, best_origin, compare, find_origins

__all__ = [
    "Books",
    "Engine",
    "EngineOptions",
    "Pulse",
    "Rerun",
    "Verdict",
    "Watchdog",
    "audit",
    "best_origin",
    "compare",
    "find_origins",
    "from_snapshot",
    "same_stream",
    "suited",
]
