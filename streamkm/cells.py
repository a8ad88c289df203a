"""Interpretation of table cells: a number, a missing value, or neither with a reason."""

from __future__ import annotations

import math
import re

MISSING = frozenset({"", "na", "n/a", "#n/a", "<na>", "nan", "+nan", "-nan", "null", "none", ".", "-", "?"})
"""Texts that stand for a missing value, in lower case and without surrounding blanks."""

# Unambiguous: two ways to match would take quadratic time in the number of digits. Python's float() also accepts
# "1_000", which is not wanted.
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_INFINITE = frozenset({"inf", "infinity"})
_MAX_EXPLAINED = 400
"""Maximum length of a text that `explain_non_number` looks at, characters."""

_REASONS = (
    ("a thousands separator", r"[+-]?\d{1,3}(?:,\d{3})+\.\d+|[+-]?\d{1,3}(?:[,.' \u00a0\u202f]\d{3}){2,}(?:[.,]\d+)?"),
    ("a thousands separator", r"[+-]?\d{1,3}(?:['\u00a0\u202f ]\d{3})+(?:[.,]\d+)?|[+-]?\d{1,3}(?:\.\d{3})+,\d+"),
    ("a comma, of thousands or of decimals", r"[+-]?[1-9]\d{0,2},\d{3}"),
    ("a decimal comma", r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?"),
    (
        "a currency",
        r"[+-]?\s*[$€£¥₹₽₩]\s*[+-]?[\d.,' ]+|[+-]?[\d.,' ]+\s*[$€£¥₹₽₩]|[A-Z]{3}\s?[\d.,]+|[\d.,]+\s?[A-Z]{3}",
    ),
    ("a per cent sign", r"[+-]?[\d.,]+\s*%"),
    ("a hexadecimal number", r"[+-]?0[xX][0-9a-fA-F]+"),
    ("digits with underscores", r"[+-]?\d+(?:_\d+)+(?:\.\d+)?"),
    ("true or false", r"(?i:true|false|yes|no|t|f)"),
    ("a date or a time", r"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:[T ].*)?|\d{1,2}:\d{2}(?::\d{2}.*)?"),
    ("a number with a unit", r"[+-]?\d[\d.,]*\s?[^\W\d_][\w/^²³µ°]{0,7}"),
)
_COMPILED_REASONS = tuple((reason, re.compile(pattern)) for reason, pattern in _REASONS)


def parse_number(text: str) -> float | None:
    """Parse a cell as a number; surrounding blanks are ignored.

    Returns
    -------
    float or None
        NaN for a missing value; None if it is not a number.

    Examples
    --------
    >>> parse_number(" +1e3 "), parse_number("N/A"), parse_number("1,5")
    (1000.0, nan, None)
    """
    stripped = text.strip()
    if _NUMBER.fullmatch(stripped):
        return float(stripped)
    lower = stripped.lower()
    if lower in MISSING:
        return math.nan
    if lower.lstrip("+-") in _INFINITE:
        return -math.inf if lower.startswith("-") else math.inf
    return None


def explain_non_number(text: str) -> str:
    """Why a text is not a number, such as "a decimal comma"; "text" if there is no specific reason.

    Examples
    --------
    >>> explain_non_number("1,5"), explain_non_number("$1.50"), explain_non_number("oops")
    ('a decimal comma', 'a currency', 'text')
    """
    stripped = text.strip()
    if len(stripped) > _MAX_EXPLAINED:
        return "text"
    return next((reason for reason, pattern in _COMPILED_REASONS if pattern.fullmatch(stripped)), "text")


def non_number_message(field: str, text: str) -> str:
    """Error message for a cell that is not a number."""
    why = explain_non_number(text)
    return f"{field} is not a number: {text.strip()[:40]!r}" + (f" ({why})" if why != "text" else "")
