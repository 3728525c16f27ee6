"""Makes an OpenAPI 3.1 document of lswap's own API, from the routes and their handlers.

The decorator `@described` gives the types of a handler's requests and answers. The method, the path
and the key come from its route, the summary from its docstring.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from llamaswap_py import __version__
from llamaswap_py.api.admin.types import ErrorAnswer
from llamaswap_py.errors import API_CODES
from llamaswap_py.llamacpp.server_routes import ROUTES as OF_LLAMA_SERVER

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call, Route

Handler: TypeAlias = Callable[["Call"], Awaitable[None]]
Routes: TypeAlias = Callable[[], Iterable[tuple[str, str, "Route"]]]
"""Yields the method, path and route of each; `{}` in a path stands for the captured part."""
TEXT: Final = {"type": "string"}
BOOLEAN: Final = {"type": "boolean"}
COUNT: Final = {"type": "integer", "minimum": 0}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a request: its `place` is `path`, `query` or `header`."""

    name: str
    place: str
    schema: Mapping[str, Any]
    text: str


@dataclass(frozen=True, slots=True)
class Operation:
    """The parameters and the body of a handler, and its answers by status: a type or a media type.

    `errors` are the statuses that not every route of this kind has.
    """

    answers: Mapping[int, Any]
    body: Any
    body_is_required: bool
    parameters: tuple[Parameter, ...]
    errors: tuple[int, ...]


_OPERATIONS: Final[dict[Handler, Operation]] = {}


def described(
    answers: Mapping[int, Any],
    *parameters: Parameter,
    body: Any = None,
    body_is_required: bool = False,
    errors: tuple[int, ...] = (),
) -> Callable[[Handler], Handler]:
    """Return a decorator that puts a handler into the document."""

    def keep(handler: Handler) -> Handler:
        _OPERATIONS[handler] = Operation(answers, body, body_is_required, parameters, errors)
        return handler

    return keep


async def serve(routes: Routes, call: Call) -> None:
    """GET /openapi.json: the description of this API, for tools."""
    call.status = 200
    call.exchange.respond(200, document(routes), "application/json")


@cache
def document(routes: Routes) -> bytes:
    """Return the document of those routes as JSON."""
    paths: dict[str, dict[str, Any]] = {}
    types: list[type] = [ErrorAnswer]
    for method, path, route in routes():
        one = _OPERATIONS.get(route.handle)
        if one is None or (method, path) in OF_LLAMA_SERVER:
            continue
        types += [kind for kind in (one.body, *one.answers.values()) if isinstance(kind, type)]
        captured = next((each.name for each in one.parameters if each.place == "path"), "")
        named = path.replace("{}", f"{{{captured}}}")
        paths.setdefault(named, {})[method.lower()] = _operation(method.lower(), named, route, one)
    _, schemas = msgspec.json.schema_components(types, ref_template=_REF)
    return msgspec.json.encode({**_HEAD, "paths": paths, "components": _components(schemas)})


_REF: Final = "#/components/schemas/{name}"
_HEAD: Final = {
    "openapi": "3.1.0",
    "info": {
        "title": "lswap",
        "version": __version__,
        "description": "lswap's own routes. For those of OpenAI, Anthropic, Ollama and llama.cpp "
        "see their own documentation.",
    },
}


def _components(schemas: dict[str, Any]) -> dict[str, Any]:
    key = "An admin key, or an API key with the named right."
    bearer = {"type": "http", "scheme": "bearer"}
    return {
        "schemas": schemas,
        "securitySchemes": {
            "key": {**bearer, "description": key},
            "admin": {**bearer, "description": "An admin key."},
        },
    }


def _operation(method: str, path: str, route: Route, one: Operation) -> dict[str, Any]:
    answers = {str(status): _answer(kind) for status, kind in sorted(one.answers.items())}
    answers |= {str(status): _failure(status) for status in sorted(_errors(route, one))}
    told: dict[str, Any] = {
        "summary": _summary(route.handle),
        "operationId": f"{method}{path.replace('/lswap/v1', '')}".replace("/", "_"),
        "parameters": [
            {
                "name": each.name,
                "in": each.place,
                "required": each.place == "path",
                "schema": {**each.schema, **({"minLength": 1} if each.place == "path" else {})},
                "description": each.text,
            }
            for each in one.parameters
        ],
        "responses": answers,
    }
    if one.body is not None:
        told["requestBody"] = {
            "required": one.body_is_required,
            "content": {"application/json": {"schema": _schema(one.body)}},
        }
    if not route.public:
        roles = [route.right] if route.right is not None else []
        told["security"] = [{"admin" if route.admin else "key": roles}, {}]
    return told


def _summary(handler: Handler) -> str:
    """Return the first sentence of a docstring, without the method and the path before it."""
    first = (handler.__doc__ or "").partition("\n\n")[0]
    return " ".join(first.partition(": ")[2].split())


def _errors(route: Route, one: Operation) -> set[int]:
    places = {each.place for each in one.parameters}
    found = set(one.errors)
    if not route.public:
        found |= {401, 403, 429}
    if one.body is not None or places - {"path"}:
        found.add(400)
    if "path" in places:
        found.add(404)
    return found


def _answer(kind: Any) -> dict[str, Any]:
    if isinstance(kind, str):
        return {"description": "A stream.", "content": {kind: {"schema": TEXT}}}
    text = (kind.__doc__ or "").strip().split("\n", 1)[0]
    return {"description": text, "content": {"application/json": {"schema": _schema(kind)}}}


def _failure(status: int) -> dict[str, Any]:
    codes = ", ".join(code for code, (its, _) in API_CODES.items() if its == status)
    content = {"application/json": {"schema": _schema(ErrorAnswer)}}
    return {"description": f"An error with one of the codes {codes}.", "content": content}


def _schema(kind: type) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
