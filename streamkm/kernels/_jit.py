"""Typed wrappers of numba's decorators, with the compiler flags of all kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numba
from numba.extending import intrinsic as _intrinsic

P = ParamSpec("P")
R = TypeVar("R")

# Contraction and reassociation let LLVM use SIMD over points; NaN and infinity keep their meaning.
FASTMATH = {"contract", "reassoc", "nsz"}


def jit(
    *, fast: bool = False, inline: bool = False, allocates: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a kernel: cached on disk, without the GIL.

    Parameters
    ----------
    fast
        Allow contraction and reassociation of sums (never "no NaN" or "no infinity").
    inline
        Inline the body: a call costs an instruction or two for each of the seven words of an array argument.
    allocates
        Whether the kernel makes arrays. Only then are references to arrays counted: with atomic instructions, on cache
        lines that threads share, and at every call of a function that takes arrays. In an inner loop this took as long
        as the loop itself, so functions that are called often must not allocate.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        options: dict[str, Any] = {"forceinline": inline, "_nrt": allocates}
        compiled: Any = numba.njit(cache=True, nogil=True, fastmath=FASTMATH if fast else False, **options)(function)
        return cast("Callable[P, R]", compiled)

    return decorate


def intrinsic(emit: Callable[..., Any]) -> Callable[..., Any]:
    """Make an intrinsic that kernels can call from a function that emits LLVM instructions.

    Parameters
    ----------
    emit
        Takes numba's typing context and the types of the arguments; returns a signature and a code generator.
    """
    return cast("Callable[..., Any]", _intrinsic(emit))
