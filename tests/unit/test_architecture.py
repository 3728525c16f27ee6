"""The cut between the parts, enforced: who may import whom, what stays pure, how long code may get.

docs/architecture.md says why. A failure here names the file; the remedy is to move the code, and
only for a good reason to change a table below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "llamaswap_py"
ROOT = Path(__file__).resolve().parents[2] / PACKAGE

LEAVES = {
    *("errors", "units", "endpoint", "snapshot", "redaction", "beat"),
    *("running", "sidecars", "files", "workers", "dialing", "principals", "outgoing"),
    *("guarding", "turns", "__init__"),
}
"""Modules that everybody may import, and that import nobody but each other."""

PARTS = {
    *("scheduler", "config", "engine", "devices", "children", "wire", "gguf", "state"),
    *("estimate", "hub", "service", "pagecache"),
}
MEETING_POINT = {
    *("supervisor", "instances", "leases", "opening", "presets", "views"),
    *("watching", "estimating", "estimate", "naming", "remembering"),
    *("reservations", "model_facts", "feed", "reloading", "downloads", "conversations"),
    "conversation",
    *("alarm", "webui", "overriding", "editing", "library", "captures"),
    *("replaying", "scraping", "held", "programs", "containing", "reading_ahead", "keeping"),
    *("desk", "preset_files", "weighing", "recovering"),
}
"""The modules that know several parts."""

ALLOWED: dict[str, set[str]] = {
    # The parts know nothing of each other, unless one stands on another.
    **{part: set() for part in PARTS},
    "estimate": {"config", "engine", "gguf", "state"},
    **dict.fromkeys(MEETING_POINT, PARTS | MEETING_POINT),
    "simulator": {"scheduler"},
    "importing": {"config"},
    "hub": {"gguf"},
    # What faces outward.
    "translate": set(),
    "api": {
        "supervisor",
        "leases",
        "overriding",
        "library",
        "scraping",
        "wire",
        "config",
        "translate",
    },
    "client": set(),
    "outgoing": {"client"},  # httpx as the client imports it
    "tui": {"client"},
    "demo": {"client", "config", "engine"},
    "cli": PARTS
    | MEETING_POINT
    | {"api", "client", "simulator", "importing", "hub", "tui", "demo"},
    "__main__": {"cli"},
}

ALLOWED_FOR_TYPES: dict[str, set[str]] = {
    "api": {
        *("children", "model_facts", "feed", "reloading", "conversation", "webui", "captures"),
        "naming",
    },
    "estimate": {"devices", "presets"},
}
"""Besides, under `if TYPE_CHECKING`."""

PURE = (
    *("errors", "units", "endpoint", "snapshot", "redaction", "beat", "sidecars"),
    "principals",
    *("scheduler", "config", "gguf", "simulator", "importing", "translate"),
    *("children.readiness", "children.failures", "children.lines", "children.liveness"),
    "children.slots",
    *("wire.messages", "wire.pending", "wire.repeated", "wire.requests", "wire.responses"),
    *("api.extract", "api.forms", "api.errors", "api.filters", "api.usage", "api.traffic"),
    "api.tap",
    *("api.skim", "api.kept", "api.nesting", "api.media_urls"),
    *("devices.visible", "devices.placement"),
    *("tui.cells", "tui.drawing", "tui.history", "tui.layout", "tui.picture"),
    *("tui.screen", "client.address", "client.answers", "client.calls"),
    *("engine.features", "hub.refs", "service.unit", "cli.quants", "estimate.contexts"),
    *("estimate.analytic", "estimate.attention", "estimate.compute", "estimate.layout"),
    *("estimate.records", "estimate.settings"),
)
"""Modules and folders that decide or parse, and touch neither machine nor clock."""

RIM = {"config.file", "config.scan"}
"""The exceptions inside pure folders."""

PURE_IMPORTS = {
    *("__future__", "collections", "collections.abc", "dataclasses", "enum", "typing", "types"),
    *("functools", "itertools", "contextlib", "math", "re", "string", "difflib", "json"),
    *("posixpath", "ipaddress", "http", "urllib.parse", "heapq", "struct", "bisect"),
}
# A simulation draws from a generator with a seed, which is an argument.
PURE_EXTRAS = {
    "simulator": {"random"},
    "importing": {"shlex"},
    "api": {"io"},  # a buffer in memory
    "translate": {"base64", "binascii", "zlib"},
    "config": {"hashlib", "hmac"},  # secrets are kept as hashes
}
PURE_LIBRARIES = {"msgspec", "yaml", "httptools", "rich"}

POOL = f"{PACKAGE}.wire.pool"
MODULE_LINES = 400
FUNCTION_LINES = 65


@dataclass(frozen=True)
class Import:
    """One import: the full name of a module, and whether only the type checker sees it."""

    module: str
    line: int
    for_types: bool


@cache
def modules() -> dict[str, Path]:
    """Return every module by its dotted name inside the package (`wire.client`, `wire`)."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
        found[name] = path
    return found


