"""Records of compressed batches that are longer than anybody needs: read past, with the beginning of the value kept.

Each step is a generator that yields None where the room of a poll is full, and goes on in the room of the next one.
"""

from __future__ import annotations

from collections.abc import Generator

from streamkm.connectors.kafka.decompression import Packed
from streamkm.connectors.kafka.record_format import WHY, BrokenError, as_record
from streamkm.kernels.decode import record_batch
from streamkm.records import KEPT_VALUE_BYTES

_LONGEST_VARINT = 10


def more(packed: Packed) -> Generator[None, None, None]:
    """Unpack some more, in the next poll if this one has no room."""
    while packed.room.full:
        yield None
    if not packed.more():
        raise BrokenError(WHY[record_batch.UNFINISHED])


def shorten(packed: Packed) -> Generator[None, None, int]:
    """Put a short record in the place of the next one, which is longer than `Room.longest`.

    Its value is whole if that has `Room.most_value` bytes or fewer, else `KEPT_VALUE_BYTES` of it are there. A key or
    headers of more than `Room.longest` bytes are cut as well; nobody has use for those.

    Returns
    -------
    int
        How many bytes the value has, if it was cut, or the record, if that was; 0 if all that counts is there.
    """
    room = packed.room
    length = yield from _number(packed)
    stop = packed.read + length
    yield from _field(packed, 1, 1, stop)  # attributes: unused by Kafka
    time_delta = yield from _number(packed)
    delta = yield from _number(packed)
    size = yield from _number(packed)
    key = yield from _field(packed, size, room.longest, stop)
    cut = length if size > room.longest else 0
    size = yield from _number(packed)
    kept = size if size <= room.most_value else KEPT_VALUE_BYTES
    value = yield from _field(packed, size, kept, stop)
    cut = size if size > kept else cut
    count = yield from _number(packed)
    headers: list[bytes | None] = []
    left = room.longest
    for _ in range(count):
        pair = []
        for _ in range(2):
            size = yield from _number(packed)
            left -= max(0, size) + 1
            pair.append((yield from _field(packed, size, max(0, left), stop)))
        if left < 0:
            cut = cut or length
            yield from _field(packed, stop - packed.read, 0, stop)
            break
        headers += pair
    if packed.read != stop or count < 0:
        raise BrokenError(WHY[record_batch.BAD_LENGTH])
    packed.instead(as_record(key, value, headers, time_delta, delta))
    return cut


def _number(packed: Packed) -> Generator[None, None, int]:
    """The next varint."""
    while packed.end - packed.at < _LONGEST_VARINT:
        while packed.room.full:
            yield None
        if not packed.more():
            break
    value, at = record_batch.read_varint(packed.data, packed.at, packed.end)
    if at < 0:
        raise BrokenError(WHY[-int(at)])
    packed.go(int(at))
    return int(value)


def _field(packed: Packed, size: int, kept: int, stop: int) -> Generator[None, None, bytes | None]:
    """Read `size` bytes, of which the first `kept` are returned; None for a size below 0."""
    if size > stop - packed.read:
        raise BrokenError(WHY[record_batch.BAD_LENGTH])
    found, left = bytearray(), size
    while left > 0:
        here = min(left, packed.end - packed.at)
        wanted = min(here, kept - len(found))
        found += packed.data[packed.at : packed.at + wanted].tobytes()
        packed.go(packed.at + here)
        left -= here
        if left:
            packed.forget()
            yield from more(packed)
    return None if size < 0 else bytes(found)
