"""Every page that code, tests and pages cite is there, with the section that they name.

A citation is a path from the root of the repository, with a heading where one is meant:
docs/design/scheduler.md, "Linger". Pages link to each other, with an anchor where one is meant.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
FOLDERS: Final = ("llamaswap_py", "tests", "bench", "scripts", ".ci", ".github", "configs")
ENDINGS: Final = (".py", ".sh", ".yml", ".yaml", ".c", ".toml")
FILES: Final = (path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))
CODE: Final = [
    *(path for path in FILES if path.suffix in ENDINGS and path != Path(__file__).resolve()),
    *(ROOT / name for name in ("Makefile", "Dockerfile", "compose.yaml", "pyproject.toml")),
]
PAGES: Final = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/*.md")])

_PATH: Final = re.compile(
    r"(?<![\w/.])(?P<page>docs/[\w./-]+\.md)"
    r"(?:#(?P<anchor>[\w-]+)|,\s+(?:#\s+)?(?:\\?\"(?P<heading>[^\"\\]+)|(?P<word>[A-Z]\w+)\)))?"
)
_BARE: Final = re.compile(r"(?<![\w/.-])(?P<page>[\w-]+\.md)\b")
_LINK: Final = re.compile(r"\[[^]]*\]\((?!https?:|mailto:)([^)\s#]*)(?:#([^)\s]+))?\)")
_FENCE: Final = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def slug(heading: str) -> str:
    """Return the anchor that GitHub makes of a heading."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@cache
def anchors(page: Path) -> frozenset[str]:
    """Return the anchors of a page's headings, and of those it writes itself."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    found = {slug(one) for one in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    return frozenset(found | set(re.findall(r'<a (?:id|name)="([^"]+)"', text)))


def told_in(path: Path) -> Iterator[str]:
    """Yield the comments and docstrings of a Python file."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def faults_in_code(path: Path) -> list[str]:
    """Return what a file cites that is not there."""
    wrong = []
    text = path.read_text(encoding="utf-8")
    if ".md" not in text:
        return []
    for found in _PATH.finditer(text):
        page = ROOT / found["page"]
        heading = found["heading"] or found["word"]
        anchor = found["anchor"] or (slug(re.sub(r"\s+#?\s*", " ", heading)) if heading else None)
        if not page.is_file():
            wrong.append(f"{found['page']} is not there")
        elif anchor and anchor not in anchors(page):
            wrong.append(f"{found['page']} has no section {heading or anchor}")
    if path.suffix == ".py":
        bare = {found["page"] for told in told_in(path) for found in _BARE.finditer(told)}
        nowhere = [one for one in bare if not (ROOT / one).is_file()]
        wrong += [f"{one}: write its path from the root" for one in nowhere]
    return wrong


def test_what_code_cites_is_there() -> None:
    faults = {_name(path): faults_in_code(path) for path in CODE}
    assert {name: wrong for name, wrong in faults.items() if wrong} == {}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_what_pages_link_to_is_there(page: Path) -> None:
    wrong = []
    for target, anchor in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        there = (page.parent / target).resolve() if target else page
        if not there.exists():
            wrong.append(f"{target} is not there")
        elif anchor and there.suffix == ".md" and anchor not in anchors(there):
            wrong.append(f"{target} has no section #{anchor}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_what_pages_mention_is_there(page: Path) -> None:
    text = _LINK.sub("", _FENCE.sub("", page.read_text(encoding="utf-8")))
    named = {found["page"] for found in _PATH.finditer(text)}
    named |= {found["page"] for found in _BARE.finditer(text)}
    places = (ROOT, ROOT / "docs", page.parent)
    assert [one for one in named if not any((place / one).is_file() for place in places)] == []


def test_contracts_are_cited() -> None:
    """An expression that finds nothing would find nothing wrong."""
    cited = {
        found["page"] for path in CODE for found in _PATH.finditer(path.read_text(encoding="utf-8"))
    }
    for name in ("scheduler", "http", "engine", "targets"):
        assert f"docs/design/{name}.md" in cited


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('"""Linger: docs/design/scheduler.md, "Linger"."""', []),
        (
            '"""No: docs/design/scheduler.md, "Nothing"."""',
            ["docs/design/scheduler.md has no section Nothing"],
        ),
        ('"""No: docs/design/nothing.md."""', ["docs/design/nothing.md is not there"]),
        ("x = 1  # as engine.md says", ["engine.md: write its path from the root"]),
        ('"""As docs/operating.md#no-such-place says."""', ["docs/operating.md has no section"]),
        ('x = "page.md"', []),
    ],
)
def test_what_is_wrong_is_found(text: str, wrong: list[str], tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text(text, encoding="utf-8")
    found = faults_in_code(file)
    assert len(found) == len(wrong)
    assert all(one.startswith(start) for one, start in zip(found, wrong, strict=True))
