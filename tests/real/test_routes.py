"""Every route of the engine in use is served, or refused by name, and has a role.

Its sources and its binary say which routes it has.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from llamaswap_py.api import routes as table
from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.server_routes import ROUTES, named_in, role_of
from tests.builds import names
from tests.sources import source_of

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
_REGISTERED: Final = re.compile(r'ctx_http\.(get|post|put|patch|del)\s*\(\s*"([^"]+)"')
_METHODS: Final = {"del": "DELETE"}
_AHEAD: Final = {
    *(("POST", "/v1/audio/speech"), ("POST", "/v1/audio/translations")),
    *(("POST", "/v1/images/generations"), ("POST", "/v1/images/edits")),
}
"""Routes of OpenAI that have a role, and that no llama-server has yet."""
_BEFORE: Final = {("GET", "/v1/stream/:conv_id"), ("DELETE", "/v1/stream/:conv_id")}
"""Routes of older builds."""


def paths_of(binary: str) -> set[str]:
    """Return what looks like a path in a binary, and what lswap serves, but for its own routes."""
    paths = {*named_in(Path(binary).read_bytes()), *table.ROUTES}
    own = ("/api/", "/lswap/", "/etc/", "/proc/")
    return {path for path in paths if not path.startswith(own)}


def served(method: str, path: str) -> bool:
    """Tell whether lswap has a route for it, one that refuses it among them."""
    methods, _ = table.look_up(path.replace(":id_slot", "0").replace(":conv_id", "x"))
    return methods is not None and table.pick(methods, method) is not None


def registered(folder: Path) -> set[tuple[str, str]]:
    """Return what the sources of an engine register."""
    found = set()
    for file in (folder / "tools" / "server").glob("*.cpp"):
        for word, path in _REGISTERED.findall(file.read_text(encoding="utf-8")):
            found.add((_METHODS.get(word, word.upper()), path))
    return found


def test_the_routes_of_the_engines_sources(llama_server: str) -> None:
    """Of the engine in use: sources of other builds may lie beside its own."""
    try:
        routes = registered(source_of(Path(llama_server)))
    except EngineError as error:
        pytest.skip(f"missing: llama.cpp's sources ({error})")
    assert len(routes) > 40, "they are registered in another way now"
    assert [one for one in sorted(routes) if not served(*one)] == []
    assert routes == set(ROUTES) - _AHEAD - _BEFORE, (
        "each route needs a role, here and in docs/security.md"
    )


async def test_the_routes_that_the_binary_answers(lab: Lab) -> None:
    """Probe each path that it names or that we serve; what is not 404 is a route."""
    paths = paths_of(lab.engine)
    answered: set[tuple[str, str]] = set()
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        await lswap.chat("alpha")
        for path in sorted(paths):
            for method in ("GET", "POST", "DELETE"):
                content = b"{}" if method == "POST" else None
                url = f"/upstream/alpha{path}"
                answer = await lswap.client.request(method, url, content=content)
                if answer.status_code != 404:
                    answered.add((method, path))
    known = {one for one in ("/v1/chat/completions", "/v1/systemone") if names(lab.engine, one)}
    assert "/v1/chat/completions" in known
    assert {("POST", path) for path in known} <= answered
    whole = [one for one in sorted(answered) if one[1] == "/" or not one[1].endswith("/")]
    assert [one for one in whole if not served(*one) and not is_file(*one)] == []
    assert [one for one in sorted(answered) if role_of(*one) is None] == []


def is_file(method: str, path: str) -> bool:
    """Tell whether it is one of the web UI's files."""
    return method == "GET" and (path == "/" or "." in path.rpartition("/")[2])
