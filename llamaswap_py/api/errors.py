"""ApiError -> bytes, in the form that each family of clients understands. Pure."""

from __future__ import annotations

import math
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

import msgspec

from llamaswap_py.errors import API_CODES, ApiError

if TYPE_CHECKING:
    from llamaswap_py.proxy.messages import RequestHead

Headers = list[tuple[bytes, bytes]]


class Family(Enum):
    """The API to which a route belongs; it decides the form of errors."""

    OPENAI = "openai"
    ANTHROPIC = "anthropic"
    OLLAMA = "ollama"
    ROUTER = "router"
    """llama.cpp's, on /models and below: `code` is the status (format_error_response)."""


# Anthropic's names (its API reference, "Errors") where they differ from OpenAI's.
_ANTHROPIC_TYPES: Final[dict[int, str]] = {
    413: "request_too_large",
    500: "api_error",
    501: "api_error",
    502: "api_error",
    503: "overloaded_error",
}
_WIRE_CODES: Final[dict[int, str]] = {
    413: "body_too_large",
    501: "not_implemented",
    503: "too_many_connections",
}


def error_body(error: ApiError, family: Family, request_id: str) -> bytes:
    """Render `error` as the JSON body of its answer."""
    return msgspec.json.encode(_error_object(error, family, request_id))


def error_headers(error: ApiError) -> Headers:
    """Return the headers of an error's answer: `Retry-After` in whole seconds, at least 1, and
    `Accept-Encoding` if the coding of the body was refused (RFC 9110 section 12.5.3).
    """
    if error.code == "unsupported_encoding":
        return [(b"accept-encoding", b"identity")]
    if error.retry_after is None:
        return []
    return [(b"retry-after", b"%d" % max(1, math.ceil(error.retry_after)))]


def error_event(error: ApiError, family: Family, request_id: str) -> bytes:
    """Render `error` as one complete SSE event, for a stream that has begun."""
    if family is Family.OLLAMA:
        return error_body(error, family, request_id) + b"\n"
    data = b"data: " + error_body(error, family, request_id) + b"\n\n"
    return b"event: error\n" + data if family is Family.ANTHROPIC else data


def refusal_event(body: bytes, family: Family, request_id: str) -> bytes:
    """Render a child's error as an event of the stream that had begun while the child loaded."""
    try:
        data = msgspec.json.encode(msgspec.json.decode(body))
    except msgspec.DecodeError:
        text = body[:200].decode("utf-8", "replace")
        return error_event(upstream_failed(f"the model refused: {text}"), family, request_id)
    event = b"data: " + data + b"\n\n"
    return b"event: error\n" + event if family is Family.ANTHROPIC else event


def render_wire_error(status: int, message: str, head: RequestHead | None) -> tuple[Headers, bytes]:
    """Render a refusal of the proxy itself (bad framing, header too large, timeouts).

    It has a status of HTTP (400, 408, 413, 417, 431, 501, 503, 505). If no code of lswap belongs to
    the status, the code is `bad_request`.
    """
    error = ApiError(_WIRE_CODES.get(status, "bad_request"), message)
    error.status = status
    family = family_of(head.path) if head is not None else Family.OPENAI
    kind = (b"content-type", b"application/json")
    return [kind, *error_headers(error)], error_body(error, family, "")


def family_of(path: str) -> Family:
    """Return the family of a path, even if it is not a route."""
    if path.startswith("/api/"):
        return Family.OLLAMA
    if path == "/models" or path.startswith("/models/"):
        return Family.ROUTER
    return Family.ANTHROPIC if path.startswith("/v1/messages") else Family.OPENAI


def upstream_failed(message: str, *, remedy: str = "") -> ApiError:
    """Return the error for a child that broke off its answer, or never answered."""
    return ApiError(
        "upstream_failed",
        message,
        remedy=remedy or "`lswap logs MODEL` shows the output of its llama-server",
    )


def draining() -> ApiError:
    """Return the error for a request that arrives while lswap stops."""
    return ApiError("draining", "lswap is stopping and takes no new requests")


def cancelled() -> ApiError:
    """Return the error for a request that was ended by command; clients do not send it again."""
    return ApiError("cancelled", "the request was cancelled by command")


def stopped() -> ApiError:
    """Return the error for a request whose conversation was stopped before a model answered."""
    what = "the request was cancelled by DELETE /v1/stream before its model was ready"
    return ApiError("stopped", what)


def model_not_found(name: str, nearest: list[str]) -> ApiError:
    """Return the error for an unknown name, with the nearest known ones."""
    shown = name if len(name) <= 80 else name[:80] + "…"
    hint = f"did you mean {' or '.join(nearest)}? " if nearest else ""
    return ApiError(
        "model_not_found",
        f"model {shown!r} not found",
        remedy=f"{hint}`lswap models` or GET /v1/models lists the names",
        param="model",
    )


def _error_object(error: ApiError, family: Family, request_id: str) -> dict[str, Any]:
    if family is Family.ANTHROPIC:
        kind = _ANTHROPIC_TYPES.get(error.status, API_CODES[error.code][1])
        inner = {"type": kind, "message": str(error), "code": error.code, **error.details}
        return {"type": "error", "error": inner, "request_id": request_id}
    if family is Family.OLLAMA:  # a single text; Ollama's clients ignore other members
        return {"error": str(error), "code": error.code, **error.details}
    if family is Family.ROUTER:
        inner = {"code": error.status, "message": str(error), "type": error.type}
        return {"error": {**inner, **error.details}}
    inner = {
        "message": str(error),
        "type": error.type,
        "param": error.param,
        "code": error.code,
        **error.details,
    }
    return {"error": inner}
