"""Asynchronous, cached reading of a store.

Snapshots are immutable, so they are cached; only which one is the newest can change. That is queried at most once per
`freshness` seconds and model, by one query at a time, however many requests wait for it.

Store queries run in threads of their own, for at most `timeout` seconds, so that a slow store delays only the responses
that need it.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import orjson
from pydantic import BaseModel

from streamkm.errors import NotFoundError, StoreUnavailableError
from streamkm.service.status import not_ready
from streamkm.state import Snapshot
from streamkm.stores.base import ModelInfo, Store
from streamkm.stores.paging import split_page
from streamkm.times import format_time

T = TypeVar("T")

STORE_THREADS = 8
COMPUTE_THREADS = 2
MAX_INLINE_NUMBERS = 1 << 14
"""Coordinates of points, times clusters, that are processed in the event loop; more go to a thread."""
MAX_INLINE_JSON_BYTES = 2048
"""JSON that is parsed in the event loop; longer ones go to a thread. Locating an error takes 0.5 us per byte."""


class CachedSnapshot:
    """A snapshot with its encoded responses.

    Attributes
    ----------
    snapshot
        The snapshot.
    etag
        Entity tag; it changes when the model is deleted and created again.
    created_at
        RFC 3339 time of publication.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.etag = f'"{snapshot.id}-{round(snapshot.created_at * 1e6):x}"'
        self.created_at = format_time(snapshot.created_at)
        self._bodies: dict[Callable[[Snapshot], BaseModel], bytes] = {}

    @property
    def cost(self) -> int:
        """Upper bound of its size in bytes: the arrays, and two cached responses of at most 80 bytes per number."""
        return 4096 + self.snapshot.centroids.size * (8 + 2 * 2 * 40)

    def body(self, serialize: Callable[[Snapshot], BaseModel]) -> bytes:
        """The JSON of a response, encoded by the first call."""
        found = self.cached_body(serialize)
        if found is None:
            found = self._bodies[serialize] = to_json(serialize(self.snapshot))
        return found

    def cached_body(self, serialize: Callable[[Snapshot], BaseModel]) -> bytes | None:
        """The JSON of a response if it is encoded already."""
        return self._bodies.get(serialize)


def to_json(content: BaseModel) -> bytes:
    """Encode a response as JSON; NaN becomes null."""
    return orjson.dumps(content.model_dump())


