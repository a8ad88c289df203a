"""Default headers and error bodies (RFC 9457) of all HTTP responses."""

from __future__ import annotations

import http
from collections.abc import Iterable
from typing import Any

MEDIA_TYPE = "application/problem+json"
POLICY = b"default-src 'none'; frame-ancestors 'none'"
"""Content security policy of API responses, which load nothing; pages have their own."""
_ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)
_POLICY = (b"content-security-policy", POLICY)
_NO_STORE = (b"cache-control", b"no-store")


def with_default_headers(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Complete the headers of a response with the default ones."""
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
    """The members of an error response.

    Parameters
    ----------
    status
        HTTP status.
    code
        Error code for programs.
    message
        What was wrong, already redacted.
    where, hint
        Location of the error, and how to correct it.
    """
    return {
        "type": "about:blank",
        "title": status_phrase(status),
        "status": status,
        "detail": f"{where}: {message}" if where else message,
        "code": code,
        "where": where,
        "hint": hint,
    }


def status_phrase(status: int) -> str:
    """Reason phrase of an HTTP status."""
    # Since Python 3.13 the phrases of 413 and 422 follow RFC 9110; responses must not depend on the interpreter.
    return {413: "Content Too Large", 422: "Unprocessable Content"}.get(status) or http.HTTPStatus(status).phrase
