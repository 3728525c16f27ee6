"""The OpenAPI document against the server that it describes: schemathesis asks, and compares."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.api.admin.openapi import OPERATIONS
from llamaswap_py.api.routes import PATTERNS, ROUTES, look_up, pick

if TYPE_CHECKING:
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


def test_every_route_of_ours_is_in_it() -> None:
    described = {(one.method.upper(), one.path) for one in OPERATIONS}
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
    for one in OPERATIONS:
        methods, _ = look_up(one.path)
        assert methods is not None, one.path
        route = pick(methods, one.method.upper())
        assert route is not None, one.path
        takes = (one.admin, one.right, one.public)
        assert takes == (route.admin, route.right, route.public), one.path
