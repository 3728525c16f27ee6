"""docs/architecture.md and CONTRIBUTING.md: the files and parts that they name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.registry import PARTS
from tests.unit.test_architecture import FLOOR_OF

ROOT = Path(__file__).resolve().parents[2]
CHANGES = (
    *("a new option of llama-server", "a new line in llama-server's output", "a new client API"),
    *("a new kind of device", "a new eviction rule", "a new page in the ", "a new command"),
    "a new field in the file",
)
"""What a stranger has to find a place for."""


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_files_that_the_documentation_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./]+\.(?:py|sh))(?!\w)", text))
    assert len(named) > 20
    wrong = [
        name
        for name in sorted(named)
        if not (ROOT / name).is_file() and not (ROOT / "llamaswap_py" / name).is_file()
    ]
    assert wrong == []


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md", "AGENTS.md"])
def test_the_folders_and_constants_that_the_documentation_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    folders = set(
        re.findall(r"`((?:tests|docs|bench|scripts|requirements)/[\w./]*|[\w/]+/)`", text)
    )
    assert folders
    for name in sorted(folders):
        assert (ROOT / name).exists() or (ROOT / "llamaswap_py" / name).is_dir(), name
    sources = [
        *ROOT.glob("llamaswap_py/**/*.py"),
        *ROOT.glob("scripts/*.sh"),
        *ROOT.glob("tests/*.py"),
    ]
    written = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    for name in set(re.findall(r"`([A-Z][A-Z_]{3,}|@[a-z]+)`", text)) - {"CHANGELOG"}:
        assert re.search(rf"{name}\b", written), name


def test_the_picture_of_the_code_has_every_part_from_the_top_to_the_bottom() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    parts = re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "llamaswap_py").glob("*/__init__.py")}
    assert set(parts) == folders
    assert len(parts) == len(folders)
    floors = [FLOOR_OF[part] for part in parts]
    assert floors == sorted(floors)
    assert len(text.splitlines()) < 150


@pytest.mark.parametrize("change", CHANGES)
def test_there_is_a_place_for_each_usual_change(change: str) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| {re.escape(change)}[^|]*\| ([^|]+) \|$", text, re.MULTILINE)
    assert row is not None
    assert re.search(r"`[\w./]+(?:\.py|/)`", row[1])


def test_the_targets_name_parts_of_the_benchmark() -> None:
    text = (ROOT / "docs" / "design" / "targets.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\|.*\| ((?:`\w+`(?:, )?)+) \|$", text, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert len(named) > 8
    assert named <= {part.name for part in PARTS}
