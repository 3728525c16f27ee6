"""The table of all routes: (path, method) -> Route."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from llamaswap_py.api import inference, llama_cpp, metrics, model_lists, pages, resumable
from llamaswap_py.api.admin import control, event_stream, openapi, reservations
from llamaswap_py.api.counters import OTHER
from llamaswap_py.api.errors import Family
from llamaswap_py.api.ollama import embed, generate, models
from llamaswap_py.api.request import Route

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHANGE: Final = Route(inference.relay, relayed=True)
_READ: Final = replace(_CHANGE, retry=True)
_COMPUTE: Final = _READ
_GENERATE: Final = replace(_COMPUTE, slot=True)
_TALK: Final = replace(_GENERATE, talk=True)
_ADMIN: Final = replace(_CHANGE, admin=True, replay=True)
_FREE: Final = partial(Route, free=True)
"""For routes that show or end requests, which must work even if there are too many."""
_UPSTREAM: Final = Route(inference.pass_through, as_it_is=True)


ANY: Final = "*"
"""Stands for every method."""


def _post(route: Route, *paths: str) -> dict[str, dict[str, Route]]:
    return {path: {"POST": route} for path in paths}


def _get(route: Route, *paths: str) -> dict[str, dict[str, Route]]:
    return {path: {"GET": route} for path in paths}


def every_route() -> Iterator[tuple[str, str, Route]]:
    """Yield the method, path and route of each; `{}` in a path stands for the captured part."""
    patterns = ((f"{start}{{}}{end}", methods) for start, end, methods in PATTERNS)
    for path, methods in (*ROUTES.items(), *patterns):
        for method, route in methods.items():
            yield method, path, route


ROUTES: Final[dict[str, dict[str, Route]]] = {
    # OpenAI; paths without /v1 are those of llama-server (server.cpp, b11434).
    **_post(_TALK, "/v1/chat/completions", "/chat/completions", "/v1/completions"),
    **_post(_TALK, "/v1/responses", "/responses"),
    **_post(_GENERATE, "/v1/embeddings"),
    **_post(_GENERATE, "/v1/audio/speech", "/v1/audio/transcriptions", "/audio/transcriptions"),
    **_post(_GENERATE, "/v1/audio/translations"),
    **_post(_GENERATE, "/v1/images/generations", "/v1/images/edits"),
    **_post(_COMPUTE, "/v1/chat/completions/input_tokens", "/chat/completions/input_tokens"),
    **_post(_COMPUTE, "/v1/responses/input_tokens", "/responses/input_tokens"),
    **_post(_CHANGE, "/v1/chat/completions/control"),
    # Anthropic
    **_post(replace(_TALK, family=Family.ANTHROPIC), "/v1/messages"),
    **_post(replace(_COMPUTE, family=Family.ANTHROPIC), "/v1/messages/count_tokens"),
    # llama.cpp
    **_post(_TALK, "/completion", "/completions"),
    **_post(_GENERATE, "/infill", "/embedding", "/embeddings"),
    **_post(_GENERATE, "/rerank", "/reranking", "/v1/rerank", "/v1/reranking"),
    **_post(_GENERATE, "/v1/systemone"),
    **_post(_COMPUTE, "/tokenize", "/detokenize", "/apply-template"),
    "/props": {"GET": replace(_READ, without_model=model_lists.router_props), "POST": _ADMIN},
    "/slots": {"GET": replace(_READ, right="slots")},
    "/metrics": {"GET": replace(_READ, without_model=metrics.scrape, free=True)},
    "/lora-adapters": {"GET": _READ, "POST": _ADMIN},
    # llama.cpp's router mode
    "/v1/models": {"GET": Route(model_lists.list_models)},
    "/models": {
        "GET": Route(model_lists.list_models),
        "POST": Route(llama_cpp.download, admin=True, starts=True),
        "DELETE": Route(llama_cpp.remove, admin=True),
    },
    **_post(Route(llama_cpp.load, starts=True), "/models/load"),
    **_post(_FREE(llama_cpp.unload, right="unload"), "/models/unload"),
    **_post(_FREE(resumable.look_up), "/v1/streams/lookup"),
    "/v1/stream": {
        "GET": _FREE(resumable.resume, retry=True),
        "DELETE": _FREE(resumable.stop),
    },
    **_get(Route(event_stream.router_events), "/models/sse"),
    "/cors-proxy": {"GET": Route(llama_cpp.cors_proxy), "POST": Route(llama_cpp.cors_proxy)},
    "/tools": {"GET": Route(llama_cpp.tools), "POST": Route(llama_cpp.tools)},
    # Ollama
    **_get(Route(models.version, public=True), "/api/version"),
    **_get(Route(models.tags), "/api/tags"),
    **_get(Route(models.ps), "/api/ps"),
    **_post(Route(models.show), "/api/show"),
    **_post(Route(generate.chat), "/api/chat"),
    **_post(Route(generate.generate), "/api/generate"),
    **_post(Route(embed.embed), "/api/embed"),
    **_post(Route(embed.embeddings), "/api/embeddings"),
    **_post(Route(models.pull, starts=True), "/api/pull"),
    **_post(Route(models.unsupported, admin=True), "/api/create", "/api/copy", "/api/push"),
    "/api/delete": {"DELETE": Route(models.delete, admin=True)},
    # lswap
    **_get(Route(pages.index, public=True), "/"),
    **_get(Route(control.health, public=True), "/health", "/v1/health", "/livez"),
    **_get(Route(control.readyz, public=True), "/readyz"),
    **_get(_FREE(control.state), "/lswap/v1/state"),
    **_get(_FREE(control.decisions), "/lswap/v1/decisions"),
    **_get(Route(control.own_log, admin=True), "/lswap/v1/logs"),
    **_get(Route(event_stream.events), "/lswap/v1/events"),
    **_get(_FREE(control.list_requests), "/lswap/v1/requests"),
    **_get(Route(partial(openapi.serve, every_route), public=True), "/openapi.json"),
    **_post(_FREE(control.reload, admin=True, starts=True), "/lswap/v1/reload"),
    "/lswap/v1/reservations": {
        "GET": Route(reservations.list_reservations),
        "POST": Route(reservations.reserve, admin=True, starts=True),
    },
}

# (start, end, methods): the part between start and end is captured, with its slashes. The first
# match wins.
PATTERNS: Final[tuple[tuple[str, str, dict[str, Route]], ...]] = (
    ("/upstream/", "", {ANY: _UPSTREAM}),
    ("/v1/models/", "", {"GET": Route(model_lists.show_model)}),
    (
        "/v1/stream/",
        "",
        {"GET": _FREE(resumable.resume, retry=True), "DELETE": _FREE(resumable.stop)},
    ),
    ("/slots/", "", {"POST": replace(_CHANGE, right="slots")}),
    ("/api/blobs/", "", dict.fromkeys(("GET", "POST"), Route(models.unsupported, admin=True))),
    ("/api/experimental/", "", dict.fromkeys(("GET", "POST"), Route(models.elsewhere))),
    ("/lswap/v1/models/", "/load", {"POST": Route(control.load, admin=True, starts=True)}),
    ("/lswap/v1/models/", "/unload", {"POST": _FREE(control.unload, right="unload")}),
    ("/lswap/v1/models/", "/pin", {"POST": Route(control.pin, right="pin")}),
    ("/lswap/v1/models/", "/unpin", {"POST": Route(control.unpin, right="pin")}),
    ("/lswap/v1/reservations/", "/heartbeat", {"POST": Route(reservations.heartbeat, admin=True)}),
    ("/lswap/v1/reservations/", "", {"DELETE": Route(reservations.release, admin=True)}),
    ("/lswap/v1/logs/", "", {"GET": Route(control.logs, admin=True)}),
    ("/lswap/v1/requests/", "/cancel", {"POST": _FREE(control.cancel, admin=True)}),
)


def look_up(path: str) -> tuple[dict[str, Route] | None, str]:
    """Return the methods of `path` (None if it is unknown), and the captured part."""
    methods = ROUTES.get(path)
    if methods is not None:
        return methods, ""
    for start, end, methods in PATTERNS:
        captured = path[len(start) : len(path) - len(end)]
        if path.startswith(start) and path.endswith(end) and captured:
            return methods, captured
    return None, ""


def route_of(method: str, path: str) -> Route | None:
    """Return the route of a method and a path, None if there is none."""
    methods, _ = look_up(path)
    return None if methods is None else pick(methods, method)


def template(path: str) -> str:
    """Return the pattern of `path` with `{id}` for the captured part; "other" without a route."""
    if path in ROUTES:
        return path
    for start, end, _ in PATTERNS:
        if path.startswith(start) and path.endswith(end) and len(path) > len(start) + len(end):
            return f"{start}{{id}}{end}"
    return OTHER


def pick(methods: dict[str, Route], method: str) -> Route | None:
    """Return the route of `method`; HEAD is a GET whose body is not sent."""
    route = methods.get(method) or methods.get(ANY)
    return route or (methods.get("GET") if method == "HEAD" else None)


def allowed(methods: dict[str, Route] | None) -> list[str]:
    """Return the methods of a path, for `Allow`; of the whole server if `methods` is None."""
    if methods is None:
        every = [one for there in ROUTES.values() for one in there]
        return list(dict.fromkeys(["OPTIONS", "HEAD", *every]))
    return [*methods, *(["HEAD"] if "GET" in methods else [])]
