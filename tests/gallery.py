"""Models in all states in which a page may meet them, made without a broker; `write` puts them into a store."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace

import numpy as np

from service_api import SPEC, Writer
from streamkm import OnlineKMeans
from streamkm.stores import open_store

COUNT, EVERY, STOPPAGE = 12, 10.0, 600.0
"""Snapshots, seconds between them, and of a stoppage in the middle."""
CITIES = np.array([[52.5, 13.4], [48.1, 11.6], [53.6, 10.0], [50.9, 7.0], [50.1, 8.7]])
CENTRES = 8.0 * np.random.default_rng(4).normal(size=(6, 2))


def cities(rng, n):
    """Five cities, and amounts with a long tail that tell none of them."""
    return np.column_stack(
        [rng.lognormal(3.0, 1.2, n) / 100, CITIES[rng.integers(0, 5, n)] + rng.normal(0, 0.1, (n, 2))]
    )


def wide(rng, n):
    """Forty fields, two of which tell six clusters apart; one never changes."""
    points = rng.normal(size=(n, 40))
    points[:, 11], points[:, 29] = (CENTRES[rng.integers(0, 6, n)] + rng.normal(size=(n, 2))).T
    points[:, 3] = 0.1
    return points


def square(rng, n):
    """Four clusters as the corners of a square: no component is larger than the other."""
    return 10.0 * rng.choice([-1.0, 1.0], (n, 2)) + rng.normal(size=(n, 2))


def write(url):
    """Put the models into the store: fresh, dead, old, and stopped ones with a history."""
    now = time.time()
    with contextlib.closing(open_store(url)) as store:
        Writer(store, replace(SPEC, name="fresh"))
        Writer(store, replace(SPEC, name="dead"), now=now - 900).commit(points=100, at=now - 900, centroids=None)
        Writer(store, replace(SPEC, name="old"), now=now - 900).commit(at=now - 900, recent=np.zeros((5, 3)))
        for name, fields, k, make in (
            ("cities", ("amount", "lat", "lon"), 5, cities),
            ("square", ("x", "y"), 4, square),
            ("wide", tuple(f"sensor.{i}.value" for i in range(40)), 6, wide),
        ):
            writer = Writer(store, replace(SPEC, name=name, fields=fields), created_at=now - 2000, now=now - 900)
            model, rng = OnlineKMeans(k, seed=1), np.random.default_rng(0)
            for i in range(COUNT):
                points = make(rng, 2000)
                model.learn_many(points)
                p = model.publish()
                writer.commit(
                    points=2000,
                    at=now - 900 - STOPPAGE * (i < COUNT // 2) - EVERY * (COUNT - i),
                    centroids=p.centroids,
                    weights=p.weights,
                    deviations=p.deviations,
                    detail={"k": {"running": k, **model.k_profile(8).to_json()}} if i == COUNT - 1 else None,
                    recent=points[:300],
                )
