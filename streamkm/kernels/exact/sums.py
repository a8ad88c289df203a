"""Exact sums of points, which do not depend on the order of summation.

A coordinate, scaled to [-1, 1] by the origin and a power of two, is split into two integers of 31 bits (62 bits below
the largest coordinate: finer than float64 unless a coordinate is 2**9 times smaller). Integers are added without
rounding, so a sum depends only on its set of points: not on threads, chunks, the order of rows, or on points that were
added and removed before. `streamkm.models.exact.core` says what follows from it.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numpy.typing import NDArray

from streamkm.kernels._jit import intrinsic, jit

Real = NDArray[np.float32] | NDArray[np.float64]

LIMB = 2.0**31
"""Base of the limbs of exact sums."""

ROUND = 1.5 * 2.0**52  # adding it leaves a rounded integer in the low bits of the sum, a conversion available in SIMD
ROUND_BITS = np.int64(np.float64(ROUND).view(np.int64))


class Frame(NamedTuple):
    """The coordinates in which points are compared and summed: what all parts of the data must share.

    Attributes
    ----------
    origin
        (d,) float64, in the unit of the points.
    scale
        Power of two, so that ``(raw - origin) * scale`` is at most 1 in absolute value for every point.
    unit
        Power of two: working coordinates, in which points are compared in float32, are ``(raw - origin) * unit``. It is
        `scale`, or 1 if raw coordinates are accurate enough.
    extent
        Largest norm of a point, in working coordinates.
    weight_unit
        Unit of summed weights, so that ``weight / weight_unit`` is at most 1: a power of two, or the weight that all
        points have.
    """

    origin: NDArray[np.float64]
    scale: float
    unit: float
    extent: float
    weight_unit: float


class Sums(NamedTuple):
    """Exact sums and counts of clusters, in parts that are added to independently: by threads, chunks or machines.

    Attributes
    ----------
    limbs
        (parts, k, 2, d + 1) int64: high and low limbs of the sums of ``weight * (raw - origin) * scale`` over the rows
        of each cluster, by dimension, and of their weights last, in units of the `Frame`. The sum is
        ``(high + low / LIMB) / LIMB``.
    counts
        (parts, k) int64: number of rows of positive weight.
    """

    limbs: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def zeros(cls, parts: int, k: int, d: int) -> Self:
        """Make sums of nothing.

        Parameters
        ----------
        parts
            Number of parts.
        k, d
            Clusters and dimensions; 0 clusters to compute no sums.
        """
        return cls(np.zeros((parts, k, 2, d + 1), np.int64), np.zeros((parts, k), np.int64))

    @property
    def total(self) -> Self:
        """The sums over all parts, as a single part."""
        return type(self)(self.limbs.sum(axis=0, keepdims=True), self.counts.sum(axis=0, keepdims=True))

    @property
    def values(self) -> NDArray[np.float64]:
        """(k, d+1) float64: the sums over all parts, rounded; in units of the `Frame`, weights last."""
        limbs = self.limbs.sum(axis=0)
        found: NDArray[np.float64] = (limbs[:, 0] + limbs[:, 1] / LIMB) / LIMB
        return found


_I64 = ir.IntType(64)
_VECTOR_LENGTH = 4
"""Coordinates that are added as one SIMD vector."""


def _emit_add_limbs(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit a loop over four coordinates at a time, and one over the rest; LLVM's own loop takes sixteen, too many here.

    The operations must not be reassociated, so they have no such flag.
    """
    raws, origins, totals = (context.make_array(signature.args[i])(context, builder, args[i]) for i in (0, 2, 4))
    row, factor, j = args[1], args[3], args[5]
    number = context.get_data_type(signature.args[0].dtype)
    d = builder.extract_value(raws.shape, 1)
    source = builder.gep(raws.data, [builder.mul(row, d)])
    width = builder.add(d, _I64(1))
    high = builder.gep(totals.data, [builder.mul(builder.mul(j, _I64(2)), width)])
    low = builder.gep(high, [width])

    def some(t: Any, count: int) -> None:
        """Add coordinates from t on."""
        reals, bits = ir.VectorType(ir.DoubleType(), count), ir.VectorType(_I64, count)

        def of(array: Any, kind: Any) -> Any:
            return builder.bitcast(builder.gep(array, [t]), ir.VectorType(kind, count).as_pointer())

        def all_are(value: Any) -> Any:
            lanes = ir.Constant(reals, ir.Undefined)
            for lane in range(count):
                lanes = builder.insert_element(lanes, value, _I64(lane))
            return lanes

        x = builder.load(of(source, number), align=4)
        x = x if number == ir.DoubleType() else builder.fpext(x, reals)
        unit, round_, bits_of_round = (
            ir.Constant(kind, [value] * count)
            for kind, value in ((reals, LIMB), (reals, ROUND), (bits, int(ROUND_BITS)))
        )
        value = builder.fmul(builder.fsub(x, builder.load(of(origins.data, ir.DoubleType()), align=8)), all_are(factor))
        shifted = builder.fadd(value, round_)
        rest = builder.fsub(value, builder.fsub(shifted, round_))
        rest = builder.fadd(builder.fmul(rest, unit), round_)
        for target, limb in ((high, shifted), (low, rest)):
            at = of(target, _I64)
            whole = builder.sub(builder.bitcast(limb, bits), bits_of_round)
            builder.store(builder.add(builder.load(at, align=8), whole), at, align=8)

    append = builder.function.append_basic_block
    entry, fours, rest, ones, done = builder.block, append("fours"), append("rest"), append("ones"), append("done")
    whole = builder.and_(d, _I64(-_VECTOR_LENGTH))
    builder.cbranch(builder.icmp_signed(">", whole, _I64(0)), fours, rest)
    for block, before, first, step, limit, after in (
        (fours, entry, _I64(0), _VECTOR_LENGTH, whole, rest),
        (ones, rest, whole, 1, d, done),
    ):
        builder.position_at_end(block)
        t = builder.phi(_I64)
        t.add_incoming(first, before)
        some(t, step)
        following = builder.add(t, _I64(step))
        t.add_incoming(following, block)
        builder.cbranch(builder.icmp_signed("<", following, limit), block, after)
    builder.position_at_end(rest)
    builder.cbranch(builder.icmp_signed("<", whole, d), ones, done)
    builder.position_at_end(done)
    return context.get_dummy_value()


