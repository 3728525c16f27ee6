"""Ollama's requests -> llama-server's (Ollama's docs/api.md, and its api/types.go). Pure."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llamaswap_py.errors import ApiError
from llamaswap_py.units import parse_duration

# Ollama's options -> OpenAI's and llama-server's names; None: they belong to loading, which a
# request never changes here (num_ctx and the like).
_OPTIONS: Final[dict[str, str | None]] = {
    **{
        name: name
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "stop"),
            *("repeat_penalty", "repeat_last_n", "presence_penalty", "frequency_penalty"),
            *("mirostat", "mirostat_tau", "mirostat_eta", "num_keep"),
        )
    },
    "num_keep": "n_keep",
    "num_predict": "max_tokens",
    **dict.fromkeys(
        (
            *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap", "use_mlock"),
            *("low_vram", "vocab_only", "numa", "f16_kv", "penalize_newline", "tfs_z"),
        )
    ),
}
_IMAGES: Final = (
    (b"\x89PNG", "png"),
    (b"\xff\xd8", "jpeg"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
)
_FOREVER: Final = -1.0


@dataclass(frozen=True, slots=True)
class Translated:
    """A request for a child: its path and body, and how its answer is to be read.

    `shape` is `chat`, `generate` (an answer of chat completions as `response`) or `native` (of
    llama.cpp's /completion and /infill).
    """

    path: str
    body: dict[str, Any]
    shape: str
    stream: bool


def translate_chat(ask: Mapping[str, Any]) -> Translated:
    """Return the chat completion for /api/chat; raises ApiError `bad_request`."""
    messages = _list(ask, "messages")
    body: dict[str, Any] = {"messages": _messages(messages)}
    if tools := _list(ask, "tools"):
        body["tools"] = list(tools)
    return _completion(ask, body, "chat")


def translate_generate(ask: Mapping[str, Any]) -> Translated:
    """Return the completion for /api/generate; raises ApiError `bad_request`."""
    prompt = _text(ask, "prompt")
    for key, remedy in (
        ("context", "send the conversation to /api/chat"),
        ("template", "the model's own template is used; raw: true takes the prompt as it is"),
    ):
        if ask.get(key):
            raise ApiError("bad_request", f"`{key}` is not supported", param=key, remedy=remedy)
    if suffix := _text(ask, "suffix"):
        return _native(ask, "/infill", {"input_prefix": prompt, "input_suffix": suffix})
    if ask.get("raw"):
        return _native(ask, "/completion", {"prompt": prompt})
    system = _text(ask, "system")
    messages = [{"role": "system", "content": system}] if system else []
    message: dict[str, Any] = {"role": "user", "content": prompt}
    if images := _list(ask, "images"):
        message["images"] = images
    return _completion(ask, {"messages": _messages([*messages, message])}, "generate")


def texts_to_embed(ask: Mapping[str, Any]) -> list[str]:
    """Return the texts of /api/embed (`input`) or /api/embeddings (`prompt`).

    A single empty text is none, as in Ollama; an empty text of a list is one.
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
    """Return how long vectors shall be, None for as long as they are; raises ApiError."""
    size = ask.get("dimensions")
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int):
        message = "`dimensions` must be a whole number"
        raise ApiError("bad_request", message, param="dimensions")
    return size if size > 0 else None


