"""Where conversations are kept over an eviction (`memory.keep_kv`), and what cannot be kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

from llamaswap_py.config.fields import Record, key
from llamaswap_py.config.forms import DURATION, PATH, POSITIVE_SIZE, or_word
from llamaswap_py.config.options import long_name
from llamaswap_py.config.optiontable import switched
from llamaswap_py.units import GIB

if TYPE_CHECKING:
    from llamaswap_py.config.preset import Preset


class KeepKv(Record, frozen=True):
    """What `keep_kv` of the presets may take."""

    limit: Annotated[
        int,
        key(
            "Most bytes of conversations kept at once; of more the oldest go.",
            POSITIVE_SIZE,
            "16GiB",
        ),
    ] = 4 * GIB
    dir: Annotated[
        str | None,
        key(
            "Folder for them. auto: main memory ($XDG_RUNTIME_DIR or /dev/shm, whichever has room "
            "for `limit`; given back as soon as a model needs it), else $XDG_CACHE_HOME.",
            or_word("auto", PATH),
            "/mnt/nvme/lswap",
        ),
    ] = None
    timeout: Annotated[
        float,
        key(
            "Longest that keeping them may hold up an eviction, and bringing them back a load.",
            DURATION,
            "10s",
        ),
    ] = 2.0


_ADAPTERS: Final = frozenset({"lora", "lora-scaled"})
_DRAFTS: Final = frozenset({"model-draft", "spec-draft-model"})


def keeps_nothing(preset: Preset) -> str:
    """Return why `keep_kv` can do nothing for a preset (or a variant of one); empty if it can."""
    words = (word.partition("=")[0] for word in preset.extra if word.startswith("-"))
    said = {*preset.args, *map(long_name, words)}
    said -= {name for name in said if switched(preset.args.get(name, True)) is False}
    if said & _ADAPTERS:
        return "with which LoRA adapters a conversation was computed is not kept"
    kinds = str(preset.args.get("spec-type", "")).split(",")
    if said & _DRAFTS or any(kind.strip().startswith("draft") for kind in kinds):
        return "llama-server does not save the draft model's half of a conversation"
    if said & {"embeddings", "reranking"}:
        return "embedding and reranking models have no conversations"
    if "no-cache-prompt" in said or switched(preset.args.get("cache-prompt", True)) is False:
        return "cache-prompt is off: llama-server would not use them"
    return ""
