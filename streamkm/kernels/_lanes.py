"""The innermost loops of every assignment: distances of some points, one a SIMD lane, to all centroids.

Written as LLVM instructions because what makes it fast is what stays in registers, which a scalar loop cannot say: the
sums of `GROUP` centroids for all lanes, over all dimensions. That is two vectors of points times six centroids in the
sixteen registers of AVX2, and the same with vectors twice as wide in AVX-512; elsewhere LLVM splits the vectors.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
from llvmlite import ir
from numba import types
from numba.core import cgutils

from streamkm.kernels._jit import intrinsic

GROUP = 6
"""Centroids compared at once; packed centroids come in groups of this many."""

_WIDE = 2 if llvmlite.binding.get_host_cpu_features().get("avx512f", False) else 1

LANES32 = 16 * _WIDE
"""Points compared at once in float32."""

LANES64 = 8 * _WIDE
"""Points compared at once in float64."""

_INT64 = ir.IntType(64)
_INT32 = ir.IntType(32)


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    """One scalar in all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INT32(0))
    mask = ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, mask)


def _emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit the loops over groups of centroids and, inside, over dimensions."""
    arrays = [context.make_array(t)(context, builder, a) for t, a in zip(signature.args, args, strict=True)]
    points, centroids, best, nearest = arrays
    single = signature.args[0].dtype == types.float32
    lanes = LANES32 if single else LANES64
    real = context.get_data_type(signature.args[0].dtype)
    index = _INT32 if single else _INT64  # as wide as `real`, so that one mask serves both selects
    reals, indices = ir.VectorType(real, lanes), ir.VectorType(index, lanes)
    size = 4 if single else 8
    name = f"llvm.fmuladd.v{lanes}f{8 * size}"
    declare: Any = cgutils.get_or_insert_function
    fmuladd = declare(builder.module, ir.FunctionType(reals, [reals] * 3), name)
    d = builder.extract_value(points.shape, 0)
    n_groups = builder.extract_value(centroids.shape, 0)

    entry, append = builder.block, builder.function.append_basic_block
    group_head, dimension_head, group_tail, done = (append(n) for n in ("group", "dimension", "compare", "done"))
    builder.branch(group_head)

    builder.position_at_end(group_head)
    g, lowest, winner = builder.phi(_INT64), builder.phi(reals), builder.phi(indices)
    g.add_incoming(_INT64(0), entry)
    lowest.add_incoming(ir.Constant(reals, [float("inf")] * lanes), entry)
    winner.add_incoming(ir.Constant(indices, [0] * lanes), entry)
    group = builder.gep(centroids.data, [builder.mul(g, builder.mul(d, _INT64(GROUP)))])
    builder.branch(dimension_head)

    builder.position_at_end(dimension_head)
    t = builder.phi(_INT64)
    t.add_incoming(_INT64(0), group_head)
    sums = [builder.phi(reals) for _ in range(GROUP)]
    at = builder.gep(points.data, [builder.mul(t, _INT64(lanes))])
    x = builder.load(builder.bitcast(at, reals.as_pointer()), align=size)
    row = builder.gep(group, [builder.mul(t, _INT64(GROUP))])
    squares = []
    for a, total in enumerate(sums):
        c = _splat(builder, builder.load(builder.gep(row, [_INT64(a)])), reals)
        difference = builder.fsub(x, c)
        squares.append(builder.call(fmuladd, [difference, difference, total]))
        total.add_incoming(ir.Constant(reals, [0.0] * lanes), group_head)
        total.add_incoming(squares[-1], dimension_head)
    t_next = builder.add(t, _INT64(1))
    t.add_incoming(t_next, dimension_head)
    builder.cbranch(builder.icmp_signed("<", t_next, d), dimension_head, group_tail)

    builder.position_at_end(group_tail)
    low, win = lowest, winner
    for a, square in enumerate(squares):
        closer = builder.fcmp_ordered("<", square, low)
        j = builder.add(builder.mul(g, _INT64(GROUP)), _INT64(a))
        low = builder.select(closer, square, low)
        win = builder.select(closer, _splat(builder, builder.trunc(j, index) if single else j, indices), win)
    g_next = builder.add(g, _INT64(1))
    g.add_incoming(g_next, group_tail)
    lowest.add_incoming(low, group_tail)
    winner.add_incoming(win, group_tail)
    builder.cbranch(builder.icmp_signed("<", g_next, n_groups), group_head, done)

    builder.position_at_end(done)
    builder.store(low, builder.bitcast(best.data, reals.as_pointer()), align=size)
    narrow = ir.VectorType(_INT32, lanes)
    found = win if single else builder.trunc(win, narrow)
    builder.store(found, builder.bitcast(nearest.data, narrow.as_pointer()), align=4)
    return context.get_dummy_value()


@intrinsic
def nearest_in_lanes(typing_context: Any, points: Any, centroids: Any, best: Any, nearest: Any) -> Any:  # noqa: ARG001
    """Find the nearest centroid of each lane's point; the lowest index wins ties.

    Parameters
    ----------
    points
        IN (d, lanes) float32 or float64, d >= 1: one point a column.
    centroids
        IN (groups, d, GROUP), same type: packed centroids, with infinity where there is none.
    best
        OUT (lanes,), same type: squared distances.
    nearest
        OUT (lanes,) int32: their indices.
    """
    return types.void(points, centroids, best, nearest), _emit
