"""Ollama's requests -> llama-server's, after Ollama's api/types.go and its API page. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from llamaswap_py.api.json_steps import LIGHT, Steps, at_once, weight
from llamaswap_py.api.ollama.context import Said, read_context
from llamaswap_py.api.ollama.members import OPTIONS, refuse
from llamaswap_py.errors import ApiError
from llamaswap_py.units import parse_duration

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)
_write: Final = _ENCODER.encode
_KNOWN: Final = {option.name: option for option in OPTIONS}
_IMAGES: Final = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpeg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
)
_FOREVER: Final = -1.0
_LIFETIME: Final = 100 * 365 * 86400.0
"""In seconds; a longer time means for ever."""
_GO_UNITS: Final = {
    **{"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3},
    **{"s": 1.0, "m": 60.0, "h": 3600.0},
}
_GO_PART: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_GO_DURATION: Final = re.compile(f"(?:{_GO_PART.pattern})+")
_MOST_LOGPROBS: Final = 20
_EFFORTS: Final = ("low", "medium", "high", "max")
MOST_MESSAGES: Final = 20_000
MOST_WITHIN: Final = 5_000
MOST_OPTIONS: Final = 1_000
"""The most parts of one request to translate; each bound takes about 40 ms of CPU time."""
_STEP: Final = 1_000
"""The messages, tool calls or images that are translated in one turn of the event loop."""
_FEW: Final = 20
"""The part of `LIGHT` from which on the arguments of a call are a step of their own."""
_RAW_REFUSES: Final = ("system", "template", "context", "images")


@dataclass(frozen=True, slots=True)
class Translated:
    """A request for a child: its path and body, and how to translate its answer.

    `shape` is `chat`, `generate` (a chat completion becomes `response`) or `native` (the answer of
    llama.cpp's /completion or /infill). `top_logprobs` is the number of alternatives per token.
    `talk` is the conversation for the `context` of the answer, None if the answer has no `context`.
    """

    path: str
    body: dict[str, Any]
    shape: str
    stream: bool
    top_logprobs: int = 0
    talk: tuple[Said, ...] | None = None


def translate_chat(ask: Mapping[str, Any]) -> Translated:
    """Return the chat completion for /api/chat; raises ApiError `bad_request`."""
    return at_once(chat_in_steps(ask))


def translate_generate(ask: Mapping[str, Any]) -> Translated:
    """Return the completion for /api/generate; raises ApiError `bad_request`."""
    return at_once(generate_in_steps(ask))


def chat_in_steps(ask: Mapping[str, Any]) -> Steps[Translated]:
    """Translate like `translate_chat`, in steps of some milliseconds."""
    messages = _list(ask, "messages")
    body: dict[str, Any] = {"messages": (yield from _messages(messages))}
    if tools := _list(ask, "tools"):
        body["tools"] = list(tools)
    refuse("/api/chat", ask)
    return _completion(ask, body, "chat")


def generate_in_steps(ask: Mapping[str, Any]) -> Steps[Translated]:
    """Translate like `translate_generate`, in steps of some milliseconds."""
    prompt = _text(ask, "prompt")
    raw = read_switch(ask, "raw", default=False)
    for key in _RAW_REFUSES if raw else ():
        if ask.get(key):
            what = f"`{key}` does not go together with `raw`, which sends the prompt unchanged"
            raise ApiError("bad_request", what, param=key)
    refuse("/api/generate", ask)
    if raw:
        return _native(ask, "/completion", {"prompt": prompt})
    if suffix := _text(ask, "suffix"):
        return _native(ask, "/infill", {"input_prefix": prompt, "input_suffix": suffix})
    talk = read_context(ask.get("context"))
    if system := _text(ask, "system"):
        talk = [Said("system", system), *(one for one in talk if one.role != "system")]
    messages: list[dict[str, Any]] = [{"role": one.role, "content": one.content} for one in talk]
    message: dict[str, Any] = {"role": "user", "content": prompt}
    if images := _list(ask, "images"):
        message["images"] = images
    turned = yield from _messages([*messages, message])
    translated = _completion(ask, {"messages": turned}, "generate")
    return replace(translated, talk=(*talk, Said("user", prompt)))


def texts_to_embed(ask: Mapping[str, Any]) -> list[str]:
    """Return the texts of /api/embed (`input`) or /api/embeddings (`prompt`).

    A single empty text gives no text, as in Ollama; an empty text in a list is a text.
    Raises ApiError `bad_request`.
    """
    key = "input" if "input" in ask else "prompt"
    texts = ask.get(key)
    if isinstance(texts, str) or texts is None:
        return [texts] if texts else []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ApiError("bad_request", f"`{key}` must be a text or a list of texts", param=key)
    return texts


def read_dimensions(ask: Mapping[str, Any]) -> int | None:
    """Return the wanted length of vectors, None for their full length; raises ApiError."""
    size = ask.get("dimensions")
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int):
        message = "`dimensions` must be a whole number"
        raise ApiError("bad_request", message, param="dimensions")
    return size if size > 0 else None


def read_switch(ask: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Return the value of a boolean member; raises ApiError `bad_request`."""
    value = ask.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError("bad_request", f"`{key}` must be true or false", param=key)
    return value


def read_keep_alive(value: Any) -> float | None:
    """Return the seconds of `5m`, `300` or `"1h30m"`; -1: for ever; None: it is not given.

    Raises ApiError `bad_request`.
    """
    if value is None or value == "":
        return None
    try:
        seconds = _seconds(value)
    except (ValueError, OverflowError):
        message = f"keep_alive: {value!r} is not a duration"
        raise ApiError(
            "bad_request", message, param="keep_alive", remedy="write one like 5m, 0 or -1"
        ) from None
    return _FOREVER if seconds < 0 or seconds > _LIFETIME else seconds


def _seconds(value: Any) -> float:
    """Return the seconds of a number, or of a duration in Go's form; raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    if not isinstance(value, str):
        if math.isnan(value):
            raise ValueError
        return float(value)
    text = value.strip()
    bare = text.lstrip("+-") if text[:2] not in ("+-", "-+", "--", "++") else text
    if bare.replace(".", "", 1).isascii() and bare.replace(".", "", 1).isdigit():
        seconds = float(bare)
    elif _GO_DURATION.fullmatch(bare):
        parts = _GO_PART.findall(bare)
        seconds = sum(float(number) * _GO_UNITS[unit] for number, unit in parts)
    else:
        seconds = parse_duration(bare)
    return -seconds if text.startswith("-") else seconds


def _completion(ask: Mapping[str, Any], body: dict[str, Any], shape: str) -> Translated:
    stream = ask.get("stream", True) is not False
    body = {**_options(ask), **body}
    if (wanted := ask.get("format")) not in (None, ""):
        body["response_format"] = _format(wanted)
    if (think := _think(ask)) is not None:
        body["chat_template_kwargs"] = {"enable_thinking": think is not False}
        if isinstance(think, str):
            body["reasoning_effort"] = think
    logprobs, others = _logprobs(ask)
    if logprobs:
        body |= {"logprobs": True, "top_logprobs": max(others, 1)}
    body["stream"] = stream
    if stream:
        body["stream_options"] = {"include_usage": True}
    return Translated("/v1/chat/completions", body, shape, stream, others)


def _native(ask: Mapping[str, Any], path: str, body: dict[str, Any]) -> Translated:
    stream = ask.get("stream", True) is not False
    options = _options(ask)
    if "max_tokens" in options:
        options["n_predict"] = options.pop("max_tokens")
    if (wanted := ask.get("format")) not in (None, ""):
        form = _format(wanted)
        options["json_schema"] = form["json_schema"]["schema"] if "json_schema" in form else {}
    logprobs, others = _logprobs(ask)
    if logprobs:
        options["n_probs"] = max(others, 1)
    return Translated(path, {**options, **body, "stream": stream}, "native", stream, others)


def _options(ask: Mapping[str, Any]) -> dict[str, Any]:
    options = ask.get("options")
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise ApiError("bad_request", "`options` must be an object", param="options")
    if len(options) > MOST_OPTIONS:
        message = f"`options` has {len(options)} members, and may have {MOST_OPTIONS}"
        raise ApiError("bad_request", message, param="options")
    found: dict[str, Any] = {}
    for name, value in options.items():
        known = _KNOWN.get(name)
        becomes = name if known is None else known.becomes
        if not becomes or value is None:
            continue
        whole = known is not None and known.whole and isinstance(value, float)
        # Like Ollama, accept 40.0 as 40.
        found[becomes] = int(value) if whole and math.isfinite(value) else value
    if isinstance(limit := found.get("max_tokens"), int) and limit <= 0:
        del found["max_tokens"]  # 0, -1 and -2 mean no limit
    return found


def _think(ask: Mapping[str, Any]) -> bool | str | None:
    think = ask.get("think")
    if think is None or isinstance(think, bool) or think in _EFFORTS:
        return think
    message = f"`think` must be true, false, or one of {', '.join(_EFFORTS)}"
    raise ApiError("bad_request", message, param="think")


def _logprobs(ask: Mapping[str, Any]) -> tuple[bool, int]:
    """Return whether log probabilities are wanted, and the number of alternatives per token."""
    others = ask.get("top_logprobs")
    others = 0 if others is None else others
    if isinstance(others, bool) or not isinstance(others, int) or not 0 <= others <= _MOST_LOGPROBS:
        message = f"`top_logprobs` must be a whole number from 0 to {_MOST_LOGPROBS}"
        raise ApiError("bad_request", message, param="top_logprobs")
    wanted = read_switch(ask, "logprobs", default=False)
    return wanted, others if wanted else 0


def _format(wanted: Any) -> dict[str, Any]:
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    message = '`format` must be "json" or a JSON schema'
    raise ApiError("bad_request", message, param="format")


def _messages(messages: Sequence[Any]) -> Steps[list[dict[str, Any]]]:
    """Return the messages in OpenAI's form, in which tool calls must have ids."""
    _check_work(messages)
    found: list[dict[str, Any]] = []
    calls = Calls()
    number = 0
    for at, one in enumerate(messages, 1):
        if not at % _STEP:
            yield
        if not isinstance(one, dict):
            raise ApiError("bad_request", "each message must be an object", param="messages")
        message: dict[str, Any] = {"role": str(one.get("role", "user")).lower()}
        message["content"] = yield from _content(one)
        if thinking := one.get("thinking"):
            message["reasoning_content"] = thinking
        if asked := _list(one, "tool_calls"):
            turned = []
            for call in asked:
                turned.append((yield from _call(call, number, calls)))
                number += 1
            message["tool_calls"] = turned
        if message["role"] == "tool":
            called = one.get("tool_name") or one.get("name")
            message["tool_call_id"] = calls.answered(one.get("tool_call_id"), called)
        found.append(message)
    return found


def _call(call: Any, number: int, calls: Calls) -> Steps[dict[str, Any]]:
    """Return one tool call, and add it to those that have no result."""
    if not number % _STEP:
        yield
    function = call.get("function") if isinstance(call, dict) else None
    function = function if isinstance(function, dict) else {}
    id = str(call.get("id") or f"call_{number}") if isinstance(call, dict) else ""
    name = str(function.get("name", ""))
    calls.add(id, name)
    arguments = function.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = yield from _written(arguments)
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _written(arguments: Any) -> Steps[str]:
    """Return the arguments of a call as a JSON text."""
    needs = weight(arguments)
    if needs < LIGHT:
        if needs > LIGHT // _FEW:
            yield
        return _write(arguments)
    parts: list[str] = []
    for at, part in enumerate(_ENCODER.iterencode(arguments), 1):
        parts.append(part)
        if not at % LIGHT:
            yield
    return "".join(parts)


def _check_work(messages: Sequence[Any]) -> None:
    """Raise ApiError `body_too_large` if translating takes too long for one turn of the loop."""
    within = sum(
        len(inner)
        for one in messages
        if isinstance(one, dict)
        for inner in (one.get("tool_calls"), one.get("images"))
        if isinstance(inner, list)
    )
    for count, most, what in (
        (len(messages), MOST_MESSAGES, "messages"),
        (within, MOST_WITHIN, "`tool_calls` and `images` of its messages"),
    ):
        if count > most:
            message = f"the request has {count} {what}, but this route translates at most {most}"
            remedy = "send fewer, or use /v1/chat/completions, which has no such limit"
            raise ApiError("body_too_large", message, remedy=remedy, param="messages")


def _content(message: Mapping[str, Any]) -> Steps[Any]:
    text = message.get("content") or ""
    images = _list(message, "images")
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    for at, one in enumerate(images, 1):
        if not at % _STEP:
            yield
        parts.append(_medium(one))
    return parts


def _medium(image: Any) -> dict[str, Any]:
    """Return the part for an image or a sound; Ollama has both in one list."""
    if not isinstance(image, str):
        raise ApiError("bad_request", "`images` must be base64 texts", param="images")
    if image.startswith("data:"):
        return {"type": "image_url", "image_url": {"url": image}}
    try:
        start = base64.b64decode(image[:64], validate=False)
    except (binascii.Error, ValueError):
        raise ApiError("bad_request", "`images` must be base64 texts", param="images") from None
    if sound := _sound(start):
        return {"type": "input_audio", "input_audio": {"data": image, "format": sound}}
    kind = next((kind for mark, kind in _IMAGES if start.startswith(mark)), None)
    if kind is None:
        kind = "webp" if start[8:12] == b"WEBP" else "png"
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{image}"}}


def _sound(start: bytes) -> str:
    """Return the format of a sound by its first bytes, "" if they are not of a known sound."""
    if start.startswith(b"RIFF") and start[8:12] == b"WAVE":
        return "wav"
    frame = start[:1] == b"\xff" and start[1:2] >= b"\xe0"  # the sync word of an MPEG audio frame
    return "mp3" if frame or start.startswith(b"ID3") else ""


class Calls:
    """Tool calls that have no result yet, the oldest first."""

    def __init__(self) -> None:
        self._open: dict[int, str] = {}
        """Their ids by number, in the order of the calls."""
        self._by_id: dict[str, deque[int]] = {}
        self._by_name: dict[str, deque[int]] = {}
        self._next = 0

    def add(self, id: str, name: str) -> None:
        """Add a call."""
        self._open[self._next] = id
        self._by_id.setdefault(id, deque()).append(self._next)
        self._by_name.setdefault(name, deque()).append(self._next)
        self._next += 1

    def answered(self, id: Any, name: Any) -> str:
        """Return the id of the call that a result belongs to: by id, else by name, else the oldest.

        The members of a message may have any type. An unknown id is returned unchanged.
        """
        number = None
        if id is not None:
            number = self._oldest(self._by_id.get(id)) if isinstance(id, str) else None
        elif name is None:
            number = next(iter(self._open), None)
        elif isinstance(name, str):
            number = self._oldest(self._by_name.get(name))
        return str(id or "call") if number is None else self._open.pop(number)

    def _oldest(self, numbers: deque[int] | None) -> int | None:
        while numbers:
            number = numbers.popleft()
            if number in self._open:
                return number
        return None


def _list(ask: Mapping[str, Any], key: str) -> list[Any]:
    value = ask.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ApiError("bad_request", f"`{key}` must be a list", param=key)
    return value


def _text(ask: Mapping[str, Any], key: str) -> str:
    value = ask.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ApiError("bad_request", f"`{key}` must be a text", param=key)
    return value
