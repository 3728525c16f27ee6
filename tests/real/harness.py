"""A real `lswap up` with real children, looked at from outside.

`async with lab.lswap(models) as lswap` runs one. At its end it is stopped with SIGTERM, must exit
with 0, and no process of its may be left.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import httpx
import msgspec
import psutil

from llamaswap_py.snapshot import DecisionView, ModelView, Snapshot
from tests.real.answers import PATIENCE, Stream, chat_body, model_of, text_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

_MARK: Final = "LSWAP_TEST_MARK"
_POLL: Final = 0.01


@dataclass(slots=True, eq=False)
class Lswap:
    """One `lswap up`: its process, its log, and a client of it."""

    config: Path
    env: dict[str, str]
    args: tuple[str, ...] = ()
    """What follows `lswap up`, instead of the configuration's path."""
    wrapper: tuple[str, ...] = ()
    """A command that becomes (exec) the one that follows it."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    log: list[str] = field(default_factory=list)
    url: str = ""
    _process: asyncio.subprocess.Process | None = None
    _client: httpx.AsyncClient | None = None
    _said: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Lswap]:
        """Start it, wait until it serves; at the end nothing of it may be left."""
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._start()
                reader = tasks.create_task(self._read_log())
                try:
                    await self.says("ready on ")
                    self._connect()
                    yield self
                    assert await self.exited() is not None
                    await self.until_no_process_is_left()
                finally:
                    self._kill_all()
                    await self._process_ended()
                    reader.cancel()
        except BaseException as error:
            one = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error
            one.add_note("".join(["what lswap said:\n", *self.log]))
            raise one from None
        finally:
            if self._client is not None:
                await self._client.aclose()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def client(self) -> httpx.AsyncClient:
        assert self._client is not None
        return self._client

    # The process

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self.wrapper,
            *command_line("up", *(self.args or (str(self.config),))),
            cwd=self.config.parent,
            env={**self.env, _MARK: self.mark},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=1 << 20,
        )

    async def _read_log(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.log.append(line.decode(errors="replace"))
            self._wake()
        self.log.append("")  # the end
        self._wake()

    def _wake(self) -> None:
        said, self._said = self._said, asyncio.Event()
        said.set()

    def _connect(self) -> None:
        ready = next(line for line in self.log if line.startswith("ready on "))
        self.url = ready.split()[2].rstrip(",")
        path = self.url.removeprefix("unix:") if self.url.startswith("unix:") else None
        self._client = httpx.AsyncClient(
            base_url="http://localhost" if path else self.url,
            transport=httpx.AsyncHTTPTransport(uds=path, limits=httpx.Limits(max_connections=None)),
            timeout=PATIENCE,
            trust_env=False,
        )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def stop(self) -> None:
        """SIGTERM; it must exit with 0."""
        if self._process is not None and self._process.returncode is None:
            self.signal(signal.SIGTERM)
        assert await self.exited() == 0

    async def exited(self) -> int:
        """Wait for its end and return its exit code."""
        assert self._process is not None
        async with asyncio.timeout(PATIENCE):
            return await self._process.wait()

    async def says(self, text: str) -> str:
        """Wait for a line of its log that holds `text`, and return it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                said = self._said
                for line in self.log:
                    if text in line:
                        return line
                if self.log and not self.log[-1]:
                    raise AssertionError(f"lswap ended and never said {text!r}")
                await said.wait()

    async def _process_ended(self) -> None:
        if self._process is not None:
            await self._process.wait()

    # Its processes, as the system sees them

    def descendants(self) -> list[psutil.Process]:
        """Return every living process that it started, or that those started; but no keepers."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid == self.pid or process.environ().get(_MARK) != self.mark:
                    continue
                if process.status() != psutil.STATUS_ZOMBIE and not is_keeper(process):
                    found.append(process)
        return found

    def child_pids(self) -> set[int]:
        """Return the pids of its llama-servers."""
        return {process.pid for process in self.descendants()}

    async def until_no_process_is_left(self, seconds: float = 2.0) -> None:
        """Wait until none is left; fails after `seconds`."""

        async def none() -> bool:
            return not self.descendants()

        try:
            await poll(none, seconds=seconds)
        except TimeoutError:
            raise AssertionError(f"left behind: {self.descendants()}") from None

    def _kill_all(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
        for process in self.descendants() if self._process is not None else ():
            with suppress(psutil.Error):
                process.kill()

    # What it tells of itself

    async def state(self) -> Snapshot:
        answer = await self.client.get("/lswap/v1/state")
        assert answer.status_code == 200
        return msgspec.json.decode(answer.content, type=Snapshot)

    async def until(self, holds: Callable[[Snapshot], bool]) -> Snapshot:
        """Wait for a state in which `holds` is true."""
        state = await self.state()

        async def check() -> bool:
            nonlocal state
            state = await self.state()
            return holds(state)

        try:
            await poll(check)
        except TimeoutError:
            raise AssertionError(f"it never came to that; the last state: {state}") from None
        return state

    async def until_state(self, name: str, *states: str) -> ModelView:
        """Wait until a model is in one of `states`."""
        return model_of(await self.until(lambda now: model_of(now, name).state in states), name)

    async def until_idle(self) -> Snapshot:
        """Wait until nobody waits and no lease is open."""
        return await self.until(lambda now: now.requests_open == 0)

    async def model(self, name: str) -> ModelView:
        return model_of(await self.state(), name)

    async def decisions(self, name: str | None = None) -> list[DecisionView]:
        params = {"limit": "1000"} | ({"model": name} if name else {})
        answer = await self.client.get("/lswap/v1/decisions", params=params)
        return msgspec.convert(answer.json()["decisions"], type=list[DecisionView])

    async def child_slots(self, name: str) -> list[dict[str, Any]]:
        """Return what the child of a loaded model says of its slots."""
        answer = await self.client.get("/slots", params={"model": name})
        assert answer.status_code == 200, answer.text
        slots: list[dict[str, Any]] = answer.json()
        return slots

    async def until_slots_are_free(self, name: str) -> None:
        """Wait until the child of a model generates nothing any more.

        Asked seldom: for a request that does not stream, llama-server looks for its client only
        after a second without a result of any kind (recv_with_timeout in server-queue.cpp), and
        an answer to /slots is one.
        """

        async def free() -> bool:
            return not any(slot["is_processing"] for slot in await self.child_slots(name))

        await poll(free, pause=1.5)

    async def until_slots_are_busy(self, name: str) -> None:
        """Wait until the child of a model generates something."""

        async def busy() -> bool:
            return any(slot["is_processing"] for slot in await self.child_slots(name))

        await poll(busy)

    # Requests

    async def logs(self, name: str) -> str:
        """Return the last lines that the children of a model wrote."""
        answer = await self.client.get(f"/lswap/v1/logs/{name}", params={"tail": "1000"})
        assert answer.status_code == 200
        return answer.text

    async def until_logged(self, name: str, text: str) -> None:
        """Wait until a child of a model has written `text`."""

        async def written() -> bool:
            return text in await self.logs(name)

        await poll(written)

    async def fake_answer(self, name: str) -> str:
        """Return what the fake llama-server answers to a completion."""
        answer = await self.client.post("/completion", json={"model": name, "stream": True})
        assert answer.status_code == 200, answer.text
        events = [part for part in answer.text.split("\n\n") if part]
        return "".join(json.loads(each.removeprefix("data: "))["content"] for each in events)

    async def post_chat(self, model: str, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=chat_body(model, **body))

    async def chat(self, model: str, **body: Any) -> str:
        """Return the answer's text."""
        return text_of(await self.post_chat(model, **body))

    @asynccontextmanager
    async def stream(
        self, model: str, headers: dict[str, str] | None = None, **body: Any
    ) -> AsyncIterator[Stream]:
        """Ask for a streamed answer; leaving the context hangs up."""
        body = chat_body(model, stream=True, **body)
        path = "/v1/chat/completions"
        async with self.client.stream("POST", path, json=body, headers=headers) as response:
            yield Stream(response)


async def poll(
    holds: Callable[[], Awaitable[bool]], *, pause: float = _POLL, seconds: float = PATIENCE
) -> None:
    """Wait until `holds` says yes; raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 (other processes send no events)
            await asyncio.sleep(pause)


def is_keeper(process: psutil.Process) -> bool:
    """Tell whether it is one of lswap's own, beside the children (children/keeper.py)."""
    return any(word.endswith("children/keeper.py") for word in process.cmdline())


def command_line(*args: str) -> list[str]:
    """Return the words that run `lswap ARGS`."""
    return [sys.executable, "-m", "llamaswap_py", *args]
