"""Chooses the slots of a child that are worth saving before an eviction. Pure.

Shapes: `GET /slots`, `GET /metrics` and `POST /slots/N?action=save|restore` of llama-server
(server_slot::to_json and server_task_result_*::to_json, b11434).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.llamacpp.options import SPECULATION, long_name, switched

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llamaswap_py.llamacpp.options import Given

LEAST_TOKENS: Final = 128
"""A shorter conversation is computed again sooner than it is saved."""
# A saved slot is written and read again; that has to take clearly less than computing it again.
_GAIN: Final = 2.0
METRICS_PREFIX: Final = "llamacpp:"
"""The names of llama-server's metrics."""
_COUNT: Final = re.compile(
    rf"^{METRICS_PREFIX}(prompt_(?:tokens|tokens_cached|seconds)_total) (\S+)$",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class SlotUse:
    """One slot of a child, and how many tokens of a conversation it holds."""

    id: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Costs:
    """The cost of saving a slot: bytes per token, and bytes written per second.

    `tokens_per_second` is how fast the child reads a prompt; None: it has read none yet.
    """

    token_bytes: float
    bytes_per_second: float
    tokens_per_second: float | None = None

    def size(self, slot: SlotUse) -> int:
        """Return how many bytes a slot is expected to take."""
        return int(slot.tokens * self.token_bytes)

    def seconds(self, slot: SlotUse) -> float:
        """Return how long writing it is expected to take."""
        return self.size(slot) / self.bytes_per_second


def read_slots(answer: object, restored: Mapping[int, int]) -> tuple[SlotUse, ...]:
    """Return the idle slots of an answer to `GET /slots` that hold tokens.

    `restored` are the tokens that slots were given at the start. For a slot that was not used since
    then, llama-server does not say how many it holds.
    """
    found = []
    for one in answer if isinstance(answer, list) else ():
        if not isinstance(one, dict) or one.get("is_processing") is not False:
            continue
        id, tokens = one.get("id"), one.get("n_prompt_tokens")
        if not isinstance(id, int):
            continue
        if not isinstance(tokens, int):
            tokens = restored.get(id, 0)
        if tokens > 0:
            found.append(SlotUse(id, tokens))
    return tuple(found)


def read_counts(metrics: str) -> dict[str, float]:
    """Return the counters of prompts in an answer to `GET /metrics`, by llama-server's names."""
    found = {}
    for name, value in _COUNT.findall(metrics):
        try:
            found[name] = float(value)
        except ValueError:
            continue
    return found


def prompt_speed(counts: Mapping[str, float]) -> float | None:
    """Return tokens per second of the prompts that a child has read so far."""
    tokens, seconds = counts.get("prompt_tokens_total", 0), counts.get("prompt_seconds_total", 0)
    return tokens / seconds if tokens > 0 and seconds > 0 else None


def choose_slots(
    slots: Iterable[SlotUse], costs: Costs, *, room: int, seconds: float
) -> tuple[SlotUse, ...]:
    """Return the slots to keep, the longest conversation first.

    It leaves out conversations that are short, that are computed again about as fast as they are
    written and read, or that do not fit into the remaining `room` (bytes) or `seconds`.
    """
    chosen = []
    for slot in sorted(slots, key=lambda one: (-one.tokens, one.id)):
        size, time = costs.size(slot), costs.seconds(slot)
        speed = costs.tokens_per_second
        if slot.tokens < LEAST_TOKENS or size > room or time > seconds:
            continue
        if speed is not None and _GAIN * time > slot.tokens / speed:
            continue
        chosen.append(slot)
        room -= size
        seconds -= time
    return tuple(chosen)


def read_saved(answer: Mapping[str, Any]) -> tuple[int, int]:
    """Return (tokens, bytes) of an answer to `action=save`; zeros if it does not say them."""
    return _number(answer, "n_saved"), _number(answer, "n_written")


def read_restored(answer: Mapping[str, Any]) -> int:
    """Return how many tokens an answer to `action=restore` says are back."""
    return _number(answer, "n_restored")


def _number(answer: Mapping[str, Any], name: str) -> int:
    value = answer.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


_ADAPTERS: Final = frozenset({"lora", "lora-scaled"})
_DRAFTS: Final = frozenset({"model-draft", "spec-draft-model"})


def keeps_nothing(given: Given) -> str:
    """Return why `keep_kv` does not work with these options; "" if it does."""
    words = (word.partition("=")[0] for word in given.extra if word.startswith("-"))
    said = {*given.args, *map(long_name, words)}
    said -= {name for name in said if switched(given.args.get(name, True)) is False}
    if said & _ADAPTERS:
        return "with which LoRA adapters a conversation was computed is not kept"
    kinds = str(given.args.get(SPECULATION, "")).split(",")
    if said & _DRAFTS or any(kind.strip().startswith("draft") for kind in kinds):
        return "llama-server does not save the draft model's half of a conversation"
    if said & {"embeddings", "reranking"}:
        return "embedding and reranking models have no conversations"
    if "no-cache-prompt" in said or switched(given.args.get("cache-prompt", True)) is False:
        return "cache-prompt is off: llama-server would not use them"
    return ""
