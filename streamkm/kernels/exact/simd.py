"""Innermost loops of the exact algorithm, as LLVM instructions.

`two_nearest` keeps the distances of `LANES` points to `GROUP` centroids in registers over all dimensions, and reduces
them to the nearest, the second nearest and the index of the nearest without storing them. Two vectors of points times
four centroids fit into the sixteen registers of AVX2 with room for the differences; six centroids, as in the assignment
to the nearest only, would spill (measured: 0.40 against 0.47 ns per distance at d = 8, 0.64 against 0.69 at d = 16).
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from streamkm.kernels._jit import intrinsic, jit

GROUP = 4
"""Centroids compared at once."""

LANES = 32 if llvmlite.binding.get_host_cpu_features().get("avx512f", False) else 16
"""Points compared at once."""

PADDING = np.float32(1e18)
"""Coordinates of the centroid that pads a group: far from all points, and with a finite square in float32."""

_I64 = ir.IntType(64)
_I32 = ir.IntType(32)
_REALS = ir.VectorType(ir.FloatType(), LANES)
_INDICES = ir.VectorType(_I32, LANES)
_FARTHEST = 3e38


def _function(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Declare one of LLVM's intrinsic functions."""
    found: Any = cgutils.get_or_insert_function
    return found(builder.module, ir.FunctionType(result, list(arguments)), name)


def _splat(builder: Any, scalar: Any, vector: Any) -> Any:
    """Broadcast a scalar to all lanes."""
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_I32, vector.count), [0] * vector.count))


