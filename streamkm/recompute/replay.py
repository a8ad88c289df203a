"""The exact algorithm over a range of a topic: read, fit, match with the live clusters, and store the result."""

from __future__ import annotations

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm import private_files
from streamkm.errors import DataError, SettingsError
from streamkm.models import Coreset
from streamkm.models.id_matching import inherit_ids
from streamkm.models.spec import learner_from_snapshot
from streamkm.models.weighted_rows import nearest, overlap
from streamkm.recompute.archive import Archive, lost_offsets, part_counts
from streamkm.recompute.fitting import FitProgress, FitResult, fit_points
from streamkm.recompute.pointfile import PointFile, atomic_write
from streamkm.recompute.span import OffsetSpan
from streamkm.records import TopicPartition
from streamkm.state import Json, ModelSpec, Snapshot
from streamkm.stores.base import ModelStore

BLOCK = 1 << 16
"""Rows processed at a time."""


@dataclass(frozen=True)
class ReplayFit:
    """Settings of the fit; see `fit_points`.

    Attributes
    ----------
    k
        Number of clusters.
    init
        ``k-means++``, ``k-means||``, ``random``, ``live`` (the newest snapshot) or ``snapshot:N``.
    n_init, max_iter, tol, seed
        As in `fit_points`.
    """

    k: int
    init: str
    n_init: int
    max_iter: int
    tol: float
    seed: int


class WorkFolder:
    """Folder of a replay that can be resumed after a kill: its plan, points and checkpoint.

    Parameters
    ----------
    folder
        Created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        private_files.make_folder(folder)

    def load_or_create_plan(self, arguments: Json, resolve_span: Callable[[], OffsetSpan]) -> tuple[OffsetSpan, bool]:
        """The span of an interrupted replay with the same arguments and True, or a new span and False.

        Parameters
        ----------
        arguments
            Arguments of the replay, as JSON values.
        resolve_span
            Creates a new span.
        """
        plan = self.folder / "plan.json"
        if plan.exists():
            stored = json.loads(plan.read_text())
            if stored["asked"] == json.loads(json.dumps(arguments)):
                return OffsetSpan(
                    *({TopicPartition(*key): at for *key, at in stored[name]} for name in ("start", "stop"))
                ), True
            self.clear()
        private_files.make_folder(self.folder)
        span = resolve_span()
        content = {"asked": arguments} | {
            name: [[*tp, at] for tp, at in sorted(getattr(span, name).items())] for name in ("start", "stop")
        }
        with atomic_write(plan) as file:
            file.write(json.dumps(content).encode())
        return span, False

    @property
    def points(self) -> Path:
        """File of points."""
        return self.folder / "points"

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the fit."""
        return self.folder / "fit"

    def clear(self) -> None:
        """Remove the files of replays except an archive; other files, and then the folder, are kept."""
        for name in ("plan.json", "points", "fit"):
            for path in (self.folder / name, *self.folder.glob(f".{name}.*")):
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def collect(archive: Archive, span: OffsetSpan, work: WorkFolder, factors: NDArray[np.float64]) -> PointFile:
    """Scaled points of a span as one file; the file of an interrupted replay is used if it is complete.

    Parameters
    ----------
    archive
        Archive that has the span.
    span
        Offsets of the points.
    work
        Folder of the file.
    factors
        (d,) factors that the points are multiplied by.

    Raises
    ------
    DataError
        There are no points.
    """
    if work.points.exists():
        return PointFile.open(work.points)
    fields = tuple(archive.contents["fields"])
    with PointFile.create(work.points, fields, np.float64) as points:
        for rows in archive.points(span):
            points.append(rows * factors)
        if not len(points):
            raise DataError("the range has no points", where=str(archive.folder))
        points.finish()
    return PointFile.open(work.points)


def initial_centroids(choice: ReplayFit, store: ModelStore, model: str, factors: NDArray[np.float64]) -> Any:
    """Method, or (k, d) centroids scaled by (d,) factors, to start from.

    Raises
    ------
    SettingsError
        The snapshot has another k.
    """
    kind, _, number = choice.init.partition(":")
    if kind not in ("live", "snapshot"):
        return choice.init
    s = store.snapshot(model, int(number) if kind == "snapshot" else None)
    if len(s.ids) != choice.k:
        raise SettingsError(f"snapshot {s.id} has {len(s.ids)} clusters, not {choice.k}", where="--init")
    return s.centroids * factors


