"""Replays a range of a topic: fixes the range, reads it into an archive, fits it, and stores the snapshot."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from streamkm.codecs import make_codec
from streamkm.codecs.base import NO_RESOURCES, CodecResources
from streamkm.recompute.archive import Archive
from streamkm.recompute.fitting import FitProgress
from streamkm.recompute.replay import ReplayFit, WorkFolder, recompute
from streamkm.recompute.span import TimeIndexedSource, resolve_span
from streamkm.state import Json, ModelSpec
from streamkm.stores.base import ModelStore


@dataclass(frozen=True, kw_only=True)
class ReplayRequest:
    """What to replay.

    Attributes
    ----------
    start, stop
        Range of the topic; see `streamkm.recompute.span.resolve_span`.
    fit
        Parameters of the fit.
    archive
        Folder for the records that are read, which is kept; if None, one in the work folder, removed at the end.
    store
        URL of the store, without secrets: replays of models in different stores have different work folders.
    max_bad_ratio
        Maximum fraction of bad records.
    skip_lost
        Whether records that cannot be read are skipped, and recorded as lost.
    memory
        Maximum bytes for points in memory; None for no limit.
    threads
        Threads of the fit; None for one per core.
    trace
        Whether cost and moved points of each iteration are stored.
    """

    start: str
    stop: str
    fit: ReplayFit
    archive: Path | None
    store: str
    max_bad_ratio: float
    skip_lost: bool
    memory: int | None
    threads: int | None
    trace: bool

    def identity(self, spec: ModelSpec) -> Json:
        """What tells a replay apart from others: a killed one with the same identity is resumed."""
        return {
            "model": spec.name,
            "from": self.start,
            "to": self.stop,
            "archive": str(self.archive),
            **asdict(self.fit),
            "store": self.store,
            "source": dict(spec.source),
        }

    def work_folder(self, spec: ModelSpec, cache: Path) -> Path:
        """The work folder of the replay in a cache folder."""
        digest = hashlib.sha256(json.dumps(self.identity(spec), sort_keys=True).encode()).hexdigest()
        return cache / "replay" / f"{spec.name}-{digest[:16]}"


def replay_range(
    store: ModelStore,
    spec: ModelSpec,
    open_source: Callable[[], TimeIndexedSource],
    request: ReplayRequest,
    folder: Path,
    *,
    check_source: Callable[[TimeIndexedSource], None],
    resources: CodecResources = NO_RESOURCES,
    on_resume: Callable[[], None] = lambda: None,
    on_read: Callable[[int, int], None] | None = None,
    on_fit: Callable[[FitProgress], None] | None = None,
) -> int:
    """Replay a range of a topic, resuming a killed replay with the same request.

    Parameters
    ----------
    store
        Store of the model.
    spec
        The model.
    open_source
        Opens the topic.
    request
        What to replay.
    folder
        Work folder; removed at the end.
    check_source
        Raises an error if the topic is another one than the model has learned.
    resources
        For the codec: the range may have records that the model has not learned.
    on_resume
        Called if a killed replay is resumed.
    on_read
        Called with the offsets read, and their total.
    on_fit
        Called after each iteration.

    Returns
    -------
    Number of the resulting snapshot.
    """
    work = WorkFolder(folder)
    with contextlib.closing(open_source()) as source:
        check_source(source)
        span, resumed = work.load_or_create_plan(
            request.identity(spec),
            lambda: resolve_span(source, request.start, request.stop, lambda i: store.snapshot(spec.name, i).position),
        )
    if resumed:
        on_resume()
    archive = Archive(
        request.archive or folder / "archive",
        {"source": dict(spec.source), "fields": list(spec.fields), "codec": spec.codec.to_json()},
    )
    archive.fill(
        span,
        open_source,
        make_codec(spec.codec, resources),
        max_bad_ratio=request.max_bad_ratio,
        skip_lost=request.skip_lost,
        on_progress=on_read,
    )
    number = recompute(
        store,
        spec,
        span,
        archive,
        work,
        request.fit,
        memory=request.memory,
        threads=request.threads,
        trace=request.trace,
        on_progress=on_fit,
    )
    if request.archive is None:
        archive.remove()
    work.clear()
    return number
