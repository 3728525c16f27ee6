"""A key that is revoked, or may do less, has nothing open a moment later."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import websockets
import yaml

from llamaswap_py.config.api_keys import hash_secret
from tests.real.answers import PATIENCE, chat_body, error_of
from tests.real.harness import poll
from tests.real.test_api_keys import ADMIN
from tests.real.test_rights import as_key, write_keys

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.harness import Lswap
    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio
ANN, BOB = as_key("ann"), as_key("bob")
SOON = 1.0
"""Seconds, from the moment that the command has ended: the watch of the file takes longer."""


class Reader:
    """Reads an answer in the background, to its end."""

    def __init__(self, lswap: Lswap, method: str, path: str, **asked: Any) -> None:
        self.lines: list[str] = []
        self.status = 0
        self.began = asyncio.Event()
        self.failure: httpx.HTTPError | None = None
        self._ask = lswap.client.stream(method, path, **asked)
        self.task = asyncio.create_task(self._read(), name=path)

    async def _read(self) -> None:
        try:
            async with self._ask as response:
                self.status = response.status_code
                async for line in response.aiter_lines():
                    self.lines.append(line)
                    self.began.set()
        except httpx.HTTPError as error:
            self.failure = error

    @property
    def last(self) -> Any:
        """What its last line says, as JSON."""
        said = [line for line in self.lines if line]
        return json.loads(said[-1].removeprefix("data: "))


async def begun(*readers: Reader) -> None:
    try:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(one.began.wait() for one in readers))
    except TimeoutError:
        found = [(one.task.get_name(), one.status, one.failure, one.lines[:3]) for one in readers]
        raise AssertionError(f"not all have begun: {found}") from None


async def state_of(lswap: Lswap) -> Any:
    return (await lswap.client.get("/lswap/v1/state", headers=ADMIN)).json()


def write(folder: Path, **keys: dict[str, Any]) -> None:
    """Replace the key file, in one step."""
    fresh = folder / "fresh"
    fresh.mkdir(exist_ok=True)
    write_keys(fresh, **keys)
    (fresh / "keys.yaml").replace(folder / "keys.yaml")


async def test_a_revoked_key_has_nothing_open_within_a_second(lab: Lab) -> None:
    keys = write_keys(lab.folder, ann={}, bob={})
    models = {
        "alpha": lab.endless("alpha", size="100MiB", args={"parallel": 6, "ctx-size": 1536}),
        "sockets": lab.fake("sockets", size="1MiB") | {"engine": lab.websocket_engine()},
        "beta": lab.preset("beta", size="150MiB"),
    }
    long: Any = {"stream": True, "max_tokens": 1_000_000, **chat_body("alpha")}
    async with lab.lswap(models, keys=keys) as lswap:
        left = {**ANN, "X-Conversation-Id": "left"}
        async with lswap.stream("alpha", headers=left, max_tokens=1_000_000) as stream:
            await stream.read(3)

        def ask(path: str, body: Any, key: dict[str, str] = ANN) -> Reader:
            return Reader(lswap, "POST", path, json=body, headers=key, timeout=PATIENCE)

        openai, claude = ask("/v1/chat/completions", long), ask("/v1/messages", long)
        ollama = ask("/api/chat", {**chat_body("alpha"), "options": {"num_predict": 10**6}})
        events = Reader(lswap, "GET", "/lswap/v1/events", headers=ANN, timeout=PATIENCE)
        router = Reader(lswap, "GET", "/models/sse", headers=ANN, timeout=PATIENCE)
        others = ask("/v1/chat/completions", long, BOB)
        await begun(openai, claude, ollama, events, router, others)
        url = f"{lswap.url.replace('http', 'ws', 1)}/upstream/sockets/metrics?autoload=true"
        socket = await websockets.connect(url, proxy=None, additional_headers=ANN)
        await socket.send("abc")
        assert await socket.recv() == "cba"
        waiting = ask("/v1/chat/completions", chat_body("beta"))
        streamed = ask("/v1/chat/completions", {**chat_body("beta"), "stream": True})
        assert (
            await lswap.client.post("/models/load", json={"model": "beta"}, headers=ANN)
        ).status_code == 200

        async def queued() -> bool:
            models = (await state_of(lswap))["models"]
            return [one["waiting"] for one in models if one["id"] == "beta"] == [3]

        await poll(queued)
        shown = await lab.cli("key", "revoke", "ann")
        told = time.monotonic()
        assert shown.code == 0, shown.err
        assert "has been told" in shown.out
        ended = (openai, claude, ollama, events, router, waiting, streamed)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*(one.task for one in ended), socket.wait_closed())
        took = time.monotonic() - told
        assert took < SOON
        # Each in the form of its API; what had not begun gets a status.
        for one in (openai, claude, events, router):
            assert (one.failure, one.status) == (None, 200)
            assert "was revoked" in one.last["error"]["message"]
        assert (claude.last["type"], claude.last["error"]["type"]) == (
            "error",
            "authentication_error",
        )
        assert ollama.failure is None
        assert "was revoked" in ollama.last["error"]
        for one in (waiting, streamed):
            assert one.status == 401
            assert one.last["error"]["code"] == "unauthorized"
        assert socket.close_code == 1008

        # Nothing goes on for it, and nobody else has noticed.
        async def free() -> bool:
            state = await state_of(lswap)
            leases = {one["preset"]: (one["leases"], one["detached"]) for one in state["instances"]}
            queued = sum(one["waiting"] for one in state["models"])
            return (leases, queued) == ({"alpha": (1, 0), "sockets": (0, 0)}, 0)

        await poll(free)
        error_of(await lswap.client.get("/v1/models", headers=ANN), 401)
        assert not others.task.done()
        others.task.cancel()
        # A key of the same name is another: nothing is left for it.
        write(lab.folder, ann={}, bob={})
        entry = {"name": "ann", "hash": hash_secret(b"again")}
        path = lab.folder / "keys.yaml"
        boss = yaml.safe_load(path.read_text())["keys"][0]
        path.write_text(yaml.safe_dump({"keys": [boss, entry]}))
        await lswap.client.post("/lswap/v1/reload", headers=ADMIN)
        params = {"conv_id": "left"}
        found = await lswap.client.get("/v1/stream", params=params, headers=as_key("again"))
        assert found.status_code == 404
        assert not [line for line in lswap.log if "Traceback" in line]


async def test_a_key_that_may_do_less_keeps_what_it_still_may(lab: Lab) -> None:
    keys = write_keys(lab.folder, ann={"kind": "admin"}, bob={"max_in_flight": 3})
    models = {
        "alpha": lab.endless("alpha", size="90MiB"),
        "beta": lab.endless("beta", size="90MiB"),
    }
    async with lab.lswap(models, keys=keys) as lswap:

        def ask(model: str, key: dict[str, str]) -> Reader:
            body = {"stream": True, "max_tokens": 1_000_000, **chat_body(model)}
            path = "/v1/chat/completions"
            return Reader(lswap, "POST", path, json=body, headers=key, timeout=PATIENCE)

        alpha, beta = ask("alpha", BOB), ask("beta", BOB)
        await begun(alpha, beta)  # before it is loaded a model has no log to follow
        path, params = "/lswap/v1/logs/alpha", {"follow": "true"}
        log = Reader(lswap, "GET", path, params=params, headers=ANN, timeout=PATIENCE)
        events = Reader(lswap, "GET", "/lswap/v1/events", headers=BOB, timeout=PATIENCE)
        await begun(log, events)
        write(lab.folder, ann={}, bob={"models": ["alpha"], "max_in_flight": 1})
        await lswap.client.post("/lswap/v1/reload", headers=ADMIN)
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(beta.task, log.task)
        assert beta.last["error"]["code"] == "forbidden"
        assert log.failure is not None, "half a text must not look whole"
        # What is left is counted as before, and the feed tells of nothing that is not for it now.
        assert not alpha.task.done()
        error_of(await lswap.client.post("/tokenize", json={}, headers=BOB), 429)
        told = len(events.lines)
        await lswap.client.post("/lswap/v1/models/beta/unload", headers=ADMIN)
        await lswap.client.post("/lswap/v1/models/alpha/pin", headers=ADMIN)
        write(lab.folder, ann={}, bob={"models": ["alpha"]})
        await lswap.client.post("/lswap/v1/reload", headers=ADMIN)

        async def reloaded() -> bool:
            return "event: reload" in events.lines[told:]

        await poll(reloaded)
        assert "beta" not in "".join(events.lines[told:])
        alpha.task.cancel()
        events.task.cancel()

        async def none_open() -> bool:
            found = await lswap.client.get("/lswap/v1/requests", headers=ADMIN)
            return not found.json()["requests"]

        await poll(none_open)
        write(lab.folder, ann={}, bob={"models": ["alpha"], "max_in_flight": 1})
        await lswap.client.post("/lswap/v1/reload", headers=ADMIN)
        said = await lswap.client.get("/v1/models", headers=BOB)
        assert said.status_code == 200, "what was counted is given back"


async def test_a_mistake_in_the_file_does_not_keep_a_revoked_key(lab: Lab) -> None:
    keys = write_keys(lab.folder, ann={}, bob={})
    async with lab.lswap({"alpha": lab.endless("alpha")}, keys=keys) as lswap:
        body = {"stream": True, "max_tokens": 1_000_000, **chat_body("alpha")}
        ask = {"json": body, "headers": ANN, "timeout": PATIENCE}
        stream = Reader(lswap, "POST", "/v1/chat/completions", **ask)
        await begun(stream)
        with lswap.config.open("a") as file:
            file.write("\nnonsense: [\n")
        write(lab.folder, bob={})
        reloaded = await lswap.client.post("/lswap/v1/reload", headers=ADMIN)
        assert error_of(reloaded, 400)["code"] == "bad_config"
        async with asyncio.timeout(PATIENCE):
            await stream.task
        assert stream.last["error"]["code"] == "unauthorized"
        assert (await lswap.client.get("/v1/models", headers=ANN)).status_code == 401
        assert (await lswap.client.get("/v1/models", headers=BOB)).status_code == 200
