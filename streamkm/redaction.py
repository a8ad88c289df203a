"""What may be printed: text without the secrets that it holds. Everything that leaves a program passes through here.

Secrets are found in two ways. By their place: user information and query parameters of URLs, libpq's connection
strings, properties of the Kafka client, headers, objects of JSON. There a value is a secret unless its name is known to
be harmless. And by themselves: settings that hold secrets call `remember`, so that text of another library that quotes
one, or a part of it, is found too.

Records are not redacted: what a quarantine shows is the data itself.
"""

from __future__ import annotations

import json
import re
import string
import threading
import urllib.parse
from collections.abc import Iterable, Mapping
from typing import Any

MASK = "********"
MIN_CHARACTERS = 6
"""Shorter secrets are found by their place only: by themselves they would be found in every other word."""
MAX_REMEMBERED = 1000
"""Secrets of one process; the oldest are forgotten."""
_MAX_SECRET_CHARACTERS = 4096

HARMLESS_PARAMETERS = frozenset(
    {
        # of our own addresses
        *(
            "mode",
            "at",
            "a",
            "b",
            "snapshot",
            "include",
            "limit",
            "after",
            "before",
            "since",
            "from",
            "to",
            "view",
            "k",
        ),
        # of libpq
        *("application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname", "gssencmode"),
        *("host", "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"),
        *("load_balance_hosts", "passfile", "port", "require_auth", "service", "servicefile", "sslcert", "sslcrl"),
        *("sslkey", "sslmode", "sslrootcert", "target_session_attrs", "tcp_user_timeout", "user", "options"),
        # of pyarrow's filesystems
        *("allow_bucket_creation", "allow_bucket_deletion", "anonymous", "endpoint_override", "region", "scheme"),
    }
)
"""Names of parameters in URLs and connection strings whose values may be shown; those of all others may not."""

_PLACEHOLDERS = frozenset({"user", "user:password", "USER", "USER:PASSWORD", "USER:PASSWORD@HOST"})
"""User information that stands in our own hints."""
_COMMON = frozenset(
    {"password", "passwords", "streamkm", "postgres", "postgresql", "secret", "secrets", "bearer", "grafana", "broker"}
)
"""Words of messages. Who takes one for a password has none, and to mask it everywhere would tell it."""

_SECRET_NAME = re.compile(
    r"password|passwd|passphrase|(?:^|_)pass(?:_|$)|pwd|secret|token|credential|jaas|cookie|session_?id|whsec"
    r"|(?:api|access|account|client|server|shared|private|signing|encryption|storage|sas|stored)_?key(?:_|$)"
    r"|(?:^|_)(?:key|sig|sas|signature|hmac|auth|authorization|bearer|otp|pin)$"
)
_PROPERTY_NAME = re.compile(r"(?:sasl|ssl|security|socks5|oauth|scram|client|proxy)_[a-z0-9_]+|[a-z]+(?:_[a-z]+)+")
_NAMES_A_PLACE = re.compile(r"(?:_file|file|_location|_path|_url|_endpoint_uri|_class|_ms|_seconds)$")
_SCHEME = re.compile(r"[A-Za-z0-9+.\-]{0,32}://")
_IN_URLS = re.compile(r"[^\s\"<>]*")
_OF_SCHEMES = frozenset(string.ascii_letters + string.digits + "+.-")
_LONGEST_SCHEME = 32
_HOST = r"(?:\[[0-9A-Fa-f:.%]+\]|[\w.*\-]*)(?::\d{0,5})?"
_HOSTS = re.compile(rf"{_HOST}(?:,{_HOST})*")
_POSTGRES_USER = re.compile(r"[A-Za-z_][\w.\-]*(?=:|$)")
_NAME = re.compile(r"(?<![\w.%\-])([\w.%\-]+)(\s?=\s?)(?=\S)")
_VALUE = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|(?:\\.|[^\s'\"]|['\"](?!(?:[,}\])\s:.;]|$)))+", re.DOTALL)
_QUOTED_PAIR = re.compile(
    r"""(?P<q>['"])(?P<name>[\w.%\- ]+)(?P=q)\s*[:=]\s*b?(?P<v>['"])(?P<value>(?:\\.|(?!(?P=v)).)+)(?P=v)"""
)
_HEADER = re.compile(
    r"""((?:authorization|cookie|x-(?:[a-z\-]+-)?(?:key|token|secret|signature))"""
    r"""(?:b?['"]\s*[:=,]\s*b?['"]|\s*[:=]\s*(?:b?['"])?)(?:(?:bearer|basic|digest|negotiate)\s+)?)"""
    r"""([^\s'"]+(?:[ \t]+[^\s'"]+)*)""",
    re.IGNORECASE,
)
_BEARER = re.compile(r"""(\b(?:bearer|basic)\s+)([^\s'"]+)""", re.IGNORECASE)
_PROSE = re.compile(r"(?:tokens?|TOKEN|auth\w*|credentials?|and|or|is|of|in|that|which)\W*$")
_OUR_OWN = re.compile(r"""\b(?:whsec_|skm_)[^\s'"]+""")
_PEM = re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL)
_TOKEN = re.compile(r"[^\s'\"]+")
_A_POSITION = re.compile(r"[\w.\-]+-\d+@\d+\b")
_INTERESTING = re.compile(
    r"://|[=@]|authorization|bearer|basic\s|cookie|x-[a-z\-]|whsec_|skm_|PRIVATE KEY|['\"]\s*:", re.IGNORECASE
)

