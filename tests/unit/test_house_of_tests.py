"""How tests get the objects that they look at, and how long they wait for them.

They use constructors, with stand-ins handed in. If a test sets a private attribute or skips a
constructor, it may check a state that never occurs. No time decides a test, on a slow machine
either.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[1]
MUTATORS: Final = frozenset(
    {
        *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem"),
        *("remove", "setdefault", "update"),
    }
)
NAMESPACES: Final = {
    "unit/api_fakes.py",  # parts of a supervisor that few routes look at
    "unit/test_ollama_embed.py",  # a request, of which one attribute is read
    "unit/test_modalities.py",  # presets whose arguments the file cannot say
    "unit/test_prefetch.py",  # presets that have files alone
}
"""Test files that make stand-ins of SimpleNamespace. The list only shrinks: a class with a
constructor says what it stands for."""

SHORT: Final = {
    "faults/test_clients.py": "asyncio.timeout(1)",  # a request that may fail, and is given up
    "real/test_streams.py": "asyncio.timeout(1)",  # a client that leaves
    "unit/test_completion.py": "time.monotonic() - begun < 15",  # other commands wait for 30 s
}
"""Times below a minute that are not there to end a test which hangs."""


def short_times(tree: ast.AST) -> Iterator[str]:
    """Yield limits of less than a minute on what a test waits for."""
    for node in ast.walk(tree):
        what, most = "", None
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "asyncio.timeout":
            what, most = "asyncio.timeout", node.args[0]
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Lt | ast.LtE):
            what, most = ast.unparse(node.left), node.comparators[0]
            if not any(f"{clock}() - " in what for clock in ("monotonic", "perf_counter", ".time")):
                continue
        limit = most.value if isinstance(most, ast.Constant) else None
        if isinstance(limit, int | float) and limit < 60:
            yield ast.unparse(node)


def planted(tree: ast.AST) -> Iterator[str]:
    """Yield what sets or changes a private part of another object, or skips its constructor."""
    for node in ast.walk(tree):
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign | ast.Delete):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign):
            targets = [node.target]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.endswith(".__new__") or name == "object.__setattr__":
                yield ast.unparse(node)
            if isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
                targets = [node.func.value]
        for target in targets:
            if any(map(_is_private, ast.walk(target))):
                yield ast.unparse(node)


def _is_private(node: ast.AST) -> bool:
    """Tell whether it is a private attribute of something that is not the class around it."""
    if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
        return False
    return not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"))


def files() -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.rglob("*.py"))]


@pytest.mark.parametrize("file", files())
def test_no_test_plants_attributes_or_skips_constructors(file: str) -> None:
    assert list(planted(ast.parse((ROOT / file).read_text(encoding="utf-8")))) == []


def test_only_a_hang_ends_by_time() -> None:
    found = {
        file: time
        for file in files()
        for time in short_times(ast.parse((ROOT / file).read_text(encoding="utf-8")))
    }
    assert found == SHORT


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("asyncio.timeout(30)", True),
        ("asyncio.timeout(60)", False),
        ("asyncio.timeout(PATIENCE)", False),
        ("asyncio.timeout(None)", False),
        ("assert time.monotonic() - began < 10", True),
        ("assert loop.time() - began <= 0.5", True),
        ("assert loop.time() - began < 60", False),
    ],
)
def test_short_times_are_found(source: str, found: bool) -> None:
    assert bool(list(short_times(ast.parse(source)))) == found


def test_stand_ins_say_by_a_class_what_they_stand_for() -> None:
    made = {
        file
        for file in files()
        if any(
            isinstance(node, ast.ImportFrom)
            and node.module == "types"
            and any(one.name == "SimpleNamespace" for one in node.names)
            for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        )
    }
    assert made == NAMESPACES


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("one._known = {}", True),
        ("one.part._since, x = 1, 2", True),
        ("one._count += 1", True),
        ("one.__dict__['facts'] = book", True),
        ("one._todo.append(1)", True),
        ("del one._known", True),
        ("Supervisor.__new__(Supervisor)", True),
        ("object.__setattr__(one, 'a', 1)", True),
        ("self._known = one._known", False),
        ("one.known = 1", False),
        ("assert one._known == {}", False),
    ],
)
def test_what_is_planted_is_found(source: str, found: bool) -> None:
    assert bool(list(planted(ast.parse(source)))) == found
