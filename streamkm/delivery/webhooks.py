"""Webhooks as the Standard Webhooks specification (standardwebhooks.com) has them: sent, and checked."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import time
from collections.abc import Mapping

import httpx

from streamkm.delivery.events import DeliveryFailedError, Message, TargetGoneError
from streamkm.errors import SettingsError, SignatureError
from streamkm.values import Secret

TIMEOUT_SECONDS = 10.0
TOLERANCE_SECONDS = 300.0
PREFIX = "whsec_"
_LEAST, _MOST = 24, 64
_VERSION = "v1"
_GONE = 410
_HOW = f"Make one with: echo {PREFIX}$(openssl rand -base64 32)"


def keys(secret: str) -> tuple[bytes, ...]:
    """The keys that a secret stands for.

    Parameters
    ----------
    secret
        ``whsec_`` and 24 to 64 bytes in base64; several separated by blanks while one takes the place of another.

    Raises
    ------
    SettingsError
        It is empty, no base64, or too short or long.
    """
    found = []
    for part in secret.split():
        try:
            key = base64.b64decode(part.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            raise SettingsError("the secret is not base64", where="webhook_secret", hint=_HOW) from None
        if not _LEAST <= len(key) <= _MOST:
            message = f"the secret has {len(key)} bytes, not {_LEAST} to {_MOST}"
            raise SettingsError(message, where="webhook_secret", hint=_HOW)
        found.append(key)
    if not found:
        raise SettingsError("webhooks are signed, and there is no secret", where="webhook_secret", hint=_HOW)
    return tuple(found)


def sign(key: bytes, id_: str, timestamp: int, body: bytes) -> str:
    """One signature, as it stands in ``webhook-signature``."""
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
    """Check that a webhook comes from who has the secret, and is no copy of an old one.

    Parameters
    ----------
    secret
        As given to ``streamkm notify``.
    headers
        Of the request; the case of their names does not matter.
    body
        The request's bytes, before they are parsed.
    now
        Seconds since 1970; the clock's if None.
    tolerance
        Seconds that its timestamp may be away from now.

    Returns
    -------
    str
        The id of the message. It comes again with the same id if an answer was lost: what was done once, skip.

    Raises
    ------
    SignatureError
        A header is missing, the time is too far away, or no signature is right.
    SettingsError
        The secret is none.
    """
    found = {name.lower(): value for name, value in headers.items()}
    try:
        id_, stamp, given = (found[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        timestamp = int(stamp)
    except KeyError as error:
        raise SignatureError(f"there is no header {error.args[0]}") from None
    except ValueError:
        raise SignatureError("it is no number of seconds", where="webhook-timestamp") from None
    if abs((time.time() if now is None else now) - timestamp) > tolerance:
        raise SignatureError(
            f"it is more than {tolerance:g} s away from now", where="webhook-timestamp", hint="Do both clocks go right?"
        )
    wanted = [sign(key, id_, timestamp, body).encode() for key in keys(secret)]
    offered = [one.encode() for one in given.split()]
    if not any(hmac.compare_digest(a, b) for a in wanted for b in offered):
        raise SignatureError("no signature is right", where="webhook-signature", hint="Is it the sender's secret?")
    return id_


def check_url(url: str) -> httpx.URL:
    """Read the address of a webhook.

    Raises
    ------
    SettingsError
        It is none, holds a password, or would send over a network in the clear.
    """
    try:
        read = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise SettingsError(f"this is no address ({error})", where="--webhook") from None
    if read.scheme not in ("http", "https") or not read.host:
        raise SettingsError("this is no address", where="--webhook", hint="Give https://HOST/PATH")
    if read.userinfo:
        raise SettingsError(
            "there is a user or password in the address", where="--webhook", hint="The signature tells who sends"
        )
    if read.scheme == "http" and not is_loopback(read.host):
        raise SettingsError(
            "anybody on the way could read and replay what goes over http",
            where=f"--webhook http://{read.host}",
            hint="Give https://; http:// is for 127.0.0.1, ::1 and localhost",
        )
    return read


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


class WebhookTarget:
    """Somebody who is told by HTTP.

    Parameters
    ----------
    url
        https, or http to this machine.
    secret
        What messages are signed with; see `keys`.
    timeout
        Seconds for a delivery, from the first look for the host to the status: the other side may be slow in every
        step, and as slow as it likes between two bytes.

    Raises
    ------
    SettingsError
        Address or secret are none.
    """

    def __init__(self, url: str, secret: Secret, *, timeout: float = TIMEOUT_SECONDS) -> None:
        self._url, self._keys = check_url(url), keys(secret)
        # A path can be as good as a password, so neither log nor store has it.
        self.name = f"webhook:{self._url.host}:{hashlib.sha256(str(self._url).encode()).hexdigest()[:16]}"
        self._timeout = timeout
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client = httpx.AsyncClient(
            timeout=timeout,
            follow_redirects=False,
            trust_env=not is_loopback(self._url.host),
            headers={"content-type": "application/json", "user-agent": "streamkm"},
        )

    def deliver(self, message: Message) -> None:
        if self._loop is None:  # only there a whole delivery can be ended
            self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._deliver(message))

    async def _deliver(self, message: Message) -> None:
        timestamp = int(time.time())
        headers = {
            "webhook-id": message.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(sign(key, message.id, timestamp, message.body) for key in self._keys),
        }
        try:
            # What it answers does not matter, however long it is.
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", self._url, content=message.body, headers=headers) as response,
            ):
                status, after = response.status_code, response.headers.get("retry-after", "")
        except TimeoutError as error:
            raise DeliveryFailedError(f"it had not answered after {self._timeout:g} s") from error
        except httpx.HTTPError as error:
            raise DeliveryFailedError(f"{type(error).__name__}: {error}") from error
        if status == _GONE:
            raise TargetGoneError("it answered 410 Gone")
        if not httpx.codes.is_success(status):
            more = " (redirects are not followed)" if httpx.codes.is_redirect(status) else ""
            raise DeliveryFailedError(f"it answered {status}{more}", float(after) if after.isdecimal() else 0.0)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._client.aclose())
            self._loop.close()  # waits for no name that is still looked up
            self._loop = None
