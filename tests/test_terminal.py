"""One place prints, and for it names and values are data: no markup, nothing that a terminal obeys, no forged lines."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import io
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from consumers import cli, logs, terminal
from service_api import P0, SPEC, Writer
from streamkm.records import BadRecord, RawRecord
from streamkm.state import ModelEvent
from streamkm.stores import MemoryStore

CONSUMERS = Path(__file__).parents[1] / "consumers"
SHAPES = {"Table", "Text", "Panel", "Group", "RenderableType"}
"""What of rich holds text and prints none."""
PRINTS = {"echo", "secho", "style", "progressbar", "prompt", "confirm", "echo_via_pager", "pause"}
MAY = {"logs.py": {"stderr"}, "predict.py": {"stdin"}}
"""Standard streams that others touch: where log lines go, and what is read."""

PIECES = (
    *("[/]", "[red]", "[/red]", "[link=x]", ":smile:", "\x1b[31m", "\x1b]0;x\x07", "\x9b2J", "\r", "\n", "\x08", "\t"),
    *("\u202e", "\u2028", "\x7f", "\\", "'", '"', "a", "Ä", "東", " "),
)
nasty = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join) | st.text(
    st.characters(codec="utf-8"), min_size=1, max_size=12
)


def obeyed(text):
    """Signs in a text that a terminal would not only show."""
    return [c for c in text if not (c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs")]


def run(*arguments):
    """Status, output and errors of a command in this process."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["streamkm", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = cli._status()
    finally:
        sys.argv = before
    return status, out.getvalue(), err.getvalue()


@pytest.mark.parametrize("file", sorted({*CONSUMERS.glob("*.py")} - {CONSUMERS / "terminal.py"}), ids=lambda f: f.name)
def test_nothing_else_prints(file):
    wrong = []
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=names) if any(a.name.split(".")[0] == "rich" for a in names):
                wrong.append((node.lineno, "import rich"))
            case ast.ImportFrom(module=str(module), names=names) if module.split(".")[0] == "rich":
                wrong += [
                    (node.lineno, a.name) for a in names if a.name not in SHAPES and not a.name.endswith("Column")
                ]
            case ast.Call(func=ast.Name(id="print")):
                wrong.append((node.lineno, "print"))
            case ast.Attribute(value=ast.Name(id="click"), attr=attr) if attr in PRINTS:
                wrong.append((node.lineno, f"click.{attr}"))
            case ast.ImportFrom(module="click", names=names):
                wrong += [(node.lineno, a.name) for a in names if a.name in PRINTS]
            case ast.Attribute(value=ast.Name(id="sys"), attr=attr) if attr.strip("_") in {"stdout", "stderr", "stdin"}:
                wrong += [(node.lineno, f"sys.{attr}")] if attr not in MAY.get(file.name, ()) else []
            case ast.Call(func=ast.Name(id="Panel"), keywords=keywords):
                # Here rich reads markup in spite of its console.
                titles = [k.value for k in keywords if k.arg == "title"]
                wrong += [(node.lineno, "title") for t in titles if isinstance(t, ast.JoinedStr | ast.Constant)]
            case _:
                pass
    assert wrong == []


@settings(max_examples=60, deadline=None)
@given(name=nasty, value=nasty)
def test_names_and_values_are_shown_as_what_they_are(name, value):
    store = MemoryStore()
    fields = (name, value + "2", "c")
    spec = dataclasses.replace(SPEC, fields=fields, source={"kind": "kafka", "topic": value})
    raw = value.encode()
    Writer(store, spec).commit(
        bad=1,
        detail={"k": {"running": 2, "suggested": 3, "reason": name}},
        events=(ModelEvent("birth", (), (7,)),),
        quarantine=(BadRecord(RawRecord(P0, 3, 5, raw, raw, ((name, raw),)), "not-json", name, value),),
    )
    place = f"{P0}-3"
    asked = [("models",), ("inspect", "orders"), ("snapshots", "orders"), ("events", "orders")]
    asked += [("quarantine", "list", "orders"), ("quarantine", "show", "orders", place), ("diff", f"x{name}", "1", "1")]
    with pytest.MonkeyPatch.context() as patched:
        for module in ("inspect", "quarantine", "replay"):
            patched.setattr(f"consumers.{module}.open_store", lambda *_, **__: store)
        for arguments in asked:
            status, out, err = run(*arguments, "--store", "memory://")
            assert status == (3 if arguments[0] == "diff" else 0), err
            assert obeyed(out + err) == []
            assert "Traceback" not in err
        _, out, _ = run("inspect", "orders", "--json", "--store", "memory://")
        assert len(json.loads(out)["model"]["fields"]) == 3
        assert obeyed(out) == []


@settings(max_examples=60, deadline=None)
@given(text=nasty)
def test_errors_and_log_lines_are_one_line_each(text):
    status, _, err = run("models", "--store", f"x{text}")
    assert status in (2, 5)
    assert obeyed(err) == []
    lines = [line[:7] for line in err.splitlines()]
    # What is no URL may be a password, which others could see in the list of processes.
    assert lines[-2:] == ["error: ", "  what "]
    assert lines[:-2] in ([], ["warning"])
    record = logging.makeLogRecord({"msg": "%s", "args": (text,), "levelname": "INFO"})
    for formatter in (logs.PlainLines(), logs.JsonLines()):
        line = formatter.format(record)
        assert obeyed(line) == []
        assert "\n" not in line


@settings(deadline=None)
@given(text=nasty)
def test_no_shape_of_rich_lets_anything_through(text):
    out = io.StringIO()
    console = terminal.console(file=out, force_terminal=True, color_system=None, width=60)
    table = Table(text, title=text)
    table.add_column(Text(text))
    table.add_row(text, Text(text))
    for renderable in (table, text, Text(text), Panel(text, title=Text(text))):
        console.print(renderable)
    assert obeyed(out.getvalue()) == []


def test_clean_keeps_what_people_read():
    assert terminal.clean("Zürich 東京 e\u0301 \u00a0") == "Zürich 東京 e\u0301 \u00a0"
    assert terminal.clean("a\nb", lines=True) == "a\nb"
    assert terminal.clean("a\nb\x1b") == "a\\nb\\x1b"


def test_numbers_that_json_lacks_are_null(capsys):
    terminal.say_json({"a": [float("nan"), 1.5], "b": float("-inf")})
    assert json.loads(capsys.readouterr().out) == {"a": [None, 1.5], "b": None}