_ENDS_A_PART = re.compile(r"[/@:?#&,;=]+")

_lock = threading.Lock()
_remembered: dict[str, None] = {}
_known: re.Pattern[str] | None = None


def redact(text: str) -> str:
    """Mask what may be a secret in text for people, such as a message or a line of a log.

    Parameters
    ----------
    text
        Anything; what is not recognised as the place of a secret stays as it is.

    Returns
    -------
    str
        The text with `MASK` in the place of each secret.

    Examples
    --------
    >>> redact("postgresql://me:pa/ss@db:5432/points?sslmode=require&password=x cannot be reached")
    'postgresql://me:********@db:5432/points?sslmode=require&password=******** cannot be reached'
    >>> redact("host=db user=me password='a b' dbname=points")
    'host=db user=me password=******** dbname=points'
    >>> redact("s3://KEY:se/cret@bucket/points.parquet")
    's3://********@bucket/points.parquet'
    """
    return _by_place(redact_remembered(text), [])


def redact_url(text: str) -> str:
    """Mask what may be a secret in text that is one URL, or one connection string of libpq, as a whole.

    Spaces and quotes end no URL here. What is neither is shown only if it can be no more than a name or a path.

    >>> redact_url("postgresql://me:a b@db/points"), redact_url("me:abc"), redact_url("host=db passwort=abc")
    ('postgresql://me:********@db/points', '********', 'host=db passwort=********')
    """
    return _whole_url(redact_remembered(text), [])


def redact_all(value: Any) -> Any:
    """Mask what may be a secret in a value of JSON: in each text, and behind each name of a secret.

    >>> redact_all({"url": "http://me:abc@host/", "sasl.password": "abc", "k": 3})
    {'url': 'http://********@host/', 'sasl.password': '********', 'k': 3}
    """
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            redact(name) if isinstance(name, str) else name: MASK
            if isinstance(name, str) and isinstance(inner, str | bytes) and inner and is_secret_name(name)
            else redact_all(inner)
            for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_all(inner) for inner in value]
    return value


def is_secret_name(name: str) -> bool:
    """Whether a value under this name is likely a secret, however the name is written.

    >>> is_secret_name("oauth_client_secret"), is_secret_name("pass%77ord"), is_secret_name("ssl.keyfile")
    (True, True, False)
    """
    plain = _plain(name)
    return bool(_SECRET_NAME.search(plain)) and not _NAMES_A_PLACE.search(plain)


def remember(*secrets: str) -> None:
    """Mask these in everything from now on, whole and in parts, also in the ways that other programs write them.

    Parameters
    ----------
    secrets
        Of any length; those (and parts) of less than `MIN_CHARACTERS` are found by their place only.
    """
    global _known  # noqa: PLW0603  # one output a process
    forms = [form for secret in secrets for form in _forms(secret)]
    with _lock:
        fresh = [form for form in forms if form not in _remembered]
        if not fresh:
            return
        _remembered.update(dict.fromkeys(fresh))
        for oldest in list(_remembered)[: max(0, len(_remembered) - MAX_REMEMBERED)]:
            del _remembered[oldest]
        longest_first = sorted(_remembered, key=len, reverse=True)
        _known = re.compile("(?<![A-Za-z0-9])(?:" + "|".join(map(re.escape, longest_first)) + ")(?![A-Za-z0-9])")


def remember_url(*urls: str) -> None:
    """Remember the secrets that URLs or connection strings hold."""
    for url in urls:
        remember(*secrets_in(url))


