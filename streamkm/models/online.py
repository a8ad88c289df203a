"""Mini-batch K-Means with a coreset beside it: one pass as good as batch, and a state that survives anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import index
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamkm.errors import DataError, StateError
from streamkm.kernels.assign import Real
from streamkm.models import validate
from streamkm.models.answers import Answers
from streamkm.models.arguments import ARGUMENTS, K_MAX, Outliers, check
from streamkm.models.choice import suggested_k
from streamkm.models.clusters import Clusters, Verdict
from streamkm.models.coreset import Coreset
from streamkm.models.decay import Aged, Decay, Unit
from streamkm.models.live import array
from streamkm.models.metric import Metric, Scale
from streamkm.models.outliers import GapRule
from streamkm.models.schedule import OnDrift, Schedule
from streamkm.state import Distance, ModelState, Publication, Snapshot

VERSION = 2
"""Version of the state that `OnlineKMeans.state` writes."""

ARITHMETIC = 3
"""Number of the arithmetic: equal batches give equal bits only between versions of streamkm that have the same one.

1: decay acted on whole batches. 2: calibration moved values that many rows share."""

SEED_ROWS = 8192
"""The first centroids are made from no more rows than this, or than the warm-up needs if that is more."""

CHOICE_ROWS = 2000
"""k is chosen from so many rows, which takes less than a second."""

STARVED_SHARE = 1e-6
"""With a half-life, a cluster has forgotten its points when its weight is below this share of the largest."""


class OnlineKMeans(Answers):
    """K-Means that learns from a stream, one mini-batch after the other, and is about as good as Lloyd on all of it.

    **Live centroids** follow every batch. The first rows fill a warm-up buffer; k-means++, local search and Lloyd turn
    it into centroids, and each buffered row counts once. From then on ``c_j += (b_j / w_j) * (mean_j - c_j)``, where
    ``b_j`` is the weight of the batch's points nearest to centroid j and ``w_j`` the decayed weight of all its points,
    the batch's included (Sculley 2010, "Web-scale k-means clustering", the updates of one batch taken together).

    **Published centroids** are made by `publish`: the coreset, a few thousand weighted rows that stand for the stream,
    is solved anew, with local search (LS++, Lattanzi and Sohler 2019) and starts from scratch, which repairs what
    mini-batches cannot. Its clusters get stable ids, and events say what became of the ones before. Questions are
    answered by the published centroids once there are any; they hold still within their standard error. While the
    stream runs, lighter re-solves keep the live centroids near. They are worked on in a thread, but take effect at a
    fixed row: equal batches and seeds give equal models, bit for bit, whatever the machine is doing.

    **Decay** goes by the age of each point, whatever the batches: it counts ``2 ** (-age / half_life)``. In points, its
    age is the weight of all points after it. In seconds, it is how long its event time lies before the newest one, so
    late points count less from the start. A point without an event time is as old as the newest before it.

    **Starved clusters.** A cluster that has forgotten its points (weight zero or, with a half-life, below 1e-6 of the
    largest) and got none while others got as many as a warm-up needs, starts anew: a row of the batch, drawn with
    probability proportional to weight times squared distance and no nearer than the mean, moves to it from its cluster.
    It gets a new id; the sum of weights stays. Where there are fewer distinct points than clusters, the surplus
    clusters keep weight zero.

    Parameters
    ----------
    n_clusters
        k, at least 1; or ``"auto"``: what `k_profile` suggests for the rows of the warm-up, at most 20. It does not
        change afterwards; `k_profile` tells whether another one has become better.
    half_life
        After so many points or seconds a point counts half; None: all points count alike for ever.
    half_life_unit
        ``"points"`` or ``"seconds"``.
    scale
        Units of distances: ``"none"``, raw ones; ``"standard"``, each dimension's standard deviation; ``"robust"``, its
        interquartile range (of a column half of which is one value: the median distance of the others from that). They
        follow the data at each re-solve. Centroids and rows are in raw units all the same.
    distance
        ``"euclidean"``, or ``"cosine"``: rows are scaled to length one, and so are centroids. A row of zeros has no
        direction and is refused.
    on_drift
        What to do when the cost of some batches is five times what was expected: ``"resolve"`` the coreset at once;
        ``"forget"`` the past too, all but a thousandth of it, if two re-solves in a row cannot fit the new points
        beside the old, and the last such jump was some three half-lives ago; ``"ignore"`` it.
    outliers
        ``"gap"``: spikes, which a hundredfold gap in squared distance parts from all but the outermost 0.5 % of the
        points, are counted and not learned. ``"keep"``: everything is learned.
    coreset_size
        Rows of the coreset at most, at least ``16 k``; None: 8000 or, if that is more, 200 a cluster.
    warmup
        Rows to see before there are centroids, at least k; None: ``max(4 k, min(1000, 20 k))``, or 2000 to choose k.
    seed
        Of the random choices, 0 to 2**64 - 1.

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
        enough = CHOICE_ROWS if n_clusters == "auto" else max(4 * most, min(1000, 20 * most))
        self._need = self.warmup if self.warmup is not None else enough
        self._starved = (0.0 if half_life is None else STARVED_SHARE, float(self._need))
        self.cost_: float = 0.0
        """Sum of weighted squared distances of all points judged so far, each before it was learned; never decayed. The
        difference of two readings over that of `n_judged_` is the prequential inertia between them."""
        self.n_judged_: float = 0.0
        """Weight of the points judged so far: all but outliers and those of the warm-up."""
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
            Wrong shape, NaN, infinity, a row of zeros for the cosine distance, or no times where they are needed.
            Nothing was learned.
        """
        array, names = validate.points(X, self.feature_names, self.n_features)
        self._learn(array, names, weights, times)

    def _learn(self, X: Real, names: tuple[str, ...], weights: ArrayLike | None, times: ArrayLike | None) -> None:
        if not len(X):
            return
        # Step 1. Check everything before anything changes.
        high = validate.finite(X, names)
        if self.distance == "cosine":
            X, high = validate.directions(X, names), 1.0
        row_weights = validate.row_weights(weights, len(X))
        row_times = validate.ONES
        if self._decay.by_time:
            if times is None:
                raise DataError(
                    "there are no event times, but the half-life is in seconds",
                    hint="Pass times=, or use half_life_unit='points'",
                )
            row_times = validate.event_times(times, len(X))
        self.n_features = X.shape[1]
        self.feature_names = names
        # Step 2. Fill the warm-up buffer; what it does not take is a batch.
        if self._clusters is None:
            taken = min(len(X), max(self._need, SEED_ROWS) - self.n_seen)
            self._warm_up(X[:taken], self._decay.age(row_weights[:taken], row_times[:taken], taken))
            if taken == len(X):
                return
            X, row_weights, row_times = X[taken:], row_weights[taken:], row_times[taken:]
        # Step 3. Learn the batch, in pieces if it is long for the half-life.
        start = 0
        for stop in self._decay.pieces(row_weights, row_times, len(X)):
            aged = self._decay.age(row_weights[start:stop], row_times[start:stop], stop - start)
            self._learn_piece(X[start:stop], aged, high)
            start = stop

    def _learn_piece(self, X: Real, aged: Aged, high: float) -> None:
        learned = self._ready().learn(X, aged, high, self.n_seen, self._starved)
        self.cost_ += learned.cost
        self.n_judged_ += learned.points
        self.n_seen += len(X)

    def _warm_up(self, X: Real, aged: Aged) -> None:
        decay = aged.factor
        if decay != 1.0:
            self._buffer = [(rows, weights * decay) for rows, weights in self._buffer]
        self._buffer.append((X.astype(np.float64), aged.decayed.copy() if len(aged.decayed) else np.ones(len(X))))
        self.n_seen += len(X)
        if self.n_seen >= self._need:
            rows, weights = self._buffered()
            k = self.n_clusters
            if k == "auto":
                rule = self._new_rule()
                k = suggested_k(rows[:CHOICE_ROWS], weights[:CHOICE_ROWS], K_MAX, self.scale, rule, self.seed)
            clusters = self._new_clusters(k)
            clusters.begin(rows, weights)
            self._clusters, self._buffer = clusters, []

    def _new_clusters(self, k: int) -> Clusters:
        return Clusters(
            Coreset(k, size=self.coreset_size, seed=self.seed),
            Metric.raw(self.n_features, spherical=self.distance == "cosine"),
            self.scale,
            Schedule(self.on_drift),
            self._new_rule(),
        )

    def _new_rule(self) -> GapRule | None:
        return None if self.distance == "cosine" or self.outliers == "keep" else GapRule(self.n_features)

    def _buffered(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        rows = [r for r, _ in self._buffer] or [np.empty((0, self.n_features))]
        weights = [w for _, w in self._buffer] or [np.empty(0)]
        return np.concatenate(rows), np.concatenate(weights)

    def hold_clock(self, limit: float) -> None:
        """Take the event time back that everything's age counts from, if it lies beyond a limit.

        Parameters
        ----------
        limit
            Seconds since 1970.
        """
        self._decay.hold_clock(limit)

    # Publishing

    def resolve(self) -> Verdict:
        """Solve the coreset now, with all effort, and let the live centroids be the result if that is cheaper.

        Returns
        -------
        str
            What they are now: ``keep``, what they were; ``lloyd`` or ``swap``, the same improved; ``cold``, new ones.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        """
        return self._ready().resolve()[0]

    def prepare(self) -> None:
        """Begin to solve the coreset as it is now, in the background; the next `publish` takes the result.

        Learning goes on meanwhile. `prepared_` tells when the result is there.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        """
        self._ready().prepare()

    def publish(self, *, as_is: bool = False) -> Publication:
        """Solve the coreset with all effort, give its clusters stable ids, and tell what became of those before.

        What is published depends on the batches so far and on where in the stream was prepared and published.

        Parameters
        ----------
        as_is
            Publish the live centroids as they are.

        Raises
        ------
        NotReadyError
            There are no centroids yet.
        """
        return self._ready().publish(self.n_seen, as_is=as_is)

    # Saving

    def state(self) -> ModelState:
        """Capture all that the model knows, as a copy that later learning does not touch.

        A re-solve that is being worked on is waited for, and its result is part of the state.
        """
        params: dict[str, Any] = {name: getattr(self, name) for name in ARGUMENTS}
        params |= {
            "n_seen": self.n_seen,
            "k": self.k_,
            "n_features": self.n_features,
            "feature_names": list(self.feature_names),
            "clock": self._decay.clock,
            "cost": self.cost_,
            "n_judged": self.n_judged_,
            "clusters": None if self._clusters is None else self._clusters.params(),
        }
        if self._clusters is not None:
            arrays = self._clusters.arrays()
        else:
            rows, weights = self._buffered()
            arrays = {"buffer": rows, "buffer_weights": weights}
        return ModelState("OnlineKMeans", VERSION, params, {name: validate.frozen(a) for name, a in arrays.items()})

    @classmethod
    def from_state(cls, state: ModelState) -> OnlineKMeans:
        """Make the model that `state` was taken from: learning on gives the same bits as never having stopped.

        Raises
        ------
        StateError
            Another kind of model, another version, or a state that is incomplete.
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
            model.cost_, model.n_judged_ = float(p["cost"]), float(p["n_judged"])
            if p["clusters"] is not None:
                clusters = model._new_clusters(p["k"])
                clusters.restore(a, p["clusters"], d)
                model._clusters = clusters
            elif model.n_seen:
                rows = array(a, "buffer", np.float64, (model.n_seen, d))
                weights = array(a, "buffer_weights", np.float64, (model.n_seen,))
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
        """Make a model that goes on from clusters that are known, as if it had learned them.

        Parameters
        ----------
        arguments
            Of the constructor; the number of clusters is that of the snapshot.
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
        clusters.adopt(snapshot, rows, weights)
        model._clusters = clusters
        return model

    # river

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"n_clusters": 3}

    def _unit_test_skips(self) -> set[str]:
        """The checks of river that let fields come and go: a point without a coordinate has no distance."""
        return {"check_emerging_features", "check_disappearing_features", "check_radically_disappearing_features"}
