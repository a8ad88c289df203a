"""`OnlineKMeans`: mini-batch K-Means on a stream, with a coreset from which its centroids are re-solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import index
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamkm.errors import DataError, StateError
from streamkm.kernels.assign import Real
from streamkm.models import validation
from streamkm.models.arguments import ARGUMENTS, K_MAX, Outliers, check
from streamkm.models.centroids import checked_array
from streamkm.models.clusters import Clusters, ResolveOutcome
from streamkm.models.coreset import Coreset
from streamkm.models.decay import AgedWeights, Decay, Unit
from streamkm.models.inference import ClusterInference
from streamkm.models.k_selection import suggested_k
from streamkm.models.metric import Metric, Scale
from streamkm.models.outliers import GapRule
from streamkm.models.schedule import OnDrift, ResolveSchedule
from streamkm.state import Distance, ModelState, Publication, Snapshot

VERSION = 2
"""Version of the state format that `OnlineKMeans.state` writes."""

ARITHMETIC = 3
"""Version of the computation: equal batches give bit-identical models only between releases with the same number.

In version 1, decay was applied to whole batches; in version 2, calibration moved values that many rows share."""

SEED_ROWS = 8192
"""Most rows from which the first centroids are computed, unless the warm-up needs more."""

K_SELECTION_ROWS = 2000
"""Rows from which k is selected: takes less than a second."""

STARVED_SHARE = 1e-6
"""With a half-life, a cluster is starved when its weight is below this share of the largest cluster's."""


