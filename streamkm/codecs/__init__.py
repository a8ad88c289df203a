"""Codecs decode records into points."""

from streamkm.codecs.base import Codec, CodecResources, SchemaLookup
from streamkm.codecs.columns import ColumnsCodec
from streamkm.codecs.json import JsonCodec, compile_scanner
from streamkm.codecs.registry import complete_spec, make_codec

__all__ = [
    "Codec",
    "CodecResources",
    "ColumnsCodec",
    "JsonCodec",
    "SchemaLookup",
    "compile_scanner",
    "complete_spec",
    "make_codec",
]
