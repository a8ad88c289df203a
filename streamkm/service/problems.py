"""Error responses: problem+json (RFC 9457) with an error code, the location and a hint."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from streamkm import errors
from streamkm.http.responses import MEDIA_TYPE, problem_body, status_phrase, with_default_headers
from streamkm.redaction import redact

log = logging.getLogger("streamkm.service")

RETRY_SECONDS = 1
"""``Retry-After`` of responses with status 503."""
CLIENT_GONE = 499
"""Status that a request is counted with whose client left before its end, as in nginx; nobody receives it."""
_MAX_PATH_SHOWN = 200
"""Characters of a path that an error message repeats."""

Code = Literal[
    "not-json",
    "invalid",
    "missing-field",
    "unknown-field",
    "wrong-dimension",
    "not-a-number",
    "not-finite",
    "unauthorized",
    "forbidden",
    "cross-site",
    "too-many",
    "in-use",
    "ended",
    "no-jobs",
    "misdirected",
    "not-found",
    "method-not-allowed",
    "not-acceptable",
    "too-slow",
    "warming-up",
    "too-large",
    "unsupported-media-type",
    "internal",
    "store-error",
    "store-unavailable",
]
"""Error codes. Those that are also reasons of the quarantine have the same meaning there."""


class ProblemBody(BaseModel):
    """An error response (RFC 9457)."""

    model_config = ConfigDict(
        extra="forbid",
        title="Problem",
        json_schema_extra={
            "examples": [
                {
                    "type": "about:blank",
                    "title": "Unprocessable Content",
                    "status": 422,
                    "detail": "points[3]: 2 values, the model has 3 fields (amount, lat, lon)",
                    "code": "wrong-dimension",
                    "where": "points[3]",
                    "hint": "",
                }
            ]
        },
    )

    type: Literal["about:blank"] = Field(description="Always this; see `code`")
    title: str = Field(description="Reason phrase of the status")
    status: int = Field(description="HTTP status", ge=400, le=599)
    detail: str = Field(description="Message for people: what was wrong, and where")
    code: Code = Field(description="Error code for programs")
    where: str = Field(description="Location of the error: a part of the request, a model; may be empty")
    hint: str = Field(description="How to correct it; may be empty")
    points: int | None = Field(default=None, description="With `warming-up`: points learned so far")
    points_needed: int | None = Field(
        default=None, description="With `warming-up`: points needed; null if not known yet"
    )
    error: str | None = Field(default=None, description="Under /v2 a copy of `detail`, for the open inference protocol")


class Problem(Exception):  # noqa: N818 - the RFC's name
    """An error response, raised as an exception.

    Parameters
    ----------
    status
        HTTP status.
    code
        Error code for programs.
    message
        What was wrong.
    where, hint
        Location of the error, and how to correct it.
    members
        Further members of the JSON object.
    headers
        Headers of the response.
    """

    def __init__(
        self,
        status: int,
        code: Code,
        message: str,
        *,
        where: str = "",
        hint: str = "",
        members: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(redact(message))
        self.status = status
        self.code = code
        self.message = redact(message)
        self.where = redact(where)
        self.hint = redact(hint)
        self.members = members or {}
        self.headers = dict(headers or {})

    def response(self, path: str = "") -> Response:
        """The response to a request for a path."""
        body = problem_body(self.status, self.code, self.message, where=self.where, hint=self.hint)
        body.update(self.members)
        if path.startswith("/v2"):
            body["error"] = body["detail"]
        return Response(orjson.dumps(body), self.status, self.headers, MEDIA_TYPE)


def from_error(error: errors.StreamkmError) -> Problem:
    """The response for an error of the library."""
    status, code = next((s, c) for cls, s, c in _STATUS_OF if isinstance(error, cls))
    if status == 500:
        log.error("request failed: %s", error, exc_info=error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return Problem(status, code, error.message, where=error.where, hint=error.hint, headers=headers)


_STATUS_OF: tuple[tuple[type[errors.StreamkmError], int, Code], ...] = (
    (errors.NotFoundError, 404, "not-found"),
    (errors.NotReadyError, 409, "warming-up"),
    (errors.DataError, 422, "invalid"),
    (errors.StoreUnavailableError, 503, "store-unavailable"),
    (errors.SchemaVersionError, 503, "store-error"),
    (errors.StoreError, 500, "store-error"),
    (errors.StreamkmError, 500, "internal"),
)


def install_handlers(app: FastAPI) -> None:
    """Convert every error of `app`, those of its framework too, to an error response."""
    app.exception_handler(Problem)(_problem)
    app.exception_handler(errors.StreamkmError)(_streamkm)
    app.exception_handler(RequestValidationError)(_validation)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(ClientDisconnect)(_disconnected)
    app.exception_handler(Exception)(_unexpected)


async def _problem(request: Request, e: Problem) -> Response:
    return e.response(request.url.path)


async def _streamkm(request: Request, e: errors.StreamkmError) -> Response:
    assert isinstance(e, errors.StreamkmError)  # noqa: S101
    return from_error(e).response(request.url.path)


async def _validation(request: Request, e: RequestValidationError) -> Response:
    first = e.errors()[0]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return Problem(422, "unknown-field", "unknown parameter", where=where).response(request.url.path)
    message = str(first["msg"]).removeprefix("Value error, ")
    return Problem(422, "invalid", message[:1].lower() + message[1:], where=where).response(request.url.path)


async def _http(request: Request, e: HTTPException) -> Response:
    if e.status_code == 404:
        problem = Problem(404, "not-found", f"no such path: {_path(request)}", hint="/openapi.json lists all paths")
    elif e.status_code == 405:
        allowed = (e.headers or {}).get("Allow", "")
        if "GET" in allowed:
            allowed += ", HEAD"
        problem = Problem(
            405,
            "method-not-allowed",
            f"{request.method} is not allowed for {_path(request)}",
            hint=f"Allowed: {allowed}",
        )
    else:
        problem = Problem(e.status_code, "invalid" if e.status_code < 500 else "internal", str(e.detail))
    problem.headers = dict(e.headers or {}) | ({"Allow": allowed} if e.status_code == 405 else {})
    return problem.response(request.url.path)


async def _disconnected(_: Request, __: ClientDisconnect) -> Response:
    # Also after a body that the connection refused. No error of the service, so without a traceback in its log.
    return Response(status_code=CLIENT_GONE)


def _path(request: Request) -> str:
    """The path of the request, truncated."""
    return request.url.path[:_MAX_PATH_SHOWN]


async def _unexpected(request: Request, _: Exception) -> Response:
    # The server logs the traceback; a client must not see it.
    response = Problem(500, "internal", "internal error; see the log of the service").response(request.url.path)
    # The framework sends it outside of every middleware, so of the one that adds these headers too.
    response.raw_headers = with_default_headers(response.raw_headers)
    return response


_EXAMPLES: Mapping[int, tuple[Code, str, str, str]] = {
    400: ("not-json", "body: unexpected character: line 1 column 13", "body", ""),
    401: ("unauthorized", "this service needs a token", "", "Send it as: Authorization: Bearer TOKEN"),
    403: (
        "forbidden",
        "the token reports may only read",
        "",
        "Ask the operator of the service for a token with this right",
    ),
    404: ("not-found", "orders: there is no model of this name", "orders", "There are: payments, taxis"),
    406: (
        "not-acceptable",
        "Accept: text/html is not available",
        "Accept",
        "Accept application/json, text/csv or application/vnd.apache.arrow.stream",
    ),
    408: ("too-slow", "body: did not arrive within 30 s, or nothing of it in 10 s", "body", ""),
    409: ("warming-up", "orders: warming up, 120 of 800 points", "orders", "Retry in a moment"),
    413: ("too-large", "body: more than 8388608 bytes", "body", "Send fewer points in one request"),
    415: ("unsupported-media-type", "Content-Type: text/csv is not JSON", "Content-Type", "Send application/json"),
    421: (
        "misdirected",
        "Host: evil.example is not this machine",
        "Host",
        "Use 127.0.0.1 or localhost, or start the service with a token",
    ),
    422: (
        "wrong-dimension",
        "points[3]: 2 values, the model has 3 fields (amount, lat, lon)",
        "points[3]",
        "",
    ),
    429: ("too-many", "too many requests", "", "Send fewer requests, or more points in each"),
    500: ("internal", "internal error; see the log of the service", "", ""),
    503: ("store-unavailable", "sqlite:///streamkm.db: database is locked", "sqlite:///streamkm.db", "Retry"),
}


def problem_responses(statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of the error responses of a route."""
    result: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        result |= problem_response(
            status, *_EXAMPLES[status], members={"points": 120, "points_needed": 800} if status == 409 else None
        )
    return result


def problem_response(
    status: int, code: Code, detail: str, where: str = "", hint: str = "", *, members: Mapping[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of one error response."""
    example: dict[str, Any] = {
        "type": "about:blank",
        "title": status_phrase(status),
        "status": status,
        "detail": detail,
        "code": code,
        "where": where,
        "hint": hint,
        **(members or {}),
    }
    return {
        status: {
            "description": status_phrase(status),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}},
        }
    }
