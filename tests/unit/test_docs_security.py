"""docs/security.md: its table of rights is that of the routes, and the tests it names exist."""

from __future__ import annotations

import re
from pathlib import Path

from llamaswap_py.api.inference import pass_through, relay
from llamaswap_py.api.routes import PATTERNS, ROUTES
from llamaswap_py.config.api_keys import RIGHTS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
TAKES = {"nothing": "", "a key": "key", "an admin key": "admin"}
TAKES |= {f"the right `{right}`": right for right in RIGHTS}


def rights_of_routes() -> dict[tuple[str, str], str]:
    """Return what the page says that each route takes: by method and path."""
    part = PAGE.partition("### Who may do what to others")[2].partition("\n#")[0]
    found: dict[tuple[str, str], str] = {}
    for takes, routes in re.findall(r"^\| ([^|]+) \| ([^|]+) \|", part, re.MULTILINE):
        for methods, paths in re.findall(r"([A-Z]+(?:, [A-Z]+)*) ((?:`[^`]+` ?)+)", routes):
            for method in methods.split(", "):
                for path in re.findall(r"`([^`]+)`", paths):
                    assert (method, path) not in found, f"{method} {path} is there twice"
                    found[method, path] = TAKES[takes]
    return found


def test_the_table_of_rights_is_complete() -> None:
    patterns = {f"{start}{{id}}{end}": methods for start, end, methods in PATTERNS}
    routes = {
        (method, path): route
        for path, methods in {**ROUTES, **patterns}.items()
        for method, route in methods.items()
        if route.handle not in (relay, pass_through)  # those are of a model's own server
    }
    takes = {
        name: "" if route.public else "admin" if route.admin else route.right or "key"
        for name, route in routes.items()
    }
    assert rights_of_routes() == takes


def test_the_tests_that_it_names_exist() -> None:
    named = re.findall(r"`((?:\w+/)+\w+\.py)(?:::(\w+))?`", PAGE)
    assert len(named) > 50
    for file, name in named:
        path = ROOT / "tests" / file
        assert path.is_file(), file
        assert not name or f"def {name}(" in path.read_text(encoding="utf-8"), f"{file}::{name}"