@intrinsic
def _add_limbs(
    typing_context: Any,  # noqa: ARG001
    raw: Any,
    row: Any,  # noqa: ARG001
    origin: Any,
    factor: Any,  # noqa: ARG001
    limbs: Any,
    j: Any,  # noqa: ARG001
) -> Any:
    """Add the coordinates of a row to the sum of a cluster.

    Parameters
    ----------
    raw, row, origin, limbs, j
        As in `add_row`; contiguous.
    factor
        A coordinate is added as ``(raw - origin) * factor``, at most 2**31 in absolute value.
    """
    return types.void(raw, types.int64, origin, types.float64, limbs, types.int64), _emit_add_limbs


@jit(inline=True)
def add_row(
    raw: Real,
    row: int,
    origin: NDArray[np.float64],
    factor: float,
    weight: float,
    limbs: NDArray[np.int64],
    j: int,
) -> None:
    """Add one weighted row to the sum of a cluster.

    Parameters
    ----------
    raw
        IN (n, d).
    row
        Index of the row.
    origin
        IN (d,).
    factor
        Power of two times `weight`: a coordinate is added as ``(raw - origin) * factor``, at most 1 in absolute value.
    weight
        At most 1; negative to remove the row.
    limbs
        INOUT (k, 2, d + 1): one part of `Sums.limbs`.
    j
        Index of the cluster.
    """
    d = raw.shape[1]
    _add_limbs(raw, row, origin, factor * LIMB, limbs, j)
    weight *= LIMB
    shifted = weight + ROUND
    rest = (weight - (shifted - ROUND)) * LIMB + ROUND
    limbs[j, 0, d] += np.float64(shifted).view(np.int64) - ROUND_BITS
    limbs[j, 1, d] += np.float64(rest).view(np.int64) - ROUND_BITS


