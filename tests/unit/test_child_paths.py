"""Paths as children get them, and whose routes they are."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from llamaswap_py.api import routes as table
from llamaswap_py.api.child_routes import canonical, one_reading
from llamaswap_py.api.inference import relay
from llamaswap_py.api.request import Route
from llamaswap_py.errors import ApiError
from llamaswap_py.llamacpp.server_routes import ROUTES, Role, folded, role_at_program, role_of

_PAGE = Path(__file__).parents[2] / "docs" / "security.md"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/props", "/props"),
        ("/%70rops", "/props"),
        ("/lora%2dadapters", "/lora-adapters"),
        ("/a%20b.png", "/a%20b.png"),
        ("/%c3%a9t%C3%A9", "/%C3%A9t%C3%A9"),
        ("/userdata/workflows%2ffoo.json", "/userdata/workflows%2Ffoo.json"),
        ("/a;b=1/c+d/e%2Bf%3B", "/a;b=1/c+d/e%2Bf%3B"),
        ("//double//", "//double//"),
        ("/", "/"),
        ("/100%25", "/100%25"),
        ("/.hidden/...", "/.hidden/..."),
        ("/a%3Fb", "/a%3Fb"),
        ('/a"<>[]^`{|}', "/a%22%3C%3E%5B%5D%5E%60%7B%7C%7D"),
        ("/@user:1,2!$&'(*)=", "/@user:1,2!$&'(*)="),
    ],
)
def test_what_is_sent_is_one_spelling(path: str, sent: str) -> None:
    assert canonical(path)[0] == sent
    assert canonical(sent)[0] == sent


@pytest.mark.parametrize(
    "path",
    [
        "/pr%uD800ops",
        "/%u0070rops",
        "/%",
        "/%7",
        "/%zz",
        "/%00props",
        "/a%0Ab",
        "/%7Fa",
        "/%C0%AFprops",
        "/%C1%B0rops",
        "/%ED%A0%80props",
        "/%F4%90%80%80",
        "/%FF",
        "/x/../props",
        "/./props",
        "/x/%2e%2E/props",
        "/x/..;a/props",
        "/x%2F..%2Fprops",
        "/x/..%5Cprops",
        "/..",
    ],
)
def test_what_programs_read_differently_is_refused(path: str) -> None:
    with pytest.raises(ApiError) as caught:
        canonical(path)
    assert caught.value.code == "bad_request"
    assert path in caught.value.message
    assert caught.value.remedy


def test_an_escaped_slash_is_refused_where_it_is_read_as_one() -> None:
    with pytest.raises(ApiError, match="slash"):
        one_reading(*canonical("/v1%2Fmodels"))
    one_reading(*canonical("/v1/a%20b"))


@pytest.mark.parametrize(
    "path",
    [
        *("/props", "//props", "/props/", "/PROPS", "/props;x=1", "/props%20", "/%70rops"),
        *("/%2570rops", "/%252570rops", "/props?x/y", "/props#x", "\\props", "/ props/ /"),
        "/prop\u017f",
    ],
)
def test_a_program_is_taken_to_read_loosely(path: str) -> None:
    assert folded(path) == "/props"
    assert role_at_program("POST", path) is Role.ADMIN
    assert role_at_program("PUT", path) is Role.ADMIN
    assert role_at_program("GET", path) is Role.INFERENCE


def test_a_long_path_holds_nobody_up() -> None:
    """Each of these once took a time that grew with the square of its length."""
    for odd in (
        "%" + "25" * 30_000 + "70",
        "%20" * 20_000,
        " " * 60_000,
        "/" * 60_000,
        "%2%35" * 12_000,
    ):
        began = time.process_time()
        role_at_program("POST", f"/x{odd}y")
        assert time.process_time() - began < 0.5, odd[:8]
    assert role_at_program("POST", "/%" + "25" * 30_000 + "70rops") is Role.ADMIN


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("POST", "/v1/chat/completions", Role.INFERENCE),
        ("HEAD", "/props", Role.INFERENCE),
        ("OPTIONS", "/props", Role.INFERENCE),
        ("GET", "/", Role.INFERENCE),
        ("GET", "/_app/immutable/a-b.js", Role.INFERENCE),
        ("POST", "/_app/immutable/a-b.js", None),
        ("POST", "/slots/", Role.SLOTS),
        ("GET", "/v1/stream/a::b", Role.ADMIN),
        ("DELETE", "/v1/stream/", Role.ADMIN),
        ("POST", "/v1/stream/a", None),
        ("POST", "/slots/0/", Role.SLOTS),
        ("POST", "/slots/0/1", None),
        ("HEAD", "/slots", Role.SLOTS),
        ("POST", "/tools", Role.ADMIN),
        ("PUT", "/props", None),
        ("POST", "/predict", None),
        ("GET", "/v1/of/a/later/engine", None),
        ("GET", "/props/", None),
    ],
)
def test_roles_of_llama_server(method: str, path: str, role: Role | None) -> None:
    assert role_of(method, path) is role


def test_a_route_takes_the_same_key_here_and_below_upstream() -> None:
    def role(route: Route) -> Role:
        if route.admin:
            return Role.ADMIN
        return Role.SLOTS if route.right == "slots" else Role.INFERENCE

    every = dict(table.ROUTES)
    every |= {f"{start}0": methods for start, _, methods in table.PATTERNS if start == "/slots/"}
    relayed = {
        (method, path): role(route)
        for path, methods in every.items()
        for method, route in methods.items()
        if route.handle is relay
    }
    assert len(relayed) > 30
    assert {key: role_of(*key) for key in relayed} == relayed


def test_the_page_has_the_inventory() -> None:
    text = _PAGE.read_text(encoding="utf-8")
    section = text.partition("## Routes of children")[2].partition("\n## ")[0]
    told: dict[tuple[str, str], Role] = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) >= 2:
            role, routes = Role(cells[0].strip("`")), cells[1]
            for methods, paths in re.findall(r"((?:[A-Z]+, )*[A-Z]+) ((?:`[^`]+` ?)+)", routes):
                told |= {
                    (method, path): role
                    for method in methods.split(", ")
                    for path in re.findall("`([^`]+)`", paths)
                }
    assert told == ROUTES
