"""Redaction of secrets in text. All output of the programs passes through here.

Secrets are found in two ways. By their place: user information and query parameters of URLs, libpq connection strings,
properties of the Kafka client, headers, JSON objects. In a URL, and in a text that is a connection string as a whole, a
value counts as a secret unless its name is known to be harmless; elsewhere if its name looks like that of a secret. And
by their value: settings that contain secrets call `remember`, so that text of another library that quotes
a secret, or a part of it, is redacted too.

Records are not redacted: a quarantine shows the data itself.
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
"""Replacement for a secret."""
MIN_CHARACTERS = 6
"""Minimum length of a remembered secret; shorter ones would match in ordinary words."""
MAX_REMEMBERED = 1000
"""Maximum number of remembered secrets; the oldest are forgotten."""
_MAX_SECRET_CHARACTERS = 4096

HARMLESS_PARAMETERS = frozenset(
    {
        # of URLs of streamkm
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
        *("application_name", "channel_binding", "client_encoding", "connect_timeout", "dbname", "gssencmode"),
        *("host", "hostaddr", "keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval"),
        *("load_balance_hosts", "passfile", "port", "require_auth", "service", "servicefile", "sslcert", "sslcrl"),
        *("sslkey", "sslmode", "sslrootcert", "target_session_attrs", "tcp_user_timeout", "user", "options"),
        # of pyarrow's filesystems
        *("allow_bucket_creation", "allow_bucket_deletion", "anonymous", "endpoint_override", "region", "scheme"),
    }
)
"""Parameters of URLs and connection strings whose values may be shown; all others are masked."""

_PLACEHOLDERS = frozenset({"user", "user:password", "USER", "USER:PASSWORD", "USER:PASSWORD@HOST"})
"""User information in this project's own hints."""
_COMMON = frozenset(
    {"password", "passwords", "streamkm", "postgres", "postgresql", "secret", "secrets", "bearer", "grafana", "broker"}
)
"""Words of messages: useless as passwords, and masking them everywhere would reveal that one is in use."""

_SECRET_NAME = re.compile(
    r"password|passwd|passphrase|(?:^|_)pass(?:_|$)|pwd|secret|token|credential|jaas|cookie|session_?id|whsec"
    r"|(?:api|access|account|client|server|shared|private|signing|encryption|storage|sas|stored)_?key(?:_|$)"
    r"|(?:^|_)(?:key|sig|sas|signature|hmac|auth|authorization|bearer|otp|pat|pin)$"
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
    r"""((?:authorization|cookie|(?:api-|x-(?:[a-z\-]+-)?)(?:auth|key|token|secret|signature))"""
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
    r"://|[=@]|authorization|bearer|basic\s|cookie|api-|x-[a-z\-]|whsec_|skm_|PRIVATE KEY|['\"]\s*:", re.IGNORECASE
)

_ENDS_A_PART = re.compile(r"[/@:?#&,;=]+")

_lock = threading.Lock()
_remembered: dict[str, None] = {}
_known: re.Pattern[str] | None = None


def redact(text: str) -> str:
    """Mask possible secrets in a message or a log line.

    Parameters
    ----------
    text
        Any text; only recognized places of secrets are changed.

    Returns
    -------
    str
        The text with `MASK` in place of each secret.

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
    """Mask possible secrets in text that is one URL, or one libpq connection string.

    Spaces and quotes do not end the URL. Other text is shown only if it can be nothing but a name or a path.

    >>> redact_url("postgresql://me:a b@db/points"), redact_url("me:abc"), redact_url("host=db passwort=abc")
    ('postgresql://me:********@db/points', '********', 'host=db passwort=********')
    """
    return _whole_url(redact_remembered(text), [])


def redact_all(value: Any) -> Any:
    """Mask possible secrets in a JSON value: in each text, and for each name of a secret.

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
    """Whether a value with this name is probably a secret, in any spelling of the name.

    >>> is_secret_name("oauth_client_secret"), is_secret_name("pass%77ord"), is_secret_name("ssl.keyfile")
    (True, True, False)
    """
    plain = _plain(name)
    return bool(_SECRET_NAME.search(plain)) and not _NAMES_A_PLACE.search(plain)