class OnlineKMeans(ClusterInference):
    """K-Means on a stream of mini-batches, with about the cost of Lloyd's algorithm on all of the data.

    **Live centroids** follow every batch. The first rows fill a warm-up buffer; k-means++, local search and Lloyd turn
    it into centroids, and each buffered row counts once. From then on ``c_j += (b_j / w_j) * (mean_j - c_j)``, where
    ``b_j`` is the weight and ``mean_j`` the mean of the batch's points nearest to centroid j, and ``w_j`` the decayed
    weight of all its points, including the batch (Sculley 2010, "Web-scale k-means clustering", with the updates of one
    batch combined).

    **Published centroids** are made by `publish`: the coreset (a few thousand weighted rows that represent the stream)
    is solved with local search (LS++, Lattanzi and Sohler 2019) and restarts from scratch, which repairs the local
    optima of mini-batch updates. Its clusters get stable ids, and events describe births, deaths, splits, merges and
    drifts since the previous publication. Predictions use the published centroids once there are any; these move only
    by more than their standard error. Between publications, cheaper re-solves keep the live centroids good. Re-solves
    run in a thread, but take effect at a fixed row of the stream: equal batches and seeds give bit-identical models,
    whatever the timing.

    **Decay** depends on the age of each point, not on batch boundaries: a point counts ``2 ** (-age / half_life)``. In
    points, its age is the weight of all points after it. In seconds, it is the difference of its event time to the
    newest one, so late points count less from the start. A point without an event time gets the newest time before it.

    **Starved clusters.** A cluster is starved if its weight is zero (with a half-life: below 1e-6 of the largest), and
    it got no points while the others got as many as a warm-up needs. It is restarted: a row of the batch, drawn with
    probability proportional to weight times squared distance, and no nearer than the mean distance, moves to it from
    its previous cluster. The restarted cluster gets a new id; the sum of weights is unchanged. If there are fewer
    distinct points than clusters, the surplus clusters keep weight zero.

    Parameters
    ----------
    n_clusters
        k, at least 1; or ``"auto"``: the k that `k_profile` suggests for the warm-up rows, at most 20. It does not
        change afterwards; `k_profile` shows whether another k has become better.
    half_life
        Points or seconds after which a point's weight is halved; None: no decay.
    half_life_unit
        ``"points"`` or ``"seconds"``.
    scale
        Unit of each dimension in distances: ``"none"``: raw; ``"standard"``: standard deviation; ``"robust"``:
        interquartile range (if at least half of a column is one value: the median distance of the others from it).
        Units are updated at each re-solve. Centroids and rows stay in raw units.
    distance
        ``"euclidean"``, or ``"cosine"``: rows and centroids are scaled to length one. A row of zeros has no direction
        and is rejected.
    on_drift
        Reaction if the cost of recent batches is five times the expected cost: ``"resolve"``: re-solve the coreset at
        once; ``"forget"``: also reduce the weight of everything learned to a thousandth, if two re-solves in a row
        cannot fit the new points together with the old ones, and the last such jump was about three half-lives ago;
        ``"ignore"``: none.
    outliers
        ``"gap"``: rows among the outermost 0.5 % that are separated from all others by a hundredfold gap in squared
        distance are counted but not learned. ``"keep"``: everything is learned.
    coreset_size
        Maximum rows of the coreset, at least ``16 k``; None: 8000 or, if larger, 200 per cluster.
    warmup
        Rows before the first centroids, at least k; None: ``max(4 k, min(1000, 20 k))``, or 2000 for ``"auto"``.
    seed
        Seed of the random choices, 0 to 2**64 - 1.

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
    >>> model.publish().weights.sum().item()
    1000.0
    """

    def __init__(
        self,
        n_clusters: int | Literal["auto"] = 8,
        *,
        half_life: float | None = None,
        half_life_unit: Unit = "points",
        scale: Scale = "none",
        distance: Distance = "euclidean",
        on_drift: OnDrift = "resolve",
        outliers: Outliers = "gap",
        coreset_size: int | None = None,
        warmup: int | None = None,
        seed: int = 0,
    ) -> None:
        most = check(
            n_clusters,
            half_life,
            half_life_unit,
            scale,
            distance,
            on_drift,
            outliers,
            coreset_size,
            warmup,
            seed,
        )
        self.n_clusters: int | Literal["auto"] = "auto" if n_clusters == "auto" else int(n_clusters)
        self.half_life = None if half_life is None else float(half_life)
        self.half_life_unit: Unit = half_life_unit
        self.scale: Scale = scale
        self.distance: Distance = distance
        self.on_drift: OnDrift = on_drift
        self.outliers: Outliers = outliers
        self.coreset_size = None if coreset_size is None else int(coreset_size)
        self.warmup = None if warmup is None else int(warmup)
        self.seed = int(seed)

        self.n_seen, self.n_features, self.feature_names = 0, 0, ()
        self._clusters = None
        enough = K_SELECTION_ROWS if n_clusters == "auto" else max(4 * most, min(1000, 20 * most))
        self._warmup_rows = self.warmup if self.warmup is not None else enough
        self._starved = (0.0 if half_life is None else STARVED_SHARE, float(self._warmup_rows))
        self.cost_: float = 0.0
        """Sum of weighted squared distances of all evaluated points, each measured before it was learned; not decayed.
        The difference between two readings divided by that of `n_evaluated_` is the prequential inertia."""
        self.n_evaluated_: float = 0.0
        """Weight of the points evaluated so far: all except outliers and warm-up rows."""
        self._buffer: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        self._decay = Decay(self.half_life, self.half_life_unit)

    # Learning

    def learn_one(self, x: Mapping[Any, Any], *, weight: float = 1.0, time: float | None = None) -> None:
        """Learn one point, as a batch of its own.

        Parameters
        ----------
        x
            Field name -> number, the same fields each time.
        weight
            Weight of the point: 3 counts as three equal points.
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
        X = validation.row(x, names)
        self._learn(X, names or tuple(str(name) for name in x), None if weight == 1.0 else [weight], time)

    def learn_many(self, X: Any, weights: ArrayLike | None = None, times: ArrayLike | None = None) -> None:
        """Learn one mini-batch.

        If the first batch is longer than the warm-up needs, the first centroids are computed from at most 8192 of its
        rows, and the rest is learned as a mini-batch.

        Parameters
        ----------
        X
            (n, d) array, or a pandas or polars data frame, whose columns are taken by name. Never written to.
        weights
            (n,), not negative: a row of weight 3 counts as three equal rows.
        times
            Event times in seconds since 1970, (n,) or one for all, NaN if unknown. Required for a half-life in seconds.

        Raises
        ------
        DataError
            Wrong shape, NaN, infinity, a row of zeros with the cosine distance, or missing event times.
            Nothing was learned.
        """
        array, names = validation.points(X, self.feature_names, self.n_features)
        self._learn(array, names, weights, times)

    def _learn(self, X: Real, names: tuple[str, ...], weights: ArrayLike | None, times: ArrayLike | None) -> None:
        if not len(X):
            return
        # Step 1. Check everything before anything changes.
        high = validation.finite(X, names)
        if self.distance == "cosine":
            X, high = validation.directions(X, names), 1.0
        row_weights = validation.row_weights(weights, len(X))
        row_times = validation.ONES
        if self._decay.by_time:
            if times is None:
                raise DataError(
                    "event times are missing, but the half-life is in seconds",
                    hint="Pass times=, or use half_life_unit='points'",
                )
            row_times = validation.event_times(times, len(X))
        self.n_features = X.shape[1]
        self.feature_names = names
        # Step 2. Fill the warm-up buffer; the remaining rows are a batch.
        if self._clusters is None:
            taken = min(len(X), max(self._warmup_rows, SEED_ROWS) - self.n_seen)
            self._warm_up(X[:taken], self._decay.age(row_weights[:taken], row_times[:taken], taken))
            if taken == len(X):
                return
            X, row_weights, row_times = X[taken:], row_weights[taken:], row_times[taken:]
        # Step 3. Learn the batch, in pieces if it is long compared with the half-life.
        start = 0
        for stop in self._decay.pieces(row_weights, row_times, len(X)):
            aged = self._decay.age(row_weights[start:stop], row_times[start:stop], stop - start)
            self._learn_piece(X[start:stop], aged, high)
            start = stop

    def _learn_piece(self, X: Real, aged: AgedWeights, high: float) -> None:
        learned = self._ready().learn(X, aged, high, self.n_seen, self._starved)
        self.cost_ += learned.cost
        self.n_evaluated_ += learned.points
        self.n_seen += len(X)

    def _warm_up(self, X: Real, aged: AgedWeights) -> None:
        decay = aged.factor
        if decay != 1.0:
            self._buffer = [(rows, weights * decay) for rows, weights in self._buffer]
        self._buffer.append((X.astype(np.float64), aged.decayed.copy() if len(aged.decayed) else np.ones(len(X))))
        self.n_seen += len(X)
        if self.n_seen >= self._warmup_rows:
            rows, weights = self._buffered()
            k = self.n_clusters
            if k == "auto":
                rule = self._new_rule()
                k = suggested_k(rows[:K_SELECTION_ROWS], weights[:K_SELECTION_ROWS], K_MAX, self.scale, rule, self.seed)
            clusters = self._new_clusters(k)
            clusters.initialize(rows, weights)
            self._clusters, self._buffer = clusters, []

    def _new_clusters(self, k: int) -> Clusters:
        return Clusters(
            Coreset(k, size=self.coreset_size, seed=self.seed),
            Metric.raw(self.n_features, spherical=self.distance == "cosine"),
            self.scale,
            ResolveSchedule(self.on_drift),
            self._new_rule(),
        )

    def _new_rule(self) -> GapRule | None:
        return None if self.distance == "cosine" or self.outliers == "keep" else GapRule(self.n_features)

    def _buffered(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = [r for r, _ in self._buffer] or [np.empty((0, self.n_features))]
        weights = [w for _, w in self._buffer] or [np.empty(0)]
        return np.concatenate(rows), np.concatenate(weights)

    def cap_clock(self, limit: float) -> None:
        """Lower the newest event time, from which ages are measured, to a limit if it lies beyond.

        Parameters
        ----------
        limit
            Seconds since 1970.
        """
        self._decay.cap_clock(limit)

    # Publishing

    def resolve(self) -> ResolveOutcome:
        """Re-solve the coreset now, with full effort, and replace the live centroids if the result is better.

        Returns
        -------
        str
            ``keep``: unchanged; ``lloyd`` or ``swap``: improved from the live ones; ``cold``: solved from scratch.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        """
        return self._ready().resolve()[0]

    def prepare(self) -> None:
        """Start to solve the coreset as it is now, in the background, for the next `publish`.

        Learning can continue meanwhile. `prepared_` tells whether the result is ready.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        """
        self._ready().prepare()

    def publish(self, *, as_is: bool = False) -> Publication:
        """Solve the coreset with full effort, assign stable ids, and report the events since the last publication.

        The result depends only on the batches so far and on the positions in the stream of `prepare` and `publish`.

        Parameters
        ----------
        as_is
            Publish the live centroids without solving.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        """
        return self._ready().publish(self.n_seen, as_is=as_is)

    # Saving

    def state(self) -> ModelState:
        """Copy the complete state of the model.

        Waits for a re-solve in progress; its result is part of the state.
        """
        params: dict[str, Any] = {name: getattr(self, name) for name in ARGUMENTS}
        params |= {
            "n_seen": self.n_seen,
            "k": self.k_,
            "n_features": self.n_features,
            "feature_names": list(self.feature_names),
            "clock": self._decay.clock,
            "cost": self.cost_,
            "n_judged": self.n_evaluated_,
            "clusters": None if self._clusters is None else self._clusters.params(),
        }
        if self._clusters is not None:
            arrays = self._clusters.arrays()
        else:
            rows, weights = self._buffered()
            arrays = {"buffer": rows, "buffer_weights": weights}
        return ModelState("OnlineKMeans", VERSION, params, {name: validation.frozen(a) for name, a in arrays.items()})

    @classmethod
    def from_state(cls, state: ModelState) -> OnlineKMeans:
        """Restore a model from its `state`; it continues bit for bit like the original.

        Raises
        ------
        StateError
            The state is of another kind or version, or is incomplete.
        """
        if state.kind != "OnlineKMeans":
            raise StateError(f"this is the state of a {state.kind}, not of an OnlineKMeans")
        if state.version != VERSION:
            raise StateError(
                f"the state has version {state.version}, this streamkm reads version {VERSION}",
                hint="Upgrade streamkm" if state.version > VERSION else "Replay the topic into a new model",
            )
        p, a = state.params, state.arrays
        try:
            model = cls(**{name: p[name] for name in ARGUMENTS})
            model.n_seen = index(p["n_seen"])
            model.n_features = d = index(p["n_features"])
            model.feature_names = tuple(map(str, p["feature_names"]))
            model._decay.clock = None if p["clock"] is None else float(p["clock"])
            model.cost_, model.n_evaluated_ = float(p["cost"]), float(p["n_judged"])
            if p["clusters"] is not None:
                clusters = model._new_clusters(p["k"])
                clusters.restore(a, p["clusters"], d)
                model._clusters = clusters
            elif model.n_seen:
                rows = checked_array(a, "buffer", np.float64, (model.n_seen, d))
                weights = checked_array(a, "buffer_weights", np.float64, (model.n_seen,))
                model._buffer = [(rows, weights)]
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError, MemoryError) as e:
            raise StateError(f"the state is damaged: {e}") from e
        return model

    @classmethod
    def from_snapshot(
        cls,
        arguments: Mapping[str, Any],
        snapshot: Snapshot,
        rows: NDArray[np.float64],
        weights: NDArray[np.float64],
        clock: float | None = None,
    ) -> OnlineKMeans:
        """Make a model that continues from known clusters, as if it had learned them.

        Parameters
        ----------
        arguments
            Constructor arguments; `n_clusters` is taken from the snapshot.
        snapshot
            The clusters.
        rows, weights
            (m, d) and (m,): a coreset of their points; the centroids and their weights if there is none.
        clock
            The newest event time among the points, seconds since 1970.
        """
        model = cls(**{**arguments, "n_clusters": len(snapshot.ids)})
        model.n_seen, model.n_features = snapshot.n_points, len(snapshot.fields)
        model.feature_names, model._decay.clock = snapshot.fields, clock
        clusters = model._new_clusters(len(snapshot.ids))
        clusters.initialize_from_snapshot(snapshot, rows, weights)
        model._clusters = clusters
        return model

    # river

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"n_clusters": 3}

    def _unit_test_skips(self) -> set[str]:
        """Skip river's checks with changing fields: a point without a coordinate has no distance."""
        return {"check_emerging_features", "check_disappearing_features", "check_radically_disappearing_features"}
