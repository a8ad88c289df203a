"""The contract of a model that learns from a stream: what the engine asks of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self

from numpy.typing import ArrayLike, NDArray

from streamkm.models.evaluation import Evaluation
from streamkm.models.k_selection import KProfile
from streamkm.state import Distance, ModelState, Publication, Snapshot


class Learner(Protocol):
    """A model that learns mini-batches, publishes clusters, and continues bit for bit from its state.

    Equal calls in equal order give equal bits: that is what lets a journal replay prove a snapshot.

    Attributes
    ----------
    n_seen
        Points learned.
    cost_
        Sum of squared distances of points to their clusters when they arrived, in the units of `distance`.
    n_evaluated_
        Mass of the points in `cost_`.
    distance
        How distances are measured.
    """

    n_seen: int
    cost_: float
    n_evaluated_: float
    distance: Distance

    @property
    def warmup_(self) -> tuple[int, int] | None:
        """Points collected and needed before there are clusters; None once there are."""

    @property
    def k_(self) -> int:
        """Number of clusters."""

    @property
    def ids_(self) -> NDArray[Any]:
        """(k,) stable ids of the clusters."""

    @property
    def n_outliers_(self) -> int:
        """Points counted as outliers."""

    @property
    def published_(self) -> Publication | None:
        """What was published last."""

    @property
    def prepared_(self) -> bool:
        """Whether `publish` would not wait."""

    def learn_many(self, X: Any, weights: ArrayLike | None = None, times: ArrayLike | None = None) -> None:
        """Learn a mini-batch of (n, d) points, with (n,) weights and (n,) event times in seconds since 1970."""

    def cap_clock(self, limit: float) -> None:
        """Keep the model's clock at or before a time, seconds since 1970."""

    def prepare(self) -> None:
        """Start the work of the next publication in the background."""

    def publish(self, *, as_is: bool = False) -> Publication:
        """Publish the clusters; `as_is`: without work on them first."""

    def state(self) -> ModelState:
        """Copy the complete state; its `kind` is the name under which `models.spec` knows the class."""

    def evaluate(self) -> Evaluation:
        """How good the clusters are, without labels."""

    def deferred_k_profile(self, k_max: int = 20, k_min: int = 2) -> Callable[[], KProfile]:
        """Return a function that evaluates numbers of clusters, on what is learned now."""

    @classmethod
    def from_state(cls, state: ModelState) -> Self:
        """Restore a model from its `state`; it continues bit for bit like the original."""

    @classmethod
    def from_snapshot(
        cls,
        arguments: Mapping[str, Any],
        snapshot: Snapshot,
        rows: NDArray[Any],
        weights: NDArray[Any],
        clock: float | None = None,
    ) -> Self:
        """As `models.spec.learner_from_snapshot`, from its constructor arguments; (m, d) rows with (m,) weights."""
