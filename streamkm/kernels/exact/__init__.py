"""Kernels of the exact algorithm."""
