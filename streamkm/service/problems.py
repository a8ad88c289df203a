"""The one shape of every error answer: problem+json (RFC 9457), with a word for machines, the place and what to do."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from streamkm import errors
from streamkm.http.responses import MEDIA_TYPE, problem_body, title
from streamkm.redaction import redact

log = logging.getLogger("streamkm.service")

RETRY_SECONDS = 1
_MOST_OF_A_PATH = 200

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
"""What a client can tell an error by. Words that a quarantined record can also have mean the same here."""


class ProblemBody(BaseModel):
    """An error answer (RFC 9457)."""

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

    type: Literal["about:blank"] = Field(description="`title` and `status` say it all; `code` is finer")
    title: str = Field(description="The status in words")
    status: int = Field(description="The HTTP status", ge=400, le=599)
    detail: str = Field(description="What was wrong and where, for people")
    code: Code = Field(description="What was wrong, for machines")
    where: str = Field(description="The place: a field of the request, a model; may be empty")
    hint: str = Field(description="What to do; may be empty")
    have: int | None = Field(default=None, description="With `warming-up`: points learned so far")
    need: int | None = Field(default=None, description="With `warming-up`: points needed; null if not known yet")
    error: str | None = Field(default=None, description="Under /v2: `detail`, where the open inference protocol has it")


class Problem(Exception):  # noqa: N818 - the RFC's name
    """An error answer on its way out.

    Parameters
    ----------
    status
        HTTP status.
    code
        The word for machines.
    message
        What was wrong.
    where, hint
        The place, and what to do.
    more
        Further members of the answer.
    headers
        Headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: Code,
        message: str,
        *,
        where: str = "",
        hint: str = "",
        more: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(redact(message))
        self.status = status
        self.code = code
        self.message = redact(message)
        self.where = redact(where)
        self.hint = redact(hint)
        self.more = more or {}
        self.headers = dict(headers or {})

    def response(self, path: str = "") -> Response:
        """The answer to a request for a path."""
        body = problem_body(self.status, self.code, self.message, where=self.where, hint=self.hint)
        body.update(self.more)
        if path.startswith("/v2"):
            body["error"] = body["detail"]
        return Response(orjson.dumps(body), self.status, self.headers, MEDIA_TYPE)


def from_error(error: errors.StreamkmError) -> Problem:
    """The answer for an error of the library."""
    status, code = next((s, c) for cls, s, c in _MAPPED if isinstance(error, cls))
    if status == 500:
        log.error("cannot answer: %s", error, exc_info=error)
    headers = {"Retry-After": str(RETRY_SECONDS)} if status == 503 else None
    return Problem(status, code, error.message, where=error.where, hint=error.hint, headers=headers)


_MAPPED: tuple[tuple[type[errors.StreamkmError], int, Code], ...] = (
    (errors.NotFoundError, 404, "not-found"),
    (errors.NotReadyError, 409, "warming-up"),
    (errors.DataError, 422, "invalid"),
    (errors.StoreUnavailableError, 503, "store-unavailable"),
    (errors.SchemaVersionError, 503, "store-error"),
    (errors.StoreError, 500, "store-error"),
    (errors.StreamkmError, 500, "internal"),
)


def install(app: FastAPI) -> None:
    """Give every error of `app`, its framework's own ones too, the one shape."""
    app.exception_handler(Problem)(_problem)
    app.exception_handler(errors.StreamkmError)(_streamkm)
    app.exception_handler(RequestValidationError)(_validation)
    app.exception_handler(HTTPException)(_http)
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
        return Problem(422, "unknown-field", "there is no such parameter", where=where).response(request.url.path)
    message = str(first["msg"]).removeprefix("Value error, ")
    return Problem(422, "invalid", message[:1].lower() + message[1:], where=where).response(request.url.path)


async def _http(request: Request, e: HTTPException) -> Response:
    if e.status_code == 404:
        problem = Problem(404, "not-found", f"there is no {_path(request)}", hint="/openapi.json lists what there is")
    elif e.status_code == 405:
        allowed = (e.headers or {}).get("Allow", "")
        if "GET" in allowed:
            allowed += ", HEAD"
        problem = Problem(
            405, "method-not-allowed", f"{request.method} is not for {_path(request)}", hint=f"Allowed: {allowed}"
        )
    else:
        problem = Problem(e.status_code, "invalid" if e.status_code < 500 else "internal", str(e.detail))
    problem.headers = dict(e.headers or {}) | ({"Allow": allowed} if e.status_code == 405 else {})
    return problem.response(request.url.path)


def _path(request: Request) -> str:
    """The path that was asked for; of a long one the beginning."""
    return request.url.path[:_MOST_OF_A_PATH]


async def _unexpected(request: Request, _: Exception) -> Response:
    # The server logs the traceback; it may hold what a client must not see.
    return Problem(500, "internal", "the service failed; its log says why").response(request.url.path)


_DOCUMENTED: Mapping[int, tuple[Code, str, str, str]] = {
    400: ("not-json", "body: unexpected character: line 1 column 13", "body", ""),
    401: ("unauthorized", "this service needs a token", "", "Send it as: Authorization: Bearer TOKEN"),
    403: ("forbidden", "the token reports may only read", "", "Ask whoever runs the service for a token that may"),
    404: ("not-found", "orders: there is no model of this name", "orders", "There are: payments, taxis"),
    406: (
        "not-acceptable",
        "Accept: text/html is not what this can answer with",
        "Accept",
        "Accept application/json, text/csv or application/vnd.apache.arrow.stream",
    ),
    408: ("too-slow", "body: did not arrive within 30 s, or nothing of it in 10 s", "body", ""),
    409: ("warming-up", "orders: warming up, 120 of 800 points", "orders", "Ask again in a moment"),
    413: ("too-large", "body: more than 8388608 bytes", "body", "Send fewer points in one request"),
    415: ("unsupported-media-type", "Content-Type: text/csv is not JSON", "Content-Type", "Send application/json"),
    421: (
        "misdirected",
        "Host: evil.example is not this machine",
        "Host",
        "Ask 127.0.0.1 or localhost, or start the service with a token",
    ),
    422: (
        "wrong-dimension",
        "points[3]: 2 values, the model has 3 fields (amount, lat, lon)",
        "points[3]",
        "",
    ),
    429: ("too-many", "too many requests", "", "Ask more slowly, or more points at a time"),
    500: ("internal", "the service failed; its log says why", "", ""),
    503: ("store-unavailable", "sqlite:///streamkm.db: database is locked", "sqlite:///streamkm.db", "Ask again"),
}


def documented(statuses: Sequence[int]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of the error answers of a route."""
    result: dict[int | str, dict[str, Any]] = {}
    for status in statuses:
        result |= described(status, *_DOCUMENTED[status], more={"have": 120, "need": 800} if status == 409 else None)
    return result


def described(
    status: int, code: Code, detail: str, where: str = "", hint: str = "", *, more: Mapping[str, Any] | None = None
) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's description of one error answer, where a route has one of its own."""
    example: dict[str, Any] = {
        "type": "about:blank",
        "title": title(status),
        "status": status,
        "detail": detail,
        "code": code,
        "where": where,
        "hint": hint,
        **(more or {}),
    }
    return {
        status: {
            "description": title(status),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}},
        }
    }
