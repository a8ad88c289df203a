"""SVG plots of a fit: points by cluster, and criteria over k."""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import SettingsError
from streamkm.palette import COLOURS

SAMPLE = 4000
"""Maximum number of points drawn: every n/4000th one."""
_SIDE, _LEFT, _TOP, _BOTTOM, _RIGHT = 360, 64, 34, 46, 18
_LINE_WIDTH, _LINE_HEIGHT = 640, 120
_FEW = 60
_MOST_NUMBERED = 40

Reals = NDArray[np.float64]


def sample_rows(n: int) -> NDArray[np.int64]:
    """Select up to `SAMPLE` of n rows, evenly: (m,) indices."""
    return np.unique(np.linspace(0, max(0, n - 1), min(n, SAMPLE)).round().astype(np.int64))


def check_pairs(pairs: Sequence[str], fields: Sequence[str]) -> None:
    """Check the fields to draw in pairs, before a long fit.

    Raises
    ------
    SettingsError
        A field is unknown, or there is only one.
    """
    unknown = [name for name in pairs if name not in fields]
    if unknown or len(pairs) == 1:
        message = f"{', '.join(unknown)} is none of {', '.join(fields)}" if unknown else "a pair needs two fields"
        raise SettingsError(message, where="--plot-fields")


def plot_points(
    points: Reals,
    labels: NDArray[np.int32],
    centroids: Reals,
    fields: Sequence[str],
    *,
    pairs: Sequence[str] = (),
    next_centroids: Reals | None = None,
    title: str = "",
) -> str:
    """Plot points and centroids, each cluster in a colour, and beyond eight clusters in another shape.

    One field is plotted as a line, two as a plane, more as their first two principal components.

    Parameters
    ----------
    points
        (m, d) points to draw.
    labels
        (m,) cluster of each point.
    centroids
        (k, d).
    fields
        Names of the d columns.
    pairs
        Two or more fields: every pair of them is plotted instead, in its own panel.
    next_centroids
        (k, d) the centroids of the next iteration; None for none.
    title
        Title of the plot.

    Raises
    ------
    SettingsError
        `pairs` has an unknown field, or only one.
    """
    check_pairs(pairs, fields)
    everything = [points, centroids, centroids if next_centroids is None else next_centroids]
    panels: list[str] = []
    if pairs:
        for a, b in itertools.combinations(pairs, 2):
            chosen = [list(fields).index(a), list(fields).index(b)]
            panels.append(_panel([x[:, chosen] for x in everything], labels, (a, b)))
    elif len(fields) == 1:
        flat = [np.column_stack([x[:, 0], np.zeros(len(x))]) for x in everything]
        if len(points) > _FEW:  # many points on one line are spread vertically to be distinguishable
            flat[0][:, 1] = np.arange(len(points)) * 0.618034 % 1.0 * 2.0 - 1.0
        panels.append(_panel(flat, labels, fields))
    elif len(fields) == 2:
        panels.append(_panel(everything, labels, fields))
    else:
        mean = points.mean(axis=0)
        _, sizes, axes = np.linalg.svd(points - mean, full_matrices=False)
        shares = sizes**2 / max(float((sizes**2).sum()), 1e-300)
        axes = axes[:2] * np.where(axes[:2].sum(axis=1) < 0.0, -1.0, 1.0)[:, np.newaxis]  # a deterministic sign
        if len(axes) < 2:
            axes, shares = np.vstack([axes, np.zeros_like(axes)]), np.append(shares, 0.0)
        names = [f"principal component {i + 1} ({shares[i]:.0%} of the variance)" for i in range(2)]
        panels.append(_panel([(x - mean) @ axes.T for x in everything], labels, names))
    size = (_LINE_WIDTH, _LINE_HEIGHT) if len(fields) == 1 else (_SIDE, _SIDE)
    return _document(panels, title, *size)


def plot_k_range(
    ks: Sequence[int], curves: Sequence[tuple[str, Sequence[float]]], suggested: int | None, title: str
) -> str:
    """Plot criteria over k, one panel each, with the suggested k marked.

    Parameters
    ----------
    ks
        Values of k, ascending.
    curves
        Name and values of each criterion; values that are not finite leave a gap.
    suggested
        k to mark, if it is one of `ks`.
    title
        Title of the plot.
    """
    panels = []
    for i, (name, values) in enumerate(curves):
        known = [(float(k), float(v)) for k, v in zip(ks, values, strict=True) if math.isfinite(v)]
        axes = _Axes(np.array(known or [(0.0, 0.0)]), ("k", name), _SIDE, _SIDE)
        at = [axes.place(k, v) for k, v in known]
        colour = COLOURS[i % len(COLOURS)]
        line = f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}" fill="none" stroke="{colour}"/>'
        dots = "".join(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{5 if k == suggested else 2.5}" fill="{colour}"/>'
            for (x, y), (k, _) in zip(at, known, strict=True)
        )
        x = axes.place(float(suggested or 0), 0.0)[0]
        mark = f'<path d="M{x:.1f} {_TOP}V{_TOP + _SIDE}" stroke="#999" stroke-dasharray="4 4"/>'
        panels.append(axes.svg + (mark if suggested in ks else "") + line + dots)
    return _document(panels, title, _SIDE, _SIDE)


