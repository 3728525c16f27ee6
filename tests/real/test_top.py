"""`lswap top` itself, its keys pressed, on a real lswap with real children."""

from __future__ import annotations

import asyncio
import os
import pty
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from rich.cells import cell_len
from textual.widgets import Input

from llamaswap_py.client.remote import AsyncRemote
from llamaswap_py.tui.app import Top
from tests.real.answers import PATIENCE
from tests.real.harness import command_line, poll
from tests.unit.top_fakes import Seat as UnitSeat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


class Seat(UnitSeat):
    """The same with the patience that real children need."""

    def line(self, *words: str) -> str:
        """Return the first line that has all the words, or nothing."""
        lines = self.text.splitlines()
        return next((line for line in lines if all(word in line for word in words)), "")

    async def sees(self, *words: str) -> str:
        """Wait for a line that has all the words, and return it."""
        await self.until(lambda: bool(self.line(*words)))
        return self.line(*words)

    async def until(self, holds: Callable[[], bool]) -> None:
        async def check() -> bool:
            return holds()

        try:
            await poll(check)
        except TimeoutError:
            raise AssertionError(f"the screen never came to that:\n{self.text}") from None


@asynccontextmanager
async def watching(url: str, size: tuple[int, int] = (80, 24)) -> AsyncIterator[Seat]:
    async with AsyncRemote(url) as remote:
        app = Top(remote)
        async with app.run_test(size=size) as pilot:
            yield Seat(app, pilot)


