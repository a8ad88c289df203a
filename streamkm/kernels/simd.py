"""Innermost loops of the assignment: distances of several points, one per SIMD lane, to all centroids.

These are LLVM instructions because the speed depends on which values stay in registers, which a scalar loop cannot
control: the sums of `GROUP` centroids for all lanes, over all dimensions. These are two vectors of points times six
centroids in the sixteen registers of AVX2, and the same with vectors twice as wide in AVX-512; for other processors,
LLVM splits the vectors.
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
    """Broadcast a scalar to all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INT32(0))
    mask = ir.Constant(ir.VectorType(_INT32, vector.count), [0] * vector.count)
    return builder.shuffle_vector(first, undefined, mask)


def _emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit the loops over groups of centroids and, inside, over dimensions; for the nearest, or the nearest two."""
    arrays = [context.make_array(t)(context, builder, a) for t, a in zip(signature.args, args, strict=True)]
    points, centroids, *results = arrays
    two = len(results) == 4  # squared distances and indices of the nearest, and of the second nearest
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
    stride = builder.sdiv(builder.extract_value(points.strides, 0), _INT64(size))  # in values
    n_groups = builder.extract_value(centroids.shape, 0)

    entry, append = builder.block, builder.function.append_basic_block
    group_head, dimension_head, group_tail, done = (append(n) for n in ("group", "dimension", "compare", "done"))
    builder.branch(group_head)

    builder.position_at_end(group_head)
    g = builder.phi(_INT64)
    g.add_incoming(_INT64(0), entry)
    found = [builder.phi(indices if i % 2 else reals) for i in range(len(results))]
    for i, phi in enumerate(found):
        start = [0] * lanes if i % 2 else [float("inf")] * lanes
        phi.add_incoming(ir.Constant(phi.type, start), entry)
    group = builder.gep(centroids.data, [builder.mul(g, builder.mul(d, _INT64(GROUP)))])
    builder.branch(dimension_head)

    builder.position_at_end(dimension_head)
    t = builder.phi(_INT64)
    t.add_incoming(_INT64(0), group_head)
    sums = [builder.phi(reals) for _ in range(GROUP)]
    at = builder.gep(points.data, [builder.mul(t, stride)])
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
    now: list[Any] = list(found)
    for a, square in enumerate(squares):
        closer = builder.fcmp_ordered("<", square, now[0])
        j = builder.add(builder.mul(g, _INT64(GROUP)), _INT64(a))
        indices_j = _splat(builder, builder.trunc(j, index) if single else j, indices)
        if two:
            close = builder.fcmp_ordered("<", square, now[2])
            now[2] = builder.select(closer, now[0], builder.select(close, square, now[2]))
            now[3] = builder.select(closer, now[1], builder.select(close, indices_j, now[3]))
        now[0] = builder.select(closer, square, now[0])
        now[1] = builder.select(closer, indices_j, now[1])
    g_next = builder.add(g, _INT64(1))
    g.add_incoming(g_next, group_tail)
    for phi, value in zip(found, now, strict=True):
        phi.add_incoming(value, group_tail)
    builder.cbranch(builder.icmp_signed("<", g_next, n_groups), group_head, done)

    builder.position_at_end(done)
    narrow = ir.VectorType(_INT32, lanes)
    for i, (result, value) in enumerate(zip(results, now, strict=True)):
        if i % 2:
            vector = value if single else builder.trunc(value, narrow)
            builder.store(vector, builder.bitcast(result.data, narrow.as_pointer()), align=4)
        else:
            builder.store(value, builder.bitcast(result.data, reals.as_pointer()), align=size)
    return context.get_dummy_value()


@intrinsic
def nearest_in_lanes(typing_context: Any, points: Any, centroids: Any, best: Any, nearest: Any) -> Any:  # noqa: ARG001
    """Find the nearest centroid of each lane's point; the lowest index wins ties.

    Parameters
    ----------
    points
        IN (d, lanes) float32 or float64, d >= 1: one point per column; each row is contiguous.
    centroids
        IN (groups, d, GROUP), same type: packed centroids, padded with infinity.
    best
        OUT (lanes,), same type: squared distances.
    nearest
        OUT (lanes,) int32: indices.
    """
    return types.void(points, centroids, best, nearest), _emit


@intrinsic
def nearest_two_in_lanes(
    typing_context: Any,  # noqa: ARG001
    points: Any,
    centroids: Any,
    best: Any,
    nearest: Any,
    next_best: Any,
    second: Any,
) -> Any:
    """Find the nearest and the second nearest centroid of each lane's point; the lowest index wins ties.

    Parameters
    ----------
    points, centroids, best, nearest
        As in `nearest_in_lanes`.
    next_best, second
        OUT (lanes,): squared distances and indices of the second nearest; infinity and 0 if there is none.
    """
    return types.void(points, centroids, best, nearest, next_best, second), _emit
