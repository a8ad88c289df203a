"""The live loop (`Engine`), and the proof that it did what it says (`Rerun`)."""

from streamkm.engine.adoption import from_snapshot
from streamkm.engine.loop import Engine
from streamkm.engine.options import EngineOptions
from streamkm.engine.rerun import Rerun, Verdict, compare

__all__ = ["Engine", "EngineOptions", "Rerun", "Verdict", "compare", "from_snapshot"]
