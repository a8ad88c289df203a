"""No output contains a secret, in any place; text without secrets is not changed."""

from __future__ import annotations

import json
import logging
import urllib.parse

import pytest
from hypothesis import example, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from consumers import logs
from streamkm import errors, redaction
from streamkm.redaction import MASK, redact, redact_all, redact_url

# Characters that end a part of a URL, quote, or separate properties, and occur in passwords.
_SIGNS = "/@:?#&,;=%'\"+$! \\-_.|~"


def _parts(secret):
    """Parts of a secret that must not be visible: its ends and its middle, long enough not to match by chance."""
    return {secret[:9], secret[-9:], secret[len(secret) // 2 - 4 : len(secret) // 2 + 5]}


# Upper-case letters and digits that occur in no other text here, around special characters.
_chunk = st.text("QXZWVKJ0123456789", min_size=9, max_size=12).map(lambda t: "Q" + t[1:-1] + "Z")
secrets = st.builds(lambda a, sign, b: a + sign + b, _chunk, st.text(_SIGNS, max_size=2), _chunk)
plain_secrets = st.builds(lambda a, sign, b: a + sign + b, _chunk, st.text("-_.~+", max_size=1), _chunk)
encoded = secrets.map(lambda s: urllib.parse.quote(s, safe=""))

# Places of a secret in text, and whether any character is allowed there (else only word characters, or encoded).
_ANY = [
    "sasl.password={}",
    "--kafka-property sasl.mechanism=PLAIN,sasl.password={}",
    "oauth_client_secret={}",
    "scram_client_key={}",
    "ssl_password={}",
]
_WORD = [
    "postgresql://me:{}@db:5432/points: no server is there",
    "cannot reach http://{}@host/v1, status 500",
    "http://me:{}@127.0.0.1:8000: refused",
    "s3://KEY:{}@bucket/points.parquet: the file does not exist",
    "s3://KEY:ab/{}@bucket/points.parquet",
    "sqlite:///x.db?password={}",
    "sqlite:///x.db?mode=ro&pass%77ord={}",
    "postgresql://db/points?sslmode=require&password={}&application_name=x",
    "postgresql://db/points?unheard_of={}",
    "mysql+pymysql://db/points?ssl_key_password={}",
    "http://host:8000/?token={}",
    "http://host:8000/x;password={}",
    "jdbc:postgresql://db/points?user=me&password={}",
    "Server=db;User Id=me;Password={};",
    "DefaultEndpointsProtocol=https;AccountName=me;AccountKey={};EndpointSuffix=x",
    "https://bucket/x?X-Amz-Credential=a&X-Amz-Signature={}",
    "http:\\/\\/me:{}@host\\/v1",
    "Authorization: Bearer {}",
    "Authorization: Token {}",
    "Proxy-Authorization: Other scheme={}",
    "Cookie: seen=yes; session={}",
    "X-Auth-Token: {}",
    "X-Auth: {}",
    "api-key: {}",
    "pat={}",
    "{{'Authorization': 'Bearer {}'}}",
    "(b'authorization', b'Bearer {}')",
    "h11: illegal header value: bearer {} is not allowed",
    '{{"sasl_plain_password": "{}", "k": 3}}',
    "{{'oauth_client_secret': '{}'}}",
    "me:{}@db is no URL",
    "whsec_{}",
    "skm_{}",
    "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----",
]


@pytest.mark.parametrize("place", [*_ANY, *_WORD])
@budget(max_examples=15)
@given(secret=plain_secrets)
def test_a_secret_is_found_by_its_place(place, secret):
    assert not any(part in redact(place.format(secret)) for part in _parts(secret))


@pytest.mark.parametrize("place", _WORD)
@budget(max_examples=15)
@given(secret=encoded)
def test_an_encoded_secret_is_found_by_its_place(place, secret):
    assert not any(part in redact(place.format(secret)) for part in _parts(secret))


_WHOLE = [
    "postgresql://me:{}@db:5432/points",
    "postgresql://db/points?password={}",
    "postgresql+psycopg://db/points?sslmode=require&sslpassword={}",
    "http://me:{}@host:8000",
    "http://{}@host:8000",
    "s3://KEY:{}@bucket/x.parquet",
    "s3://{}:x@bucket/x.parquet",
    "sqlite:///x.db?password={}",
    "sqlite:///x.db?{}",
    "me:{}",
]


@pytest.mark.parametrize("place", _WHOLE)
@budget(max_examples=25)
@given(secret=secrets)
@example(secret="QX1QX1QX1Q@/?#&WZWZWZWZWZ")  # noqa: S106
def test_a_url_as_a_whole_hides_a_secret_with_any_sign(place, secret):
    shown = redact_url(place.format(secret))
    assert not any(part in shown for part in _parts(secret))


@given(secret=secrets)
def test_a_connection_string_hides_a_quoted_password(secret):
    quoted = secret.replace("\\", "\\\\").replace("'", "\\'")
    text = f"host=db password='{quoted}' dbname=points"
    for shown in (redact(text), redact_url(text)):
        assert shown == f"host=db password={MASK} dbname=points"


@given(secret=secrets, data=st.data())
def test_what_is_remembered_is_found_in_any_text_and_in_parts(secret, data):
    redaction.forget()
    redaction.remember(secret)
    form = data.draw(
        st.sampled_from(
            [str, repr, json.dumps, urllib.parse.quote, lambda s: repr(s.encode()), urllib.parse.quote_plus]
        )
    )
    part = data.draw(st.sampled_from([secret, secret.split("/")[0], secret.rsplit("@", 1)[-1], secret.split(",")[-1]]))
    shown = redact(f"somebody quotes {form(part)} here")
    assert not any(one in shown for one in _parts(part))


def test_what_is_remembered_is_bounded():
    redaction.remember(*(f"secret-number-{i}" for i in range(3 * redaction.MAX_REMEMBERED)))
    assert (
        redact(f"secret-number-{3 * redaction.MAX_REMEMBERED - 1} and secret-number-0") == f"{MASK} and secret-number-0"
    )


@pytest.mark.parametrize(
    "text",
    [
        "orders: there is no model of this name. There are: payments, taxis",
        "model orders, orders-0@17: the position is no longer in the topic",
        "no broker answered at localhost:9092 while reading (timed out)",
        "localhost:9092,[::1]:9093: Connection refused",
        "sqlite:///streamkm.db: database is locked. Find the process that holds it",
        "sqlite:////var/lib/a@b.db?mode=ro cannot be opened",
        "Write sqlite:///path.db, postgresql://user:password@host/database, or memory:// for a store that is forgotten",
        "Send it as: Authorization: Bearer TOKEN. It is not shown again.",
        "a bearer token is missing",
        "serving on http://127.0.0.1:8000",
        "http://127.0.0.1:8000/v1/models/orders/centroids?at=2026-11-01T10:00:00Z",
        "/data/year=2024/month=11/points.parquet: 3 rows, k=8",
        "ssl_keyfile=/etc/key.pem cannot be read",
        "s3://bucket/folder/x.parquet: the file does not exist",
        "postgresql://me@db:5432/points: no server is there",
        "user and password: in the URL, in PGPASSWORD or in ~/.pgpass",
        "points[3]: 2 values, the model has 3 fields (amount, lat, lon)",
        "STREAMKM_TOKEN_FILE=/run/secrets/token",
    ],
)
def test_text_without_a_secret_stays_as_it_is(text):
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    ["sqlite:///streamkm.db", "sqlite:////var/lib/x.db?mode=ro", "memory://", "http://127.0.0.1:8000", "data/x.db", ""],
)
def test_a_url_without_a_secret_stays_as_it_is(text):
    assert redact_url(text) == text


@given(st.text())
def test_any_text_can_be_redacted_and_a_second_time_changes_nothing_that_is_seen(text):
    once = redact(text)
    assert redact(once).replace(MASK, "").strip() in once.replace(MASK, "") or MASK in once
    assert isinstance(redact_url(text), str)


def test_every_error_is_redacted_where_it_is_made():
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, errors.StreamkmError):
            e = cls("http://me:QX12345Z@h", where="sqlite:///x?password=QX12345Z", hint="sasl.password=QX12345Z")
            assert "QX12345Z" not in f"{e} {e!r} {e.args} {e.message} {e.where} {e.hint}"


@pytest.mark.parametrize("formatter", [logs.JsonLines(), logs.PlainLines()])
def test_a_log_line_is_redacted_with_its_arguments_extras_and_traceback(formatter):
    try:
        int("s3://KEY:QX12345Z@bucket")
    except ValueError as e:
        record = logging.getLogger("x").makeRecord(
            "x",
            logging.DEBUG,
            "f",
            1,
            "asking %s",
            ("http://me:QX12345Z@host",),
            (ValueError, e, e.__traceback__),
            extra={"more": {"token": "QX12345Z", "url": ["http://QX12345Z@h"]}},
        )
    line = formatter.format(record)
    assert "QX12345Z" not in line
    assert "asking http://" in line
    assert "Traceback" in line


def test_json_is_redacted_by_names_and_by_texts():
    assert redact_all({"a": ["http://x:QX1@h/"], "token": "QX1", "n": 1, "none": None}) == {
        "a": [f"http://{MASK}@h/"],
        "token": MASK,
        "n": 1,
        "none": None,
    }
