"""Methods of the blocking client beyond those of everyday: what a model was and saw, and acting on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeVar

from streamkm.client import requests
from streamkm.client.requests import Flow
from streamkm.client.responses import Difference, Event, Job, KProfile, Life, Me, Past, Quarantine, Sample

T = TypeVar("T")


class Methods(ABC):
    """They send nothing themselves."""

    @abstractmethod
    def _run(self, flow: Flow[T]) -> T:
        """Send what a flow asks."""

    @abstractmethod
    def _follow(self, model: str, after: str | None) -> Iterator[Event]:
        """Listen to a stream of events."""

    def history(self, model: str, *, limit: int = 100) -> list[Past]:
        """The newest snapshots that were in charge, with their clusters, newest first."""
        return self._run(requests.history(model, limit))

    def lineage(self, model: str) -> list[Life]:
        """Where each cluster came from, and what became of it, by id."""
        return self._run(requests.lineage(model))

    def diff(self, model: str, a: int, b: int) -> Difference:
        """From snapshot `a` to snapshot `b`: what moved how far, and what each costs on the same points."""
        return self._run(requests.diff(model, a, b))

    def k(self, model: str) -> KProfile:
        """How many clusters there should be."""
        return self._run(requests.k(model))

    def sample(self, model: str, *, n: int = 300) -> Sample:
        """Some of the last points with their clusters."""
        return self._run(requests.sample(model, n))

    def quarantine(self, model: str, *, limit: int = 100, reason: str | None = None) -> Quarantine:
        """Records that could not be learned: how many and why, and the newest of them."""
        return self._run(requests.quarantine(model, limit, reason))

    def follow_events(self, model: str, *, after: str | None = None) -> Iterator[Event]:
        """What happens to clusters, as it happens, without an end.

        A stream that breaks off is taken up again where it was.

        Parameters
        ----------
        after
            `Event.id` of the last one that is known; those behind it come first. From now on if None.
        """
        return self._follow(model, after)

    def me(self) -> Me:
        """Who the service takes one for, and what one may do."""
        return self._run(requests.me())

    def promote(self, model: str, snapshot: int, *, skip: bool = False) -> None:
        """Ask for a snapshot to be put in charge, which the consumer does at its next checkpoint.

        Parameters
        ----------
        skip
            Leave out the records between it and now; else they are learned again.
        """
        self._run(requests.promote(model, snapshot, skip=skip))

    def pause(self, model: str) -> None:
        """Let the consumer read nothing for now."""
        self._run(requests.pause(model, paused=True))

    def resume(self, model: str) -> None:
        """Let the consumer read on."""
        self._run(requests.pause(model, paused=False))

    def delete(self, model: str) -> None:
        """Remove a model with all that belongs to it, for good; not while a consumer runs it."""
        self._run(requests.delete(model))

    def jobs(self, model: str) -> list[Job]:
        """Recomputations that were asked for, newest first."""
        return self._run(requests.jobs(model))

    def job(self, model: str, job: str) -> Job:
        """One of them, by its id."""
        return self._run(requests.job(model, job))

    def start_job(
        self,
        model: str,
        *,
        start: str = "beginning",
        stop: str = "now",
        k: int | None = None,
        init: str = "k-means++",
        n_init: int = 1,
        max_iter: int = 300,
    ) -> Job:
        """Run the exact algorithm over a range of the topic; what comes of it answers nothing until it is promoted.

        Parameters
        ----------
        start, stop
            Places in the topic, such as ``2026-11-01``, ``2h``, ``offset:N`` or ``snapshot:N``.
        k
            Number of clusters; that of the model if None.
        init, n_init, max_iter
            As for `ExactKMeans`.
        """
        asked = {"from": start, "to": stop, "k": k, "init": init, "n_init": n_init, "max_iter": max_iter}
        return self._run(requests.start_job(model, asked))

    def cancel_job(self, model: str, job: str) -> Job:
        """End a job that waits or runs."""
        return self._run(requests.cancel_job(model, job))
