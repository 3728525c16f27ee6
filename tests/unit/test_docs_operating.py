"""docs/operating.md, docs/troubleshooting.md and docs/quickstart.md say what the code says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llamaswap_py.cli.app import app
from llamaswap_py.config.records import Config, Log, Policy
from llamaswap_py.errors import API_CODES
from llamaswap_py.reloading import _FIXED

ROOT = Path(__file__).resolve().parents[2]
OPERATING = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
TROUBLE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = [
    " ".join(block.replace("\n>", "\n").split())
    for block in re.findall(r"^> (.*(?:\n>.*)*)", TROUBLE, re.MULTILINE)
]
FIRST_HOUR = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
TABLE = re.findall(r"^\| `([^`]+)` \|", TROUBLE + FIRST_HOUR, re.MULTILINE)


@cache
def texts() -> frozenset[str]:
    """Return every text of the code; `…` stands for what is filled in."""
    files = (ROOT / "llamaswap_py").rglob("*.py")
    return frozenset(text for file in files for text in _texts(file))


def _texts(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"%(?:\.\d+)?[a-z]", "…", node.value)
        elif isinstance(node, ast.JoinedStr):
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
            )


def is_said(message: str) -> bool:
    """Return whether the code says it: as a whole, or as the beginning or the end of more."""
    parts = re.compile(".*".join(map(re.escape, re.split("…+", message.strip("…")))))
    return any(parts.search(text) for text in texts())


@pytest.mark.parametrize("message", [*QUOTED, *TABLE])
def test_every_quoted_message_is_one_of_the_code(message: str) -> None:
    assert is_said(message)


def test_messages_are_quoted() -> None:
    assert len(QUOTED) > 25
    assert len(TABLE) >= 10
    assert not is_said("cannot listen on …: the address is taken")


def test_every_quoted_code_exists() -> None:
    quoted = re.findall(r"\b([45]\d\d) `(\w+)`", TROUBLE + OPERATING)
    assert len(quoted) > 15
    for status, code in quoted:
        assert API_CODES[code][0] == int(status), code


def test_every_code_that_people_meet_is_explained() -> None:
    # The others are about a client's own request, and say it all.
    plain = {"not_found", "method_not_allowed", "model_not_loaded", "reservation_refused"}
    plain |= {"model_loading", "stopped", "unsupported_encoding"}
    missing = {code for code in API_CODES if f"`{code}`" not in TROUBLE}
    assert missing == plain


@pytest.mark.parametrize("text", [OPERATING, TROUBLE], ids=["operating", "troubleshooting"])
def test_commands_and_links_exist(text: str) -> None:
    for name in sorted(set(re.findall(r"(?:`|\$ (?:sudo )?)lswap ([a-z]+)", text))):
        assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name
    for target in re.findall(r"\]\(((?!https?:)[^)#]+)", text):
        assert (ROOT / "docs" / target).exists(), target


def test_keys_exist() -> None:
    for kind, name in ((Log, "log"), (Policy, "policy")):
        known = set(kind.__struct_fields__)
        for text in (OPERATING, TROUBLE):
            assert set(re.findall(rf"`{name}\.(\w+)", text)) <= known
    assert set(_FIXED) <= set(Config.__struct_fields__)
    told = OPERATING.partition("wait for a restart")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", told)) == set(_FIXED)