def _emit_two_nearest(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit the loops over groups of centroids and, inside, over dimensions."""
    points, centroids, candidates, out = (
        context.make_array(t)(context, builder, a).data for t, a in zip(signature.args[:4], args[:4], strict=True)
    )
    n_groups, d, relative, absolute = args[4:]
    fmuladd = _function(builder, f"llvm.fmuladd.v{LANES}f32", _REALS, _REALS, _REALS, _REALS)
    source = builder.bitcast(points, _REALS.as_pointer())
    target = builder.bitcast(out, _REALS.as_pointer())
    entry, append = builder.block, builder.function.append_basic_block
    group_head, dimension_head, group_tail, done = (append(n) for n in ("group", "dimension", "compare", "done"))
    builder.branch(group_head)

    builder.position_at_end(group_head)
    g, nearest, second, winner = (builder.phi(t) for t in (_I64, _REALS, _REALS, _INDICES))
    g.add_incoming(_I64(0), entry)
    nearest.add_incoming(ir.Constant(_REALS, [_FARTHEST] * LANES), entry)
    second.add_incoming(ir.Constant(_REALS, [_FARTHEST] * LANES), entry)
    winner.add_incoming(ir.Constant(_INDICES, [0] * LANES), entry)
    first = builder.gep(candidates, [builder.mul(g, _I64(GROUP))])
    indices = [builder.load(builder.gep(first, [_I64(a)])) for a in range(GROUP)]
    heads = [builder.gep(centroids, [builder.mul(builder.sext(j, _I64), d)]) for j in indices]
    builder.branch(dimension_head)

    builder.position_at_end(dimension_head)
    t = builder.phi(_I64)
    t.add_incoming(_I64(0), group_head)
    sums = [builder.phi(_REALS) for _ in range(GROUP)]
    x = builder.load(builder.gep(source, [t]), align=4)
    squares = []
    for head, total in zip(heads, sums, strict=True):
        difference = builder.fsub(x, _splat(builder, builder.load(builder.gep(head, [t])), _REALS))
        squares.append(builder.call(fmuladd, [difference, difference, total]))
        total.add_incoming(ir.Constant(_REALS, [0.0] * LANES), group_head)
        total.add_incoming(squares[-1], dimension_head)
    t_next = builder.add(t, _I64(1))
    t.add_incoming(t_next, dimension_head)
    builder.cbranch(builder.icmp_signed("<", t_next, d), dimension_head, group_tail)

    builder.position_at_end(group_tail)
    low, next_low, win = nearest, second, winner
    for j, square in zip(indices, squares, strict=True):
        closer = builder.fcmp_ordered("<", square, low)
        loser = builder.select(closer, low, square)
        next_low = builder.select(builder.fcmp_ordered("<", loser, next_low), loser, next_low)
        win = builder.select(closer, _splat(builder, j, _INDICES), win)
        low = builder.select(closer, square, low)
    g_next = builder.add(g, _I64(1))
    for phi, value in ((g, g_next), (nearest, low), (second, next_low), (winner, win)):
        phi.add_incoming(value, group_tail)
    builder.cbranch(builder.icmp_signed("<", g_next, n_groups), group_head, done)

    builder.position_at_end(done)
    root = _function(builder, f"llvm.sqrt.v{LANES}f32", _REALS, _REALS)
    near, far = builder.call(root, [low]), builder.call(root, [next_low])
    error = builder.fmul(builder.fadd(far, near), _splat(builder, relative, _REALS))
    error = builder.fadd(error, _splat(builder, absolute, _REALS))
    builder.store(builder.fsub(builder.fsub(far, near), error), target, align=4)
    builder.store(builder.bitcast(win, _REALS), builder.gep(target, [_I64(1)]), align=4)
    return context.get_dummy_value()


@intrinsic
def two_nearest(
    typing_context: Any,  # noqa: ARG001
    points: Any,
    centroids: Any,
    candidates: Any,
    out: Any,
    n_groups: Any,  # noqa: ARG001
    d: Any,  # noqa: ARG001
    relative: Any,  # noqa: ARG001
    absolute: Any,  # noqa: ARG001
) -> Any:
    """Find the nearest of some centroids for each lane's point, and its margin; the first one wins ties.

    Parameters
    ----------
    points
        IN (d, LANES) float32, d >= 1: one point per column.
    centroids
        IN (k + 1, d) float32; the last one is `PADDING`.
    candidates
        IN (at least n_groups * GROUP,) int32: indices of the centroids to compare, padded with k.
    out
        OUT (2, LANES) float32: margin, the distance to the second nearest minus that to the nearest and minus the
        rounding error, about 1e18 if there is no second centroid; and, as the bits of an int32, index of the nearest.
    n_groups
        Number of groups.
    d
        Number of dimensions.
    relative, absolute
        float32: the rounding error is `relative` times the sum of both distances, plus `absolute`.
    """
    return types.void(
        points, centroids, candidates, out, types.int64, types.int64, types.float32, types.float32
    ), _emit_two_nearest


def _emit_gather(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit a loop that transposes four columns of all lanes' rows at a time, in tiles of four by four."""
    rows, row_indices, block = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 1, 3)
    )
    first, d = args[2], args[4]
    four = ir.VectorType(ir.FloatType(), 4)
    heads = []
    for lane in range(LANES):
        row = builder.load(builder.gep(row_indices, [builder.add(first, _I64(lane))]))
        heads.append(builder.gep(rows, [builder.mul(builder.zext(row, _I64), d)]))

    def pick(a: Any, b: Any, *lanes: int) -> Any:
        return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))

    append = builder.function.append_basic_block
    whole = builder.and_(d, _I64(-4))
    entry, square, rest, single, done = (
        builder.block,
        append("square"),
        append("rest"),
        append("single"),
        append("done"),
    )
    builder.cbranch(builder.icmp_signed(">", whole, _I64(0)), square, rest)
    builder.position_at_end(square)
    t = builder.phi(_I64)
    t.add_incoming(_I64(0), entry)
    columns: list[list[Any]] = [[], [], [], []]
    for lane in range(0, LANES, 4):
        a, b, c, e = (
            builder.load(builder.bitcast(builder.gep(head, [t]), four.as_pointer()), align=4)
            for head in heads[lane : lane + 4]
        )
        low, high = (pick(a, b, 0, 4, 1, 5), pick(c, e, 0, 4, 1, 5)), (pick(a, b, 2, 6, 3, 7), pick(c, e, 2, 6, 3, 7))
        for i, (left, right) in enumerate((low, high)):
            columns[2 * i].append(pick(left, right, 0, 1, 4, 5))
            columns[2 * i + 1].append(pick(left, right, 2, 3, 6, 7))
    for i, parts in enumerate(columns):
        target = builder.gep(block, [builder.mul(builder.add(t, _I64(i)), _I64(LANES))])
        for q, part in enumerate(parts):
            at = builder.bitcast(builder.gep(target, [_I64(4 * q)]), four.as_pointer())
            builder.store(part, at, align=4)
    t_next = builder.add(t, _I64(4))
    t.add_incoming(t_next, square)
    builder.cbranch(builder.icmp_signed("<", t_next, whole), square, rest)
    builder.position_at_end(rest)
    builder.cbranch(builder.icmp_signed("<", whole, d), single, done)
    builder.position_at_end(single)
    s = builder.phi(_I64)
    s.add_incoming(whole, rest)
    target = builder.gep(block, [builder.mul(s, _I64(LANES))])
    for lane, head in enumerate(heads):
        builder.store(builder.load(builder.gep(head, [s])), builder.gep(target, [_I64(lane)]))
    s_next = builder.add(s, _I64(1))
    s.add_incoming(s_next, single)
    builder.cbranch(builder.icmp_signed("<", s_next, d), single, done)
    builder.position_at_end(done)
    return context.get_dummy_value()


