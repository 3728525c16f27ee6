"""Lists the routes of llama-server, and the key that each of them needs through lswap. Pure.

docs/security.md prints the list, and decision 0001 has the reasons. In which spelling a path is
sent is decided in api/child_routes.py.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final
from urllib.parse import quote, unquote

_READS: Final = frozenset({"GET", "HEAD"})
_FILE: Final = re.compile(
    r"/(?:.*[^/]\.(?:html|m?js|css|map|json|webmanifest|txt|wasm|svg|png|ico|jpe?g|webp|woff2?))?"
)
"""A file of a web interface; no route of llama-server has a dot in its last part."""
_SLOT: Final = re.compile("/slots/[^/]*/?")
_STREAM: Final = re.compile("/v1/stream/[^/]*/?")
_NESTED: Final = re.compile("%(?:25)+")
_IN_BINARY: Final = re.compile(rb"\x00(/[a-z0-9][a-z0-9_/:-]{1,60})(?=\x00)|(/v1(?:/[a-z_]+)+)")
_DECODED: Final = 4
"""How often a path is decoded at most, not counting escapes of escapes (%252570)."""


class Role(Enum):
    """The key that a route needs. No route is public: below /upstream every request needs one."""

    INFERENCE = "inference"
    SLOTS = "slots"
    """An inference key with the right `slots`."""
    ADMIN = "admin"


def _all(role: Role, method: str, paths: str) -> dict[tuple[str, str], Role]:
    return {(method, path): role for path in paths.split()}


ROUTES: Final[dict[tuple[str, str], Role]] = {
    **_all(
        Role.INFERENCE,
        "POST",
        """
        /v1/chat/completions /chat/completions /v1/completions /completion /completions
        /v1/responses /responses /v1/messages /v1/embeddings /embedding /embeddings /infill
        /rerank /reranking /v1/rerank /v1/reranking /v1/systemone
        /v1/audio/transcriptions /audio/transcriptions
        /v1/chat/completions/input_tokens /chat/completions/input_tokens
        /v1/responses/input_tokens /responses/input_tokens /v1/messages/count_tokens
        /v1/chat/completions/control /tokenize /detokenize /apply-template
        """,
    ),
    # Routes of OpenAI which a later llama-server may have.
    **_all(
        Role.INFERENCE,
        "POST",
        "/v1/audio/speech /v1/audio/translations /v1/images/generations /v1/images/edits",
    ),
    **_all(
        Role.INFERENCE,
        "GET",
        "/health /v1/health /metrics /props /lora-adapters /models /v1/models",
    ),
    # GET can show the beginning of another client's answer, sent by that client to be continued.
    **_all(Role.SLOTS, "GET", "/slots"),
    **_all(Role.SLOTS, "POST", "/slots/:id_slot"),
    # llama-server lists conversations of all clients; lswap answers these routes itself.
    **_all(Role.ADMIN, "GET", "/v1/stream"),
    **_all(Role.ADMIN, "POST", "/v1/streams/lookup"),
    **_all(Role.ADMIN, "DELETE", "/v1/stream"),
    # The same, as older builds register it (b9840).
    **_all(Role.ADMIN, "GET", "/v1/stream/:conv_id"),
    **_all(Role.ADMIN, "DELETE", "/v1/stream/:conv_id"),
    # They change a model for all of its clients.
    **_all(Role.ADMIN, "POST", "/props /lora-adapters"),
    # They run programs, open files, and fetch addresses of this machine's network.
    **_all(Role.ADMIN, "GET", "/tools /cors-proxy"),
    **_all(Role.ADMIN, "POST", "/tools /cors-proxy"),
    # Only llama.cpp's own router has these.
    **_all(Role.ADMIN, "GET", "/models/sse"),
    **_all(Role.ADMIN, "POST", "/models /models/load /models/unload"),
    **_all(Role.ADMIN, "DELETE", "/models"),
}
"""(method, path) -> role, for every route that llama-server registers (b11434)."""
_PATHS: Final = frozenset(path for _, path in ROUTES)
_GUARDED: Final = {path: role for (_, path), role in ROUTES.items() if role is not Role.INFERENCE}


def stream_target(conversation: str, start: object = None, *, in_path: bool = False) -> str:
    """Return the target of an answer that goes on without its client, from a byte on.

    `in_path`: for a build that takes the id in the path (`EngineFeatures.stream_in_path`).
    """
    id = quote(conversation, safe="")
    query = [] if in_path else [f"conv_id={id}"]
    if start is not None:
        query.append(f"from={quote(str(start), safe='')}")
    path = f"/v1/stream/{id}" if in_path else "/v1/stream"
    return "?".join([path, "&".join(query)] if query else [path])


def named_in(binary: bytes) -> set[str]:
    """Return what looks like a path in a binary, and each end of it that begins at a slash."""
    texts = {(one or other).decode() for one, other in _IN_BINARY.findall(binary)}
    return {text[at:] for text in texts for at in range(len(text)) if text[at] == "/"}


def role_of(method: str, path: str) -> Role | None:
    """Return the role of a route of llama-server, None for an unknown route.

    `path` is decoded, as llama-server compares it. llama-server treats HEAD as GET, and answers
    OPTIONS itself.
    """
    if method == "OPTIONS":
        return Role.INFERENCE
    known = ROUTES.get(("GET" if method == "HEAD" else method, _named(path)))
    if known is None and method in _READS and path not in _PATHS and _FILE.fullmatch(path):
        return Role.INFERENCE
    return known


def role_at_program(method: str, path: str) -> Role:
    """Return the role of a path at a program that may not be llama-server.

    An inference key may use the program's own routes. But a path that a loose reader could take for
    a route of llama-server needs the key of that route.
    """
    path = folded(path)
    return role_of(method, path) or _GUARDED.get(_named(path)) or Role.INFERENCE


def folded(path: str) -> str:
    """Return a path as the loosest reader understands it.

    Such a reader decodes it more than once. It ignores case, repeated and final slashes,
    parameters, and spaces around a part, and it takes a backslash for a slash.
    """
    for _ in range(_DECODED):
        path = unquote(_NESTED.sub("%", path))
    path = re.sub(r"[?#].*|;[^/]*", "", path.replace("\\", "/"), flags=re.DOTALL)
    parts = [part for part in map(str.strip, path.split("/")) if part]
    return "/" + "/".join(parts).casefold()


def _named(path: str) -> str:
    """Return a path as llama-server registers it: `:id_slot` for a slot, `:conv_id` for an id."""
    if _STREAM.fullmatch(path):
        return "/v1/stream/:conv_id"
    return "/slots/:id_slot" if _SLOT.fullmatch(path) else path