@jit()
def move_centroids(
    sums: Sums,
    frame: Frame,
    raw_centroids: NDArray[np.float64],
    centroids: NDArray[np.float64],
    drift: NDArray[np.float64],
    may_stay: bool,
) -> float:
    """Move each centroid to the mean of its points; centroids without points stay.

    Parameters
    ----------
    sums
        IN: `Sums` of all points.
    frame
        IN: the `Frame` of the sums.
    raw_centroids
        INOUT (k, d), raw units.
    centroids
        INOUT (k, d): the centroids in working coordinates.
    drift
        OUT (k,): upper bounds of the lengths of the moves, in working coordinates.
    may_stay
        Whether to continue although a centroid has no points.

    Returns
    -------
    float
        The largest move in raw coordinates; -1 if a centroid has no points and may not stay (then nothing moved).
    """
    limbs, counts = sums
    origin, scale, unit, _, _ = frame
    parts, k = counts.shape
    d = centroids.shape[1]
    if not may_stay:
        for j in range(k):
            points = 0
            for part in range(parts):
                points += counts[part, j]
            if points == 0:
                return -1.0
    largest = 0.0
    reach = 0.0
    for j in range(k):
        norm = 0.0
        for t in range(d):
            norm += centroids[j, t] * centroids[j, t]
        reach = max(reach, norm)
    blur = 4e-16 * np.sqrt(reach)  # working centroids are rounded images of the raw ones
    for j in range(k):
        points = 0
        weight_high = np.int64(0)
        weight_low = np.int64(0)
        for part in range(parts):
            points += counts[part, j]
            weight_high += limbs[part, j, 0, d]
            weight_low += limbs[part, j, 1, d]
        weight = weight_high + weight_low / LIMB
        drift[j] = 0.0
        if points <= 0 or weight <= 0.0:
            continue
        squared = 0.0
        squared_raw = 0.0
        for t in range(d):
            high = np.int64(0)
            low = np.int64(0)
            for part in range(parts):
                high += limbs[part, j, 0, t]
                low += limbs[part, j, 1, t]
            mean = origin[t] + (high + low / LIMB) / weight / scale
            step = mean - raw_centroids[j, t]
            squared_raw += step * scale * (step * scale)
            raw_centroids[j, t] = mean
            image = (mean - origin[t]) * unit
            squared += (image - centroids[j, t]) ** 2
            centroids[j, t] = image
        if squared > 0.0 or squared_raw > 0.0:
            drift[j] = np.sqrt(squared) * (1.0 + 1e-12) + blur
        largest = max(largest, np.sqrt(squared_raw) / scale)
    return largest


@jit()
def add_moves(drift: NDArray[np.float64], moved: NDArray[np.float64]) -> None:
    """Accumulate bounds of the decrease of margins.

    Parameters
    ----------
    drift
        IN (k,): length of each centroid's last move.
    moved
        INOUT (k + 1,): for each centroid, accumulated moves of it and of the farthest-moving other one; last, of any
        two centroids.
    """
    k = len(drift)
    farthest = 0
    for j in range(k):
        if drift[j] > drift[farthest]:
            farthest = j
    most = drift[farthest]
    next_most = 0.0
    for j in range(k):
        if j != farthest:
            next_most = max(next_most, drift[j])
    for j in range(k):
        moved[j] += drift[j] + (next_most if j == farthest else most)
    moved[k] += (most + next_most) * (1 + 1e-12)
