"""K-Means models: they learn from arrays, predict arrays, and save their state as plain data."""

from streamkm.models.compile import COMPILING_SECONDS, compile_kernels
from streamkm.models.coreset import Coreset
from streamkm.models.k_selection import KProfile, k_profile
from streamkm.models.online import ARITHMETIC, OnlineKMeans

__all__ = ["ARITHMETIC", "COMPILING_SECONDS", "Coreset", "KProfile", "OnlineKMeans", "compile_kernels", "k_profile"]
