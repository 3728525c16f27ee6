"""llama-server's answers -> Ollama's: a stream of JSON lines, or one object. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from llamaswap_py.api.ollama.context import LONGEST, Said, write_context

_NS: Final = 1_000_000
"""Nanoseconds in a millisecond: Ollama reports nanoseconds, llama-server milliseconds."""
_REASONS: Final = {"length": "length", "limit": "length"}
_MOST_LINE: Final = 16 << 20
"""The most bytes of one event; a longer one cannot be a model's answer."""
_MOST_VALUES: Final = 250_000
"""The most values in one event: decoding makes an object of each, while other requests wait."""


@dataclass(slots=True)
class Clock:
    """The times in an answer: `now` is an RFC 3339 stamp, `elapsed` the nanoseconds so far."""

    now: Callable[[], str]
    elapsed: Callable[[], int]
    load_ns: int = 0


@dataclass(slots=True)
class OllamaAnswer:
    """Builds Ollama's objects from llama-server's answer.

    `shape` (`chat`, `generate` or `native`), `top_logprobs` and `talk` are as in `Translated`;
    `model` is the name that was asked for.
    """

    model: str
    shape: str
    clock: Clock
    top_logprobs: int = 0
    talk: Sequence[Said] | None = None
    """The conversation so far, if the answer ends with a `context`."""
    said: list[str] = field(default_factory=list)
    reason: str = "stop"
    failed: bool = False
    stats: dict[str, int] = field(default_factory=dict)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)

    def parts(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the objects for one event of a stream, or for a whole answer."""
        if isinstance(event.get("error"), dict | str):
            self.failed = True
            return [{"error": error_text(event["error"])}]
        self._count(event)
        if self.shape == "native":
            if event.get("stop") is True:
                self.reason = _REASONS.get(str(event.get("stop_type")), "stop")
            text = str(event.get("content") or "")
            logprobs = self._logprobs(event.get("completion_probabilities"))
            return [self.part(text, "", logprobs)] if text or logprobs else []
        found = []
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or choice.get("message") or {}
            self._collect(delta.get("tool_calls") or ())
            text = delta.get("content") or ""
            thinking = delta.get("reasoning_content") or ""
            logprobs = self._logprobs((choice.get("logprobs") or {}).get("content"))
            if text or thinking or logprobs:
                found.append(self.part(text, thinking, logprobs))
            if reason := choice.get("finish_reason"):
                self.reason = _REASONS.get(str(reason), "stop")
        return found

    def part(self, text: str, thinking: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the object for a piece of text."""
        if self.talk is not None:
            self.said.append(text)
        more = {"logprobs": logprobs} if logprobs else {}
        return {**self._head(), **self._said(text, thinking), **more, "done": False}

    def last(self) -> list[dict[str, Any]]:
        """Return the last objects of a stream: tool calls, and the object with the figures."""
        if self.failed:
            return []
        found = []
        if calls := self.tool_calls():
            message = {"role": "assistant", "content": "", "tool_calls": calls}
            found.append({**self._head(), "message": message, "done": False})
        return [*found, {**self._head(), **self._said("", ""), **self.figures()}]

    def whole(self, event: dict[str, Any]) -> dict[str, Any]:
        """Return the object for an answer that was not streamed."""
        parts = self.parts(event)
        if self.failed:
            return parts[0]
        texts = [one.get("message", one) for one in parts]
        text = "".join(one.get("content", one.get("response", "")) for one in texts)
        thinking = "".join(one.get("thinking", "") for one in texts)
        said = self._said(text, thinking)
        if logprobs := [each for one in parts for each in one.get("logprobs", ())]:
            said["logprobs"] = logprobs
        if self.shape == "chat" and (calls := self.tool_calls()):
            said["message"]["tool_calls"] = calls
        return {**self._head(), **said, **self.figures()}

    def figures(self) -> dict[str, Any]:
        """Return the members of the final object."""
        context = {}
        if self.talk is not None:
            talk = [*self.talk, Said("assistant", "".join(self.said))]
            if sum(len(one.content) for one in talk) <= LONGEST:
                context["context"] = write_context(talk)
        return {
            **context,
            "done": True,
            "done_reason": self.reason,
            "total_duration": self.clock.elapsed(),
            "load_duration": self.clock.load_ns,
            "prompt_eval_count": 0,
            "prompt_eval_duration": 0,
            "eval_count": 0,
            "eval_duration": 0,
            **self.stats,
        }

    def tool_calls(self) -> list[dict[str, Any]]:
        """Return the tool calls; their arguments are objects, if they can be decoded."""
        found = []
        for index, call in enumerate(self.calls.values()):
            try:
                arguments = json.loads(call["arguments"] or "{}")
            except ValueError:
                arguments = {"arguments": call["arguments"]}
            if not isinstance(arguments, dict):
                arguments = {"arguments": arguments}
            function = {"index": index, "name": call["name"], "arguments": arguments}
            found.append({**({"id": call["id"]} if call["id"] else {}), "function": function})
        return found

    def _head(self) -> dict[str, Any]:
        return {"model": self.model, "created_at": self.clock.now()}

    def _said(self, text: str, thinking: str) -> dict[str, Any]:
        thought = {"thinking": thinking} if thinking else {}
        if self.shape == "chat":
            return {"message": {"role": "assistant", "content": text, **thought}}
        return {"response": text, **thought}

    def _collect(self, calls: Any) -> None:
        """Add pieces of tool calls: names and arguments come in parts."""
        for at, call in enumerate(calls):
            index = call.get("index", at)
            known = self.calls.setdefault(index, {"id": "", "name": "", "arguments": ""})
            known["id"] = known["id"] or call.get("id") or ""
            function = call.get("function") or {}
            known["name"] += function.get("name") or ""
            known["arguments"] += function.get("arguments") or ""

    def _logprobs(self, tokens: Any) -> list[dict[str, Any]]:
        """Return the log probabilities of tokens, with as many alternatives as were asked for.

        llama-server returns at least one alternative for each token.
        """
        found = []
        for token in tokens or ():
            one = _logprob(token)
            if others := token.get("top_logprobs", ())[: self.top_logprobs]:
                one["top_logprobs"] = [_logprob(other) for other in others]
            found.append(one)
        return found

    def _count(self, event: dict[str, Any]) -> None:
        usage, timings = event.get("usage") or {}, event.get("timings") or {}
        # Tokens from the cache were not evaluated, but they belong to the prompt.
        counts = {
            "prompt_eval_count": usage.get("prompt_tokens", timings.get("prompt_n")),
            "eval_count": usage.get("completion_tokens", timings.get("predicted_n")),
            "prompt_eval_duration": _nanoseconds(timings.get("prompt_ms")),
            "eval_duration": _nanoseconds(timings.get("predicted_ms")),
        }
        self.stats |= {name: int(count) for name, count in counts.items() if count is not None}


class LineStream:
    """Turns a child's event stream into Ollama's lines; pieces may end anywhere."""

    content_type: Final = b"application/x-ndjson"

    def __init__(self, answer: OllamaAnswer) -> None:
        self._answer = answer
        self._rest = bytearray()
        """The begin of an incomplete line; each byte is searched only once."""

    def feed(self, piece: bytes) -> bytes:
        """Return the lines that this piece completes; raises ValueError for one too long."""
        *lines, rest = piece.split(b"\n")
        if lines:
            lines[0] = bytes(self._rest + lines[0])
            self._rest = bytearray()
        self._rest += rest
        if max(map(len, (*lines, self._rest))) > _MOST_LINE:
            self._rest = bytearray()
            raise ValueError(f"the model's answer has a line of more than {_MOST_LINE >> 20} MiB")
        return b"".join(self._line(line.rstrip(b"\r")) for line in lines)

    def end(self) -> bytes:
        """Return the last lines, with the figures."""
        rest, self._rest = bytes(self._rest), bytearray()
        return self._line(rest) + b"".join(map(as_line, self._answer.last()))

    def _line(self, line: bytes) -> bytes:
        if not line.startswith(b"data:"):
            return b""
        text = line[5:].strip()
        if not text or text == b"[DONE]":
            return b""
        if len(text) > _MOST_VALUES < sum(map(text.count, (b",", b"[", b"{"))):
            return b""
        try:
            event = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return b""
        try:
            parts = self._answer.parts(event) if isinstance(event, dict) else []
        except (AttributeError, TypeError, ValueError, OverflowError):
            return b""  # an event in an unknown form is ignored
        return b"".join(map(as_line, parts))


def embed_answer(answer: dict[str, Any], clock: Clock, model: str, size: int | None) -> Any:
    """Return the answer of /api/embed; vectors are cut to `size`, and scaled to unit length."""
    rows = sorted(answer.get("data") or (), key=lambda one: one.get("index", 0))
    vectors = [_cut(one.get("embedding") or [], size) for one in rows]
    usage = answer.get("usage") or {}
    return {
        "model": model,
        "embeddings": vectors,
        "total_duration": clock.elapsed(),
        "load_duration": clock.load_ns,
        "prompt_eval_count": usage.get("prompt_tokens", 0),
    }


def error_text(error: Any) -> str:
    """Return the message of an error object."""
    if isinstance(error, dict):
        error = error.get("message", error)
    return error if isinstance(error, str) else json.dumps(error)


def as_line(value: dict[str, Any]) -> bytes:
    """Return one line of JSON."""
    return msgspec.json.encode(value) + b"\n"


def _cut(vector: list[float], size: int | None) -> list[float]:
    if size is None or size >= len(vector) or size < 1:
        return vector
    cut = vector[:size]
    length = math.sqrt(sum(value * value for value in cut))
    return [value / length for value in cut] if length else cut


def _logprob(token: dict[str, Any]) -> dict[str, Any]:
    text = str(token.get("token", ""))
    found: dict[str, Any] = {"token": text, "logprob": token.get("logprob", 0.0)}
    if data := token.get("bytes") or [*text.encode("utf-8", "replace")]:
        found["bytes"] = data
    return found


def _nanoseconds(milliseconds: Any) -> int | None:
    return round(milliseconds * _NS) if isinstance(milliseconds, int | float) else None