def secrets_in(url: str) -> list[str]:
    """What is masked of a URL or a connection string.

    >>> secrets_in("postgresql://me:abc@db/points"), secrets_in("sqlite:///x.db")
    (['abc'], [])
    """
    found: list[str] = []
    _whole_url(url, found)
    return [secret for secret in found if secret]


def remember_properties(*properties: str) -> None:
    """Remember the values of properties such as ``sasl.password=a,b``; a value may have commas that end it elsewhere.

    Values of names that are none of a secret are not: to mask "PLAIN" or a path everywhere would help nobody.
    """
    for text in properties:
        secret = False
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if equals and _PROPERTY_NAME.fullmatch(_plain(name)):
                secret = is_secret_name(name)
                rest = value
            else:
                rest = part
            if secret:
                remember(rest)
        whole = re.search(r"=(.*)", text, re.DOTALL)
        if whole and is_secret_name(text.partition("=")[0]):
            remember(whole[1])


def forget() -> None:
    """Forget what was remembered."""
    global _known  # noqa: PLW0603  # as above
    with _lock:
        _remembered.clear()
        _known = None


def redact_remembered(text: str) -> str:
    """Mask only what was remembered: for text in which signs such as @ are part of names."""
    known = _known
    return text if known is None else known.sub(MASK, text)


def _forms(secret: str) -> Iterable[str]:
    """A secret as it may be quoted, and the parts into which a parser may have taken it."""
    secret = str(secret)[:_MAX_SECRET_CHARACTERS]
    decoded = urllib.parse.unquote(secret)
    written: list[str] = []
    for plain in {secret, decoded, *_ENDS_A_PART.split(secret), *_ENDS_A_PART.split(decoded)}:
        quoted, plus = urllib.parse.quote(plain, safe=""), urllib.parse.quote_plus(plain)
        written += [plain, quoted, plus, quoted.lower(), repr(plain)[1:-1], json.dumps(plain)[1:-1]]
        written += [repr(plain.encode())[2:-1], repr(plain).replace("\\", "\\\\")[1:-1]]
    return [form for form in dict.fromkeys(written) if len(form) >= MIN_CHARACTERS and form.lower() not in _COMMON]


def _plain(name: str) -> str:
    """A name as it is meant: decoded, in lower case, with underscores."""
    for _ in range(3):
        decoded = urllib.parse.unquote(name)
        if decoded == name:
            break
        name = decoded
    return re.sub(r"[.\- ]", "_", name.strip().lower())


def _by_place(text: str, found: list[str]) -> str:
    if not _INTERESTING.search(text):
        return text
    parts, at = [], 0
    while (sign := text.find("://", at)) >= 0:
        start = sign
        while start > at and sign - start < _LONGEST_SCHEME and text[start - 1] in _OF_SCHEMES:
            start -= 1
        stop = _end_of_url(text, start, sign + 3)
        parts += [_pairs(text[at:start], found), _url(text[start : sign + 3], text[sign + 3 : stop], found)]
        at = stop
    parts.append(_pairs(text[at:], found))
    return "".join(parts)


def _end_of_url(text: str, start: int, inside: int) -> int:
    """Where a URL ends that begins at `start`, its scheme at `inside`: at the quote it stands in, or before a space."""
    opened = text[start - 1] if start else ""
    if opened and opened in "'\"`":
        closed = text.find(opened, inside)
        if closed >= 0:
            return closed
    stop = _end_of_token(text, inside)
    rest = text[inside:stop]
    if "@" not in rest and not rest.startswith("/"):
        # A password with a space or a quote in it: what stands for the hosts is none, and there is an @ later.
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0].rstrip(":.,;)]}'")
        later = text.find("@", stop)
        if not _HOSTS.fullmatch(authority) and later >= 0 and "\n" not in text[stop:later]:
            stop = _end_of_token(text, later)
    while stop > inside and text[stop - 1] in ":.,;)]}'":
        stop -= 1
    return stop


def _end_of_token(text: str, at: int) -> int:
    found = _IN_URLS.match(text, at)
    return at if found is None else found.end()


def _url(scheme: str, rest: str, found: list[str]) -> str:
    """Mask in a URL what is not known to be harmless."""
    if not rest.startswith("/"):
        before, sign, after = rest.rpartition("@")
        if sign and re.search(r"[?#]", before):
            # Either a password with such a sign, or a parameter with an @: nothing of it is known to be harmless.
            found.append(rest)
            return scheme + MASK
        if sign:
            return scheme + _user(scheme, before, found) + sign + _rest_of_url(scheme, after, found)
        authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
        if not _HOSTS.fullmatch(authority):
            found.append(rest)
            return scheme + MASK
    return scheme + _rest_of_url(scheme, rest, found)