def remember(*secrets: str) -> None:
    """Mask these secrets in all text from now on: whole, in parts, and as other programs encode them.

    Parameters
    ----------
    secrets
        Secrets of any length. Secrets and parts of less than `MIN_CHARACTERS` are only found by their place.
    """
    global _known  # noqa: PLW0603  # state of the process
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
    """Remember the secrets in URLs or connection strings."""
    for url in urls:
        remember(*secrets_in(url))


def secrets_in(url: str) -> list[str]:
    """The secrets in a URL or a connection string.

    >>> secrets_in("postgresql://me:abc@db/points"), secrets_in("sqlite:///x.db")
    (['abc'], [])
    """
    found: list[str] = []
    _whole_url(url, found)
    return [secret for secret in found if secret]


def remember_properties(*properties: str) -> None:
    """Remember the secret values of properties such as ``sasl.password=a,b``, including parts of a value with commas.

    Values of other properties are not remembered: masking "PLAIN" or a path everywhere would not help.
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
    """Forget all remembered secrets."""
    global _known  # noqa: PLW0603  # as above
    with _lock:
        _remembered.clear()
        _known = None


def redact_remembered(text: str) -> str:
    """Mask only remembered secrets: for text in which characters such as @ are part of names."""
    known = _known
    return text if known is None else known.sub(MASK, text)


def _forms(secret: str) -> Iterable[str]:
    """A secret in the encodings in which it may be quoted, and the parts into which a parser may split it."""
    secret = str(secret)[:_MAX_SECRET_CHARACTERS]
    decoded = urllib.parse.unquote(secret)
    written: list[str] = []
    for plain in {secret, decoded, *_ENDS_A_PART.split(secret), *_ENDS_A_PART.split(decoded)}:
        quoted, plus = urllib.parse.quote(plain, safe=""), urllib.parse.quote_plus(plain)
        written += [plain, quoted, plus, quoted.lower(), repr(plain)[1:-1], json.dumps(plain)[1:-1]]
        written += [repr(plain.encode())[2:-1], repr(plain).replace("\\", "\\\\")[1:-1]]
    return [form for form in dict.fromkeys(written) if len(form) >= MIN_CHARACTERS and form.lower() not in _COMMON]


def _plain(name: str) -> str:
    """A name in normal form: decoded, in lower case, with underscores."""
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
    """Index of the end of a URL: the closing quote if it is quoted, else the next space.

    Parameters
    ----------
    text
        Text that contains the URL.
    start, inside
        Indices of the URL and of the part after ``://``.
    """
    opened = text[start - 1] if start else ""
    if opened and opened in "'\"`":
        closed = text.find(opened, inside)
        if closed >= 0:
            return closed
    stop = _end_of_token(text, inside)
    rest = text[inside:stop]
    if "@" not in rest and not rest.startswith("/"):
        # A password with a space or a quote: the authority is not a list of hosts, and an @ follows later.
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
    """Mask everything in a URL that is not known to be harmless."""
    if not rest.startswith("/"):
        before, sign, after = rest.rpartition("@")
        if sign and re.search(r"[?#]", before):
            # A password with one of these characters, or a parameter with an @: nothing is known to be harmless.
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
    # A PostgreSQL user name is not a secret; elsewhere the user may be a token.
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
        # After an unencoded secret, the next parameter may be the rest of it.
        if not closed and equals and _plain(name) in HARMLESS_PARAMETERS:
            shown.append(part)
            continue
        closed = closed or is_secret_name(name)
        found.append(value if equals else part)
        shown.append(f"{name}={MASK}" if equals and is_secret_name(name) and re.fullmatch(r"[\w.%\-]+", name) else MASK)
    return _pairs(before, found) + sign + "".join(shown)


def _pairs(text: str, found: list[str]) -> str:
    """Mask values after names of secrets, headers, and user information without a scheme."""
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
    """Mask a token such as ``me:password@host`` up to its last @; a position in a topic is not one."""
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
