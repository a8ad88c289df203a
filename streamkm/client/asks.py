"""Flows of what a model was and saw, and of acting on it; see `flows`."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import orjson

from streamkm.client import flows
from streamkm.client.answers import Event, moment
from streamkm.client.flows import Call, Flow, path_of
from streamkm.client.told import Difference, Job, KProfile, Life, Me, Past, Quarantine, Sample


def history(name: str, limit: int) -> Flow[list[Past]]:
    """The newest snapshots with their clusters."""
    return (yield from flows.pages(name, "history", limit, lambda told: [Past.of(told)]))


def lineage(name: str) -> Flow[list[Life]]:
    """The lives of all clusters: what each page tells of one is put together."""
    found: dict[int, Life] = {}
    params: dict[str, str | int] = {"limit": flows.PAGE}
    while True:
        answer = yield Call(path_of(name, "lineage"), params)
        for life in map(Life.of, answer["clusters"]):
            later = found.get(life.id)
            # Newer pages come first: the end of a life is told there, its beginning here.
            found[life.id] = life if later is None else _joined(life, later)
        if answer["next"] is None:
            return [found[i] for i in sorted(found)]
        params["before"] = answer["next"]


def _joined(earlier: Life, later: Life) -> Life:
    return Life(
        earlier.id,
        earlier.born if earlier.born is not None else later.born,
        later.ended if later.ended is not None else earlier.ended,
        earlier.origins or later.origins,
        later.successors or earlier.successors,
    )


def diff(name: str, a: int, b: int) -> Flow[Difference]:
    """Two snapshots."""
    return Difference.of((yield Call(path_of(name, "diff"), {"a": a, "b": b})))


def k(name: str) -> Flow[KProfile]:
    """How many clusters there should be."""
    return KProfile.of((yield Call(path_of(name, "k"))))


def sample(name: str, n: int) -> Flow[Sample]:
    """Some of the last points."""
    return Sample.of((yield Call(path_of(name, "sample"), {"n": n})))


def quarantine(name: str, limit: int, reason: str | None) -> Flow[Quarantine]:
    """Records that could not be learned."""
    params: dict[str, str | int] = {"limit": limit} | ({} if reason is None else {"reason": reason})
    return Quarantine.of((yield Call(path_of(name, "quarantine"), params)))


def me() -> Flow[Me]:
    """Who one is."""
    return Me.of((yield Call("/v1/me")))


def promote(name: str, snapshot: int, *, skip: bool) -> Flow[None]:
    """Ask for a snapshot to be put in charge."""
    yield Call(path_of(name, "promote"), body=orjson.dumps({"snapshot": snapshot, "skip": skip}))


def pause(name: str, *, paused: bool) -> Flow[bool]:
    """Ask the owner to read nothing, or to read on."""
    answer = yield Call(path_of(name, "pause" if paused else "resume"), method="POST")
    return bool(answer["paused"])


def delete(name: str) -> Flow[None]:
    """Remove a model."""
    yield Call(path_of(name), method="DELETE", again=False)


def jobs(name: str) -> Flow[list[Job]]:
    """The jobs of a model."""
    return [Job.of(told) for told in (yield Call(path_of(name, "jobs")))["jobs"]]


def job(name: str, number: str) -> Flow[Job]:
    """One job."""
    return Job.of((yield Call(path_of(name, "jobs", flows.quoted(number)))))


def start_job(name: str, asked: dict[str, Any]) -> Flow[Job]:
    """Ask for a recomputation."""
    told = {key: value for key, value in asked.items() if value is not None}
    return Job.of((yield Call(path_of(name, "jobs"), body=orjson.dumps(told), again=False)))


def cancel_job(name: str, number: str) -> Flow[Job]:
    """End a job."""
    return Job.of((yield Call(path_of(name, "jobs", flows.quoted(number)), method="DELETE", again=False)))


def read_events() -> Generator[Event | None, str, None]:
    """Events out of the lines of a stream: is sent a line, yields the event that it completes, if it does.

    >>> reader = read_events()
    >>> next(reader)
    >>> told = '{"snapshot": 4, "created_at": "2026-11-01T10:00:00Z", "kind": "birth", "before": [],'
    >>> for line in ("id: 4.1", "event: birth", f'data: {told} "after": [7], "detail": {{}}}}'):
    ...     reader.send(line)
    >>> reader.send("").id
    '4.1'
    """
    fields: dict[str, str] = {}
    event: Event | None = None
    while True:
        line = yield event
        event = None
        if line:
            name, colon, value = line.partition(":")
            if name and colon:
                fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields and "id" in fields:
            told = orjson.loads(fields["data"])
            ids = tuple(told["before"]), tuple(told["after"])
            at = int(told["snapshot"]), moment(told["created_at"])
            event = Event(*at, told["kind"], *ids, told["detail"], int(fields["id"].partition(".")[2]))
        fields = {}
