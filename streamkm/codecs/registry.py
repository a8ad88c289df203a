"""Creates codecs from their specs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

from streamkm.codecs.base import NO_RESOURCES, Codec, CodecResources
from streamkm.codecs.columns import ColumnsCodec
from streamkm.codecs.json import JsonCodec
from streamkm.errors import SettingsError
from streamkm.state import CodecSpec


class CodecKind(NamedTuple):
    """How the codecs of one kind are made.

    Attributes
    ----------
    codec
        The class; the keyword arguments of its constructor that have defaults are the options of the kind.
    make
        Makes a codec, and contacts nothing: resources are for `Codec.decode`.
    """

    codec: type[Codec]
    make: Callable[[CodecSpec, CodecResources], Codec]


KINDS: Mapping[str, CodecKind] = {
    "columns": CodecKind(ColumnsCodec, lambda spec, _: ColumnsCodec(spec.fields, **spec.options)),
    "json": CodecKind(JsonCodec, lambda spec, _: JsonCodec(spec.fields, **spec.options)),
}


def make_codec(spec: CodecSpec, resources: CodecResources = NO_RESOURCES) -> Codec:
    """Create the codec that a spec describes; the inverse of `Codec.spec`.

    Every codec is made here, by those who learn a stream and by those who repeat what was learned.

    Parameters
    ----------
    spec
        Decides what the codec does.
    resources
        Clients and secrets that it may use. The default is for repeating, which must not depend on them.

    Raises
    ------
    SettingsError
        The kind is unknown, the codec has no such option, or it needs a resource that is not there.
    """
    if spec.kind not in KINDS:
        raise SettingsError(f"there is no codec {spec.kind!r}", where="codec", hint=f"Known: {', '.join(KINDS)}")
    try:
        return KINDS[spec.kind].make(spec, resources)
    except TypeError as error:
        raise SettingsError(f"the {spec.kind} codec cannot be created: {error}", where="codec") from error


def complete_spec(spec: CodecSpec) -> CodecSpec:
    """A spec with the defaults of all options that it leaves out, so that specs of equal codecs are equal.

    A spec of an unknown kind is returned unchanged.
    """
    if spec.kind not in KINDS:
        return spec
    options = inspect.signature(KINDS[spec.kind].codec).parameters.values()
    defaults = {option.name: option.default for option in options if option.default is not option.empty}
    return replace(spec, options={**defaults, **spec.options})
