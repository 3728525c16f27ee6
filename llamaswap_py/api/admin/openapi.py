"""lswap's own API as an OpenAPI 3.1 document, made from the types that the handlers use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import msgspec

from llamaswap_py import __version__
from llamaswap_py.api.admin import types as shapes
from llamaswap_py.api.admin.requests import Requests
from llamaswap_py.api.admin.reservations import HeartbeatRequest, ReservationRequest
from llamaswap_py.errors import API_CODES
from llamaswap_py.snapshot import ReloadReport, Snapshot

_BOOLEAN: Final = {"type": "boolean"}
_TEXT: Final = {"type": "string"}
_MODEL: Final = ("id", "path", _TEXT, "A model or an alias of it; `/` written as `%2F`.")
_WAIT: Final = ("wait", "query", _BOOLEAN, "false: answer at once.")
_EVENTS: Final = "text/event-stream"
_PLAIN: Final = "text/plain"


@dataclass(frozen=True, slots=True)
class Operation:
    """One route: what it takes, and what it answers by status (a type, or a media type)."""

    method: str
    path: str
    summary: str
    answers: dict[int, Any]
    body: Any = None
    parameters: tuple[tuple[str, str, dict[str, Any], str], ...] = ()
    errors: tuple[int, ...] = ()
    admin: bool = False
    right: str | None = None
    public: bool = False


_MODELS: Final = "/lswap/v1/models/{id}"
_HELD: Final = "/lswap/v1/reservations"
_NAME: Final = ("name", "path", _TEXT, "Its name.")

_LINES: Final = (
    ("tail", "query", {"type": "integer", "minimum": 0}, "The last so many lines."),
    ("follow", "query", _BOOLEAN, "Go on with live ones."),
)

OPERATIONS: Final = (
    Operation("get", "/livez", "The process answers.", {200: shapes.Health}, public=True),
    Operation(
        "get",
        "/readyz",
        "Whether new requests are taken.",
        {200: shapes.Health},
        errors=(503,),
        public=True,
    ),
    Operation("get", "/lswap/v1/state", "Everything at one moment.", {200: Snapshot}),
    Operation(
        "get",
        "/lswap/v1/decisions",
        "What was decided and why, the newest last.",
        {200: shapes.Decisions},
        parameters=(
            ("model", "query", _TEXT, "Of this model only."),
            ("limit", "query", {"type": "integer", "minimum": 0}, "So many at most; 100 if left."),
        ),
        errors=(400, 403, 404),
    ),
    Operation(
        "get",
        "/lswap/v1/events",
        "What happens, as it happens: decision, state, progress, request, reload.",
        {200: _EVENTS},
        parameters=(
            ("after", "query", {"type": "integer", "minimum": 0}, "Replay what came after this."),
            ("Last-Event-ID", "header", {"type": "integer", "minimum": 0}, "The same."),
            ("follow", "query", _BOOLEAN, "Go on with live ones, which is the default."),
        ),
        errors=(400,),
    ),
    Operation(
        "get",
        "/lswap/v1/logs",
        "What lswap itself wrote.",
        {200: _PLAIN},
        parameters=_LINES,
        errors=(400, 403),
        admin=True,
    ),
    Operation(
        "get",
        "/lswap/v1/logs/{id}",
        "What its llama-server wrote.",
        {200: _PLAIN},
        parameters=(_MODEL, *_LINES),
        errors=(400, 403, 404),
        admin=True,
    ),
    Operation("get", "/lswap/v1/requests", "The open requests.", {200: Requests}),
    Operation(
        "post",
        "/lswap/v1/requests/{id}/cancel",
        "End a request with an error, waiting or running.",
        {200: shapes.CancelAnswer},
        parameters=(("id", "path", _TEXT, "Its x-request-id."),),
        errors=(404,),
        admin=True,
    ),
    Operation(
        "post",
        f"{_MODELS}/load",
        "Load a model; answers when it is ready.",
        {200: shapes.LoadAnswer, 202: shapes.LoadAnswer},
        body=shapes.LoadRequest,
        parameters=(_MODEL, _WAIT),
        errors=(400, 403, 404, 409, 429, 503),
        admin=True,
    ),
    Operation(
        "post",
        f"{_MODELS}/unload",
        "Unload a model once its requests have ended.",
        {200: shapes.UnloadAnswer, 202: shapes.UnloadAnswer},
        parameters=(
            *(_MODEL, _WAIT),
            ("force", "query", _BOOLEAN, "End its open requests at once; takes an admin key."),
        ),
        errors=(400, 403, 404),
        right="unload",
    ),
    *(
        Operation(
            "post",
            f"{_MODELS}/{word}",
            summary,
            {200: shapes.PinAnswer},
            parameters=(_MODEL,),
            errors=(403, 404),
            right="pin",
        )
        for word, summary in (
            ("pin", "Never evict it for another."),
            ("unpin", "Evict it again where its memory is needed."),
        )
    ),
    Operation(
        "post",
        "/lswap/v1/reload",
        "Read the file again; a wrong one changes nothing.",
        {200: ReloadReport},
        errors=(400, 501),
        admin=True,
    ),
    Operation("get", _HELD, "Memory held for other programs.", {200: shapes.Reservations}),
    Operation(
        "post",
        _HELD,
        "Make room for another program; answers when the memory is held.",
        {200: "application/x-ndjson", 201: shapes.ReservationAnswer},
        body=ReservationRequest,
        errors=(400, 409, 413, 503),
        admin=True,
    ),
    Operation(
        "post",
        f"{_HELD}/{{name}}/heartbeat",
        "It is still needed; due every 30 s.",
        {200: shapes.ReservationAnswer},
        body=HeartbeatRequest,
        parameters=(_NAME,),
        errors=(400, 404, 413),
        admin=True,
    ),
    Operation(
        "delete",
        f"{_HELD}/{{name}}",
        "Give the memory back.",
        {200: shapes.ReservationAnswer},
        parameters=(_NAME,),
        errors=(404,),
        admin=True,
    ),
)


@cache
def document() -> bytes:
    """Return the document as JSON."""
    return msgspec.json.encode(_document())


def _document() -> dict[str, Any]:
    types: list[type] = [shapes.ErrorAnswer]
    for one in OPERATIONS:
        types += [kind for kind in (one.body, *one.answers.values()) if isinstance(kind, type)]
    _, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for one in OPERATIONS:
        paths.setdefault(one.path, {})[one.method] = _operation(one)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lswap",
            "version": __version__,
            "description": "lswap's own routes. Those of OpenAI, Anthropic, Ollama and llama.cpp "
            "are described by whom they come from.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API key that has the right which is named, or an admin key.",
                },
                "admin": {"type": "http", "scheme": "bearer", "description": "An admin key."},
            },
        },
    }


def _operation(one: Operation) -> dict[str, Any]:
    statuses = set(one.errors) if one.public else {401, 403, 429, *one.errors}
    answers = {str(status): _answer(kind) for status, kind in sorted(one.answers.items())}
    answers |= {str(status): _failure(status) for status in sorted(statuses)}
    told: dict[str, Any] = {
        "summary": one.summary,
        "operationId": f"{one.method}{one.path.replace('/lswap/v1', '')}".replace("/", "_"),
        "parameters": [
            {
                "name": name,
                "in": place,
                "required": place == "path",
                "schema": schema if place != "path" else {**schema, "minLength": 1},
                "description": text,
            }
            for name, place, schema, text in one.parameters
        ],
        "responses": answers,
    }
    if one.body is not None:
        told["requestBody"] = {
            "required": one.body is ReservationRequest,
            "content": {"application/json": {"schema": _schema(one.body)}},
        }
    if not one.public:
        roles = [one.right] if one.right is not None else []
        told["security"] = [{"admin" if one.admin else "key": roles}, {}]
    return told


def _answer(kind: Any) -> dict[str, Any]:
    if isinstance(kind, str):
        return {"description": "A stream of it.", "content": {kind: {"schema": _TEXT}}}
    text = (kind.__doc__ or "").strip().split("\n", 1)[0]
    return {"description": text, "content": {"application/json": {"schema": _schema(kind)}}}


def _failure(status: int) -> dict[str, Any]:
    codes = ", ".join(code for code, (its, _) in API_CODES.items() if its == status)
    content = {"application/json": {"schema": _schema(shapes.ErrorAnswer)}}
    return {"description": f"One of the codes {codes}.", "content": content}


def _schema(kind: type) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}
