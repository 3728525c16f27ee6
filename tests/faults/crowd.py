"""Clients that ask all the time while something breaks, and judge every answer they get.

An answer is right when it is the model's own known sentence. It is a proper error when its status,
shape and code are of those that docs/design/http.md, "Errors", allows, with a Retry-After where one
is due, or when it is the last event of its stream. Everything else - another model's words, half a
document, a silence - is a wrong.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import httpx

from tests.real.answers import PATIENCE, Stream, chat_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from tests.real.harness import Lswap

PROPER: Final = {
    "upstream_failed": 502,
    "model_failed": 503,
    "draining": 503,
    "queue_timeout": 503,
    "unloaded": 503,
    "queue_full": 429,
}
"""The errors that a fault may lead to, and their statuses."""


def conversation_of(number: int, model: str) -> str:
    """Return the id of an answer of one client that goes on without it."""
    return f"crowd-{number}::{model}"


@dataclass(slots=True)
class Crowd:
    """Asks `models` (name -> sentence; those in `endless` repeat it) until it is told to stop."""

    lswap: Lswap
    models: Mapping[str, str]
    endless: frozenset[str] = frozenset()
    may_lose_connection: bool = False
    right: Counter[str] = field(default_factory=Counter)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: int = 0
    lost: int = 0
    wrongs: list[str] = field(default_factory=list)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def asked(self) -> int:
        """How many requests have ended, one way or another."""
        ended = self.right.total() + self.errors.total() + len(self.wrongs)
        return ended + self.left + self.lost

    @asynccontextmanager
    async def asking(self, clients: int = 4) -> AsyncIterator[Crowd]:
        """Run the clients; leaving waits until every request of theirs has ended."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._client(random.Random(number)))
            try:
                yield self
            finally:
                self._stopping.set()

    async def until_answered(self, more: int, model: str | None = None) -> None:
        """Wait until that many more right answers have come."""
        goal = self._count(model) + more
        async with asyncio.timeout(PATIENCE):
            while self._count(model) < goal:
                self._more.clear()
                await self._more.wait()

    async def until_failed(self, model: str) -> None:
        """Wait until somebody was told that a model does not work, not only that it had to stop."""
        async with asyncio.timeout(PATIENCE):
            while not any(name == model and code != "unloaded" for name, code in self.errors):
                self._more.clear()
                await self._more.wait()

    def _count(self, model: str | None) -> int:
        return self.right.total() if model is None else self.right[model]

    async def _client(self, dice: random.Random) -> None:
        while not self._stopping.is_set():
            model = dice.choice(sorted(self.models))
            way = dice.choice((self._whole, self._streamed, self._slowly, self._abandoned))
            try:
                async with asyncio.timeout(PATIENCE):
                    await way(model, dice)
            except TimeoutError:
                self._wrong(model, f"no answer within {PATIENCE:g} s")
            except httpx.TransportError as error:
                if self.may_lose_connection:
                    self.lost += 1
                else:
                    self._wrong(model, f"the connection broke: {error!r}")
                await asyncio.sleep(0.05)
            self._more.set()

    def _wrong(self, model: str, what: str) -> None:
        self.wrongs.append(f"{model}: {what}")

    async def _whole(self, model: str, dice: random.Random) -> None:
        answer = await self.lswap.post_chat(model, max_tokens=dice.choice((12, 40)))
        if answer.status_code != 200:
            await self._refused(model, answer)
            return
        self._judge(model, answer.json()["choices"][0]["message"]["content"])

    async def _streamed(self, model: str, dice: random.Random) -> None:
        async with self.lswap.stream(model, max_tokens=dice.choice((12, 60))) as stream:
            if stream.response.status_code != 200:
                await stream.response.aread()
                await self._refused(model, stream.response)
                return
            await stream.rest()
        self._judge_stream(model, stream)

    async def _slowly(self, model: str, dice: random.Random) -> None:
        """Read a stream word by word, with rests."""
        async with self.lswap.stream(model, max_tokens=12) as stream:
            if stream.response.status_code == 200:
                with suppress(StopAsyncIteration):
                    for word in range(1, dice.choice((4, 8))):
                        await stream.read(word)
                        await asyncio.sleep(0.02)
            else:
                await stream.response.aread()
                await self._refused(model, stream.response)
                return
            await stream.rest()
        self._judge_stream(model, stream)

    async def _abandoned(self, model: str, dice: random.Random) -> None:
        """Hang up in the middle of a stream, or before it begins."""
        body = chat_body(model, stream=True, max_tokens=60)
        path = "/v1/chat/completions"
        goes_on = {"x-conversation-id": conversation_of(dice.randrange(4), model)}
        headers = goes_on if dice.random() < 0.2 else None
        try:
            async with (
                asyncio.timeout(dice.choice((0.01, 0.1))),
                self.lswap.client.stream("POST", path, json=body, headers=headers) as response,
            ):
                await response.aread()
        except TimeoutError:
            pass
        self.left += 1

    def _judge_stream(self, model: str, stream: Stream) -> None:
        if stream.error is not None:
            if stream.error.get("code") not in PROPER:
                self._wrong(model, f"an unknown error event {stream.error}")
            elif stream.text and not self._is_prefix(model, stream.text):
                self._wrong(model, f"said {stream.text[:80]!r}")
            else:
                self.errors[model, stream.error["code"]] += 1
        elif not stream.done:
            self._wrong(model, f"a stream that was cut silently after {stream.text[:80]!r}")
        else:
            self._judge(model, stream.text)

    def _judge(self, model: str, text: str) -> None:
        whole = (
            self._is_prefix(model, text) if model in self.endless else text == self.models[model]
        )
        if text and whole:
            self.right[model] += 1
        else:
            self._wrong(model, f"said {text[:80]!r}")

    def _is_prefix(self, model: str, text: str) -> bool:
        sentence = self.models[model] + " "
        return (sentence * (len(text) // len(sentence) + 1)).startswith(text)

    async def _refused(self, model: str, answer: httpx.Response) -> None:
        try:
            error = answer.json()["error"]
            code = error["code"]
            proper = PROPER.get(code) == answer.status_code and bool(error["message"])
        except (ValueError, KeyError, TypeError):
            code, proper = "", False
        if answer.status_code in (429, 503) and not answer.headers.get("retry-after", "").isdigit():
            proper = False
        if not proper:
            self._wrong(model, f"{answer.status_code} {answer.text[:200]!r}")
            return
        self.errors[model, code] += 1
        await asyncio.sleep(0.05)  # a client that is refused does not ask again at once
