"""Every route of the engine in use is served, or refused by name, and has a role.

Its sources and its binary say which routes it has.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from llamaswap_py.api import routes as table
from llamaswap_py.llamacpp.paths import probes_folder
from llamaswap_py.llamacpp.server_routes import ROUTES, role_of

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
_SOURCES: Final = probes_folder().parent / "build" / "src"
_REGISTERED: Final = re.compile(r'ctx_http\.(get|post|put|patch|del)\s*\(\s*"([^"]+)"')
_METHODS: Final = {"del": "DELETE"}
_AHEAD: Final = {
    *(("POST", "/v1/audio/speech"), ("POST", "/v1/audio/translations")),
    *(("POST", "/v1/images/generations"), ("POST", "/v1/images/edits")),
}
"""Routes of OpenAI that have a role, and that no llama-server has yet."""
_IN_BINARY: Final = re.compile(rb"\x00(/[a-z0-9][a-z0-9_/:-]{1,60})(?=\x00)|(/v1(?:/[a-z_]+)+)")


def served(method: str, path: str) -> bool:
    """Tell whether lswap has a route for it, one that refuses it among them."""
    methods, _ = table.look_up(path.replace(":id_slot", "0"))
    return methods is not None and table.pick(methods, method) is not None


def registered(folder: Path) -> set[tuple[str, str]]:
    """Return what the sources of an engine register."""
    found = set()
    for file in (folder / "tools" / "server").glob("*.cpp"):
        for word, path in _REGISTERED.findall(file.read_text(encoding="utf-8")):
            found.add((_METHODS.get(word, word.upper()), path))
    return found


def named_in(binary: Path) -> set[str]:
    """Return what looks like a path in a binary; one may be the end of another."""
    texts = {(one or other).decode() for one, other in _IN_BINARY.findall(binary.read_bytes())}
    return {text[at:] for text in texts for at in range(len(text)) if text[at] == "/"}


def test_the_routes_of_the_engines_sources() -> None:
    folders = [one for one in _SOURCES.glob("*") if (one / "tools" / "server").is_dir()]
    if not folders:
        pytest.skip("no sources of llama.cpp in the build cache")
    newest = max(folders, key=lambda one: one.stat().st_mtime)
    routes = registered(newest)
    assert len(routes) > 40, "they are registered in another way now"
    assert [one for one in sorted(routes) if not served(*one)] == []
    assert routes == set(ROUTES) - _AHEAD, "each route needs a role, here and in docs/security.md"


async def test_the_routes_that_the_binary_answers(lab: Lab) -> None:
    """Probe each path that it names or that we serve; what is not 404 is a route."""
    paths = {*named_in(Path(lab.engine)), *table.ROUTES}
    paths = {path for path in paths if not path.startswith(("/api/", "/lswap/", "/etc/", "/proc/"))}
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
    assert {("POST", "/v1/chat/completions"), ("POST", "/v1/systemone")} <= answered
    assert [one for one in sorted(answered) if not served(*one) and not is_file(*one)] == []
    assert [one for one in sorted(answered) if role_of(*one) is None] == []


def is_file(method: str, path: str) -> bool:
    """Tell whether it is one of the web UI's files."""
    return method == "GET" and (path == "/" or "." in path.rpartition("/")[2])