class _Axes:
    """A frame with ticks for a range of points."""

    def __init__(self, points: Reals, names: Sequence[str], width: float, height: float) -> None:
        low, high = points.min(axis=0), points.max(axis=0)
        margin = np.where(high > low, (high - low) * 0.05, np.maximum(np.abs(high) * 0.05, 0.5))
        self._low, self._span = low - margin, high - low + 2 * margin
        self._width, self._height = width, height
        out = [f'<rect x="{_LEFT}" y="{_TOP}" width="{width}" height="{height}" fill="none" stroke="#bbb"/>']
        for value in _ticks(float(self._low[0]), float(self._low[0] + self._span[0])):
            x = self.place(value, 0.0)[0]
            out.append(f'<path d="M{x:.1f} {_TOP + height}v4" stroke="#666"/>')
            out.append(f'<text x="{x:.1f}" y="{_TOP + height + 16}" text-anchor="middle">{value:.6g}</text>')
        out.append(
            f'<text x="{_LEFT + width / 2}" y="{_TOP + height + 34}" text-anchor="middle">{_plain(names[0])}</text>'
        )
        for value in _ticks(float(self._low[1]), float(self._low[1] + self._span[1])) if len(names) > 1 else ():
            y = self.place(0.0, value)[1]
            out.append(f'<path d="M{_LEFT} {y:.1f}h-4" stroke="#666"/>')
            out.append(f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>')
        if len(names) > 1:
            out.append(f'<text x="{_LEFT}" y="{_TOP - 8}">{_plain(names[1])}</text>')
        self.svg = "".join(out)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixel coordinates of a point."""
        right, up = (x - self._low[0]) / self._span[0], (y - self._low[1]) / self._span[1]
        return float(_LEFT + right * self._width), float(_TOP + (1.0 - up) * self._height)


def _panel(everything: Sequence[Reals], labels: NDArray[np.int32], names: Sequence[str]) -> str:
    """Draw points, centroids, and next centroids in two dimensions."""
    points, centroids, next_centroids = everything
    flat = len(names) == 1
    width, height = (_LINE_WIDTH, _LINE_HEIGHT) if flat else (_SIDE, _SIDE)
    axes = _Axes(np.vstack(everything), names, width, height)
    size = 9 if len(points) <= _FEW else 4
    dots, marks = [], []
    for j, (centroid, target) in enumerate(zip(centroids.tolist(), next_centroids.tolist(), strict=True)):
        round_ = j // 8 % 2 == 0
        look = f'stroke="{COLOURS[j % 8]}" stroke-linecap="{"round" if round_ else "square"}"'
        at = [axes.place(x, y) for x, y in points[labels == j].tolist()]
        if at:
            dots.append(f'<path d="{"".join(f"M{x:.1f} {y:.1f}h.01" for x, y in at)}" stroke-width="{size}" {look}/>')
        (x, y), (to_x, to_y) = axes.place(*centroid), axes.place(*target)
        if flat and len(points) <= _FEW // 2:
            values = points[labels == j, 0].tolist()
            marks += [
                f'<text x="{px:.1f}" y="{py + 20:.1f}" text-anchor="middle" font-size="9">{value:g}</text>'
                for (px, py), value in zip(at, values, strict=True)
            ]
        if flat:
            y = to_y = _TOP + 20.0
            marks.append(f'<path d="M{x:.1f} {y}V{_TOP + height}" stroke-width="2" {look}/>')
        if centroid != target:
            marks.append(f'<path d="M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}" stroke="#000" stroke-dasharray="3 3"/>')
            marks.append(f'<circle cx="{to_x:.1f}" cy="{to_y:.1f}" r="7" fill="#fff" stroke="#000"/>')
        shape = f'rect x="{x - 7:.1f}" y="{y - 7:.1f}" width="14" height="14" rx="{7 if round_ else 2}"'
        marks.append(f'<{shape} fill="{COLOURS[j % 8]}" stroke="#000" stroke-width="1.5"/>')
        if len(centroids) <= _MOST_NUMBERED:
            halo = 'font-weight="bold" fill="#fff" stroke="#000" stroke-width="2" paint-order="stroke"'
            marks.append(f'<text x="{x:.1f}" y="{y + 4:.1f}" text-anchor="middle" {halo}>{j}</text>')
    return f'{axes.svg}<g opacity="0.75">{"".join(dots)}</g>{"".join(marks)}'


def _document(panels: Sequence[str], title: str, width: int, height: int) -> str:
    columns = min(len(panels), 2 if len(panels) < 5 else 3)
    wide, high = _LEFT + width + _RIGHT, _TOP + height + _BOTTOM
    rows = -(-len(panels) // columns)
    head = 26 if title else 0
    placed = [
        f'<g transform="translate({i % columns * wide},{head + i // columns * high})">{panel}</g>'
        for i, panel in enumerate(panels)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {columns * wide} {head + rows * high}" '
        f'width="{columns * wide}" font-family="sans-serif" font-size="11" fill="#222">'
        f'<title>{_plain(title)}</title><rect width="100%" height="100%" fill="#fff"/>'
        + (f'<text x="{_LEFT}" y="20" font-size="14">{_plain(title)}</text>' if title else "")
        + "\n".join(placed)
        + "</svg>\n"
    )


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers in a range."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
    first = math.ceil(low / step)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, math.floor(high / step) + 1)]


def _plain(text: str) -> str:
    """Text for SVG, without control characters."""
    return html.escape("".join(c if c.isprintable() else " " for c in text))
