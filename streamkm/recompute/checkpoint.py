"""Checkpoints of a fit: the state from which an interrupted fit continues with identical results."""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import StateError
from streamkm.models.exact.lloyd import Iteration, LloydResult
from streamkm.models.exact.points import Points
from streamkm.models.exact.runs import FitCheckpoint, FitParams
from streamkm.models.exact.storage import copy_rows
from streamkm.recompute.pointfile import atomic_write

_FORMAT = 1
_SAMPLE_ROWS = 1024

_BROKEN = (
    *(LookupError, TypeError, AttributeError, OverflowError, OSError, EOFError),
    *(zipfile.BadZipFile, zlib.error, TokenError),
)
"""Exceptions besides ValueError that numpy and zipfile raise for damaged files."""


def identify(points: Points, params: FitParams, seed: int) -> str:
    """Fingerprint of points and settings; a checkpoint with another fingerprint is rejected.

    Parameters
    ----------
    points
        The (n, d) points; a sample of the rows is hashed.
    params, seed
        Settings of the fit.
    """
    n, d = points.given.shape
    some = np.unique(np.linspace(0, n - 1, _SAMPLE_ROWS).astype(np.int64))
    start = params.init if isinstance(params.init, str) else params.init.tolist()
    settings = [params.k, start, params.n_init, params.max_iter, params.tol, params.trace, seed]
    found = hashlib.sha256(json.dumps([_FORMAT, n, d, str(points.given.dtype), settings]).encode())
    for array in (
        copy_rows(points.given, some),
        points.frame.origin,
        np.array([points.frame.scale, points.frame.extent, points.frame.weight_unit]),
    ):
        found.update(array.tobytes())
    if len(points.given_weights):
        found.update(copy_rows(points.given_weights, some).tobytes())
    return found.hexdigest()


def save(path: Path, identity: str, checkpoint: FitCheckpoint) -> None:
    """Write a checkpoint; an existing one is replaced atomically.

    Parameters
    ----------
    path
        File to write.
    identity
        Result of `identify`.
    checkpoint
        State to write.
    """
    name, keys, position, has_gauss, gauss = checkpoint.rng
    arrays: dict[str, NDArray[Any]] = {
        "head": np.array([checkpoint.run, checkpoint.n_iter, checkpoint.moved, position, has_gauss]),
        "identity": np.array(identity),
        "centroids": checkpoint.centroids,
        "rng_name": np.array(name),
        "rng_keys": keys,
        "rng_gauss": np.array(gauss),
        **_trace("trace", checkpoint.trace),
    }
    if checkpoint.best is not None:
        best = checkpoint.best
        arrays |= {
            "best_centroids": best.centroids,
            "best_sizes": best.sizes,
            "best_costs": best.costs,
            "best_inertia": np.array(best.inertia),
            "best_n_iter": np.array(best.n_iter),
            "best_stopped": np.array(best.stopped),
            **_trace("best_trace", best.trace),
        }
    with atomic_write(path) as file:
        np.savez(file, allow_pickle=False, **arrays)


def load(path: Path, identity: str) -> FitCheckpoint | None:
    """Read a checkpoint.

    Parameters
    ----------
    path
        File to read.
    identity
        Result of `identify`.

    Raises
    ------
    StateError
        The file is not a checkpoint, or one of other points or settings.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = dict(file)
        if str(arrays["identity"]) != identity:
            raise StateError(
                "the checkpoint was made with other points or settings",
                where=str(path),
                hint="Delete it to start again",
            )
        best = None
        if "best_centroids" in arrays:
            best = LloydResult(
                arrays["best_centroids"],
                arrays["best_sizes"],
                arrays["best_costs"],
                float(arrays["best_inertia"]),
                int(arrays["best_n_iter"]),
                str(arrays["best_stopped"]),  # type: ignore[arg-type]
                _iterations("best_trace", arrays),
            )
        run, n_iter, moved, position, has_gauss = arrays["head"].tolist()
        rng = str(arrays["rng_name"]), arrays["rng_keys"], position, has_gauss, float(arrays["rng_gauss"])
        np.random.RandomState().set_state(rng)
        if arrays["centroids"].ndim != 2:
            raise ValueError(f"its centroids have shape {arrays['centroids'].shape}")  # noqa: TRY301
        return FitCheckpoint(run, n_iter, arrays["centroids"], moved, best, _iterations("trace", arrays), rng)
    except FileNotFoundError:
        return None
    except (ValueError, *_BROKEN) as e:
        if isinstance(e, StateError):
            raise
        raise StateError(f"is not a checkpoint ({e})", where=str(path), hint="Delete it to start again") from e


def _trace(name: str, trace: tuple[Iteration, ...]) -> dict[str, NDArray[Any]]:
    if not trace:
        return {}
    return {
        f"{name}_centroids": np.stack([s.centroids for s in trace]),
        f"{name}_sizes": np.stack([s.sizes for s in trace]),
        f"{name}_inertia": np.array([s.inertia for s in trace]),
        f"{name}_moved": np.array([s.moved for s in trace]),
    }


def _iterations(name: str, arrays: dict[str, NDArray[Any]]) -> tuple[Iteration, ...]:
    if f"{name}_centroids" not in arrays:
        return ()
    columns = (arrays[f"{name}_{column}"] for column in ("centroids", "sizes", "inertia", "moved"))
    return tuple(Iteration(c, s, float(i), int(m)) for c, s, i, m in zip(*columns, strict=True))