async def test_a_model_is_loaded_pinned_and_unloaded_by_keys(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha", size="50MiB"), "beta": lab.heavy("beta", mib=256)}
    async with lab.lswap(models) as lswap, watching(lswap.url) as seat:
        await seat.sees("lswap", "serving", "0 of 2 loaded")
        await seat.sees("alpha", "unloaded")
        await seat.press("down", "l")
        await seat.sees("›beta", "ready")
        await seat.sees("ready", "beta", "loaded in")
        await seat.sees("host", "█ beta")
        await seat.press("p")
        await seat.sees("›*beta")
        assert (await lswap.model("beta")).pinned
        await seat.press("p")
        await seat.sees("›beta", "ready")
        await seat.press("u")
        await seat.sees("›beta", "unloaded")
        assert (await lswap.model("beta")).state == "unloaded"


async def test_a_load_draws_its_progress(lab: Lab) -> None:
    models = {"beta": lab.heavy("beta", mib=1500)}
    async with lab.lswap(models) as lswap, watching(lswap.url) as seat:
        await seat.sees("beta", "unloaded")
        await seat.press("l")
        await seat.until(lambda: bool(re.search(r"beta +load █[█░]{5} +\d+% \d+s", seat.text)))
        await seat.sees("beta", "ready")


async def test_what_cannot_be_done_is_said(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha")}
    async with lab.lswap(models) as lswap, watching(lswap.url) as seat:
        await seat.sees("alpha", "unloaded")
        await seat.press("u")
        await seat.sees("the model is not loaded")
        await seat.press("c")
        await seat.sees("c ends a request")
        await seat.press("j")
        await seat.until(lambda: not seat.line("c ends a request"))


async def test_requests_are_seen_and_one_is_ended(lab: Lab) -> None:
    models = {"alpha": lab.endless("alpha", concurrency=1)}
    async with (
        lab.lswap(models) as lswap,
        watching(lswap.url) as seat,
        lswap.stream("alpha", max_tokens=100_000) as stream,
    ):
        await stream.read(3)
        waiting = asyncio.create_task(lswap.post_chat("alpha", max_tokens=5))
        await seat.sees("REQUESTS 2")
        await seat.until(lambda: bool(re.search(r"alpha +running +\d+s +\d+ ", seat.text)))
        await seat.until(lambda: bool(re.search(r"alpha +ready.* 1/2 +1 +\d+ ", seat.text)))
        await seat.sees("alpha", "waiting")
        await seat.press("tab", "c")
        await seat.sees("c again", "alpha")
        await seat.press("down", "c")  # another key in between: the question was not answered
        await seat.sees("c again", "alpha")
        assert len((await lswap.client.get("/lswap/v1/requests")).json()["requests"]) == 2
        await seat.press("up", "c", "c")
        await stream.rest()
        assert stream.error is not None
        assert stream.error["code"] == "cancelled"
        async with asyncio.timeout(PATIENCE):
            assert (await waiting).status_code == 200
        await seat.sees("no open requests")


async def test_a_forced_unload_asks_first(lab: Lab) -> None:
    models = {"alpha": lab.endless("alpha")}
    async with (
        lab.lswap(models) as lswap,
        watching(lswap.url) as seat,
        lswap.stream("alpha", max_tokens=100_000) as stream,
    ):
        await stream.read(3)
        await seat.sees("alpha", "ready", "1/2")
        await seat.press("U")
        await seat.sees("U again")
        await seat.press("U")
        await stream.rest()
        assert stream.error is not None
        assert stream.error["code"] == "unloaded"
        await seat.sees("alpha", "unloaded")


async def test_the_filter_and_the_help(lab: Lab) -> None:
    names = ("alpha", "beta", "gamma", "quick")
    models = {name: lab.preset(name, size="40MiB") for name in names}
    async with lab.lswap(models) as lswap, watching(lswap.url) as seat:
        await seat.sees("MODELS 4")
        await seat.press("slash", "q", "u", "i")  # q is a letter now
        await seat.sees("MODELS 1/4")
        await seat.sees("›quick")
        await seat.until(lambda: not seat.line("alpha"))
        await seat.press("enter", "l")
        await seat.sees("›quick", "ready")
        await seat.press("down")
        await seat.sees("esc no filter (qui)")
        await seat.press("escape")
        await seat.sees("MODELS 4")
        await seat.press("slash", "z", "z", "escape")
        await seat.sees("MODELS 4")
        assert not seat.app.query_one(Input).display
        await seat.press("question_mark")
        await seat.until(lambda: len(seat.app.screen_stack) == 2)
        await seat.press("q")
        await seat.until(lambda: len(seat.app.screen_stack) == 1)
        assert seat.app.is_running
        await seat.press("q")
        await seat.until(lambda: not seat.app.is_running)


async def test_the_log_of_a_model(lab: Lab) -> None:
    models = {name: lab.preset(name, size="50MiB") for name in ("alpha", "beta")}
    async with lab.lswap(models) as lswap, watching(lswap.url) as seat:
        await seat.sees("alpha", "unloaded")
        await seat.press("enter")
        await seat.sees("LOG alpha")
        await seat.sees("no output yet")
        await seat.press("l")
        await seat.sees("listening on")  # what llama-server says
        await seat.sees("no open requests")  # reading a log is not a request for a model
        await seat.resize(80, 15)
        await seat.press("tab", "tab")
        await seat.sees("d decisions")  # the pane is there, at its end
        await seat.sees("listening on")
        await seat.press("up", "up")
        await seat.sees("LOG alpha", "2 lines below")
        await seat.press("z")
        await seat.until(lambda: "MODELS" not in seat.text)
        await seat.press("escape", "escape")
        await seat.sees("DECISIONS")
        await seat.until(lambda: not seat.line("listening on"))


async def test_a_restart_of_the_server_is_survived(lab: Lab) -> None:
    models = {"alpha": lab.preset("alpha")}
    listen = f"unix:{lab.folder}/l.sock"
    async with watching(listen) as seat:
        await seat.sees("not reachable, trying again")
        async with lab.lswap(models, listen=listen) as lswap:
            await seat.sees("serving")
            await lswap.chat("alpha")
            await seat.sees("alpha", "ready")
            await seat.press("enter")
            await seat.sees("listening on")
        await seat.sees("not reachable, trying again")
        assert seat.line("alpha", "1")  # what was known is still there
        async with lab.lswap(models, listen=listen) as lswap:
            await seat.sees("serving", "0 of 1 loaded")
            await seat.press("d")
            await seat.sees("restart", "lswap was restarted")
            await lswap.chat("alpha")
            await seat.until(lambda: len(re.findall(r"load +alpha", seat.text)) == 2)
            await seat.sees("alpha", "ready")


async def test_it_follows_the_size_of_the_terminal(lab: Lab) -> None:
    models = {f"model-{at}": lab.preset(f"m{at}", size="20MiB") for at in range(20)}
    async with lab.lswap(models) as lswap, watching(lswap.url, (60, 15)) as seat:
        for width, height in ((60, 15), (140, 40), (80, 24), (20, 5), (80, 24)):
            await seat.resize(width, height)
            await seat.until(lambda h=height, w=width: _size(seat) == (w, h))  # type: ignore[misc]
        await seat.press("end")
        await seat.sees("›model-19")
        await seat.press("home")
        await seat.sees("›model-0 ")


def _size(seat: Seat) -> tuple[int, int]:
    return cell_len(seat.lines[0]), len(seat.lines)


async def test_a_click_chooses_a_row(lab: Lab) -> None:
    models = {name: lab.preset(name, size="50MiB") for name in ("alpha", "beta")}
    async with lab.lswap(models) as lswap, AsyncRemote(lswap.url) as remote:
        app = Top(remote)
        async with app.run_test(size=(80, 24)) as pilot:
            seat = Seat(app, pilot)
            await seat.sees("beta", "unloaded")
            at = next(n for n, line in enumerate(seat.text.splitlines()) if " beta" in line)
            await pilot.click(offset=(3, at))
            await seat.sees("›beta")


async def test_without_colour_the_terminal_gets_none(lab: Lab) -> None:
    """As a process on a terminal of its own: what is written to it is what counts."""
    models = {"alpha": lab.preset("alpha", pin=True)}
    async with lab.lswap(models) as lswap:
        await lswap.chat("alpha")
        plain = await _written(lab, lswap.url, b"alpha", NO_COLOR="1", TERM="xterm")
        assert not re.search(rb"\x1b\[[\d;]*(3[0-7]|4[0-7]|9[0-7]|38|48)[;\d]*m", plain)
        assert re.search(rb"\x1b\[(1;)?7[;m]", plain)  # reversed is not a colour
        coloured = await _written(lab, lswap.url, b"alpha", TERM="xterm-256color")
        assert re.search(rb"\x1b\[[\d;]*32[;\d]*m", coloured)


async def test_a_dumb_terminal_is_told_what_to_do(lab: Lab) -> None:
    said = await _written(lab, "http://127.0.0.1:1", b"", TERM="dumb")
    [line] = said.decode().splitlines()
    assert "TERM is 'dumb'" in line
    assert "lswap ps" in line


async def _written(lab: Lab, url: str, until: bytes, **env: str) -> bytes:
    """Run `lswap top` on a pseudo terminal, press q once `until` was written; return all of it."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in lab.environment().items() if k not in ("NO_COLOR", "COLORTERM")}
    process = await asyncio.create_subprocess_exec(
        *command_line("top", "--url", url),
        env={**environment, "LANG": "C.UTF-8", **env},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    loop, written, pressed = asyncio.get_running_loop(), b"", False
    try:
        async with asyncio.timeout(PATIENCE):
            while piece := await loop.run_in_executor(None, _read, ours):
                written += piece
                if until and until in written and not pressed:
                    pressed = True
                    os.write(ours, b"q")
            await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
    return written


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the other end is closed
        return b""
