"""How the name of a field is resolved in a JSON record: the one rule for codecs, files, the HTTP API and the programs.

At each level of a record a key that equals the whole rest of the path comes first; otherwise the part up to the first
dot names the member to descend into. In an array that part is an index: ``emb.0`` or ``emb[0]``. So ``a.b.c`` is found
in ``{"a.b.c": 1}``, ``{"a": {"b.c": 1}}`` and ``{"a": {"b": {"c": 1}}}``, and not in ``{"a.b": {"c": 1}}``. The
compiled scanner of the JSON codec (`streamkm.codecs.fields.FieldTree`) follows the same rule for objects.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MISSING = object()
"""Result for a field that a record does not have."""

_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_BRACKETS = re.compile(r"\[(0|[1-9][0-9]{0,8})\]")


def resolve_path(record: Mapping[str, Any], path: str) -> Any:
    """The value of a field in a record, or `MISSING`.

    >>> resolve_path({"a": {"b.c": 1}}, "a.b.c"), resolve_path({"emb": [3, 4]}, "emb[1]")
    (1, 4)
    >>> resolve_path({"a.b": {"c": 1}}, "a.b.c") is MISSING
    True
    """
    found = _descend(record, path)
    if found is MISSING and "[" in path:
        return _descend(record, _dotted(path))
    return found


def _dotted(path: str) -> str:
    """A path with its indices written as ``.0`` instead of ``[0]``."""
    return _BRACKETS.sub(r".\1", path)


def _descend(record: Mapping[str, Any], path: str) -> Any:
    at: Any = record
    rest = path
    while isinstance(at, dict | list):
        if isinstance(at, dict) and rest in at:
            return at[rest]
        step, dot, rest = rest.partition(".")
        if isinstance(at, dict):
            at = at.get(step, MISSING) if dot else MISSING
            continue
        at = at[int(step)] if _INDEX.fullmatch(step) and int(step) < len(at) else MISSING
        if not dot:
            return at
    return MISSING


class FieldPaths:
    """The fields of a model, as paths into JSON records.

    Parameters
    ----------
    fields
        Names in the order of a point's coordinates.

    Attributes
    ----------
    nested
        Whether any field may lie inside of another object or array.
    """

    def __init__(self, fields: Sequence[str]) -> None:
        self.fields = tuple(fields)
        self._known = {*self.fields, *map(_dotted, self.fields)}
        self._inner = {name[:i] for name in self._known for i, sign in enumerate(name) if sign == "."}
        self.nested = bool(self._inner)

    def values(self, record: Mapping[str, Any]) -> list[Any]:
        """The value of each field, `MISSING` where the record has none."""
        return [resolve_path(record, field) for field in self.fields]

    def unknown(self, record: Mapping[str, Any]) -> list[str]:
        """Paths of values that belong to no field, in the order of the record.

        >>> FieldPaths(["a.b", "x"]).unknown({"x": 1, "y": 2, "a": {"b": 3, "c": 4}})
        ['y', 'a.c']
        """
        return list(self._unknown(record, ""))

    def _unknown(self, value: Mapping[str, Any] | Sequence[Any], path: str) -> Iterator[str]:
        for name, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            at = f"{path}.{name}" if path else str(name)
            if at in self._inner and isinstance(child, dict | list) and child:
                yield from self._unknown(child, at)
            elif at not in self._known:
                yield at
