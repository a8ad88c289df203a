"""Codecs decode records into points."""

from streamkm.codecs.base import Codec
from streamkm.codecs.columns import ColumnsCodec
from streamkm.codecs.json import JsonCodec, compile_scanner
from streamkm.codecs.registry import make_codec

__all__ = ["Codec", "ColumnsCodec", "JsonCodec", "compile_scanner", "make_codec"]