def read_switch(ask: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """Return a member that is true or false; raises ApiError `bad_request`."""
    value = ask.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise ApiError("bad_request", f"`{key}` must be true or false", param=key)
    return value


def read_keep_alive(value: Any) -> float | None:
    """Return seconds from `5m`, `300`, `"1h30m"`; -1 for ever; None when it is not given.

    Raises ApiError `bad_request`.
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, bool):
            raise ValueError
        if isinstance(value, int | float):
            seconds = float(value)
        else:
            text = str(value).strip()
            sign = -1.0 if text.startswith("-") else 1.0
            bare = text.lstrip("-")
            number = float(bare) if bare.replace(".", "", 1).isdigit() else parse_duration(bare)
            seconds = sign * number
    except ValueError:
        message = f"keep_alive: {value!r} is no duration"
        raise ApiError(
            "bad_request", message, param="keep_alive", remedy="like 5m, 0, -1"
        ) from None
    if math.isnan(seconds):
        raise ApiError("bad_request", "keep_alive is no number", param="keep_alive")
    return _FOREVER if seconds < 0 else seconds


def _completion(ask: Mapping[str, Any], body: dict[str, Any], shape: str) -> Translated:
    stream = ask.get("stream", True) is not False
    body |= _options(ask)
    if (wanted := ask.get("format")) not in (None, ""):
        body["response_format"] = _format(wanted)
    if (think := ask.get("think")) is not None:
        body["chat_template_kwargs"] = {"enable_thinking": think is not False}
        if isinstance(think, str):
            body["reasoning_effort"] = think
    for key in ("logprobs", "top_logprobs"):
        if ask.get(key) is not None:
            body[key] = ask[key]
    body["stream"] = stream
    if stream:
        body["stream_options"] = {"include_usage": True}
    return Translated("/v1/chat/completions", body, shape, stream)


def _native(ask: Mapping[str, Any], path: str, body: dict[str, Any]) -> Translated:
    stream = ask.get("stream", True) is not False
    options = _options(ask)
    if "max_tokens" in options:
        options["n_predict"] = options.pop("max_tokens")
    wanted = ask.get("format")
    if isinstance(wanted, dict):
        options["json_schema"] = wanted
    elif wanted == "json":
        options["json_schema"] = {}
    return Translated(path, {**body, **options, "stream": stream}, "native", stream)


def _options(ask: Mapping[str, Any]) -> dict[str, Any]:
    options = ask.get("options")
    options = {} if options is None else options
    if not isinstance(options, dict):
        raise ApiError("bad_request", "`options` must be an object", param="options")
    found: dict[str, Any] = {}
    for name, value in options.items():
        known = _OPTIONS.get(name, name)
        if known is not None and value is not None:
            found[known] = value
    if isinstance(limit := found.get("max_tokens"), int) and limit < 0:
        del found["max_tokens"]  # -1 and -2: until the end
    return found


def _format(wanted: Any) -> dict[str, Any]:
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, dict):
        return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}
    message = '`format` must be "json" or a JSON schema'
    raise ApiError("bad_request", message, param="format")


def _messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Turn messages over; calls of tools get the ids that OpenAI's form wants."""
    found: list[dict[str, Any]] = []
    calls: list[tuple[str, str]] = []  # (id, name) of calls that have no answer yet
    number = 0
    for one in messages:
        if not isinstance(one, dict):
            raise ApiError("bad_request", "each message must be an object", param="messages")
        message: dict[str, Any] = {"role": str(one.get("role", "user"))}
        message["content"] = _content(one)
        if thinking := one.get("thinking"):
            message["reasoning_content"] = thinking
        if asked := _list(one, "tool_calls"):
            turned = []
            for call in asked:
                function = call.get("function") if isinstance(call, dict) else None
                function = function if isinstance(function, dict) else {}
                id = str(call.get("id") or f"call_{number}") if isinstance(call, dict) else ""
                number += 1
                name = str(function.get("name", ""))
                calls.append((id, name))
                arguments = function.get("arguments", {})
                if not isinstance(arguments, str):
                    arguments = json.dumps(arguments, ensure_ascii=False)
                inner = {"name": name, "arguments": arguments}
                turned.append({"id": id, "type": "function", "function": inner})
            message["tool_calls"] = turned
        if message["role"] == "tool":
            message["tool_call_id"] = _answered(one, calls)
        found.append(message)
    return found


def _answered(message: Mapping[str, Any], calls: list[tuple[str, str]]) -> str:
    """Return the id of the call that a tool's message answers: by id, by name, else the oldest."""
    given = message.get("tool_call_id")
    name = message.get("tool_name") or message.get("name")
    for at, (id, called) in enumerate(calls):
        if id == given or (given is None and name in (None, called)):
            del calls[at]
            return id
    return str(given or "call")


def _content(message: Mapping[str, Any]) -> Any:
    text = message.get("content") or ""
    images = _list(message, "images")
    if not images:
        return text
    parts: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    return parts + [{"type": "image_url", "image_url": {"url": _data_url(one)}} for one in images]


def _data_url(image: Any) -> str:
    if not isinstance(image, str):
        raise ApiError("bad_request", "`images` must be base64 texts", param="images")
    if image.startswith("data:"):
        return image
    try:
        start = base64.b64decode(image[:64], validate=False)
    except (binascii.Error, ValueError):
        raise ApiError("bad_request", "`images` must be base64 texts", param="images") from None
    kind = next((kind for mark, kind in _IMAGES if start.startswith(mark)), None)
    if kind is None:
        kind = "webp" if start[8:12] == b"WEBP" else "png"
    return f"data:image/{kind};base64,{image}"


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
