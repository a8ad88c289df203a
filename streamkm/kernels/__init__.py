"""Numba kernels on arrays. They validate nothing and allocate little: callers pass valid arrays.

Each public kernel has a reference implementation of the same name in ``tests/naive*.py`` that shares no code with it.
In docstrings, IN arrays are read, OUT arrays are written, INOUT arrays are both, and TMP arrays are scratch space.
"""
