"""Server-sent events: a parser of the lines of an event stream."""

from __future__ import annotations

from collections.abc import Generator

import orjson

from streamkm.client.responses import ClusterEvent


def read_events() -> Generator[ClusterEvent | None, str, None]:
    """Parse the lines of an event stream.

    Yields
    ------
    The event that the line sent last has completed, else None.

    Examples
    --------
    >>> reader = read_events()
    >>> next(reader)
    >>> data = '{"snapshot": 4, "created_at": "2026-11-01T10:00:00Z", "kind": "birth", "before": [],'
    >>> for line in ("id: 4.1", "event: birth", f'data: {data} "after": [7], "detail": {{}}}}'):
    ...     reader.send(line)
    >>> reader.send("").id
    '4.1'
    """
    fields: dict[str, str] = {}
    event: ClusterEvent | None = None
    while True:
        line = yield event
        event = None
        if line:
            name, colon, value = line.partition(":")
            if name and colon:
                fields[name] = value.removeprefix(" ")
            continue
        if "data" in fields and "id" in fields:
            index = int(fields["id"].partition(".")[2])
            event = ClusterEvent.of({**orjson.loads(fields["data"]), "index": index})
        fields = {}
