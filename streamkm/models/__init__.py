"""Models: they learn from arrays, answer with arrays, and give their state as plain data."""

from streamkm.models.online import OnlineKMeans
from streamkm.models.warm import compile_kernels

__all__ = ["OnlineKMeans", "compile_kernels"]
