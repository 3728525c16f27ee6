"""Requests and answers as the end-to-end tests see them: bodies, texts, errors, streams, states."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx

    from llamaswap_py.snapshot import InstanceView, ModelView, Snapshot

PATIENCE: Final = 60.0
"""Seconds that anything may take before a test gives up; no outcome depends on it."""


class Stream:
    """A streamed answer, read as far as a test wants."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.words: list[str] = []
        self.error: dict[str, Any] | None = None
        self.finish: str | None = None
        self.done = False
        self._lines = response.aiter_lines()

    @property
    def text(self) -> str:
        return "".join(self.words)

    async def read(self, words: int) -> None:
        """Read until that many words have come."""
        async with asyncio.timeout(PATIENCE):
            while len(self.words) < words:
                self._take(await anext(self._lines))

    async def rest(self) -> Stream:
        """Read to the end; a connection that is cut raises."""
        async with asyncio.timeout(PATIENCE):
            async for line in self._lines:
                self._take(line)
        return self

    def _take(self, line: str) -> None:
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            self.done = True
            return
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            self.error = event["error"]
            return
        for choice in event["choices"]:
            self.words += [choice["delta"]["content"]] if choice["delta"].get("content") else []
            self.finish = choice["finish_reason"] or self.finish


def chat_body(model: str, **body: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **body}


def text_of(response: httpx.Response) -> str:
    """Return the text of a chat answer that must be a success."""
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """Return the error object of an answer that must be a failure with `status`."""
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def model_of(state: Snapshot, name: str) -> ModelView:
    return next(one for one in state.models if one.id == name)


def instances_of(state: Snapshot, name: str) -> list[InstanceView]:
    return [one for one in state.instances if one.preset == name]


def instance_of(state: Snapshot, name: str) -> InstanceView:
    """Return the only instance of a model."""
    (instance,) = instances_of(state, name)
    return instance
