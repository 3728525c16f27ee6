"""The llama-server that serves the web UI: it may fail, hang, or lose who asked for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llamaswap_py.api.web_ui import Embedded
from tests.real.answers import PATIENCE

if TYPE_CHECKING:
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
HTML = {"Accept": "text/html"}


def _folder(lab: Lab) -> Path:
    folder = lab.folder / "pages"
    folder.mkdir()
    (folder / "index.html").write_text("<html>small</html>")
    (folder / "x.js").write_text("let x = 1;")
    return folder


async def test_a_file_asked_for_before_the_page_hides_nothing(lab: Lab) -> None:
    engine = lab.engine_with(f"--path {_folder(lab)}")
    async with lab.lswap({"alpha": lab.preset("alpha")}, engine=engine) as lswap:
        assert (await lswap.client.get("/robots.txt")).status_code == 404
        assert (await lswap.client.get("/x.js")).text == "let x = 1;"
        assert (await lswap.client.get("/", headers=HTML)).text == "<html>small</html>"


async def test_one_that_could_not_start_is_tried_again(lab: Lab) -> None:
    """What failed for the moment is not taken for an engine without a UI."""
    engine = lab.folder / "broken"
    engine.write_text("#!/bin/sh\nexit 1\n")
    engine.chmod(0o755)
    right = lab.engine_with(f"--path {_folder(lab)}")
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        embedded = Embedded(engine, str(lab.folder / "0.sock"), tasks, pause=0)
        assert await embedded.find("index.html") is None
        embedded.engine = Path(right)
        found = await embedded.find("index.html")
        assert found is not None
        assert found.body
        embedded.cancel()
        again = await embedded.find("x.js")  # asked while it stops: a new one is started
        assert again is not None
        embedded.cancel()


async def test_visitors_who_leave_during_its_start_cost_nothing(lab: Lab) -> None:
    engine = lab.folder / "hanging"
    engine.write_text("#!/bin/sh\nexec sleep 600\n")
    engine.chmod(0o755)
    async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
        embedded = Embedded(engine, str(lab.folder / "0.sock"), tasks)
        for _ in range(3):
            visit = asyncio.create_task(embedded.find("index.html"))
            for _ in range(10):
                await asyncio.sleep(0)
            visit.cancel()
            await asyncio.wait({visit})
        embedded.cancel()  # the group ends only when no child is left
