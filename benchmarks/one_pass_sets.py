"""Data sets of `one_pass.py`: real ones in the order of their file, and made ones: drifting, lopsided, ordered."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float64]


class Case(NamedTuple):
    """A data set, and the numbers of clusters to make of it."""

    name: str
    ks: tuple[int, ...]
    load: Callable[[], Rows]


def standardised(X: Rows) -> Rows:
    deviation = X.std(axis=0)
    deviation[deviation == 0.0] = 1.0
    return (X - X.mean(axis=0)) / deviation


def shuttle() -> Rows:
    """NASA shuttle sensors, from river's wheel."""
    import river.datasets

    path = Path(river.datasets.__file__).with_name("shuttle.csv.gz")
    with gzip.open(path, "rt") as file:
        rows = list(csv.reader(file))
    numbers = [r for r in rows if r[0].lstrip("-").replace(".", "", 1).isdigit()]
    return np.array(numbers, np.float64)[:, :9]


def china() -> Rows:
    """Pixels of scikit-learn's photograph, line by line."""
    from sklearn.datasets import load_sample_image

    return load_sample_image("china.jpg").reshape(-1, 3).astype(np.float64)


def weather(folder: Path) -> Rows:
    """Hourly weather at New York's airports; standardised, hours with missing values left out."""
    columns = ("temp", "dewp", "humid", "wind_dir", "wind_speed", "precip", "pressure", "visib")
    with (folder / "nyc_weather.csv").open() as file:
        rows = [[r[c] for c in columns] for r in csv.DictReader(file)]
    return standardised(np.array([r for r in rows if "NA" not in r], np.float64))


def cover(folder: Path) -> Rows:
    with np.load(folder / "10_cover.npz") as file:
        return file["X"].astype(np.float64)


def drifting() -> Rows:
    """Twelve clusters that wander, five deviations from one end of the stream to the other."""
    rng = np.random.default_rng(1)
    n, d, k = 200_000, 6, 12
    centres, ways = rng.normal(0, 5, (k, d)), rng.normal(0, 2, (k, d))
    labels = rng.integers(0, k, n)
    return centres[labels] + ways[labels] * np.linspace(0, 1, n)[:, np.newaxis] + rng.normal(size=(n, d))


def lopsided() -> Rows:
    """Twenty clusters, from a third of the points down to one in ten thousand."""
    rng = np.random.default_rng(2)
    n, d, k = 200_000, 8, 20
    shares = 0.62 ** np.arange(k)
    labels = rng.choice(k, n, p=shares / shares.sum())
    return rng.normal(0, 8, (k, d))[labels] + rng.normal(size=(n, d)) * rng.uniform(0.3, 2, k)[labels, np.newaxis]


def ordered() -> Rows:
    """Sixteen clusters, one after the other."""
    rng = np.random.default_rng(3)
    n, d, k = 160_000, 5, 16
    labels = np.sort(rng.integers(0, k, n))
    return rng.normal(0, 6, (k, d))[labels] + rng.normal(size=(n, d))


def cases(folder: Path | None) -> Iterator[Case]:
    """All there are; those that need files only with a folder that has them."""
    if folder is not None and (folder / "10_cover.npz").exists():
        yield Case("cover", (10, 30, 100), lambda: cover(folder))
    yield Case("shuttle-std", (7, 25), lambda: standardised(shuttle()))
    yield Case("shuttle-raw", (7, 25), shuttle)
    yield Case("china", (16, 64), china)
    if folder is not None and (folder / "nyc_weather.csv").exists():
        yield Case("weather", (12,), lambda: weather(folder))
    yield Case("drifting", (12,), drifting)
    yield Case("lopsided", (20,), lopsided)
    yield Case("ordered", (16,), ordered)