class StoreReader:
    """Asynchronous access to a store, with a cache of snapshots.

    Parameters
    ----------
    store
        Used from several threads; it belongs to the caller, who closes it.
    clock
        Seconds since 1970.
    freshness
        Seconds for which a snapshot is served as the newest before the store is queried again.
    timeout
        Maximum seconds of one query.
    cache_bytes
        Maximum size of the cache.
    """

    def __init__(
        self, store: Store, *, clock: Callable[[], float], freshness: float, timeout: float, cache_bytes: int
    ) -> None:
        self.store = store
        self.clock = clock
        self.freshness = freshness
        self.timeout = timeout
        self.cache_bytes = cache_bytes
        self._cached_bytes = 0
        self._cache: OrderedDict[tuple[str, float, int], CachedSnapshot] = OrderedDict()
        self._infos: dict[str, tuple[float, ModelInfo]] = {}
        self._pending: dict[Hashable, asyncio.Task[Any]] = {}
        self._store_threads = ThreadPoolExecutor(STORE_THREADS, "streamkm-store")
        self._compute_threads = ThreadPoolExecutor(COMPUTE_THREADS, "streamkm-compute")

    def close(self) -> None:
        """Stop the threads; pending responses are lost."""
        self._store_threads.shutdown(wait=False, cancel_futures=True)
        self._compute_threads.shutdown(wait=False, cancel_futures=True)

    async def predict(self, work: Callable[[], T], size: int, cached: CachedSnapshot) -> T:
        """Run `work`, which parses `size` bytes and predicts with a snapshot, in the event loop if it is little."""
        numbers = size // 4  # at most: a digit, a comma and two brackets, of points with one field
        if size <= MAX_INLINE_JSON_BYTES and numbers * len(cached.snapshot.ids) <= MAX_INLINE_NUMBERS:
            return work()
        return await self.run_in_thread(work)

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread for computations."""
        return await asyncio.get_running_loop().run_in_executor(self._compute_threads, work)

    async def encode(self, build: Callable[[], BaseModel]) -> bytes:
        """Build a response and encode it as JSON, in a thread: its size depends on the content of the store."""
        return await self.run_in_thread(lambda: to_json(build()))

    async def query(self, read: Callable[[], T]) -> T:
        """Run a store operation in a thread for the store.

        Raises
        ------
        StoreUnavailableError
            The store is unavailable, or took longer than `timeout`.
        """
        result = asyncio.get_running_loop().run_in_executor(self._store_threads, read)
        try:
            return await asyncio.wait_for(result, self.timeout)
        except TimeoutError as e:
            raise StoreUnavailableError(f"the store did not respond within {self.timeout:g} s", hint="Retry") from e

    async def ping(self) -> None:
        """Return if the store can be read; see `query` for errors."""
        await self.once("ping", lambda: self.query(self.store.ping))

    async def model(self, name: str) -> ModelInfo:
        """The model as stored now."""
        return await self.once(("model", name), lambda: self._load(name))

    async def models(self) -> list[tuple[ModelInfo, Snapshot | None]]:
        """All models as stored now, with their newest snapshots."""
        return await self.once("models", lambda: self.query(self.read_models))

    async def newest(self, info: ModelInfo) -> CachedSnapshot | None:
        """The newest snapshot of a model; None if it has none."""
        return await self._numbered(info, info.last_snapshot) if info.last_snapshot else None

    async def snapshots(self, name: str, before: int | None, limit: int, *, eventful: bool = False) -> list[Snapshot]:
        """Up to `limit` snapshots below a number, newest first; with `eventful` only those with events."""
        return await self.query(lambda: list(self.store.snapshots(name, before=before, limit=limit, eventful=eventful)))

    async def page(
        self, name: str, before: int | None, limit: int, *, eventful: bool = False
    ) -> tuple[Sequence[Snapshot], int | None]:
        """A page of snapshots, newest first.

        Parameters
        ----------
        name
            Name of the model.
        before
            Only snapshots with a lower number; all if None.
        limit
            Maximum length of the page.
        eventful
            Only snapshots with events.

        Returns
        -------
        snapshots
            The page.
        next
            `before` of the next page; None if this is the last one.
        """
        found = await self.snapshots(name, before, limit + 1, eventful=eventful)
        return split_page(found, limit)

    async def snapshot(self, name: str, snapshot_id: int | None = None, *, at: float | None = None) -> CachedSnapshot:
        """A snapshot by number, the newest one published at or before `at`, or the newest of all.

        Raises
        ------
        NotFoundError
            The model or snapshot does not exist.
        Problem
            409: the model is warming up.
        """
        checked, info = self._infos.get(name, (0.0, None))
        if info is None or not info.last_snapshot or time.monotonic() - checked >= self.freshness:
            info = await self.model(name)
        if not info.last_snapshot:
            raise not_ready(info, self.clock())
        if at is not None:
            found = await self.query(lambda: self.store.snapshot(name, at=at))
            return self._keep(info, found)
        return await self._numbered(info, info.last_snapshot if snapshot_id is None else snapshot_id)

    async def _numbered(self, info: ModelInfo, number: int) -> CachedSnapshot:
        name = info.spec.name
        key = (name, info.created_at, number)
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached

        async def load() -> CachedSnapshot:
            return self._keep(info, await self.query(lambda: self.store.snapshot(name, number)))

        return await self.once(key, load)

    async def _load(self, name: str) -> ModelInfo:
        try:
            info = await self.query(lambda: self.store.model(name))
        except NotFoundError:
            self._infos.pop(name, None)
            raise
        self._infos[name] = (time.monotonic(), info)
        return info

    def read_models(self) -> list[tuple[ModelInfo, Snapshot | None]]:
        """Like `models`, but synchronous: for use in `query`."""
        result: list[tuple[ModelInfo, Snapshot | None]] = []
        for info in self.store.models():
            newest = None
            if info.last_snapshot:
                cached = self._cache.get((info.spec.name, info.created_at, info.last_snapshot))
                try:
                    newest = cached.snapshot if cached else self.store.snapshot(info.spec.name, info.last_snapshot)
                except NotFoundError:
                    continue  # deleted between the two queries
            result.append((info, newest))
        return result

    def _keep(self, info: ModelInfo, snapshot: Snapshot) -> CachedSnapshot:
        key = (info.spec.name, info.created_at, snapshot.id)
        cached = self._cache.get(key)
        if cached is None:
            cached = self._cache[key] = CachedSnapshot(snapshot)
            self._cached_bytes += cached.cost
        while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
            self._cached_bytes -= self._cache.popitem(last=False)[1].cost
        return cached

    async def once(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of `work`, which runs once for all requests that want it at the same time."""
        task = self._pending.get(key)
        if task is None:
            task = self._pending[key] = asyncio.create_task(work())

            def done(finished: asyncio.Task[Any]) -> None:
                self._pending.pop(key, None)
                if not finished.cancelled():
                    finished.exception()  # marks it as retrieved, in case every waiting request was cancelled

            task.add_done_callback(done)
        # A request that is cancelled must not cancel the work for the others.
        return cast("T", await asyncio.shield(task))
