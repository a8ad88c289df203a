"""Webhooks by the Standard Webhooks specification (standardwebhooks.com): delivery and verification."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

import httpx

from streamkm.delivery.events import DeliveryFailedError, EventMessage, TargetGoneError
from streamkm.errors import SettingsError, SignatureError
from streamkm.values import Secret, is_loopback

TIMEOUT_SECONDS = 10.0
"""Maximum duration of a delivery, s."""
TOLERANCE_SECONDS = 300.0
"""Maximum difference between a message's timestamp and the clock, s."""
PREFIX = "whsec_"
_MIN_KEY_BYTES, _MAX_KEY_BYTES = 24, 64
"""Key sizes that the specification allows."""
_VERSION = "v1"
_HINT = f"Create one with: (printf '{PREFIX}'; openssl rand -base64 32) >FILE"


def keys(secret: str) -> tuple[bytes, ...]:
    """Decode the signing keys of a secret.

    Parameters
    ----------
    secret
        ``whsec_`` followed by 24 to 64 bytes in base64; during a key rotation several, separated by blanks.

    Returns
    -------
    tuple of bytes
        At least one key.

    Raises
    ------
    SettingsError
        The secret is empty, not base64, or of the wrong length.
    """
    found = []
    for part in secret.split():
        try:
            key = base64.b64decode(part.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            raise SettingsError("the secret is not base64", where="webhook_secret", hint=_HINT) from None
        if not _MIN_KEY_BYTES <= len(key) <= _MAX_KEY_BYTES:
            message = f"the secret has {len(key)} bytes, not {_MIN_KEY_BYTES} to {_MAX_KEY_BYTES}"
            raise SettingsError(message, where="webhook_secret", hint=_HINT)
        found.append(key)
    if not found:
        raise SettingsError("webhooks are signed, and there is no secret", where="webhook_secret", hint=_HINT)
    return tuple(found)


def sign(key: bytes, id_: str, timestamp: int, body: bytes) -> str:
    """Sign a message.

    Parameters
    ----------
    key
        From `keys`.
    id_
        Message id.
    timestamp
        Time of the attempt, s since the epoch.
    body
        Body of the request.

    Returns
    -------
    str
        Signature in the form of the header ``webhook-signature``.
    """
    signed = b".".join((id_.encode(), str(timestamp).encode(), body))
    return f"{_VERSION},{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes,
    now: float | None = None,
    *,
    tolerance: float = TOLERANCE_SECONDS,
) -> str:
    """Verify the signature and the age of a received webhook.

    Parameters
    ----------
    secret
        The secret given to ``streamkm notify``.
    headers
        Headers of the request; names are case-insensitive.
    body
        Raw body of the request.
    now
        Time since the epoch, s; the current time if None.
    tolerance
        Maximum difference between the message's timestamp and `now`, s.

    Returns
    -------
    str
        Id of the message. A message whose response was lost is sent again with the same id: skip known ids.

    Raises
    ------
    SignatureError
        A header is missing, the timestamp is out of tolerance, or no signature matches.
    SettingsError
        The secret is not valid.
    """
    found = {name.lower(): value for name, value in headers.items()}
    try:
        id_, stamp, given = (found[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        timestamp = int(stamp)
    except KeyError as error:
        raise SignatureError(f"there is no header {error.args[0]}") from None
    except ValueError:
        raise SignatureError("it is not a number of seconds", where="webhook-timestamp") from None
    if abs((time.time() if now is None else now) - timestamp) > tolerance:
        raise SignatureError(
            f"it is more than {tolerance:g} s away from now", where="webhook-timestamp", hint="Do both clocks go right?"
        )
    expected = [sign(key, id_, timestamp, body).encode() for key in keys(secret)]
    received = [one.encode() for one in given.split()]
    if not any(hmac.compare_digest(a, b) for a in expected for b in received):
        raise SignatureError("no signature matches", where="webhook-signature", hint="Is it the sender's secret?")
    return id_


def check_url(url: str) -> httpx.URL:
    """Validate the address of a webhook.

    Raises
    ------
    SettingsError
        It is not an HTTP URL, contains credentials, or is unencrypted and not of this machine.
    """
    try:
        read = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError(f"it is not a URL ({error})", where="--webhook") from None
    if read.scheme not in ("http", "https") or not read.host:
        raise SettingsError("it is not an HTTP URL", where="--webhook", hint="Give https://HOST/PATH")
    if read.userinfo:
        raise SettingsError(
            "the URL contains a user or a password", where="--webhook", hint="The signature authenticates the sender"
        )
    if read.scheme == "http" and not is_loopback(read.host):
        raise SettingsError(
            "messages over http can be read and replayed on the network",
            where=f"--webhook http://{read.host}",
            hint="Give https://; http:// is for 127.0.0.1, ::1 and localhost",
        )
    return read


class WebhookTarget:
    """Delivers events by signed HTTP POST requests.

    Parameters
    ----------
    url
        https, or http to this machine.
    secret
        Signing keys; see `keys`.
    timeout
        Maximum duration of a delivery from the name lookup to the response status, s. A limit for each step would not
        bound it: a slow server may pause after every byte.

    Raises
    ------
    SettingsError
        The URL or the secret is not valid.
    """

    def __init__(self, url: str, secret: Secret, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._url, self._keys = check_url(url), keys(secret)
        # The path may be a secret, so it is neither logged nor stored.
        self.name = f"webhook:{self._url.host}:{hashlib.sha256(str(self._url).encode()).hexdigest()[:16]}"
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client = httpx.AsyncClient(
            timeout=timeout,
            follow_redirects=False,
            trust_env=not is_loopback(self._url.host),
            headers={"content-type": "application/json", "user-agent": "streamkm"},
        )

    def deliver(self, message: EventMessage) -> None:
        if self._loop is None:  # asyncio can limit the duration of a whole delivery
            self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._deliver(message))

    async def _deliver(self, message: EventMessage) -> None:
        timestamp = int(time.time())
        headers = {
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(sign(key, message.id, timestamp, message.body) for key in self._keys),
        }
        try:
            # The response body is not read: it may be of any length.
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", self._url, content=message.body, headers=headers) as response,
            ):
                status, after = response.status_code, response.headers.get("retry-after", "")
        except TimeoutError as error:
            raise DeliveryFailedError(f"no response after {self._timeout:g} s") from error
        except httpx.HTTPError as error:
            raise DeliveryFailedError(f"{type(error).__name__}: {error}") from error
        if status == httpx.codes.GONE:
            raise TargetGoneError("the response is 410 Gone")
        if not httpx.codes.is_success(status):
            note = " (redirects are not followed)" if httpx.codes.is_redirect(status) else ""
            raise DeliveryFailedError(f"the response is {status}{note}", float(after) if after.isdecimal() else 0.0)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()  # does not wait for pending name lookups
            self._loop = None
