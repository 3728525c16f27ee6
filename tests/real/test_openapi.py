"""The OpenAPI document against the server that it describes: schemathesis asks, and compares."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from llamaswap_py.api.admin.openapi import document
from llamaswap_py.api.routes import PATTERNS, ROUTES, every_route, look_up, pick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


@pytest.mark.timeout(180)
async def test_what_it_says_is_so(lab: Lab) -> None:
    async with lab.lswap({"alpha": lab.preset("alpha")}) as lswap:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{lswap.url}/openapi.json"),
            *("--max-examples", "20", "--seed", "1", "--no-color", "--request-timeout", "20"),
            # They hold their connections open: the first always, the others if they are asked to.
            *("--exclude-path-regex", "^/lswap/v1/(events|reservations$|logs)"),
            *("--phases", "examples,coverage,fuzzing"),
            cwd=lab.folder,
            env=lab.environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()
        assert not [line for line in lswap.log if "ERROR" in line]


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the method, the path and the description of everything in the document."""
    for path, methods in msgspec.json.decode(document(every_route))["paths"].items():
        for method, told in methods.items():
            yield method.upper(), path, told


def test_every_route_of_ours_is_in_it() -> None:
    described = {(method, path) for method, path, _ in operations()}
    ours = {
        (method, path)
        for path, methods in ROUTES.items()
        for method in methods
        if path.startswith("/lswap/")
    }
    assert ours <= described
    for start, end, methods in PATTERNS:
        if start.startswith("/lswap/"):
            names = {f"{start}{{{name}}}{end}" for name in ("id", "name")}
            for method in methods:
                assert {(method, name) for name in names} & described, (method, start)


def test_it_says_what_each_route_takes() -> None:
    for method, path, told in operations():
        methods, _ = look_up(path)
        assert methods is not None, path
        route = pick(methods, method)
        assert route is not None, path
        key = {"key": [] if route.right is None else [route.right]}
        takes = [{"admin": []} if route.admin else key, {}]
        assert told.get("security") == (None if route.public else takes), path
