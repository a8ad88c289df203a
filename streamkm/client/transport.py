"""What both clients share: URL and token checks, requests, responses, errors and the retry policy."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable
from typing import Any

import httpx

from streamkm.client import requests
from streamkm.client.requests import Call
from streamkm.client.responses import Model
from streamkm.errors import ServiceUnreachableError, SettingsError, StreamkmError
from streamkm.redaction import redact_url, remember, remember_url

DEFAULT_URL = "http://127.0.0.1:8000"
RETRY_DELAYS = (0.3, 0.6)
"""Seconds to wait before the second and the third attempt; there is no fourth."""
MAX_RETRY_DELAY = 5.0
"""Seconds; upper bound of what ``Retry-After`` may ask for."""
RETRY_STATUSES = (502, 503, 504)
"""Statuses of a service that is temporarily unavailable."""
RECONNECT_DELAYS = (0.3, 0.6, 1.2, 2.4, 5.0, 5.0, 5.0, 5.0)
"""Seconds to wait before each attempt to reconnect an event stream; 24.5 s in all: a service restarts in less."""
STREAM_READ_TIMEOUT = 60.0
"""Seconds without a byte after which an event stream is dead: the service is silent for 1 s at most."""
STABLE_SECONDS = 10.0
"""Seconds that a stream must have lasted for its reconnect attempts to be counted from zero again."""


class BaseClient:
    """Connection settings of a client, and the conversion between calls and HTTP messages.

    Parameters
    ----------
    url
        Base URL of the service, ``http://`` or ``https://``.
    token
        Bearer token; empty for none.
    timeout
        Seconds.

    Raises
    ------
    SettingsError
        The URL is not valid, or the token has characters that a header cannot hold.
    """

    def __init__(self, url: str, token: str, timeout: float) -> None:
        self._timeout = timeout
        remember(token)
        remember_url(url)
        self.url = url.rstrip("/")
        example = f"Such as {DEFAULT_URL}"
        if not self.url.startswith(("http://", "https://")):
            raise SettingsError(f"{redact_url(url)} is not the URL of a service", where="url", hint=example)
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL:  # its message quotes the URL, which may hold a password
            raise SettingsError("this is not the URL of a service", where="url", hint=example) from None
        if not re.fullmatch(r"[ -~]*", token):
            raise SettingsError("a token has no line breaks and no letters beyond ASCII", where="token")
        self._headers = {"Accept": requests.JSON} | ({"Authorization": f"Bearer {token}"} if token else {})

    def _request(self, http: httpx.Client | httpx.AsyncClient, call: Call) -> httpx.Request:
        method = call.method or ("GET" if call.body is None else "POST")
        headers = {"Accept": call.media_type} | ({} if call.body is None else {"Content-Type": call.media_type})
        return http.build_request(method, call.path, params=dict(call.params), content=call.body, headers=headers)

    def _stream_options(self, model: str, after: str) -> dict[str, Any]:
        """Arguments of httpx's ``stream`` that open the event stream of a model behind an event id."""
        return {
            "url": requests.path_of(model, "events", "stream"),
            "headers": {"Accept": "text/event-stream", "Last-Event-ID": after},
            "timeout": httpx.Timeout(self._timeout, read=STREAM_READ_TIMEOUT),
        }

    def _content(self, response: httpx.Response) -> Any:
        """The content of a response: JSON, the bytes of an Arrow stream, or None.

        Raises
        ------
        StreamkmError
            The response is an error, or not JSON; see `requests.error_of`.
        """
        if not response.is_success:
            raise requests.error_of(response.status_code, response.content, location(response.request))
        if response.status_code == 204:
            return None
        if response.headers.get("content-type", "").startswith(requests.ARROW):
            return response.content
        try:
            return response.json()
        except ValueError as e:
            raise requests.error_of(response.status_code, b"", location(response.request)) from e

    def _unreachable(self, error: httpx.HTTPError) -> ServiceUnreachableError:
        return ServiceUnreachableError(
            f"no response ({error or type(error).__name__})",
            where=location(error.request),
            hint="Is `streamkm serve` running there?",
        )


def location(request: httpx.Request) -> str:
    """URL of a request without user, password and query, which may be secret."""
    return str(request.url.copy_with(userinfo=b"", query=None, fragment=None))


def retry_delays(call: Call) -> tuple[float | None, ...]:
    """Seconds to wait after each attempt that fails; None after the last one."""
    return (*RETRY_DELAYS, None) if call.idempotent else (None,)


def requested_delay(response: httpx.Response, default: float) -> float:
    """Seconds to wait before the next attempt: ``Retry-After`` up to `MAX_RETRY_DELAY`, else `default`."""
    header = response.headers.get("retry-after", "")
    return min(float(header), MAX_RETRY_DELAY) if header.isdigit() else default


class Reconnects:
    """Counts the attempts to open an interrupted event stream again."""

    def __init__(self) -> None:
        self._attempts, self._opened_at = 0, 0.0

    def opening(self) -> None:
        """The stream is opened now."""
        self._opened_at = time.monotonic()

    def received(self) -> None:
        """An event has arrived: attempts are counted from zero again."""
        self._attempts = 0

    def delay(self, failure: StreamkmError) -> float:
        """Seconds to wait before the next attempt; raises `failure` if there have been too many."""
        if time.monotonic() - self._opened_at >= STABLE_SECONDS:
            self._attempts = 0
        if self._attempts >= len(RECONNECT_DELAYS):
            raise failure
        self._attempts += 1
        return RECONNECT_DELAYS[self._attempts - 1]


def document(method: Callable[..., Any], flow: Callable[..., Any]) -> None:
    """Give a method the name, the documentation and the parameters of the flow that it runs."""
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)]
    parameters += inspect.signature(flow).parameters.values()
    vars(method)["__signature__"] = inspect.Signature(parameters)
    method.__name__, method.__doc__ = flow.__name__, flow.__doc__


def latest_event_id(model: Model) -> str:
    """An event id behind all events of the newest snapshot: a stream from there on loses none when it reconnects."""
    return f"{model.snapshot or 0}.{10**9 - 1}"
