"""Models: they learn from arrays, answer with arrays, and give their state as plain data."""

from streamkm.models.choice import KProfile, k_profile
from streamkm.models.coreset import Coreset
from streamkm.models.online import ARITHMETIC, OnlineKMeans
from streamkm.models.warm import COMPILING_SECONDS, compile_kernels

__all__ = ["ARITHMETIC", "COMPILING_SECONDS", "Coreset", "KProfile", "OnlineKMeans", "compile_kernels", "k_profile"]
