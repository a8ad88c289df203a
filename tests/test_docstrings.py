"""Docstrings of public functions describe the arguments that exist, the shapes of arrays, and what is raised."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "streamkm"
SECTION = re.compile(r"^([A-Z]\w+)\n-+$", re.MULTILINE)
SHAPE = re.compile(r"\((?:[\w+*/.-]+, ?)+(?:[\w+*/.-]+)?\)|\bscalar\b|\b[Aa]ny shape\b|\bAs (?:in|for) `")
"""A shape such as ``(n, d)``, or whose shape it is."""
ARRAYS = re.compile(r"\b(?:NDArray|Reals|Floats|Ints|Labels|Flags|Bytes|Singles|ArrayLike)\b")
NAMED = re.compile(r"^(?:Mapping|dict|Iterator|Iterable)\[")
"""Arrays by name, whose shapes stand where the names do."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sections(doc: str) -> dict[str, str]:
    found = list(SECTION.finditer(doc))
    ends = [*(m.start() for m in found[1:]), len(doc)][: len(found)]
    return {m[1]: doc[m.end() : end] for m, end in zip(found, ends, strict=True)}


def entries(section: str) -> list[str]:
    """Names of the entries of a numpydoc section: the lines that are not indented."""
    names = re.findall(r"^(\S.*)$", section.partition("\n>>> ")[0], re.MULTILINE)
    return [part.strip().lstrip("*") for line in names for part in line.split(":")[0].split(",")]


def arguments(function: Function) -> list[ast.arg]:
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    bound = every[:1] if every and every[0].arg in {"self", "cls"} and every[0].annotation is None else []
    return every[len(bound) :]


def own_statements(function: Function) -> Iterator[ast.AST]:
    """All nodes of a function, without those of functions inside it."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def raised(function: Function) -> set[str]:
    """Names of the exceptions that the body raises by itself and does not catch again."""
    names = set()
    for node in own_statements(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            names.add(node.exc.func.id)
    return {name for name in names if name[0].isupper() and name not in {"AttributeError", "NotImplementedError"}}


def public(tree: ast.Module) -> Iterator[tuple[str, Function, ast.ClassDef | None]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield node.name, node, None
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                    yield f"{node.name}.{inner.name}", inner, node


def faults(path: Path, root: Path = ROOT.parent) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for name, function, _ in public(tree):
        doc = ast.get_docstring(function)
        if doc is None:
            continue  # ruff finds those that must have one: what implements a protocol is described there
        place = f"{path.relative_to(root)}:{function.lineno} {name}"
        parts = sections(doc)
        known = {arg.arg for arg in arguments(function)}
        if unknown := [n for n in entries(parts.get("Parameters", "")) if n and n not in known]:
            yield f"{place}: describes {', '.join(unknown)}, which it does not take"
        annotations = [ast.unparse(a) for a in (*(a.annotation for a in arguments(function)), function.returns) if a]
        if any(ARRAYS.search(a) and not NAMED.match(a) for a in annotations) and not SHAPE.search(doc):
            yield f"{place}: takes or gives arrays, and says no shape"
        if (errors := raised(function)) and "Raises" not in parts:
            yield f"{place}: raises {', '.join(sorted(errors))}, and has no section Raises"


def test_the_rules_find_what_they_are_for(tmp_path):
    module = tmp_path / "module.py"
    module.write_text(
        "def f(x: NDArray[np.float64]) -> None:\n"
        '    """Sum.\n\n    Parameters\n    ----------\n    y\n        Values.\n    """\n'
        "    raise DataError('no')\n"
    )
    found = [line.split(": ", 1)[1] for line in faults(module, tmp_path)]
    assert found == [
        "describes y, which it does not take",
        "takes or gives arrays, and says no shape",
        "raises DataError, and has no section Raises",
    ]
    module.write_text(
        "def f(x: NDArray[np.float64]) -> None:\n"
        '    """Sum.\n\n    Parameters\n    ----------\n    x\n        (n, d).\n\n'
        '    Raises\n    ------\n    DataError\n        No.\n    """\n'
        "    raise DataError('no')\n"
    )
    assert list(faults(module, tmp_path)) == []


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_name_arguments_shapes_and_errors(path):
    assert list(faults(path)) == []
