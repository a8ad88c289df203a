"""Asynchronous, cached reading of a store.

Snapshots are immutable, so they are kept; what can change is which one is newest. That is asked again at most every
`freshness` seconds a model, by one question at a time, however many clients wait for the answer.

The store is asked in threads of its own, for at most `patience` seconds, so that a slow store holds up nothing but the
answers that need it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel

from streamkm.errors import NotFoundError, StoreUnavailableError
from streamkm.service.status import not_ready
from streamkm.service.times import iso
from streamkm.state import Snapshot
from streamkm.stores.base import ModelInfo, Store

T = TypeVar("T")

STORE_THREADS = 8
COMPUTE_THREADS = 2
SMALL = 1 << 14
"""Numbers that are handled at once, in the event loop; more go to a thread."""


class Served:
    """A snapshot with what is sent of it, made once.

    Attributes
    ----------
    snapshot
        The snapshot.
    etag
        Entity tag; another one if the model was deleted and made anew.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.etag = f'"{snapshot.id}-{round(snapshot.created_at * 1e6):x}"'
        self.created_at = iso(snapshot.created_at)
        self._bodies: dict[Callable[[Snapshot], BaseModel], bytes] = {}

    @property
    def cost(self) -> int:
        """Bytes that it may take, answers included: a number of an answer is up to 40 characters, twice."""
        return 4096 + self.snapshot.centroids.size * (8 + 2 * 2 * 40)

    def body(self, answer: Callable[[Snapshot], BaseModel]) -> bytes:
        """The answer as JSON, made by the first call."""
        found = self.made(answer)
        if found is None:
            found = self._bodies[answer] = dumps(answer(self.snapshot))
        return found

    def made(self, answer: Callable[[Snapshot], BaseModel]) -> bytes | None:
        """The same if somebody has asked for it before."""
        return self._bodies.get(answer)


def dumps(answer: BaseModel) -> bytes:
    """An answer as JSON: never NaN, which orjson writes as null."""
    return orjson.dumps(answer.model_dump())


