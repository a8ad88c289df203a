"""Names of fields: validation, and the search tree of the JSON scanner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from streamkm.errors import SettingsError
from streamkm.kernels.decode.json_scan import NameTree
from streamkm.kernels.groups import plain

MAX_ABS_VALUE = 1e140
"""Maximum absolute value of a field; sums of squares of larger values would not be finite."""


def validate_fields(fields: Sequence[str], time_field: str | None, *, dotted: bool = True) -> tuple[str, ...]:
    """Check that a codec can use these fields.

    Parameters
    ----------
    fields
        Names in the order of a point's coordinates.
    time_field
        Name of the event time, or None.
    dotted
        Whether a dot separates the names of nested objects.

    Raises
    ------
    SettingsError
        There are no fields, a name is empty, or a name occurs twice.
    """
    listed = tuple(fields)
    if isinstance(fields, str) or not listed:
        raise SettingsError("a codec requires at least one field", where="fields", hint="Such as amount,lat,lon")
    for name in listed:
        broken = dotted and isinstance(name, str) and (name.startswith(".") or name.endswith(".") or ".." in name)
        if not isinstance(name, str) or not name or broken:
            raise SettingsError(f"{name!r} is not a valid field name", where="fields")
    if len(set(listed)) < len(listed):
        raise SettingsError("a field is named twice", where="fields")
    if time_field is not None and time_field in listed:
        raise SettingsError("the event time cannot be a coordinate too", where="time_field")
    return listed


class FieldTree:
    """The fields as a tree of names, in the form that `kernels.decode.json_scan` takes.

    Attributes
    ----------
    names
        The names, as `scan_rows` takes them.
    plain
        Whether all names can be compared byte by byte, because JSON does not escape them.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        nodes: list[dict[str, list[int]]] = [{}]
        for column, path in enumerate(paths):
            node = 0
            rest = path
            while True:
                nodes[node].setdefault(rest, [-1, -1])[0] = column
                step, dot, rest = rest.partition(".")
                if not dot:
                    break
                entry = nodes[node].setdefault(step, [-1, -1])
                if entry[1] < 0:
                    entry[1] = len(nodes)
                    nodes.append({})
                node = entry[1]
        blob = bytearray()
        entries: list[tuple[int, int, int, int]] = []
        firsts = [0]
        for children in nodes:
            for name, (column, child) in children.items():
                raw = name.encode()
                entries.append((len(blob), len(blob) + len(raw), column, child))
                blob += raw
            firsts.append(len(entries))
        self.plain = all(c >= " " and c not in '"\\' for path in paths for c in path)
        text: NDArray[np.uint8] = np.frombuffer(bytes(blob), np.uint8)
        self.names = plain(NameTree(text, np.array(entries, np.int64), np.array(firsts, np.int64)))
