"""What kafka-python decodes for us, kept from going round for ever or taking all memory where bytes are damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import kafka.codec  # type: ignore[import-untyped]
from kafka.record.legacy_records import LegacyRecordBatch  # type: ignore[import-untyped]

_DENSEST = 24
"""Snappy makes of a byte at most so many: what says that it is more has to be damaged, and is not given the memory."""
_SHORTEST = 4
"""Bytes of a message of formats 0 and 1 before the first that is not its length."""


def _snappy(data: bytes) -> bytes:
    told = at = 0
    if not data.startswith(b"\x82SNAPPY\0"):  # which comes in small blocks
        while at < min(5, len(data)):
            told |= (data[at] & 0x7F) << 7 * at
            at += 1
            if data[at - 1] < 0x80:
                break
    if told > _DENSEST * len(data):
        raise ValueError(f"{len(data)} bytes cannot become {told}")
    return bytes(kafka.codec.snappy_decode(data))


DECODERS: dict[int, tuple[str, Callable[[bytes], bytes]]] = {
    1: ("gzip", kafka.codec.gzip_decode),
    2: ("snappy", _snappy),
    3: ("lz4", kafka.codec.lz4_decode),
    4: ("zstd", kafka.codec.zstd_decode),
}
"""Names and decompressors by the number that a batch has for them."""


class Legacy(LegacyRecordBatch):  # type: ignore[misc]
    """Messages of formats 0 and 1; kafka-python's own goes round for ever where one ends before it begins."""

    def _read_header(self, pos: int) -> tuple[Any, ...]:
        header: tuple[Any, ...] = super()._read_header(pos)
        if header[1] < _SHORTEST:
            raise ValueError(f"a message has the length {header[1]}")
        return header
