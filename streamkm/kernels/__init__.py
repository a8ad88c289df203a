"""Numba functions on arrays. They check nothing and allocate little: callers give clean arrays.

Each public kernel has a twin of the same name in ``tests/naive.py`` that shares no code with it. In docstrings IN is
read, OUT is written, INOUT is both, TMP is scratch.
"""
