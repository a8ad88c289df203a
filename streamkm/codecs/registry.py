"""Creates codecs from their specs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamkm.codecs.base import Codec
from streamkm.codecs.columns import ColumnsCodec
from streamkm.codecs.json import JsonCodec
from streamkm.errors import SettingsError
from streamkm.state import Json

_KINDS: Mapping[str, Callable[..., Codec]] = {"json": JsonCodec, "columns": ColumnsCodec}


def make_codec(spec: Json) -> Codec:
    """Create the codec that a spec describes; the inverse of `Codec.spec`.

    Parameters
    ----------
    spec
        ``{"kind": "json", "fields": [...], ...}``; options that it does not have get the codec's defaults.

    Raises
    ------
    SettingsError
        The kind is unknown, or the codec has no such option.
    """
    options: dict[str, Any] = dict(spec)
    kind = options.pop("kind", None)
    if kind not in _KINDS:
        raise SettingsError(f"there is no codec {kind!r}", where="codec", hint=f"Known: {', '.join(_KINDS)}")
    try:
        return _KINDS[kind](**options)
    except TypeError as error:
        raise SettingsError(f"the {kind} codec cannot be created: {error}", where="codec") from error
