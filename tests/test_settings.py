"""Settings: one table, four origins, and errors that name the setting and the origin of its value."""

from __future__ import annotations

import dataclasses

import pytest

from streamkm import settings
from streamkm.errors import SettingsError
from streamkm.settings import FitSettings, LiveSettings, ServeSettings, load, resolve
from streamkm.values import HalfLife


def test_command_line_beats_environment_beats_file_beats_default(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text('k = 3\ntopic = "from-file"\nbatch = 100\nfields = ["a", "b"]\n')
    env = {"STREAMKM_K": "4", "STREAMKM_TOPIC": "from-env"}
    s = load(LiveSettings, {"k": "5", "topic": None}, env=env, file=file)
    assert (s.k, s.topic, s.batch, s.fields, s.seed) == (5, "from-env", 100, ("a", "b"), 0)


def test_every_setting_survives_being_shown_and_read_again():
    s = load(LiveSettings, {"half_life": "10m", "fields": "a,b.c", "snapshot_every": "1.5m"}, env={})
    shown = {k: v for k, v in settings.show(s).items() if v}
    assert load(LiveSettings, shown, env={}) == s


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("k", "0", "'0' is not a value (neither auto nor a whole number of at least 1)"),
        ("k", "many", "'many' is not a value"),
        ("fields", "a,,b", "STREAMKM_FIELDS: a field name is empty"),
        ("fields", "a,b,a", "STREAMKM_FIELDS: a is named twice"),
        ("start", "middle", "STREAMKM_START: 'middle' is none of beginning, end"),
        ("half_life", "-3", "STREAMKM_HALF_LIFE: -3 is not more than 0"),
        ("half_life", "soon", "not a duration"),
        ("snapshot_every", "10 parsecs", "not a duration"),
        ("max_bad_ratio", "2", "not between 0 and 1"),
        ("max_bad_ratio", "nan", "not between 0 and 1"),
    ],
)
def test_a_wrong_value_is_named_with_its_origin(name, text, says):
    with pytest.raises(SettingsError, match=f"STREAMKM_{name.upper()}") as e:
        load(LiveSettings, {}, env={f"STREAMKM_{name.upper()}": text})
    assert says in str(e.value)


def test_a_file_with_an_unknown_name_lists_the_known_ones(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("kk = 3\n")
    with pytest.raises(SettingsError, match="unknown setting kk") as e:
        load(LiveSettings, {}, env={}, file=file)
    assert str(file) in str(e.value)
    assert "half_life" in e.value.hint


def test_a_file_that_is_not_toml_says_where(tmp_path):
    file = tmp_path / "s.toml"
    file.write_text("k = = 3\n")
    with pytest.raises(SettingsError, match="is not TOML"):
        load(LiveSettings, {}, env={}, file=file)


def test_secrets_never_show():
    s = load(ServeSettings, {"token": "hunter2"}, env={})
    c = load(LiveSettings, {"kafka_property": "sasl.password=hunter2"}, env={})
    assert s.token == "hunter2"  # noqa: S105 - that it is kept is the point
    assert c.kafka_property == ("sasl.password=hunter2",)
    for text in (repr(s), repr(c), str(settings.show(s)), str(settings.show(c)), settings.markdown_table()):
        assert "hunter2" not in text
    with pytest.raises(SettingsError) as e:
        load(LiveSettings, {"kafka_property": "=hunter2"}, env={})
    assert "hunter2" not in str(e.value)


def test_half_life_is_points_or_event_time():
    assert HalfLife.parse("2500") == HalfLife(2500.0, "points")
    assert HalfLife.parse("2h") == HalfLife(7200.0, "seconds")


def test_every_setting_has_help_and_a_default_that_its_check_accepts():
    for name, f in settings.TABLE.items():
        assert f.metadata["help"], name
        check = f.metadata["check"]
        assert check is None or f.default is None or check(f.default) is None, name
    assert set(settings.TABLE) == {f.name for c in settings.GROUPS for f in dataclasses.fields(c)}


def test_a_secret_comes_from_a_file(tmp_path):
    (tmp_path / "token").write_text("hunter2\n")
    env = {"STREAMKM_TOKEN_FILE": str(tmp_path / "token")}
    assert load(ServeSettings, {}, env=env).token == "hunter2"  # noqa: S105
    assert resolve(ServeSettings, {}, env=env)["token"][1] == "STREAMKM_TOKEN_FILE"
    assert load(ServeSettings, {"token": "other"}, env=env).token == "other"  # noqa: S105
    assert load(ServeSettings, {}, env={"STREAMKM_TOKEN_FILE": ""}).token == ""


def test_a_setting_given_twice_or_in_a_file_that_is_not_there_is_an_error(tmp_path):
    env = {"STREAMKM_TOKEN_FILE": str(tmp_path / "none")}
    with pytest.raises(SettingsError, match=r"none cannot be read \(No such file or directory\)") as e:
        load(ServeSettings, {}, env=env)
    assert e.value.where == "STREAMKM_TOKEN_FILE"
    with pytest.raises(SettingsError, match="STREAMKM_TOKEN is set too"):
        load(ServeSettings, {}, env=env | {"STREAMKM_TOKEN": "x"})
    (tmp_path / "bytes").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        load(ServeSettings, {}, env={"STREAMKM_TOKEN_FILE": str(tmp_path / "bytes")})


def test_a_number_of_very_many_digits_is_refused_at_once():
    with pytest.raises(SettingsError, match="is not a value"):
        load(FitSettings, {"memory": "9" * 400}, env={})
    with pytest.raises(SettingsError, match="is not a value"):
        load(LiveSettings, {"lease": "1" * 200_000 + "x"}, env={})
