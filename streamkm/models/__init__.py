"""Models: they learn from arrays, answer with arrays, and give their state as plain data."""

from streamkm.models.online import OnlineKMeans
from streamkm.models.warm import COMPILING_SECONDS, compile_kernels

__all__ = ["COMPILING_SECONDS", "OnlineKMeans", "compile_kernels"]
