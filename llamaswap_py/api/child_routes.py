"""The routes of llama-server, and which key each takes: docs/security.md prints this list.

What is not in it takes an admin key: a route of a later engine may do anything.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final
from urllib.parse import unquote

_READS: Final = frozenset({"GET", "HEAD"})
_FILE: Final = re.compile(
    r"/(?:.*[^/]\.(?:html|m?js|css|map|json|webmanifest|txt|wasm|svg|png|ico|jpe?g|webp|woff2?))?"
)
"""A file of a web interface; no route of llama-server has a dot in its last part."""
_SLOT: Final = re.compile("/slots/[^/]*/?")
_NESTED: Final = re.compile("%(?:25)+")
_DECODED: Final = 4
"""How often a path is decoded, besides escapes of escapes (%252570), at most."""


class Role(Enum):
    """Which key a route takes. None is public: below /upstream every request needs a key."""

    INFERENCE = "inference"
    SLOTS = "slots"
    """An inference key with that right."""
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
    # GET can show the beginning of an answer that another client sent to be continued.
    **_all(Role.SLOTS, "GET", "/slots"),
    **_all(Role.SLOTS, "POST", "/slots/:id_slot"),
    # llama-server's list of conversations has no owners; lswap answers these routes itself.
    **_all(Role.ADMIN, "GET", "/v1/stream"),
    **_all(Role.ADMIN, "POST", "/v1/streams/lookup"),
    **_all(Role.ADMIN, "DELETE", "/v1/stream"),
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


def role_of(method: str, path: str) -> Role | None:
    """Return the role of a route of llama-server, None for one that is not known.

    `path` is decoded, as llama-server compares it. HEAD is a GET to it; it answers OPTIONS itself.
    """
    if method == "OPTIONS":
        return Role.INFERENCE
    known = ROUTES.get(("GET" if method == "HEAD" else method, _named(path)))
    if known is None and method in _READS and path not in _PATHS and _FILE.fullmatch(path):
        return Role.INFERENCE
    return known


def role_at_program(method: str, path: str) -> Role:
    """Return the role of a path of a program that is not known to be llama-server.

    It has routes of its own, which an inference key reaches. A path takes more where a program that
    reads it loosely could take it for one that does so at llama-server.
    """
    path = folded(path)
    return role_of(method, path) or _GUARDED.get(_named(path)) or Role.INFERENCE


def folded(path: str) -> str:
    """Return what the loosest reader of a path takes it for.

    It decodes more than once, and looks at neither case, repeated and last slashes, backslashes,
    parameters, nor spaces around a part.
    """
    for _ in range(_DECODED):
        path = unquote(_NESTED.sub("%", path))
    path = re.sub(r"[?#].*|;[^/]*", "", path.replace("\\", "/"), flags=re.DOTALL)
    parts = [part for part in map(str.strip, path.split("/")) if part]
    return "/" + "/".join(parts).casefold()


def _named(path: str) -> str:
    """Return a path with `:id_slot` for a slot, as llama-server matches it."""
    return "/slots/:id_slot" if _SLOT.fullmatch(path) else path
