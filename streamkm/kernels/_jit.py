"""The one place where numba's untyped decorators meet our types, and where their flags are chosen."""

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
        Put the body where it is called: a call costs an instruction or two for each of the seven words of an array.
    allocates
        The kernel makes arrays. Only then are references to arrays counted: with atomic instructions, on cache lines
        that threads share, and at every call of a function that takes arrays. In an inner loop that took as long as the
        loop itself, so what is called often allocates nothing.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        options: dict[str, Any] = {"forceinline": inline, "_nrt": allocates}
        compiled: Any = numba.njit(cache=True, nogil=True, fastmath=FASTMATH if fast else False, **options)(function)
        return cast("Callable[P, R]", compiled)

    return decorate


def intrinsic(emit: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function that a kernel can call out of one that emits LLVM instructions.

    Parameters
    ----------
    emit
        Takes numba's typing context and the types of the arguments; returns a signature and a code generator.
    """
    return cast("Callable[..., Any]", _intrinsic(emit))
