"""How much context one request gets, and what in a valid file deserves a warning."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from llamaswap_py.config.options import long_name
from llamaswap_py.units import format_duration

if TYPE_CHECKING:
    from llamaswap_py.config.records import Config, Preset
    from llamaswap_py.config.values import Argument

# `--parallel` left open means four slots that share one context (tools/server/server.cpp).
AUTO_SLOTS: Final = 4
# llama.cpp rounds a context up to a multiple of this (src/llama-context.cpp, GGML_PAD).
_PAD: Final = 256


def slots(preset: Preset) -> int:
    """Return how many requests the child generates at once."""
    parallel = _number(preset, "parallel")
    return AUTO_SLOTS if parallel is None or parallel < 1 else parallel


def context_per_request(preset: Preset) -> int | None:
    """Return the tokens one request may use, None when the model file decides.

    Without `kv-unified` the slots divide `ctx-size`: -c 2048 -np 2 gives 1024 each.
    """
    size = _number(preset, "ctx-size") or 0
    per_slot = _number(preset, "kv-unified-per-slot") or 0
    if size <= 0:
        return per_slot if per_slot > 0 else None
    share = size if _is_unified(preset) else size // slots(preset)
    padded = -(-share // _PAD) * _PAD
    return min(padded, per_slot) if per_slot > 0 else padded


def _is_unified(preset: Preset) -> bool:
    parallel = _number(preset, "parallel")
    if parallel is None or parallel < 1:
        return True
    return _effective(preset, "kv-unified") in (True, "on", "yes") or parallel == 1


def _number(preset: Preset, name: str) -> int | None:
    value = _effective(preset, name)
    if isinstance(value, tuple):
        value = value[-1] if value else None
    try:
        return None if value is None or isinstance(value, bool) else int(value)
    except (ValueError, OverflowError):
        return None


def _effective(preset: Preset, name: str) -> Argument | None:
    """Return the value llama-server ends up with: `extra` comes last and wins."""
    value: Argument | None = preset.args.get(name)
    if f"no-{name}" in preset.args:
        value = not preset.args[f"no-{name}"]
    words = (*preset.extra, "-")
    for word, following in pairwise(words):
        if word.startswith("-") and long_name(word) == name:
            value = True if following.startswith("--") or following == "-" else following
        elif word.startswith("-") and long_name(word) in (f"no-{name}", "no-kvu") and "kv" in name:
            value = False
    return value


def warnings(config: Config) -> tuple[str, ...]:
    """Return what will work, but probably not as meant; one line each, with its place."""
    found: list[str] = []
    timeout, max_wait = config.policy.queue.timeout, config.policy.max_wait
    for preset in config.models.values():
        if timeout < max_wait + preset.drain_timeout:
            found.append(
                f"{config.where('policy.queue.timeout')}: a request gives up after "
                f"{format_duration(timeout)}, but others may keep the memory {preset.id} holds for "
                f"max_wait + drain_timeout = {format_duration(max_wait + preset.drain_timeout)}"
            )
        size = _number(preset, "ctx-size") or 0
        share = context_per_request(preset)
        if share is not None and share * 2 < size:
            found.append(
                f"{config.where(f'models.{preset.id}')}: a request gets {share} tokens of context: "
                f"{slots(preset)} slots divide ctx-size {size} - set kv-unified: true, or "
                f"ctx-size: {size * slots(preset)}"
            )
    return tuple(found)
