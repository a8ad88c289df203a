"""What answers over HTTP have in common, whoever gives them: their headers, and the one shape of errors (RFC 9457)."""

from __future__ import annotations

import http
from collections.abc import Iterable
from typing import Any

MEDIA_TYPE = "application/problem+json"
POLICY = b"default-src 'none'; frame-ancestors 'none'"
"""Of answers of the API, which load nothing. The page has its own."""
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_POLICY = (b"content-security-policy", POLICY)
_NO_STORE = (b"cache-control", b"no-store")


def completed(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer, with those that every answer has."""
    has_policy = has_cache = False
    result = list(headers)
    for name, _ in result:
        if name == b"content-security-policy":
            has_policy = True
        elif name == b"cache-control":
            has_cache = True
    result += _ALWAYS
    if not has_policy:
        result.append(_POLICY)
    if not has_cache:
        result.append(_NO_STORE)
    return result


def problem_body(status: int, code: str, message: str, *, where: str = "", hint: str = "") -> dict[str, Any]:
    """The members of an error answer.

    Parameters
    ----------
    status
        HTTP status.
    code
        The word for machines.
    message
        What was wrong, already redacted.
    where, hint
        The place, and what to do.
    """
    return {
        "type": "about:blank",
        "title": title(status),
        "status": status,
        "detail": f"{where}: {message}" if where else message,
        "code": code,
        "where": where,
        "hint": hint,
    }


def title(status: int) -> str:
    """An HTTP status in words."""
    # Python 3.13 follows RFC 9110 with 413 and 422; the answer must not depend on the interpreter.
    return {413: "Content Too Large", 422: "Unprocessable Content"}.get(status) or http.HTTPStatus(status).phrase
