"""Mini-batch K-Means with a learning rate per centroid, decay, and a state that survives anything."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from river import base

from streamkm.errors import DataError, NotReadyError, SettingsError, StateError
from streamkm.kernels.assign import Real
from streamkm.kernels.update import COST
from streamkm.models import validate
from streamkm.models.live import LiveCentroids, array
from streamkm.models.seeding import first_centroids
from streamkm.state import ModelState

VERSION = 1
"""Version of the state that `OnlineKMeans.state` writes."""

SEED_ROWS = 8192
"""The first centroids are made from no more rows than this, or than the warm-up needs if that is more."""

STARVED_SHARE = 1e-6
"""With a half-life, a cluster has forgotten its points when its weight is below this share of the largest."""

Unit = Literal["points", "seconds"]


class OnlineKMeans(base.Clusterer):
    """K-Means that learns from a stream, one mini-batch after the other.

    The first rows fill a warm-up buffer; k-means++ and a few iterations of Lloyd turn it into centroids, and each
    buffered row counts once. From then on ``c_j += (b_j / w_j) * (mean_j - c_j)``, where ``b_j`` is the weight of the
    batch's points nearest to centroid j and ``w_j`` the decayed weight of all its points, the batch's included (Sculley
    2010, "Web-scale k-means clustering", the updates of one batch taken together).

    **Decay** acts per batch: what was learned before is multiplied by ``2 ** (-n / half_life)``, the batch itself
    counts in full. In points, n is the batch's weight. In seconds it is how far the batch moves event time on; event
    time is the newest time seen, so late records count in full and never move it back.

    **Starved clusters.** A cluster that has forgotten its points (weight zero or, with a half-life, below 1e-6 of the
    largest) and got none while others got as many as a warm-up needs, starts anew: a row of the batch, drawn with
    probability proportional to weight times squared distance and no nearer than the mean, moves to it from its cluster.
    It gets a new id; the sum of weights stays. Small clusters that get a point now and then are never touched. Where
    there are fewer distinct points than clusters, the surplus clusters keep weight zero.

    Parameters
    ----------
    n_clusters
        k, at least 1.
    half_life
        After so many points or seconds a point counts half; None: all points count alike for ever.
    half_life_unit
        ``"points"`` or ``"seconds"``.
    warmup
        Rows to see before there are centroids, at least k; None: ``max(4 k, min(1000, 20 k))``.
    seed
        Of the random choices, 0 to 2**64 - 1. Equal batches and seeds give equal models, at any number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> from streamkm import OnlineKMeans
    >>> rng = np.random.default_rng(0)
    >>> X = np.concatenate([rng.normal(0, 1, (500, 2)), rng.normal(9, 1, (500, 2))])
    >>> model = OnlineKMeans(n_clusters=2)
    >>> model.learn_many(X)
    >>> np.sort(model.centers_.round().sum(axis=1)).tolist()
    [0.0, 18.0]
    >>> model.weights_.sum().item()
    1000.0
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        half_life: float | None = None,
        half_life_unit: Unit = "points",
        warmup: int | None = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(n_clusters, int | np.integer) or n_clusters < 1:
            raise SettingsError(f"n_clusters must be an integer of at least 1, not {n_clusters!r}")
        if half_life is not None and not (half_life > 0 and math.isfinite(half_life)):
            raise SettingsError(f"half_life must be positive, not {half_life!r}", hint="Use None for no decay")
        if half_life_unit not in ("points", "seconds"):
            raise SettingsError(f"half_life_unit must be 'points' or 'seconds', not {half_life_unit!r}")
        if warmup is not None and (not isinstance(warmup, int | np.integer) or warmup < n_clusters):
            raise SettingsError(f"warmup must be at least n_clusters = {n_clusters}, not {warmup!r}")
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise SettingsError(f"seed must be an integer from 0 to 2**64 - 1, not {seed!r}")
        self.n_clusters = int(n_clusters)
        self.half_life = None if half_life is None else float(half_life)
        self.half_life_unit: Unit = half_life_unit
        self.warmup = None if warmup is None else int(warmup)
        self.seed = int(seed)

        self.n_seen: int = 0
        """Rows learned, buffered ones included."""
        self.n_features: int = 0
        """d; 0 before the first row."""
        self.feature_names: tuple[str, ...] = ()
        """Names of the dimensions in order, from the first dict or data frame; empty while unknown."""
        self.cost_: float = 0.0
        """Sum of weighted squared distances of all points judged so far, each before it was learned; never decayed. The
        difference of two readings over that of `n_judged_` is the prequential inertia between them."""
        self.n_judged_: float = 0.0
        """Weight of the points judged so far: all but those of the warm-up."""
        self._rng = np.array([self.seed], np.uint64)
        self._buffer: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._live: LiveCentroids | None = None
        self._clock: float | None = None

    # What the model knows

    @property
    def warmup_(self) -> tuple[int, int] | None:
        """(rows buffered, rows needed) while there are no centroids yet, else None."""
        return None if self._live is not None else (self.n_seen, self._need)

    @property
    def centers_(self) -> NDArray[np.float64]:
        """(k, d) float64: centroids in raw units, a copy."""
        return self._ready().centroids.copy()

    @property
    def weights_(self) -> NDArray[np.float64]:
        """(k,) float64: decayed weight of each cluster's points, a copy."""
        return self._ready().weights.copy()

    @property
    def ids_(self) -> NDArray[np.int64]:
        """(k,) int64: stable ids, a copy. A cluster that starts anew gets an id that no cluster had."""
        return self._ready().ids.copy()

    @property
    def spreads_(self) -> NDArray[np.float64]:
        """(k,) float64: decayed root mean squared distance of each cluster's points to its centroid, raw units.

        Each point is judged by the centroid it was assigned to, where that stood before the point's batch. 0 for a
        cluster without weight.
        """
        live = self._ready()
        return np.sqrt(live.stats[:, COST] / np.where(live.weights > 0.0, live.weights, 1.0))

    @property
    def centers(self) -> dict[int, dict[str, float]]:
        """Centroids as river's clustering metrics want them: id -> field -> coordinate; empty during warm-up."""
        if self._live is None:
            return {}
        names = self.feature_names or tuple(str(t) for t in range(self.n_features))
        rows = zip(self._live.ids.tolist(), self._live.centroids.tolist(), strict=True)
        return {j: dict(zip(names, c, strict=True)) for j, c in rows}

    # Learning

    def learn_one(self, x: Mapping[Any, Any], *, weight: float = 1.0, time: float | None = None) -> None:
        """Learn one point, as a batch of its own.

        Parameters
        ----------
        x
            Field name -> number, the same fields each time.
        weight
            Counts as so many equal points.
        time
            Event time in seconds since 1970.

        Raises
        ------
        DataError
            A field is missing, unknown, not a number or not finite.
        """
        names = self.feature_names
        if not names and self.n_features and len(x) == self.n_features:
            names = tuple(str(name) for name in x)
        X = validate.row(x, names)
        self._learn(X, names or tuple(str(name) for name in x), None if weight == 1.0 else [weight], time)

    def learn_many(self, X: Any, weights: ArrayLike | None = None, times: ArrayLike | None = None) -> None:
        """Learn one mini-batch.

        A first batch beyond the warm-up's need is learned as two: centroids from its first 8192 rows, then the rest.

        Parameters
        ----------
        X
            (n, d) array, or a pandas or polars data frame, whose columns are taken by name. Never written to.
        weights
            (n,), not negative: a row of weight 3 counts as three equal rows.
        times
            Event times in seconds since 1970, (n,) or one for all, NaN where unknown. For a half-life in seconds.

        Raises
        ------
        DataError
            Wrong shape, NaN, infinity, or no times where they are needed. Nothing was learned.
        """
        array, names = validate.points(X, self.feature_names, self.n_features)
        self._learn(array, names, weights, times)

    def _learn(self, X: Real, names: tuple[str, ...], weights: ArrayLike | None, times: ArrayLike | None) -> None:
        if not len(X):
            return
        # Step 1. Check everything before anything changes.
        high = validate.finite(X, names)
        row_weights = validate.row_weights(weights, len(X))
        newest = None
        if self.half_life is not None and self.half_life_unit == "seconds":
            if times is None:
                raise DataError(
                    "there are no event times, but the half-life is in seconds",
                    hint="Pass times=, or use half_life_unit='points'",
                )
            newest = validate.latest(times, len(X))
        self.n_features = X.shape[1]
        self.feature_names = names
        # Step 2. Move event time on.
        elapsed = 0.0
        if newest is not None:
            elapsed = 0.0 if self._clock is None else max(0.0, newest - self._clock)
            self._clock = newest if self._clock is None else max(self._clock, newest)
        # Step 3. Fill the warm-up buffer; what it does not take is a batch.
        if self._live is None:
            taken = min(len(X), max(self._need, SEED_ROWS) - self.n_seen)
            self._warm_up(X[:taken], row_weights[:taken], elapsed)
            if taken == len(X):
                return
            X, row_weights, elapsed = validate.frozen(X[taken:]), validate.frozen(row_weights[taken:]), 0.0
        # Step 4. Learn the batch, and give starving clusters a new start.
        live = self._ready()
        learned = live.learn(X, row_weights, self._decay(row_weights, len(X), elapsed), high)
        share = 0.0 if self.half_life is None else STARVED_SHARE
        live.restart_starved(X, row_weights, learned, share, float(self._need), self._rng)
        self.cost_ += learned.cost
        self.n_judged_ += learned.points
        self.n_seen += len(X)

    def _decay(self, row_weights: NDArray[np.float64], n: int, elapsed: float) -> float:
        """Factor on what was learned before a batch of n rows."""
        if self.half_life is None:
            return 1.0
        if self.half_life_unit == "points":
            elapsed = float(row_weights.sum()) if len(row_weights) else float(n)
        return math.exp2(-elapsed / self.half_life)

    @property
    def _need(self) -> int:
        k = self.n_clusters
        return self.warmup if self.warmup is not None else max(4 * k, min(1000, 20 * k))

    def _warm_up(self, X: Real, row_weights: NDArray[np.float64], elapsed: float) -> None:
        decay = self._decay(row_weights, len(X), elapsed)
        if decay != 1.0:
            self._buffer = [(rows, weights * decay) for rows, weights in self._buffer]
        self._buffer.append((X.astype(np.float64), row_weights.copy() if len(row_weights) else np.ones(len(X))))
        self.n_seen += len(X)
        if self.n_seen < self._need:
            return
        rows, weights = self._buffered()
        self._live = LiveCentroids.start(*first_centroids(rows, weights, self.n_clusters, self._rng))
        self._buffer = []

    def _buffered(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = [r for r, _ in self._buffer] or [np.empty((0, self.n_features))]
        weights = [w for _, w in self._buffer] or [np.empty(0)]
        return np.concatenate(rows), np.concatenate(weights)

    # Asking

    def predict_one(self, x: Mapping[Any, Any]) -> int:
        """Id of the nearest cluster; -1 while there is none yet, because river asks before it teaches.

        Raises
        ------
        DataError
            A field is missing, unknown, not a number or not finite.
        """
        if self._live is None:
            return -1
        ids, _ = self._nearest(validate.row(x, self.feature_names))
        return int(ids[0])

    def predict_many(self, X: Any) -> NDArray[np.int64]:
        """(n,) int64: id of each row's nearest cluster. Changes nothing.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        DataError
            Wrong shape, NaN or infinity.
        """
        return self.assign(X)[0]

    def assign(self, X: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Nearest cluster of each row, and how far it is. Changes nothing.

        Returns
        -------
        ids
            (n,) int64.
        distances
            (n,) float64, Euclidean, raw units.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        DataError
            Wrong shape, NaN or infinity.
        """
        self._ready()
        return self._nearest(validate.points(X, self.feature_names, self.n_features)[0])

    def _nearest(self, X: Real) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        live = self._ready()
        if X.shape[1] != self.n_features:
            raise DataError(f"the point has {X.shape[1]} fields, the model {self.n_features}")
        labels, squared = live.nearest(X, validate.finite(X, self.feature_names))
        return live.ids[labels], np.sqrt(squared)

    def _ready(self) -> LiveCentroids:
        if self._live is None:
            have, need = self.n_seen, self._need
            raise NotReadyError(
                f"the model is warming up: {have} of {need} points seen",
                hint=f"{need - have} more points make the first centroids",
            )
        return self._live

    # Saving

    def state(self) -> ModelState:
        """Capture all that the model knows, as a copy that later learning does not touch."""
        rows, weights = self._buffered()
        arrays: dict[str, NDArray[Any]] = {"rng": self._rng.copy(), "buffer": rows, "buffer_weights": weights}
        if self._live is not None:
            arrays |= self._live.arrays()
        params = {
            "n_clusters": self.n_clusters,
            "half_life": self.half_life,
            "half_life_unit": self.half_life_unit,
            "warmup": self.warmup,
            "seed": self.seed,
            "n_seen": self.n_seen,
            "n_features": self.n_features,
            "feature_names": list(self.feature_names),
            "next_id": self.n_clusters if self._live is None else self._live.next_id,
            "clock": self._clock,
            "cost": self.cost_,
            "n_judged": self.n_judged_,
        }
        return ModelState("OnlineKMeans", VERSION, params, {name: validate.frozen(a) for name, a in arrays.items()})

    @classmethod
    def from_state(cls, state: ModelState) -> OnlineKMeans:
        """Make the model that `state` was taken from: learning on gives the same bits as never having stopped.

        Raises
        ------
        StateError
            Another kind of model, a newer version, or a state that is incomplete.
        """
        if state.kind != "OnlineKMeans":
            raise StateError(f"this is the state of a {state.kind}, not of an OnlineKMeans")
        if state.version != VERSION:
            raise StateError(
                f"the state has version {state.version}, this streamkm reads version {VERSION}", hint="Upgrade streamkm"
            )
        p, a = state.params, state.arrays
        try:
            arguments = {n: p[n] for n in ("n_clusters", "half_life", "half_life_unit", "warmup", "seed")}
            model = cls(**arguments)
            model.n_seen = p["n_seen"]
            model.n_features = p["n_features"]
            model.feature_names = tuple(p["feature_names"])
            model._clock = p["clock"]
            model.cost_ = p["cost"]
            model.n_judged_ = p["n_judged"]
            model._rng = array(a, "rng", np.uint64, (1,))
            if "centroids" in a:
                model._live = LiveCentroids.from_arrays(a, model.n_clusters, model.n_features, p["next_id"])
            elif model.n_seen:
                rows = array(a, "buffer", np.float64, (model.n_seen, model.n_features))
                weights = array(a, "buffer_weights", np.float64, (model.n_seen,))
                model._buffer = [(rows, weights)]
        except (KeyError, TypeError, ValueError) as e:
            raise StateError(f"the state is damaged: {e}") from e
        return model

    # river

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"n_clusters": 3}

    def _unit_test_skips(self) -> set[str]:
        """The checks of river that let fields come and go: a point without a coordinate has no distance."""
        return {"check_emerging_features", "check_disappearing_features", "check_radically_disappearing_features"}
