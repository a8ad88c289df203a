"""How commands end: by status and with words, on whatever streams they were given, and never by a traceback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from consumers import cli, terminal
from processes import run
from service_api import Writer
from streamkm.stores import open_store

ROOT = Path(__file__).parents[1]
LOOKING = {
    "models": [],
    "inspect": ["m"],
    "snapshots": ["m"],
    "events": ["m"],
    "diff": ["m", "1", "2"],
    "promote": ["m", "1"],
    "verify": ["m"],
    "replay": ["m"],
    "assign": ["m", "--to", "t"],
    "notify": ["m", "--to", "t"],
    "serve": ["--port", "0"],
    "quarantine list": ["m"],
    "quarantine show": ["m", "t-0-1"],
    "quarantine retry": ["m", "--all"],
    "store backup": ["copy.db"],
    "store check": [],
    "store vacuum": [],
    "tokens create": ["me"],
    "tokens list": [],
    "tokens revoke": ["me"],
}
"""Commands that open a store and make none, with what they need beside it."""
MAKES_ONE = {"live"}
TELLS_OF_ONE = {"doctor"}


def commands(group, name=""):
    """Each command by name, those of groups too."""
    for sub in group.list_commands(click.Context(group)):
        found = group.get_command(click.Context(group), sub)
        if isinstance(found, click.Group):
            yield from commands(found, f"{name}{sub} ")
        else:
            yield name + sub, found


ALL = dict(commands(cli.cli))


def test_a_recomputation_gives_way_to_the_live_consumer(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "nice", lambda increment: asked.append(increment) or 3)
    assert run("replay", "m", "--store", f"sqlite:///{tmp_path}/none.db").returncode != 0
    assert asked == [0, 7]


@pytest.fixture
def streamkm(monkeypatch, capsys, tmp_path):
    """Runs a command in this process as `main` does; gives status, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["streamkm", *arguments])
        status = cli._status()
        return status, *capsys.readouterr()

    return run


def test_the_table_has_every_command_that_opens_a_store():
    opens = {name for name, command in ALL.items() if any(p.name == "store" for p in command.params)}
    assert opens == LOOKING.keys() | MAKES_ONE | TELLS_OF_ONE


@pytest.mark.parametrize("name", LOOKING)
def test_a_store_that_is_not_there_is_named_and_not_made(streamkm, tmp_path, name):
    json_too = ["--json"] if any(p.name == "as_json" for p in ALL[name].params) else []
    status, out, err = streamkm(*name.split(), *LOOKING[name], "--store", "sqlite:///strem.db", *json_too)
    assert status == 5
    assert f"error: sqlite:///strem.db: {tmp_path}/strem.db does not exist" in err
    assert "what to do: Correct --store" in err
    assert list(tmp_path.iterdir()) == []
    if json_too:
        told = json.loads(out)["error"]
        assert (told["kind"], told["status"]) == ("StoreUnavailableError", 5)


@pytest.mark.parametrize("name", [name for name, more in LOOKING.items() if more[:1] == ["m"]])
def test_a_model_that_is_not_there_is_named(streamkm, tmp_path, name):
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/s.db")) as store:
        Writer(store).commit()
    status, _, err = streamkm(*name.split(), *LOOKING[name], "--store", "sqlite:///s.db")
    assert status == 3, err
    assert "error: " in err
    assert "orders" in err  # what there is


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["models"], "no models yet: streamkm live "),
        (["tokens", "list"], "no tokens: streamkm tokens create"),
        (["store", "check"], "undamaged, without models"),
    ],
    ids=" ".join,
)
def test_what_is_empty_says_how_it_is_filled(streamkm, arguments, says):
    status, out, _ = streamkm(*arguments, "--store", "memory://")
    assert (status, says in out) == (0, True)


@pytest.mark.parametrize(("wait", "status"), [("0", 0), ("0s", 0), ("1ms", 10), ("a while", 2)])
def test_how_long_to_wait_is_a_duration(streamkm, tmp_path, wait, status):
    with contextlib.closing(open_store(f"sqlite:///{tmp_path}/s.db")) as store:
        Writer(store).commit()
    found, out, err = streamkm("promote", "orders", "1", "--wait", wait, "--store", "sqlite:///s.db")
    assert found == status
    assert ("will be in charge" in out) == (status != 2)
    assert ("is not a duration such as" in err) == (status == 2)


@pytest.mark.parametrize("name", ALL)
def test_an_option_that_is_not_there_is_named(streamkm, name):
    status, out, err = streamkm(*name.split(), "--nonsense", "--json")
    assert status == 2
    assert "error: No such option '--nonsense'" in err
    assert f"what to do: streamkm {name} --help" in err
    assert json.loads(out)["error"]["status"] == 2


def test_an_error_of_ours_is_said_in_full_and_asked_to_be_reported(streamkm, monkeypatch):
    monkeypatch.setattr("consumers.config.settings.resolve", lambda *_, **__: 1 / 0)
    status, _, err = streamkm("config")
    assert status == 1
    assert "error: unexpected ZeroDivisionError" in err
    assert "consumers/config.py" in err
    assert "report" in err


def test_every_error_has_one_status_that_the_help_names():
    text = cli.cli.epilog
    for cls, code in cli.EXIT_CODES:
        assert cls.__name__ in text.partition(f"{code} ")[2].partition(",")[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """URL of a store with a model."""
    url = f"sqlite:///{tmp_path_factory.mktemp('commands')}/s.db"
    with contextlib.closing(open_store(url)) as opened:
        Writer(opened).commit()
    return url


PRINTING = [("models",), ("snapshots", "orders", "--json"), ("--help",)]


def shell(line, store, *arguments):
    """Run a shell's line, in which $streamkm is a command and its arguments."""
    command = f'streamkm() {{ "{sys.executable}" -m consumers {" ".join(arguments)}; }}\n{line}'
    env = os.environ | {"STREAMKM_STORE": store}
    return subprocess.run(["bash", "-c", command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_output_that_cannot_be_written_is_an_error(store, arguments):
    done = shell(
        "streamkm >/dev/full; echo $?; streamkm >&-; echo $?; streamkm | true; echo ${PIPESTATUS[0]}", store, *arguments
    )
    assert done.stdout.split() == ["13", "13", "141"]
    assert done.stderr.count("error: ") == 2
    assert "No space left" in done.stderr
    assert "standard output is closed" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_without_anywhere_to_say_it_the_status_still_tells(store):
    done = shell("streamkm 2>&-; echo $?; streamkm 2>/dev/full; echo $?", store, "inspect", "nobody")
    assert (done.stdout.split(), done.stderr) == (["3", "3"], "")


def test_letters_that_a_terminal_does_not_have_are_written_as_escapes(store):
    done = shell("PYTHONIOENCODING=ascii streamkm; echo $?", store, "models")
    assert done.stdout.split()[-1] == "0", done.stderr
    assert "orders" in done.stdout


def test_a_closed_standard_input_is_named(store):
    done = shell("streamkm <&-", store, "predict", "orders")
    assert (done.returncode, "standard input is closed" in done.stderr) == (6, True)


def test_ctrl_c_leaves_without_a_word():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it puts behind without it
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with subprocess.Popen(
            [sys.executable, "-m", "consumers", "predict", "orders", "--url", url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                assert process.wait(60) == terminal.INTERRUPTED
            assert process.stderr.read().strip() == ""
