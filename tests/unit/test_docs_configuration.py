"""docs/configuration.md: its tables are those of the types, its examples are good."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamaswap_py.config.parse import load_config
from llamaswap_py.config.reference import reference_rows, with_reference

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_tables_are_up_to_date() -> None:
    assert with_reference(PAGE) == PAGE, "run: python scripts/configuration_reference.py"


def test_every_key_has_a_line() -> None:
    for row in reference_rows():
        name = row.key.rpartition(".")[2]
        assert re.search(rf"^\| `{re.escape(name)}` \|", PAGE, re.MULTILINE), row.key


def test_a_page_without_a_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="no line"):
        with_reference("# Configuration")


@pytest.mark.parametrize("text", [block for block in BLOCKS if not block.startswith("#")])
def test_examples_are_good(text: str) -> None:
    load_config(text, path=None, base_dir="/etc", env={"HF_TOKEN": "x"}, home="/home/me")


def test_there_are_examples() -> None:
    assert len(BLOCKS) >= 5