class Reader:
    """The store, as the service sees it.

    Parameters
    ----------
    store
        Asked from threads; it belongs to the caller, who closes it.
    clock
        Seconds since 1970.
    freshness
        Seconds for which the newest snapshot is taken to be the newest.
    patience
        Seconds that the store may take for one answer.
    cache_bytes
        Most bytes of snapshots kept.
    """

    def __init__(
        self, store: Store, *, clock: Callable[[], float], freshness: float, patience: float, cache_bytes: int
    ) -> None:
        self.store = store
        self.clock = clock
        self.freshness = freshness
        self.patience = patience
        self.cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cache: OrderedDict[tuple[str, float, int], Served] = OrderedDict()
        self._infos: dict[str, tuple[float, ModelInfo]] = {}
        self._pending: dict[Hashable, asyncio.Task[Any]] = {}
        self._store_threads = ThreadPoolExecutor(STORE_THREADS, "streamkm-store")
        self._compute_threads = ThreadPoolExecutor(COMPUTE_THREADS, "streamkm-compute")

    def close(self) -> None:
        """Give back the threads. Answers on their way are lost."""
        self._store_threads.shutdown(wait=False, cancel_futures=True)
        self._compute_threads.shutdown(wait=False, cancel_futures=True)

    async def compute(self, work: Callable[[], T], size: int) -> T:
        """Do `work` on `size` numbers: here if it is short, else in a thread."""
        if size <= SMALL:
            return work()
        return await self.work(work)

    async def work(self, work: Callable[[], T]) -> T:
        """Do `work` in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._compute_threads, work)

    async def encoded(self, make: Callable[[], BaseModel]) -> bytes:
        """An answer as JSON, made in a thread: how much there is to it depends on what the store has."""
        return await self.work(lambda: dumps(make()))

    async def ask(self, question: Callable[[], T]) -> T:
        """Ask the store.

        Raises
        ------
        StoreUnavailableError
            It says so, or took longer than `patience`.
        """
        answer = asyncio.get_running_loop().run_in_executor(self._store_threads, question)
        try:
            return await asyncio.wait_for(answer, self.patience)
        except TimeoutError as e:
            raise StoreUnavailableError(f"the store did not answer within {self.patience:g} s", hint="Ask again") from e

    async def ping(self) -> None:
        """Return if the store can be read."""
        await self.once("ping", lambda: self.ask(self.store.ping))

    async def model(self, name: str) -> ModelInfo:
        """The model as it is stored now."""
        return await self.once(("model", name), lambda: self._load(name))

    async def models(self) -> list[tuple[ModelInfo, Snapshot | None]]:
        """All models with their newest snapshots, as they are stored now."""
        return await self.once("models", lambda: self.ask(self.listed))

    async def newest(self, info: ModelInfo) -> Served | None:
        """The newest snapshot of a model, if it has any."""
        return await self._numbered(info, info.last_snapshot) if info.last_snapshot else None

    async def snapshots(self, name: str, before: int | None, limit: int, *, eventful: bool = False) -> list[Snapshot]:
        """Some snapshots, newest first; with `eventful` only those that tell events."""
        return await self.ask(lambda: list(self.store.snapshots(name, before=before, limit=limit, eventful=eventful)))

    async def snapshot(self, name: str, snapshot_id: int | None = None, *, at: float | None = None) -> Served:
        """A snapshot by number, the newest made at or before `at`, or the newest of all.

        Raises
        ------
        NotFoundError
            No such model or snapshot.
        Problem
            409: the model is warming up.
        """
        checked, info = self._infos.get(name, (0.0, None))
        if info is None or not info.last_snapshot or time.monotonic() - checked >= self.freshness:
            info = await self.model(name)
        if not info.last_snapshot:
            raise not_ready(info, self.clock())
        if at is not None:
            found = await self.ask(lambda: self.store.snapshot(name, at=at))
            return self._keep(info, found)
        return await self._numbered(info, info.last_snapshot if snapshot_id is None else snapshot_id)

    async def _numbered(self, info: ModelInfo, number: int) -> Served:
        name = info.spec.name
        key = (name, info.created_at, number)
        served = self._cache.get(key)
        if served is not None:
            self._cache.move_to_end(key)
            return served

        async def load() -> Served:
            return self._keep(info, await self.ask(lambda: self.store.snapshot(name, number)))

        return await self.once(key, load)

    async def _load(self, name: str) -> ModelInfo:
        try:
            info = await self.ask(lambda: self.store.model(name))
        except NotFoundError:
            self._infos.pop(name, None)
            raise
        self._infos[name] = (time.monotonic(), info)
        return info

    def listed(self) -> list[tuple[ModelInfo, Snapshot | None]]:
        """The same, for who is in a thread of the store already."""
        result: list[tuple[ModelInfo, Snapshot | None]] = []
        for info in self.store.models():
            newest = None
            if info.last_snapshot:
                served = self._cache.get((info.spec.name, info.created_at, info.last_snapshot))
                try:
                    newest = served.snapshot if served else self.store.snapshot(info.spec.name, info.last_snapshot)
                except NotFoundError:
                    continue  # deleted between the two questions
            result.append((info, newest))
        return result

    def _keep(self, info: ModelInfo, snapshot: Snapshot) -> Served:
        key = (info.spec.name, info.created_at, snapshot.id)
        served = self._cache.get(key)
        if served is None:
            served = self._cache[key] = Served(snapshot)
            self._cached_bytes += served.cost
        while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].cost
        return served

    async def once(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The answer of `work`, which one of those who want it at the same time does for all."""
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.create_task(work())

            def done(finished: asyncio.Task[Any]) -> None:
                self._pending.pop(key, None)
                if not finished.cancelled():
                    finished.exception()  # marks it as seen, should every waiter have left

            task.add_done_callback(done)
        # A client that leaves must not take the answer from the others.
        return cast("T", await asyncio.shield(task))
