"""Reads llama-server's properties from `GET /props` and child mode's ready line. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class Props(NamedTuple):
    """How many requests it answers at once, and the limits of one request.

    `n_ctx` is the context of one slot in tokens (None: it does not say). `inputs` are the kinds of
    input it takes, in the words of llama.cpp (server-common.cpp; empty: it does not say).
    """

    slots: int
    n_ctx: int | None
    inputs: tuple[str, ...]


def read_props(props: Mapping[str, Any], ready: Mapping[str, Any]) -> Props:
    """Read an answer to `GET /props` ({}: there was none) and the payload of the ready line."""
    slots = props.get("total_slots")
    context = context_in(props)
    if context is None:
        meta = ready.get("meta")
        context = _whole(meta.get("n_ctx") if isinstance(meta, dict) else None)
    return Props(
        slots if isinstance(slots, int) and slots > 0 else 1,
        context,
        _inputs(props.get("modalities")),
    )


def context_in(props: Mapping[str, Any]) -> int | None:
    """Return the context of one slot that an answer to `GET /props` names, in tokens."""
    settings = props.get("default_generation_settings")
    return _whole(settings.get("n_ctx") if isinstance(settings, dict) else None)


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) else None


def _inputs(modalities: object) -> tuple[str, ...]:
    if not isinstance(modalities, dict):
        return ()
    named = (("vision", "image"), ("audio", "audio"), ("video", "video"))
    return ("text", *(word for key, word in named if modalities.get(key) is True))
