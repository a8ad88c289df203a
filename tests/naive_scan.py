"""Naive twins of the kernels that read numbers and JSON: plain Python, sharing nothing with them."""

import datetime as dt
import json
import struct


def bits_of(number):
    return struct.unpack("<Q", struct.pack("<d", number))[0]


def multiply(a, b):
    return (a * b) >> 64, a * b & (2**64 - 1)


def leading_zeros(x):
    return 64 - x.bit_length()


def nearest_float64(mantissa, power, negative):
    return bits_of(float(f"{'-' if negative else ''}{mantissa}e{power}"))


def parse_number(text):
    return bits_of(float(text))


def skip_space(data, pos):
    return len(data) - len(data[pos:].lstrip(b" \t\r\n"))


def utf8_length(data, pos):
    for size in range(1, 5):
        try:
            if len(data[pos : pos + size].decode()) == 1 and len(data[pos : pos + size]) == size:
                return size
        except UnicodeDecodeError:
            continue
    return 0


def is_hex(data, pos):
    digits = data[pos : pos + 4]
    if len(digits) < 4 or not set(digits) <= set(b"0123456789abcdefABCDEF"):
        return False
    return not 0xD800 <= int(digits, 16) < 0xE000


def skip_text(data, pos):
    _, end = json.decoder.scanstring(data[pos:].decode(), 0)
    return pos + len(data[pos:].decode()[:end].encode())


def two_digits(text):
    return int(text)


def days_since_1970(year, month, day):
    return dt.date(year, month, day).toordinal() - dt.date(1970, 1, 1).toordinal()


def parse_time(text):
    try:
        time = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)).timestamp()


def matches(data, pos, word):
    return data[pos:].startswith(word)


def scan_rows(value, paths, d):
    """("object" or "array", numbers) of a record that has all it should; else None."""

    def pairs(items):
        # The last of equal keys counts.
        return dict(items)

    try:
        record = json.loads(value.decode(), object_pairs_hook=pairs, parse_constant=lambda _: None)
    except ValueError:
        return None
    if isinstance(record, list):
        numbers = record if len(record) == d else None
    elif isinstance(record, dict):
        numbers = [find(record, path) for path in paths]
    else:
        return None
    if numbers is None or any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
        return None
    return "array" if isinstance(record, list) else "object", [bits_of(float(n)) for n in numbers]


def find(record, path):
    """The value at a dotted path; a key that is the whole of a path comes first."""
    if not isinstance(record, dict):
        return None
    if path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    return find(record[head], rest) if dot and head in record else None
