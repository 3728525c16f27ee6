"""docs/api.md names every route, every error code and every metric."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llamaswap_py.api.counters import Counters
from llamaswap_py.api.metrics import in_parts
from llamaswap_py.api.routes import PATTERNS, ROUTES
from llamaswap_py.errors import API_CODES
from tests.unit.api_fakes import make_snapshot, model_view

TEXT = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_is_there(path: str) -> None:
    assert f"`{path}`" in TEXT or f" {path}`" in TEXT


@pytest.mark.parametrize(("start", "end"), [(start, end) for start, end, _ in PATTERNS])
def test_every_pattern_is_there(start: str, end: str) -> None:
    assert start in TEXT
    assert not end or end in TEXT


@pytest.mark.parametrize("code", API_CODES)
def test_every_code_is_there_with_its_status(code: str) -> None:
    assert f"| `{code}` | {API_CODES[code][0]} |" in TEXT


def test_every_metric_is_there() -> None:
    snapshot = make_snapshot([model_view("alpha")])
    parts = in_parts(Counters(), snapshot, {"stops": {"x": 1}, "failures": {"x": 1}})
    body = b"".join(parts)
    names = re.findall(r"^# TYPE (lswap_\w+) (\w+)", body.decode(), re.MULTILINE)
    assert len(names) > 15
    for name, _ in names:
        assert f"`{name}`" in TEXT, name
