"""The live loop (`Engine`), and the proof that it did what it says (`Rerun`)."""

from streamkm.engine.adoption import from_snapshot
from streamkm.engine.audit import audit
from streamkm.engine.books import Books
from streamkm.engine.guards import same_stream
from streamkm.engine.learning import suited
from streamkm.engine.loop import Engine
from streamkm.engine.options import EngineOptions
from streamkm.engine.origins import best_origin, find_origins
from streamkm.engine.pulse import Pulse
from streamkm.engine.rerun import Rerun, Verdict, compare
from streamkm.engine.watchdog import Watchdog

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