def _user(scheme: str, user: str, found: list[str]) -> str:
    if user in _PLACEHOLDERS or not user:
        return user
    # A name of PostgreSQL opens nothing by itself; elsewhere a token can stand in the place of the user.
    name = _POSTGRES_USER.match(user) if scheme.startswith("postgres") else None
    if name is None:
        found += [user, *user.split(":", 1)]
        return MASK
    found.append(user[name.end() + 1 :])
    return name[0] + (":" + MASK if user[name.end() :] else "")


def _rest_of_url(scheme: str, rest: str, found: list[str]) -> str:
    before, sign, query = rest.partition("?")
    if not sign:
        path, mark, fragment = rest.partition("#")
        if not mark or rest.startswith("/") or scheme.startswith(("file", "sqlite", "s3", "gs", "hdfs")):
            return _pairs(rest, found)
        found.append(fragment)
        return _pairs(path, found) + mark + MASK
    shown, closed = [], False
    for part in re.split(r"([&;#])", query):
        if part in ("&", ";", "#", ""):
            shown.append(part)
            continue
        name, equals, value = part.partition("=")
        # Behind a secret that is not encoded, what looks like the next parameter may be its end.
        if not closed and equals and _plain(name) in HARMLESS_PARAMETERS:
            shown.append(part)
            continue
        closed = closed or is_secret_name(name)
        found.append(value if equals else part)
        shown.append(f"{name}={MASK}" if equals and is_secret_name(name) and re.fullmatch(r"[\w.%\-]+", name) else MASK)
    return _pairs(before, found) + sign + "".join(shown)


def _pairs(text: str, found: list[str]) -> str:
    """Mask values behind names of secrets, headers, and user information without a scheme."""
    if not _INTERESTING.search(text):
        return text
    text = _PEM.sub(lambda m: _mask(m[0], found), text)
    text = _OUR_OWN.sub(lambda m: _mask(m[0], found), text)

    def quoted(match: re.Match[str]) -> str:
        if not is_secret_name(match["name"]) or match["value"] == MASK:
            return match[0]
        start = match.start("value") - match.start()
        return match[0][:start] + _mask(match["value"], found) + match["v"]

    def header(match: re.Match[str]) -> str:
        first = match[2].split(maxsplit=1)[0]
        return match[0] if _PROSE.match(first) or first == MASK else match[1] + _mask(match[2], found)

    text = _QUOTED_PAIR.sub(quoted, text)
    text = _HEADER.sub(header, text)
    text = _BEARER.sub(header, text)
    parts, at = [], 0
    while match := _NAME.search(text, at):
        parts.append(text[at : match.end()])
        at = match.end()
        if is_secret_name(match[1]) and (value := _VALUE.match(text, at)):
            parts.append(_mask(value[0], found))
            at = value.end()
    text = "".join([*parts, text[at:]])
    return _TOKEN.sub(lambda match: _user_without_scheme(match[0], found), text) if "@" in text else text


def _user_without_scheme(token: str, found: list[str]) -> str:
    """A token such as ``me:password@host``, masked up to its last @; a position in a topic is none."""
    user, sign, host = token.rpartition("@")
    name, colon, password = user.partition(":")
    if not (sign and colon and password and host) or user in _PLACEHOLDERS:
        return token
    if _A_POSITION.search(token) and token.count("@") == 1 and (not name or name.count("/") or name.isidentifier()):
        return token
    found.append(password)
    return MASK + sign + host


def _mask(secret: str, found: list[str]) -> str:
    found += [secret, secret.strip("'\"")]
    return MASK


def _whole_url(text: str, found: list[str]) -> str:
    text = text.strip()
    scheme = _SCHEME.match(text)
    if scheme:
        return _url(scheme[0], text[scheme.end() :], found)
    if re.match(r"\w+\s?=", text):
        parts, at = [], 0
        while match := _NAME.search(text, at):
            value = _VALUE.match(text, match.end())
            stop = len(text) if value is None else value.end()
            harmless = _plain(match[1]) in HARMLESS_PARAMETERS
            parts += [match[0], text[match.end() : stop] if harmless else _mask(text[match.end() : stop], found)]
            at = stop
            if text[at:].strip():
                parts.append(" ")
            if at < len(text) and not text[at].isspace():
                break
            if not re.match(r"\s+[\w.%\-]+\s?=", text[at:]):
                break
        if text[at:].strip():
            parts.append(_mask(text[at:].strip(), found))
        return "".join(parts)
    return text if re.fullmatch(r"[\w./\\ \-]*", text) else _mask(text, found)
