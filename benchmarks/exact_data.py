"""The data sets of ``benchmarks/exact.py``: real ones where they can be had, synthetic ones from fixed seeds."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float32]

SYNTHETIC = {
    "syn4": (1_000_000, 4, 50),
    "syn8": (300_000, 8, 64),
    "syn32": (100_000, 32, 100),
    "syn128": (60_000, 128, 100),
}
COVER = {"cover10": 10, "cover50": 50, "cover200": 200}
NAMES = (*COVER, "shuttle", "china", "digits", *SYNTHETIC)


def load(name: str, cover: Path | None) -> tuple[Points, int]:
    """Load a data set.

    Parameters
    ----------
    name
        One of `NAMES`.
    cover
        An npz file with an array ``X``: forest cover type, 286,048 x 10 (ADBench's ``10_cover.npz``).

    Returns
    -------
    tuple
        Points in float32, and k.
    """
    if name in COVER:
        if cover is None:
            raise FileNotFoundError("cover: give its file with --data or STREAMKM_DATA")
        with np.load(cover) as file:
            return np.ascontiguousarray(file["X"], np.float32), COVER[name]
    if name == "shuttle":
        import river.datasets

        path = Path(river.datasets.__file__).parent / "shuttle.csv.gz"
        with gzip.open(path, "rt") as lines:
            return np.loadtxt(lines, delimiter=",", skiprows=1, dtype=np.float32)[:, :9].copy(), 25
    if name == "china":
        from sklearn.datasets import load_sample_image

        return load_sample_image("china.jpg").reshape(-1, 3).astype(np.float32), 64
    if name == "digits":
        from sklearn.datasets import load_digits

        return load_digits().data.astype(np.float32), 10
    n, d, k = SYNTHETIC[name]
    rng = np.random.default_rng(d)
    centres = rng.uniform(-1.0, 1.0, (k, d))
    return (centres[rng.integers(0, k, n)] + rng.normal(0.0, 0.3, (n, d))).astype(np.float32), k


def start(points: Points, k: int) -> Points:
    """Draw k different points to start from, the same for every engine."""
    rng = np.random.default_rng(1)
    chosen: dict[bytes, int] = {}
    while len(chosen) < k:
        row = int(rng.integers(len(points)))
        chosen.setdefault(points[row].tobytes(), row)
    return points[list(chosen.values())].copy()
