"""What browsers get: llama.cpp's own web UI, driven in a real Chromium, or what stands for it."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from llamaswap_py.api.web_ui import read_file
from tests import needs
from tests.real.answers import PATIENCE, instance_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from playwright.async_api import ConsoleMessage, Locator, Page

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio

HTML = {"Accept": "text/html,application/xhtml+xml"}
_ARGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
]
# llama.cpp's router refuses these too (server-tools.cpp; the props of a model that has just been
# evicted), and browsers log every refusal.
_EXPECTED = re.compile(r"status of 403|status of 400 .*/props\?.*autoload=false")


@pytest.fixture
def chromium() -> str:
    return needs.BROWSER.require()


@pytest.fixture
def web_ui(lab: Lab) -> str:
    from pathlib import Path

    folder = Path(lab.engine).resolve().parent.parent / "ui"
    if not (folder / "index.html").is_file():
        pytest.skip("missing: the web UI (lswap engine build --ui; it needs npm)")
    return str(folder)


@asynccontextmanager
async def browsing(chromium: str, url: str) -> AsyncIterator[Page]:
    """Open `url` in a browser of its own. At the end it must not have complained."""
    from playwright.async_api import async_playwright

    complaints: list[str] = []
    async with async_playwright() as tool:
        browser = await tool.chromium.launch(executable_path=chromium, args=_ARGS)
        page = await browser.new_page()
        page.set_default_timeout(PATIENCE * 1000)

        def said(message: ConsoleMessage) -> None:
            if message.type == "error":
                complaints.append(f"{message.text} {message.location.get('url', '')}")

        page.on("console", said)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        await page.goto(url)
        await page.get_by_placeholder("Type a message").wait_for()
        try:
            yield page
        finally:
            await browser.close()
    assert [one for one in complaints if not _EXPECTED.search(one)] == []


def _selector(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


async def pick(page: Page, now: str, name: str) -> None:
    """Choose another model in the selector, which shows `now`."""
    await _selector(page, now).last.click()
    await page.get_by_role("option", name=name).click()
    await _selector(page, name).last.wait_for()


async def say(page: Page, text: str) -> None:
    box = page.get_by_placeholder("Type a message")
    await box.fill(text)
    await box.press("Enter")


async def test_two_models_take_turns(lab: Lab, chromium: str, web_ui: str) -> None:
    """See both, pick one, wait for its load, get its answer; switch, get the other's."""
    models = {"alpha": lab.preset("alpha"), "beta": lab.preset("beta")}
    assert web_ui
    async with lab.lswap(models) as lswap, browsing(chromium, lswap.url) as page:
        await _selector(page, "alpha").last.click()
        options = page.get_by_role("option")
        assert await options.all_inner_texts() == ["alpha", "beta"]
        await page.keyboard.press("Escape")
        await pick(page, "alpha", "beta")
        await lswap.until_state("beta", "ready")
        await say(page, "Who are you?")
        await page.get_by_text(lab.sentence("beta")).wait_for()
        await pick(page, "beta", "alpha")
        await lswap.until_state("alpha", "ready")
        assert (await lswap.model("beta")).state == "unloaded"
        await say(page, "And you?")
        await page.get_by_text(lab.sentence("alpha")).wait_for()
        assert await page.get_by_text(lab.sentence("beta")).count() == 1


async def test_a_page_reloaded_while_its_model_loads_gets_the_answer(
    lab: Lab, chromium: str, web_ui: str
) -> None:
    assert web_ui
    gate = lab.folder / "gate"
    engine = lab.held_engine(gate)
    async with (
        lab.lswap({"alpha": lab.preset("alpha", engine=engine)}) as lswap,
        browsing(chromium, lswap.url) as page,
    ):
        await say(page, "Who are you?")
        await lswap.until_state("alpha", "loading")
        await page.reload()
        gate.touch()
        await page.get_by_text(lab.sentence("alpha")).wait_for()
        assert (await lswap.model("alpha")).loads == 1


async def test_a_page_that_is_reloaded_gets_the_rest(lab: Lab, chromium: str, web_ui: str) -> None:
    """While another client's request wants the memory."""
    words = [f"w{number}" for number in range(400)]
    path = lab.write_model("story", " ".join(words), layers=512, width=128)
    story = {"model": str(path), "memory": {"host": "100MiB"}}
    story["args"] = {"ctx-size": 8192, "parallel": 1, "warmup": False}
    models = {"story": story, "beta": lab.preset("beta")}
    assert web_ui
    async with lab.lswap(models, policy={"max_wait": "0s"}) as lswap:
        async with browsing(chromium, lswap.url) as page:
            await say(page, "Tell me.")
            await page.get_by_text("w20 ").wait_for()
            async with asyncio.TaskGroup() as tasks:
                other = tasks.create_task(lswap.chat("beta"))
                await lswap.until(lambda now: instance_of(now, "story").gate == "closed")
                await page.reload()
                await page.get_by_text("w399").wait_for()
                assert " ".join(words) in await page.inner_text("body")
            assert await other == lab.sentence("beta")
        kinds = [one.kind for one in await lswap.decisions("story")]
        assert kinds[:2] == ["load", "ready"]
        assert "detached" in kinds


