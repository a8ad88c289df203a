"""Scanner that extracts selected numbers from many JSON records.

It scans the full JSON grammar, and for each record returns either the numbers or "unsure", never "invalid". It accepts
a subset of the records that a strict parser accepts, with the same numbers; for rare input (escapes in keys, duplicate
keys, numbers of more than 19 digits) and invalid input it is unsure, and the caller uses a strict parser.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamkm.kernels._jit import jit
from streamkm.kernels.decode.decimal import REFUSED, parse_number
from streamkm.kernels.decode.iso_time import parse_time

UNSURE, OBJECT, ARRAY, NULL, DATED = 0, 1, 2, 3, 4
"""Kinds of records: for a strict parser; an object or array with all selected numbers; a null value; an object whose
time was ISO 8601 text, converted to seconds."""

_MAX_DEPTH = 32
"""Maximum nesting of a record; deeper records are unsure."""

_HINTS = 256
"""Number of keys of the previous record that are remembered."""

_VALUE, _VALUE_OR_END, _KEY, _KEY_OR_END, _AFTER = 0, 1, 2, 3, 4
"""States of the scanner: what may come next."""

_QUOTE, _COMMA, _COLON, _MINUS, _BACKSLASH = 34, 44, 58, 45, 92
_OPEN_LIST, _CLOSE_LIST, _OPEN_OBJECT, _CLOSE_OBJECT = 91, 93, 123, 125
_TRUE = np.frombuffer(b"true", np.uint8)
_FALSE = np.frombuffer(b"false", np.uint8)
_NULL = np.frombuffer(b"null", np.uint8)


class NameTree(NamedTuple):
    """Names of the selected fields, as a tree.

    Node 0 is the record, and entry e of node v, ``firsts[v] <= e < firsts[v + 1]``, is a key: ``entries[e] = (name
    begin, name end, column or -1, node or -1)``.

    Attributes
    ----------
    names
        (bytes,) uint8: concatenated names, without quotes, backslashes and control characters.
    entries
        (m, 4) int64.
    firsts
        (nodes + 1,) int64.
    """

    names: NDArray[np.uint8]
    entries: NDArray[np.int64]
    firsts: NDArray[np.int64]


@jit()
def skip_space(data: NDArray[np.uint8], pos: int, end: int) -> int:
    """Return the position of the next byte in ``data[pos:end]`` that is not JSON white space; data is (bytes,)."""
    while pos < end and (data[pos] == 32 or data[pos] == 10 or data[pos] == 13 or data[pos] == 9):
        pos += 1
    return pos


@jit()
def utf8_length(data: NDArray[np.uint8], pos: int, end: int) -> int:
    """Bytes of the UTF-8 character at `pos` of (n,) data (RFC 3629): 0 if it is invalid, overlong or a surrogate."""
    c = data[pos]
    if c < 0x80:
        return 1
    size = 2 if 0xC2 <= c < 0xE0 else 3 if 0xE0 <= c < 0xF0 else 4 if 0xF0 <= c < 0xF5 else 0
    if size == 0 or end - pos < size:
        return 0
    for i in range(1, size):
        if data[pos + i] & 0xC0 != 0x80:
            return 0
    second = data[pos + 1]
    if (c == 0xE0 and second < 0xA0) or (c == 0xED and second >= 0xA0):
        return 0
    if (c == 0xF0 and second < 0x90) or (c == 0xF4 and second >= 0x90):
        return 0
    return size


@jit()
def is_hex(data: NDArray[np.uint8], pos: int, end: int) -> bool:
    """Whether (n,) data have four hexadecimal digits at `pos` that are not half of a surrogate pair."""
    if end - pos < 4:
        return False
    for i in range(4):
        c = data[pos + i]
        if not (48 <= c <= 57 or 97 <= c | 32 <= 102):
            return False
    return not (data[pos] | 32 == 100 and data[pos + 1] >= 56)


@jit()
def skip_text(data: NDArray[np.uint8], pos: int, end: int) -> int:  # noqa: PLR0911  # one return per kind of refusal
    """Return the position after the closing quote of the string at `pos` of (n,) data; `REFUSED` if invalid or rare."""
    while pos < end:
        c = data[pos]
        if c == _QUOTE:
            return pos + 1
        if c < 32:
            return REFUSED
        if c == _BACKSLASH:
            pos += 1
            if pos == end:
                return REFUSED
            c = data[pos]
            pos += 1
            if c == 117:  # u
                if not is_hex(data, pos, end):
                    return REFUSED
                pos += 4
            elif c not in (34, 92, 47, 98, 102, 110, 114, 116):  # " \\ / b f n r t; a set would be made each time
                return REFUSED
        elif c < 128:
            pos += 1
        else:
            size = utf8_length(data, pos, end)
            if size == 0:
                return REFUSED
            pos += size
    return REFUSED


@jit()
def matches(data: NDArray[np.uint8], pos: int, end: int, word: NDArray[np.uint8]) -> bool:
    """Whether ``data[pos:end]`` of (n,) data begins with a (m,) `word`."""
    if end - pos < len(word):
        return False
    for i in range(len(word)):  # noqa: SIM110  # numba has no generators
        if data[pos + i] != word[i]:
            return False
    return True


@jit(allocates=True)
def scan_rows(
    data: NDArray[np.uint8],  # IN
    begins: NDArray[np.int64],  # IN
    ends: NDArray[np.int64],  # IN
    max_bytes: int,
    tree: NameTree,  # IN
    width: int,
    points: NDArray[np.uint64],  # OUT
    times: NDArray[np.uint64],  # OUT
    kinds: NDArray[np.uint8],  # OUT
) -> None:
    """Scan records for selected fields.

    Parameters
    ----------
    data
        (bytes,) uint8.
    begins, ends
        (n,) record i is ``data[begins[i]:ends[i]]``; ``ends[i] == -1`` is null.
    max_bytes
        Longer records are not scanned and stay unsure.
    tree
        The fields.
    width
        Number of columns that an object must have: d, or d + 1 with a time.
    points
        (n, d) bits of float64.
    times
        (n,) bits of float64, column d of objects: as written, or in seconds if it was ISO 8601 text.
    kinds
        (n,) uint8: `UNSURE`, `OBJECT`, `ARRAY`, `NULL` or `DATED`; rows of `points` are undefined for `UNSURE` and
        `NULL`.
    """
    names, entries, firsts = tree
    d = points.shape[1]
    column_mark = np.full(width, -1, np.int64)
    entry_mark = np.full(len(entries), -1, np.int64)
    hints = np.full(_HINTS, -1, np.int64)
    stack = np.empty(_MAX_DEPTH, np.int64)
    seconds = np.empty(1)
    for i in range(len(begins)):
        pos, end = begins[i], ends[i]
        if end < 0:
            kinds[i] = NULL
            continue
        kinds[i] = UNSURE
        if end - pos > max_bytes:
            continue
        # The stack holds, for each open container, the node of an object, or -2 for an array.
        depth = 0
        state = _VALUE
        column, node = -1, 0
        found = 0
        n_key = 0
        root_array = False
        dated = False
        while True:
            pos = skip_space(data, pos, end)
            if pos >= end:
                if depth == 0 and state == _AFTER and found == (d if root_array else width):
                    kinds[i] = ARRAY if root_array else DATED if dated else OBJECT
                break
            c = data[pos]
            if state == _AFTER:
                if depth == 0:
                    break
                pos += 1
                inside = stack[depth - 1]
                if c == _COMMA:
                    if inside != -2:
                        state = _KEY
                    else:
                        state = _VALUE
                        column, node = -1, -1
                        if root_array and depth == 1:
                            if found >= d:
                                break
                            column = found
                            found += 1
                elif c == (_CLOSE_LIST if inside == -2 else _CLOSE_OBJECT):
                    depth -= 1
                else:
                    break
                continue
            if state in (_KEY, _KEY_OR_END):  # numba compares tuples unrolled
                if state == _KEY_OR_END and c == _CLOSE_OBJECT:
                    depth -= 1
                    pos += 1
                    state = _AFTER
                    continue
                if c != _QUOTE:
                    break
                pos += 1
                here = stack[depth - 1]
                entry = -1
                escaped = False
                if here >= 0:
                    # Records of a stream are similar: try the key at this position of the previous record.
                    guess = hints[n_key] if n_key < _HINTS else -1
                    if guess >= firsts[here] and guess < firsts[here + 1]:
                        low, high = entries[guess, 0], entries[guess, 1]
                        stop = pos + high - low
                        if stop < end and data[stop] == _QUOTE and matches(data, pos, end, names[low:high]):
                            entry = guess
                            pos = stop + 1
                if entry < 0:
                    start = pos
                    pos = skip_text(data, pos, end)
                    if pos == REFUSED:
                        break
                    for j in range(start, pos):
                        escaped = escaped or data[j] == _BACKSLASH
                    if escaped:
                        break  # it may be an escaped form of a selected name
                    if here >= 0:
                        size = pos - 1 - start
                        for e in range(firsts[here], firsts[here + 1]):
                            low, high = entries[e, 0], entries[e, 1]
                            if high - low == size and matches(data, start, end, names[low:high]):
                                entry = e
                                break
                if here >= 0 and n_key < _HINTS:
                    hints[n_key] = entry
                n_key += 1
                column, node = -1, -1
                if entry >= 0:
                    if entry_mark[entry] == i:
                        break  # duplicate key: in JSON parsers the last one counts
                    entry_mark[entry] = i
                    column, node = entries[entry, 2], entries[entry, 3]
                    if column >= 0:
                        if column_mark[column] == i:
                            break
                        column_mark[column] = i
                        found += 1
                pos = skip_space(data, pos, end)
                if pos >= end or data[pos] != _COLON:
                    break
                pos += 1
                state = _VALUE
                continue
            # A value.
            if c == _MINUS or (c >= 48 and c <= 57):
                next_pos, bits = parse_number(data, pos, end)
                if next_pos == REFUSED:
                    break
                pos = next_pos
                if column >= 0:
                    if column < d:
                        points[i, column] = bits
                    else:
                        times[i] = bits
                state = _AFTER
            elif c == _OPEN_OBJECT:
                if column >= 0 or depth == _MAX_DEPTH:
                    break
                stack[depth] = node
                depth += 1
                pos += 1
                state = _KEY_OR_END
            elif c == _OPEN_LIST:
                if column >= 0 or depth == _MAX_DEPTH:
                    break
                stack[depth] = -2
                pos += 1
                if depth == 0:
                    root_array = True
                    column = 0
                    found = 1
                    state = _VALUE
                else:
                    column = -1
                    state = _VALUE_OR_END
                node = -1
                depth += 1
            elif c == _CLOSE_LIST and state == _VALUE_OR_END:
                depth -= 1
                pos += 1
                state = _AFTER
            elif column >= 0:
                if c != _QUOTE or column < d:
                    break
                stop = skip_text(data, pos + 1, end)
                if stop == REFUSED:
                    break
                seconds[0] = parse_time(data, pos + 1, stop - 1)
                if np.isnan(seconds[0]):
                    break
                times[i] = seconds.view(np.uint64)[0]
                dated = True
                pos = stop
                state = _AFTER
            elif c == _QUOTE:
                pos = skip_text(data, pos + 1, end)
                if pos == REFUSED:
                    break
                state = _AFTER
            elif matches(data, pos, end, _TRUE) or matches(data, pos, end, _NULL):
                pos += 4
                state = _AFTER
            elif matches(data, pos, end, _FALSE):
                pos += 5
                state = _AFTER
            else:
                break