def imports_of(path: Path) -> Iterator[Import]:
    """Yield what a file imports, absolute and relative, wherever it stands in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = [PACKAGE, *path.relative_to(ROOT).parent.parts]
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        for name in _names(node, package):
            yield Import(name, node.lineno, id(node) in hidden)  # type: ignore[attr-defined]


def _names(node: ast.AST, package: list[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        start = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*start, *([node.module] if node.module else [])])
        for one in node.names:  # each may be a module of the package `base`, or a name in it
            module = f"{base}.{one.name}"
            yield module if module.removeprefix(f"{PACKAGE}.") in modules() else base


def part_of(module: str) -> str:
    """Return the first word of a dotted name: the folder or module right below the package."""
    return module.partition(".")[0]


def is_pure(module: str) -> bool:
    return module not in RIM and any(
        module == name or module.startswith(f"{name}.") for name in PURE
    )


def test_every_part_is_in_the_table() -> None:
    parts = {part_of(name) for name in modules()}
    assert parts <= LEAVES | set(ALLOWED)


@pytest.mark.parametrize("module", modules())
def test_imports_go_the_allowed_way(module: str) -> None:
    part = part_of(module)
    allowed = LEAVES | {part} | ALLOWED.get(part, set())
    wrong = []
    for one in imports_of(modules()[module]):
        if one.module != PACKAGE and not one.module.startswith(f"{PACKAGE}."):
            continue
        target = part_of(one.module.removeprefix(PACKAGE).removeprefix("."))
        if target not in LEAVES | set(ALLOWED):
            continue  # a name of the package itself, like __version__
        extra = ALLOWED_FOR_TYPES.get(part, set()) if one.for_types else set()
        if target not in allowed | extra:
            wrong.append(f"line {one.line}: {part} must not import {one.module}")
    assert not wrong


@pytest.mark.parametrize("module", [name for name in modules() if is_pure(name)])
def test_pure_modules_touch_neither_machine_nor_clock(module: str) -> None:
    wrong = [
        f"line {one.line}: {one.module}"
        for one in imports_of(modules()[module])
        if not one.for_types
        and one.module not in PURE_IMPORTS | PURE_EXTRAS.get(part_of(module), set())
        and part_of(one.module) not in PURE_LIBRARIES | {PACKAGE}
    ]
    assert not wrong


@pytest.mark.parametrize("module", [name for name in modules() if is_pure(name)])
def test_pure_modules_import_only_pure_ones(module: str) -> None:
    wrong = [
        f"line {one.line}: {one.module}"
        for one in imports_of(modules()[module])
        if not one.for_types
        and one.module.startswith(f"{PACKAGE}.")
        and not is_pure(one.module.removeprefix(f"{PACKAGE}."))
    ]
    assert not wrong


def test_every_name_in_the_tables_of_a_folder_that_exists_is_there() -> None:
    parts = {part_of(name) for name in modules()}
    names = {name for name in (*PURE, *RIM) if part_of(name) in parts}
    assert names
    assert names <= set(modules())


@pytest.mark.parametrize("module", modules())
def test_modules_and_functions_stay_short(module: str) -> None:
    text = modules()[module].read_text(encoding="utf-8")
    wrong = []
    if len(text.splitlines()) > MODULE_LINES:
        wrong.append(f"{len(text.splitlines())} lines in one module")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES:
                wrong.append(f"line {node.lineno}: {length} lines in {node.name}()")
    assert not wrong


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        ("from llamaswap_py.wire import pool, X", "scheduler", [POOL, "llamaswap_py.wire"]),
        ("from ..wire.pool import X", "scheduler", [POOL]),
        ("from . import pool", "wire", [POOL]),
        ("from llamaswap_py import units", "wire", ["llamaswap_py.units"]),
        ("def f():\n    import os", "scheduler", ["os"]),
    ],
)
def test_imports_are_found(
    source: str, module: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The tests above are worth as much as this: an import that is not found is never wrong."""
    path = tmp_path / module / "some.py"
    path.parent.mkdir()
    path.write_text(source)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert [one.module for one in imports_of(path)] == expected
