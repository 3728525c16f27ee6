"""The cut between the parts, enforced: who may import whom, what stays pure, how long code may get.

docs/architecture.md says why. A failure here names the file; the remedy is to move the code, and
only for a good reason to change a table below.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

PACKAGE = "llamaswap_py"
ROOT = Path(__file__).resolve().parents[2] / PACKAGE

FLOORS = (
    "__main__",
    "cli",
    "server demo tui",
    "api",
    "supervisor",
    "estimate children importing simulator",
    "config scheduler proxy devices",
    "hub",
    "llamacpp",
    "storage",
    "gguf client",
    "tasks",
    "endpoint snapshot redaction",
    "units",
    "errors",
    "__init__",
)
"""The parts of the package from the top to the bottom: each may import what stands below its floor.

Imports under `TYPE_CHECKING` count as any other. Parts on one floor know nothing of each other.
"""

FLOOR_OF = {part: number for number, floor in enumerate(FLOORS) for part in floor.split()}
LOOSE = {"__main__", "__init__", "endpoint", "snapshot", "redaction", "units", "errors"}
"""The only modules beside the folders."""

PURE = (
    *("errors", "units", "endpoint", "snapshot", "redaction", "tasks.tick"),
    *("scheduler", "config", "gguf", "simulator", "importing"),
    *("llamacpp.output", "llamacpp.failures", "llamacpp.features", "llamacpp.slots"),
    *("llamacpp.backends", "llamacpp.model_files"),
    *("llamacpp.server_routes", "llamacpp.token_counts"),
    *("llamacpp.options", "llamacpp.option_values", "llamacpp.renamed_options"),
    *("llamacpp.memory_settings", "llamacpp.quoting", "llamacpp.env_variables"),
    *("llamacpp.props", "llamacpp.router_mode", "llamacpp.path_options"),
    *("llamacpp.release_assets", "llamacpp.option_changes", "llamacpp.log_changes"),
    "llamacpp.rpc",
    *("llamacpp.command_line", "llamacpp.context_size", "llamacpp.embedding_models"),
    "children.liveness",
    *("proxy.messages", "proxy.pending", "proxy.head_cache", "proxy.parsers", "proxy.principals"),
    *("api.body", "api.multipart", "api.errors", "api.counters"),
    *("api.large_body", "api.media_urls", "api.json_steps"),
    *("api.ollama.translate", "api.ollama.answers"),
    *("api.ollama.context", "api.ollama.members"),
    *("devices.visible", "devices.placement", "devices.device"),
    *("devices.matching", "devices.joining", "llamacpp.device_list"),
    *("tui.cells", "tui.drawing", "tui.history", "tui.picture"),
    *("client.address", "client.answers", "client.calls"),
    *("hub.refs", "server.systemd_unit", "cli.quants", "estimate.contexts"),
    *("estimate.fitting", "estimate.formula", "estimate.layer_sizes", "estimate.splits"),
    *("estimate.quantisations", "estimate.types"),
)
"""Modules and folders that decide or parse, and touch neither machine nor clock."""

RIM = {"config.load", "config.scan", "config.edit"}
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
    "api": {"io", "base64", "binascii", "zlib"},  # buffers and codes in memory
    "config": {"hashlib", "hmac"},  # secrets are kept as hashes
}
PURE_LIBRARIES = {"msgspec", "yaml", "httptools", "rich"}

SAME_FILE_NAMES = {
    "app": "an application: of HTTP, of commands, of the terminal",
    "counters": "the counts of what was answered: while lswap runs, and from run to run",
    "errors": "what is raised, and how HTTP says it",
    "llama_cpp": "the program that it is about: its HTTP routes, its preset files",
    "ollama": "the program that it is about: its HTTP routes, its folder of models",
    "replay": "one feature: the command, and what it does",
    "report": "a text about a run, for people",
    "run": "what a command does: its folder says which",
    "reservations": "one feature: its routes, and what they do",
    "types": "the records that the modules of one folder share",
    "answers": "answers of an API: as lswap makes them, and as its client reads them",
}
"""Files of one name in several folders, and which idea they share."""
SAME_CLASS_NAMES = {
    "Cors": "the section of the file, and what HTTP makes of it",
    "Failure": "why a model cannot be had: of its process, and as the scheduler keeps it",
    "Lease": "one lease: as the scheduler keeps it, and as a request holds it",
    "Policy": "the section of the file, and what of it the scheduler obeys",
    "Preset": "a preset of the file, and what of it the scheduler knows",
    "Reservations": "one feature: its routes' types, and what they do",
    "Report": "what a command found, for people and as JSON",
}
"""Public classes of one name in several folders, and which idea they share."""

UPSTREAM = f"{PACKAGE}.proxy.upstream"
MODULE_LINES = 600
FUNCTION_LINES = 65


@dataclass(frozen=True)
class Import:
    """One import: the full name of a module, and whether only the type checker sees it."""

    module: str
    line: int
    for_types: bool


@cache
def modules() -> dict[str, Path]:
    """Return every module by its dotted name inside the package (`proxy.client`, `proxy`)."""
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


def inside(module: str) -> Iterator[Import]:
    """Yield the imports of `module` from this package, named as in `modules()`."""
    for one in imports_of(modules()[module]):
        name = one.module.removeprefix(PACKAGE).removeprefix(".") or "__init__"
        if one.module.partition(".")[0] == PACKAGE and name in modules():
            yield Import(name, one.line, one.for_types)


def circles(parts: set[str]) -> list[list[str]]:
    """Return the groups of modules of `parts` that import each other, directly or by others."""
    arrows = {
        module: {one.module for one in inside(module) if part_of(one.module) in parts} - {module}
        for module in modules()
        if part_of(module) in parts
    }
    while ends := {module for module, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {module: targets for module, targets in arrows.items() if module not in ends}
    return [sorted(arrows)] if arrows else []


def test_every_part_stands_on_a_floor() -> None:
    assert {part_of(name) for name in modules()} == set(FLOOR_OF)


def test_only_the_named_modules_stand_beside_the_folders() -> None:
    assert {path.stem for path in ROOT.glob("*.py")} == LOOSE


@pytest.mark.parametrize("module", modules())
def test_imports_run_downwards(module: str) -> None:
    part = part_of(module)
    wrong = [
        f"line {one.line}: {module} must not import {one.module}"
        for one in inside(module)
        if (other := part_of(one.module)) != part and FLOOR_OF[other] <= FLOOR_OF[part]
    ]
    assert not wrong


@pytest.mark.parametrize("part", sorted(FLOOR_OF))
def test_no_modules_import_each_other_in_a_circle(part: str) -> None:
    assert not circles({part})


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


def in_several_folders(named: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return the names that several modules have, with those modules; `named`: name, module."""
    found: dict[str, set[str]] = {}
    for name, module in named:
        found.setdefault(name, set()).add(module)
    return {name: them for name, them in found.items() if len(them) > 1}


def test_no_two_files_have_one_name_unless_they_are_one_idea() -> None:
    named = ((module.rpartition(".")[2], module) for module in modules() if "." in module)
    parts = ((part, part) for part in LOOSE)
    assert in_several_folders([*named, *parts]).keys() == SAME_FILE_NAMES.keys()


def test_no_two_public_classes_have_one_name_unless_they_are_one_idea() -> None:
    named = (
        (node.name, module)
        for module, path in modules().items()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert in_several_folders(named).keys() == SAME_CLASS_NAMES.keys()


@pytest.mark.parametrize(
    ("source", "module", "expected"),
    [
        (
            "from llamaswap_py.proxy import upstream, X",
            "scheduler",
            [UPSTREAM, "llamaswap_py.proxy"],
        ),
        ("from ..proxy.upstream import X", "scheduler", [UPSTREAM]),
        ("from . import upstream", "proxy", [UPSTREAM]),
        ("from llamaswap_py import units", "proxy", ["llamaswap_py.units"]),
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
