"""The same for asyncio; see `methods`, where each is described."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import TypeVar

from streamkm.client import requests
from streamkm.client.requests import Flow
from streamkm.client.responses import Difference, Event, Job, KProfile, Life, Me, Past, Quarantine, Sample

T = TypeVar("T")


class AsyncMethods(ABC):
    """They send nothing themselves."""

    @abstractmethod
    async def _run(self, flow: Flow[T]) -> T:
        """Send what a flow asks."""

    @abstractmethod
    def _follow(self, model: str, after: str | None) -> AsyncIterator[Event]:
        """Listen to a stream of events."""

    async def history(self, model: str, *, limit: int = 100) -> list[Past]:
        """The newest snapshots that were in charge, with their clusters, newest first."""
        return await self._run(requests.history(model, limit))

    async def lineage(self, model: str) -> list[Life]:
        """Where each cluster came from, and what became of it, by id."""
        return await self._run(requests.lineage(model))

    async def diff(self, model: str, a: int, b: int) -> Difference:
        """From snapshot `a` to snapshot `b`: what moved how far, and what each costs on the same points."""
        return await self._run(requests.diff(model, a, b))

    async def k(self, model: str) -> KProfile:
        """How many clusters there should be."""
        return await self._run(requests.k(model))

    async def sample(self, model: str, *, n: int = 300) -> Sample:
        """Some of the last points with their clusters."""
        return await self._run(requests.sample(model, n))

    async def quarantine(self, model: str, *, limit: int = 100, reason: str | None = None) -> Quarantine:
        """Records that could not be learned: how many and why, and the newest of them."""
        return await self._run(requests.quarantine(model, limit, reason))

    def follow_events(self, model: str, *, after: str | None = None) -> AsyncIterator[Event]:
        """What happens to clusters, as it happens, without an end."""
        return self._follow(model, after)

    async def me(self) -> Me:
        """Who the service takes one for, and what one may do."""
        return await self._run(requests.me())

    async def promote(self, model: str, snapshot: int, *, skip: bool = False) -> None:
        """Ask for a snapshot to be put in charge, which the consumer does at its next checkpoint."""
        await self._run(requests.promote(model, snapshot, skip=skip))

    async def pause(self, model: str) -> None:
        """Let the consumer read nothing for now."""
        await self._run(requests.pause(model, paused=True))

    async def resume(self, model: str) -> None:
        """Let the consumer read on."""
        await self._run(requests.pause(model, paused=False))

    async def delete(self, model: str) -> None:
        """Remove a model with all that belongs to it, for good; not while a consumer runs it."""
        await self._run(requests.delete(model))

    async def jobs(self, model: str) -> list[Job]:
        """Recomputations that were asked for, newest first."""
        return await self._run(requests.jobs(model))

    async def job(self, model: str, job: str) -> Job:
        """One of them, by its id."""
        return await self._run(requests.job(model, job))

    async def start_job(
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
        """Run the exact algorithm over a range of the topic; what comes of it answers nothing until it is promoted."""
        asked = {"from": start, "to": stop, "k": k, "init": init, "n_init": n_init, "max_iter": max_iter}
        return await self._run(requests.start_job(model, asked))

    async def cancel_job(self, model: str, job: str) -> Job:
        """End a job that waits or runs."""
        return await self._run(requests.cancel_job(model, job))
