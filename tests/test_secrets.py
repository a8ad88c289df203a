"""Random secrets in every setting and every form of a URL, and every word that the programs then print."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import urllib.parse

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as budget
from hypothesis import strategies as st

from consumers import cli, doctor, logs
from streamkm import redaction
from streamkm.client import transport
from streamkm.delivery.webhooks import keys
from streamkm.errors import SettingsError
from streamkm.service.problems import Problem, from_error
from streamkm.settings import GROUPS, TABLE, holds_secret, resolve, show

_chunk = st.text("QXZWVKJ0123456789", min_size=9, max_size=10).map(lambda t: f"Q{t}Z")
raw = st.builds(lambda a, sign, b: a + sign + b, _chunk, st.sampled_from([*"/@:?#&,;=%'+! ", "@/", ",a="]), _chunk)
few = budget(max_examples=4, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def parts(secret):
    return {secret[:9], secret[-9:]}


def output_of(*arguments, **environment):
    """All that ``streamkm`` prints, on both of its streams."""
    out, before = io.StringIO(), dict(os.environ)
    redaction.forget()
    argv, sys.argv = sys.argv, ["streamkm", *arguments]
    os.environ.update(environment)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            cli._status()
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(before)
    return out.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(transport, "RETRY_DELAYS", ())
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.chdir(tmp_path)


LIVE = ("live", "m", "--topic", "t", "--fields", "a", "--bootstrap", "127.0.0.1:1", "--store", "memory://")
FIT = ("fit", "--sql", "select 1")
PREDICT = ("predict", "m")
PLACES = [
    *(
        (command, {"STREAMKM_STORE": url})
        for url in (
            "postgresql://me:{}@127.0.0.1:1/x",
            "postgresql://127.0.0.1:1/x?sslmode=disable&password={}",
            "postgres://:{}@127.0.0.1:1/x",
            "sqlite:///x.db?password={}",
            "sqlite://{}@/x.db",
            "sqlite:///none/x.db?mode=ro&token={}",
            "mysql://me:{}@h/x",
            "host=127.0.0.1 password='{}'",
            "me:{}@h",
        )
        for command in (("models",), ("inspect", "m", "--json"))
    ),
    *(
        (FIT, {"STREAMKM_DATABASE": url})
        for url in (
            "sqlite:////none/x.db?password={}",
            "postgresql+psycopg://me:{}@127.0.0.1:1/x",
            "postgresql+psycopg://127.0.0.1:1/x?password={}",
            "nonsense://me:{}@h/x",
            "host=h password={}",
            "{}",
        )
    ),
    *(
        (PREDICT, {"STREAMKM_URL": url})
        for url in ("http://me:{}@127.0.0.1:1", "http://{}@127.0.0.1:1", "http://127.0.0.1:1/?token={}", "me:{}@h")
    ),
    (PREDICT, {"STREAMKM_URL": "http://127.0.0.1:1", "STREAMKM_TOKEN": "{}"}),
    (PREDICT, {"STREAMKM_URL": "http://127.0.0.1:1", "STREAMKM_TOKEN": "{}\n"}),
    (("fit", "s3://KEY:{}/x@bucket/y.csv"), {}),
    (("fit", "file://me:{}@host/y.csv"), {}),
    *(
        (LIVE, {"STREAMKM_KAFKA_PROPERTY": client})
        for client in (
            "sasl.password={}",
            "sasl.password=a,{}",
            "sasl.password=a,{}=b",
            "oauth_client_secret={}",
            "scram_client_key={}",
            "ssl.password={},security.protocol=PLAINTEXT",
            "ssl.check.hostname={}",
            "fetch.min.bytes={}",
            "sasl.jaas.config=x required password='{}'",
        )
    ),
    (("live", "m", "--topic", "t", "--fields", "a", "--bootstrap", "me:{}@127.0.0.1:1"), {}),
    (("notify", "m", "--store", "memory://", "--webhook", "https://example.com/hooks/{}"), {}),
    (("notify", "m", "--store", "memory://"), {"STREAMKM_NOTIFY_WEBHOOK": "https://me:{}@example.com/"}),
    (("quarantine", "list", "m"), {"STREAMKM_STORE": "postgresql://me:{}@127.0.0.1:1/x"}),
    (("models", "--store", "postgresql://me:{}@127.0.0.1:1/x"), {}),
]


@pytest.mark.parametrize(("arguments", "environment"), PLACES)
@few
@given(secret=raw, encode=st.booleans())
def test_no_command_prints_a_secret(arguments, environment, secret, encode):
    secret = urllib.parse.quote(secret, safe="") if encode else secret
    text = output_of(*(a.format(secret) for a in arguments), **{k: v.format(secret) for k, v in environment.items()})
    assert text
    assert not [part for part in parts(secret) if part in text], text


@few
@given(secret=raw)
def test_config_prints_no_secret(secret):
    environment = {
        "STREAMKM_STORE": f"postgresql://me:{secret}@h/x?password={secret}",
        "STREAMKM_DATABASE": f"sqlite:///x.db?password={secret}",
        "STREAMKM_URL": f"http://me:{secret}@h/?token={secret}",
        "STREAMKM_TOKEN": secret,
        "STREAMKM_WEBHOOK_SECRET": secret,
        "STREAMKM_KAFKA_PROPERTY": f"sasl.username=me,sasl.password={secret}",
        "STREAMKM_BOOTSTRAP": f"me:{secret}@h:1",
    }
    for form in ((), ("--json",)):
        text = output_of("config", *form, **environment)
        assert "sasl.username=********" in text or "," in secret
        assert not [part for part in parts(secret) if part in text], text
    for group in GROUPS:
        with contextlib.suppress(SettingsError):  # properties whose password has a comma
            values = {name: value for name, (value, _) in resolve(group, {}, env=environment).items()}
            shown = f"{show(group(**values))} {group(**values)!r}"
            assert not [part for part in parts(secret) if part in shown]


@few
@given(secret=raw)
def test_doctor_and_answers_over_http_hold_no_secret(secret):
    for url in (f"postgresql://me:{secret}@127.0.0.1:1/x", f"sqlite:///none/x.db?password={secret}", f"me:{secret}@h"):
        finding = repr(doctor._store(url))
        body = from_error(SettingsError(f"cannot read {url!r}", where=url)).response().body.decode()
        body += Problem(500, "internal", f"no: {url!r}", where=url, hint=url).response().body.decode()
        assert not [part for part in parts(secret) if part in finding + body]


def test_every_setting_that_may_hold_a_secret_is_told_from_those_that_cannot():
    url = "postgresql://me:hunter22@h/x"
    wanted = {"store", "database", "url", "token", "webhook_secret", "kafka_property"}
    assert {
        n for n in TABLE if holds_secret(n, f"{url}&sasl.password=x" if n != "kafka_property" else "sasl.password=x")
    } == wanted
    assert not any(holds_secret(n, "sqlite:///x.db") for n in ("store", "url"))
    assert not holds_secret("kafka_property", "security.protocol=SSL,ssl.cafile=/x")


@pytest.mark.parametrize(
    ("arguments", "variable"),
    [
        (("models", "--store", "postgresql://me:hunter22@127.0.0.1:1/x"), "STREAMKM_STORE_FILE"),
        ((*PREDICT, "--url", "http://127.0.0.1:1", "--token", "hunter22"), "STREAMKM_TOKEN_FILE"),
        ((*LIVE, "--kafka-property", "sasl.password=hunter22"), "STREAMKM_KAFKA_PROPERTY_FILE"),
        ((*FIT, "--database", "nonsense://me:hunter22@h/x"), "STREAMKM_DATABASE_FILE"),
        (("notify", "m", "--store", "memory://", "--webhook", f"https://h/{'x' * 20}"), "STREAMKM_NOTIFY_WEBHOOK_FILE"),
        (("notify", "m", "--store", "memory://", "--webhook-secret", "hunter22"), "STREAMKM_WEBHOOK_SECRET_FILE"),
        (("fit", "s3://KEY:hunter22/x@bucket/y.csv"), "AWS_SECRET_ACCESS_KEY"),
        (("models", "--store", "sqlite:///x.db"), None),
        (("notify", "m", "--store", "memory://", "--webhook", "https://example.com/hooks/clusters"), None),
    ],
)
def test_a_secret_as_an_argument_is_warned_of_with_the_way_that_nobody_sees(arguments, variable):
    text = output_of(*arguments)
    assert ("list of processes" in text) is (variable is not None)
    assert variable is None or variable in text
    assert "hunter22" not in text


def test_addresses_of_webhooks_come_from_a_file(tmp_path):
    (tmp_path / "hooks").write_text("https://one.example/\nhttps://me:x@two.example/\n")
    text = output_of("notify", "m", "--store", "memory://", STREAMKM_NOTIFY_WEBHOOK_FILE=str(tmp_path / "hooks"))
    assert "there is no model" in text or "no models yet" in text
    (tmp_path / "hooks").write_text("\n")
    assert "there is no target" in output_of("notify", "m", STREAMKM_NOTIFY_WEBHOOK_FILE=str(tmp_path / "hooks"))


def test_the_hint_of_an_invalid_webhook_secret_can_be_copied():
    with pytest.raises(SettingsError) as refused:
        keys("x")
    assert "(printf 'whsec_'; openssl rand -base64 32) >FILE" in str(refused.value)


def test_a_token_in_a_file_is_registered_and_repeating_it_changes_nothing(sqlite_url, tmp_path):
    token = tmp_path / "token"
    token.write_text("skm_" + "a" * 31)
    arguments = ("tokens", "create", "prometheus", "--file", str(token), "--store", sqlite_url)
    assert "32 to 512 characters" in output_of(*arguments)
    token.write_text("a" * 40)
    assert "skm_ and 32 to 512" in output_of(*arguments), "the service looks for no other tokens in its store"
    assert "(printf 'skm_'; openssl rand -hex 32) >FILE" in output_of(*arguments), "a hint that can be copied"
    token.write_text("skm_" + "a" * 32 + "\n")
    for _ in range(2):
        assert f"the token in {token} is registered as prometheus" in output_of(*arguments)
    (one,) = json.loads(output_of("tokens", "list", "--json", "--store", sqlite_url))
    assert (one["name"], one["right"]) == ("prometheus", "read")
    assert "error:" in output_of(*arguments, "--right", "write")
    assert "no token can be read" in output_of(*arguments[:4], str(tmp_path / "none"), "--store", sqlite_url)
