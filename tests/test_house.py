"""The house stands as it was drawn: layers, exports, generated docs, and what the wheel holds."""

from __future__ import annotations

import ast
import collections
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

import streamkm
from consumers import cli, options
from streamkm import errors, metrics, settings

ROOT = Path(__file__).parents[1]


def test_layers_hold():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


def test_the_page_of_the_architecture_has_the_layers_as_they_are_checked():
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text[text.index("<!-- layers:") : text.index("## A record")]
    drawn = [re.findall(r"`(\w+)`", line.split("|")[1]) for line in table.splitlines() if line.startswith("| `")]
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (library,) = (c for c in contracts if c.get("exhaustive"))
    assert drawn == [["consumers"], *(re.split(r" *\| *", row) for row in library["layers"])]


def test_the_files_that_the_docs_name_are_there():
    pages = [ROOT / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((ROOT / "docs").rglob("*.md"))
    missing = []
    for page in pages:
        for name in re.findall(
            r"`((?:streamkm/|consumers/|tests/|benchmarks/|\w+/)*[\w/]+\.(?:py|js))(?:::[^`]*)?`", page.read_text()
        ):
            homes = (ROOT, ROOT / "streamkm", ROOT / "tests", ROOT / "benchmarks", page.parent)
            if not any((home / name).exists() for home in homes) and not list((ROOT / "streamkm").rglob(name)):
                missing.append(f"{page.relative_to(ROOT)}: {name}")
    assert not missing


def test_a_class_name_has_one_owner():
    """Schemas of HTTP and results of the client have the names of what they describe."""
    owners = collections.defaultdict(list)
    for path in sorted((ROOT / "streamkm").rglob("*.py")):
        name = path.relative_to(ROOT / "streamkm").as_posix()
        if not name.startswith(("client/responses", "service/schemas/")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    owners[node.name].append(name)
    assert {name: homes for name, homes in owners.items() if len(homes) > 1} == {}


def test_public_names_are_sorted_and_there():
    assert list(streamkm.__all__) == sorted(streamkm.__all__)
    for name in streamkm.__all__:
        assert getattr(streamkm, name) is not None


def test_the_error_tree_in_the_docstring_is_the_real_one():
    lines = re.findall(r"^[│ ]*[├└]── (\w+)(?: \((\w+)\))?", errors.__doc__, re.MULTILINE)
    drawn = {"StreamkmError", *(name for name, _ in lines)}
    real = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.StreamkmError)}
    assert drawn == real
    for name, builtin in lines:
        if builtin:
            assert builtin in {b.__name__ for b in getattr(errors, name).__mro__}, name


def test_every_error_has_an_exit_status_that_is_not_success():
    for cls in vars(errors).values():
        if isinstance(cls, type) and issubclass(cls, errors.StreamkmError):
            assert options.exit_code(cls("x")) in {*range(1, 9), 11, 12}


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name):
    result = CliRunner().invoke(cli.cli, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert re.search(rf"Examples?:\n +(\S+=\S+ )?streamkm {name}", result.output), result.output


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_in_the_readme(name):
    assert f"streamkm {name}" in (ROOT / "README.md").read_text()


def test_the_readme_has_the_table_of_settings_as_it_is():
    assert settings.markdown_table() in (ROOT / "README.md").read_text(), "run: make docs"


def test_the_docs_have_the_table_of_metrics_as_it_is():
    assert metrics.markdown_table() in (ROOT / "docs" / "metrics.md").read_text(), "run: make docs"


def test_the_wheel_holds_both_packages_and_nothing_else(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in inside if ".dist-info" not in n} == {"streamkm", "consumers"}
    tracked = subprocess.run(
        ["git", "ls-files", "streamkm", "consumers"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert set(tracked) <= set(inside)


def test_no_mocks_no_pickle_no_prints():
    for folder, forbidden in (
        ("streamkm", r"\bpickle\.loads|^import pickle|allow_pickle=True|^\s*print\((?!.*file=)"),
        ("consumers", r"\bpickle\.loads|^import pickle|^\s*print\((?!.*file=)"),
        ("tests", r"Magic" + r"Mock|unittest\.mock"),
    ):
        for file in (ROOT / folder).rglob("*.py"):
            found = re.search(forbidden, file.read_text(), re.MULTILINE)
            assert found is None, f"{file}: {found[0]}"


def test_no_kernel_takes_more_than_ten_arguments():
    """What belongs together is a NamedTuple (`streamkm/kernels/groups.py`)."""
    many = []
    for path in sorted((ROOT / "streamkm" / "kernels").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                a = node.args
                count = sum(map(len, (a.posonlyargs, a.args, a.kwonlyargs))) + bool(a.vararg) + bool(a.kwarg)
                if count > 10:
                    many.append(f"{path.relative_to(ROOT)}: {node.name} takes {count}")
    assert not many