# Without a browser


async def _get(lswap: Lswap, path: str, **headers: str) -> httpx.Response:
    return await lswap.client.get(path, headers={**HTML, **headers})


def _folder(lab: Lab) -> Path:
    """Return the folder of a small UI."""
    folder = lab.folder / "pages"
    (folder / "_app" / "immutable").mkdir(parents=True)
    (folder / "index.html").write_text("<html>small</html>")
    (folder / "_app" / "immutable" / "x.js").write_text("let x = 1;")
    (folder / "health").write_text("not this one")
    (lab.folder / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(lab.folder / "secret.txt")
    return folder


@pytest.mark.parametrize("how", ["folder", "embedded"])
async def test_files_are_served(lab: Lab, how: str) -> None:
    folder = _folder(lab)
    keys: dict[str, Any] = {"ui": str(folder)}
    if how == "embedded":  # an engine that brings a UI along
        keys = {"engine": lab.engine_with(f"--path {folder}")}
    async with lab.lswap({"alpha": lab.preset("alpha")}, **keys) as lswap:
        page = await _get(lswap, "/")
        assert page.text == "<html>small</html>"
        assert page.headers["content-type"].startswith("text/html")
        script = await _get(lswap, "/_app/immutable/x.js")
        assert script.text == "let x = 1;"
        assert "javascript" in script.headers["content-type"]
        etag = script.headers["etag"]
        same = await _get(lswap, "/_app/immutable/x.js", **{"If-None-Match": f'"no", {etag}'})
        assert (same.status_code, same.content) == (304, b"")
        head = await lswap.client.head("/_app/immutable/x.js")
        assert (head.headers["content-length"], head.content) == ("10", b"")
        for path in ("/missing.js", "/..%2fsecret.txt", "/%2e%2e/secret.txt", "/_app/../../s.txt"):
            assert (await _get(lswap, path)).status_code == 404, path
        assert (await lswap.client.post("/_app/immutable/x.js")).status_code == 404
        # What means something to lswap, means it still.
        assert (await _get(lswap, "/health")).json() == {"status": "ok"}
        assert (await lswap.client.get("/")).text == "Ollama is running"
        worker = await lswap.client.get("/", headers={"Sec-Fetch-Site": "same-origin"})
        assert worker.text == page.text
        assert (await lswap.state()).loads_total == 0


async def test_where_there_is_none_the_page_explains_itself(lab: Lab) -> None:
    for ui in ("none", str(lab.folder / "nowhere")):
        name = f"<{ui[-4:]}>"
        async with lab.lswap({name: lab.preset("alpha")}, ui=ui) as lswap:
            page = await _get(lswap, "/")
            assert page.status_code == 200
            assert page.headers["content-type"].startswith("text/html")
            assert f"&lt;{ui[-4:]}&gt;" in page.text
            assert f"{lswap.url}/v1" in page.text
            assert "No web UI" in page.text
            assert "script" not in page.text
            assert (await _get(lswap, "/index.html")).status_code == 404


async def test_an_engine_without_one_is_asked_once(lab: Lab) -> None:
    engine = lab.engine_with("")  # not beside any ui/
    async with lab.lswap({"alpha": lab.preset("alpha")}, engine=engine) as lswap:
        assert "lswap engine build --ui" in (await _get(lswap, "/")).text
        assert (await _get(lswap, "/bundle.js")).status_code == 404


async def test_with_keys_the_page_needs_none_and_tells_nothing(lab: Lab) -> None:
    made = await lab.cli("key", "new", "someone", "--file", str(lab.folder / "keys.yaml"))
    assert made.code == 0, made.err
    keys = {"file": str(lab.folder / "keys.yaml")}
    async with lab.lswap({"secretive": lab.preset("alpha")}, ui="none", keys=keys) as lswap:
        page = await _get(lswap, "/")
        assert page.status_code == 200
        assert "secretive" not in page.text


def test_nothing_but_files_below_the_folder_is_read(lab: Lab) -> None:
    folder = _folder(lab)
    assert read_file(folder, "index.html") is not None
    for name in ("../secret.txt", "link.txt", "", ".", "_app", "/etc/passwd", "a\0b", "..\\x", "n"):
        assert read_file(folder, name) is None, name