def recompute(
    store: ModelStore,
    spec: ModelSpec,
    span: OffsetSpan,
    archive: Archive,
    work: WorkFolder,
    choice: ReplayFit,
    *,
    memory: int | None = None,
    threads: int | None = None,
    trace: bool = False,
    on_progress: Callable[[FitProgress], None] | None = None,
    now: Callable[[], float] = time.time,
) -> int:
    """Fit the points of a span, and store the result as a snapshot of kind ``replay`` from which learning can continue.

    A cluster gets the id of a cluster of the newest snapshot in charge if they share at least half of the points of the
    smaller one; other clusters get new ids.

    Parameters
    ----------
    store
        Store of the model.
    spec
        Specification of the model.
    span
        Offsets to fit.
    archive
        Archive that has the span.
    work
        Folder of the replay.
    choice
        Settings of the fit.
    memory, threads, trace, on_progress
        As in `fit_points`.
    now
        Returns the time since the epoch, s.

    Returns
    -------
    int
        Number of the snapshot.

    Raises
    ------
    SettingsError
        The model's distance is not Euclidean.
    """
    if spec.learner.get("distance", "euclidean") != "euclidean":
        raise SettingsError("only models with Euclidean distance can be recomputed", where=f"model {spec.name}")
    live = store.snapshot(spec.name) if store.model(spec.name).last_snapshot else None
    factors = np.ones(len(spec.fields)) if live is None else live.factors
    points = collect(archive, span, work, factors)
    fitted = fit_points(
        points,
        n_clusters=choice.k,
        init=initial_centroids(choice, store, spec.name, factors),
        n_init=choice.n_init,
        max_iter=choice.max_iter,
        tol=choice.tol,
        seed=choice.seed,
        memory=memory,
        n_threads=threads,
        trace=trace,
        on_progress=on_progress,
        checkpoint=work.checkpoint,
    )
    ids, live_cost = _ids(points, fitted, live, factors)
    counts = part_counts(archive, span)
    detail = {
        "span": {str(tp): [at, span.stop[tp]] for tp, at in span.start.items()},
        "settings": asdict(choice),
        "cost": fitted.inertia,
        "live": None if live is None else {"snapshot": live.id, "cost": live_cost},
        "iterations": fitted.n_iter,
        "stopped": fitted.stopped,
        "trace": [{"inertia": i.inertia, "moved": i.moved} for i in fitted.trace],
        "counts": counts,
        "lost": lost_offsets(archive, span),
        "versions": {name: version(name) for name in ("streamkm", "numpy", "numba")}
        | {"python": platform.python_version()},
    }
    n = len(points)
    snapshot = Snapshot(
        model=spec.name,
        created_at=now(),
        kind="replay",
        reason="replay",
        fields=spec.fields,
        ids=ids,
        centroids=fitted.centroids / factors,
        weights=fitted.sizes.astype(np.float64),
        spreads=fitted.spreads,
        deviations=fitted.deviations() / factors,
        born=_born(ids, live, n),
        factors=factors,
        distance="euclidean",
        inertia=fitted.inertia / n,
        n_points=n,
        position=dict(span.stop),
        detail=detail,
    )
    rows, weights = _coreset(points, choice, factors)
    learner = learner_from_snapshot(spec, snapshot, rows, weights, counts["newest"])
    return store.add_snapshot(snapshot, learner.state())


def _blocks(points: PointFile) -> Iterator[tuple[int, NDArray[Any]]]:
    for at in range(0, len(points), BLOCK):
        yield at, points.rows(at, min(at + BLOCK, len(points)))


def _ids(
    points: PointFile, fitted: FitResult, live: Snapshot | None, factors: NDArray[np.float64]
) -> tuple[NDArray[np.int64], float | None]:
    """Ids of the new clusters, and the cost of the live centroids on the same points."""
    k = len(fitted.centroids)
    if live is None:
        return np.arange(k, dtype=np.int64), None
    common, cost = np.zeros((len(live.ids), k)), 0.0
    for at, rows in _blocks(points):
        own, squared = nearest(rows, live.centroids * factors)
        common += overlap(own, fitted.labels(at, at + len(rows)), np.ones(len(rows)), common.shape)
        cost += float(squared.sum())
    return inherit_ids(live.ids, common), cost


def _born(ids: NDArray[np.int64], live: Snapshot | None, n: int) -> NDArray[np.int64]:
    known = {} if live is None else dict(zip(live.ids.tolist(), live.born.tolist(), strict=True))
    return np.array([min(known.get(i, n), n) for i in ids.tolist()], np.int64)


def _coreset(
    points: PointFile, choice: ReplayFit, factors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weighted rows that represent the points, in original units."""
    coreset = Coreset(choice.k, seed=choice.seed)
    for _, rows in _blocks(points):
        coreset.learn_many(rows)
    return coreset.rows_ / factors, coreset.weights_