@intrinsic
def gather(typing_context: Any, rows: Any, row_indices: Any, first: Any, block: Any, d: Any) -> Any:  # noqa: ARG001
    """Gather rows into lanes.

    Parameters
    ----------
    rows
        IN (n, d) float32.
    row_indices, first
        IN uint32: the rows are ``picked[first:first + LANES]``.
    block
        OUT (d, LANES) float32: one row per column.
    d
        Number of dimensions.
    """
    return types.void(rows, row_indices, types.int64, block, types.int64), _emit_gather


def _emit_changed_lanes(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit the loads of the labels of all lanes, and their comparison."""
    found, labels, row_indices = (
        context.make_array(signature.args[i])(context, builder, args[i]).data for i in range(3)
    )
    lanes = builder.bitcast(found, _REALS.as_pointer())
    margins = builder.load(lanes, align=4)
    winners = builder.bitcast(builder.load(builder.gep(lanes, [_I64(1)]), align=4), _INDICES)
    before = ir.Constant(_INDICES, ir.Undefined)
    for lane in range(LANES):
        row = builder.load(builder.gep(row_indices, [builder.add(args[3], _I64(lane))]))
        label = builder.load(builder.gep(labels, [builder.zext(row, _I64)]))
        before = builder.insert_element(before, label, _I32(lane))
    unsure = builder.fcmp_unordered("<=", margins, ir.Constant(_REALS, [0.0] * LANES))
    some = builder.or_(unsure, builder.icmp_signed("!=", winners, before))
    return builder.zext(builder.bitcast(some, ir.IntType(LANES)), _I64)


@intrinsic
def changed_lanes(typing_context: Any, found: Any, labels: Any, row_indices: Any, first: Any) -> Any:  # noqa: ARG001
    """Find the lanes whose label changed, or may have changed.

    Parameters
    ----------
    found
        IN (2, LANES) float32: from `two_nearest`.
    labels
        IN (n,) int32.
    row_indices, first
        IN uint32: the rows are ``picked[first:first + LANES]``.

    Returns
    -------
    int
        Bit p is set if the nearest centroid of lane p is not its row's label, or its margin is not positive.
    """
    return types.int64(found, labels, row_indices, types.int64), _emit_changed_lanes


def _emit_below(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit a comparison of 32 numbers with a scalar, into a mask of 32 bits."""
    data = context.make_array(signature.args[0])(context, builder, args[0]).data
    vector = ir.VectorType(ir.FloatType(), 32)
    at = builder.bitcast(builder.gep(data, [args[1]]), vector.as_pointer())
    less = builder.fcmp_ordered("<", builder.load(at, align=4), _splat(builder, args[2], vector))
    return builder.zext(builder.bitcast(less, _I32), _I64)


@intrinsic
def below(typing_context: Any, values: Any, start: Any, limit: Any) -> Any:  # noqa: ARG001
    """Find which of 32 numbers are below a limit.

    Parameters
    ----------
    values
        IN (n,) float32, n >= start + 32.
    start
        Index of the first number.
    limit
        float32.

    Returns
    -------
    int
        Bit q is set if ``values[start + q] < limit``.
    """
    return types.int64(values, types.int64, types.float32), _emit_below


def _emit_lowest_bit(context: Any, builder: Any, signature: Any, args: Any) -> Any:  # noqa: ARG001
    """Emit a count of trailing zeros."""
    cttz = _function(builder, "llvm.cttz.i64", _I64, _I64, ir.IntType(1))
    return builder.call(cttz, [args[0], ir.IntType(1)(1)])


@intrinsic
def lowest_bit(typing_context: Any, mask: Any) -> Any:  # noqa: ARG001
    """Find the position of the lowest set bit of a 64-bit mask that is not 0."""
    return types.int64(types.int64), _emit_lowest_bit


@jit()
def to_float32(centroids: NDArray[np.float64], centroids32: NDArray[np.float32]) -> None:
    """Round centroids to float32 for `two_nearest`.

    Parameters
    ----------
    centroids
        IN (k, d).
    centroids32
        OUT (k + 1, d).
    """
    k, d = centroids.shape
    for j in range(k):
        for t in range(d):
            centroids32[j, t] = centroids[j, t]
    for t in range(d):
        centroids32[k, t] = PADDING
