"""Kernels of the exact algorithm: passes with bounds, exact sums, layout and initialization."""
