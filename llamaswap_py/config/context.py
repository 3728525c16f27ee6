"""How much context one request gets, and what in a valid file deserves a warning."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from llamaswap_py.config.model_forms import starts_container
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.config.records import keeps_nothing
from llamaswap_py.llamacpp.options import long_name
from llamaswap_py.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.config.records import Config, Preset
    from llamaswap_py.llamacpp.options import Argument

# `--parallel` left open means four slots that share one context (tools/server/server.cpp).
AUTO_SLOTS: Final = 4
# llama.cpp rounds a context up to a multiple of this (src/llama-context.cpp, GGML_PAD).
_PAD: Final = 256


def slots(preset: Preset) -> int:
    """Return how many requests the child generates at once."""
    parallel = number(preset, "parallel")
    return AUTO_SLOTS if parallel is None or parallel < 1 else parallel


def context_per_request(preset: Preset) -> int | None:
    """Return the tokens one request may use, None when the model file decides.

    Without `kv-unified` the slots divide `ctx-size`: -c 2048 -np 2 gives 1024 each.
    """
    size = number(preset, "ctx-size") or 0
    per_slot = number(preset, "kv-unified-per-slot") or 0
    if size <= 0:
        return per_slot if per_slot > 0 else None
    share = size if _is_unified(preset) else size // slots(preset)
    padded = -(-share // _PAD) * _PAD
    return min(padded, per_slot) if per_slot > 0 else padded


def _is_unified(preset: Preset) -> bool:
    parallel = number(preset, "parallel")
    if parallel is None or parallel < 1:
        return True
    return effective(preset, "kv-unified") in (True, "on", "yes") or parallel == 1


def number(preset: Preset, name: str) -> int | None:
    """Return the whole number that an option ends up with, None where it has none."""
    value = effective(preset, name)
    if isinstance(value, tuple):
        value = value[-1] if value else None
    try:
        return None if value is None or isinstance(value, bool) else int(value)
    except (ValueError, OverflowError):
        return None


def effective(preset: Preset, name: str) -> Argument | None:
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


def skipped_files(config: Config) -> tuple[str, ...]:
    """Return what to say of files in folders of models whose names are not UTF-8."""
    where = config.where("model_dirs")
    return tuple(f"{where}: {one.warning}" for one in config.folders if one.warning)


def warnings(config: Config) -> tuple[str, ...]:
    """Return what will work, but probably not as meant; one line each, with its place."""
    found = [
        f"{config.where('model_dirs')}: {folder.path}: {folder.problem}"
        for folder in config.folders
        if folder.problem
    ]
    found += skipped_files(config)
    if not config.models:
        found.append(f"{config.where('models')}: there is no model yet: `lswap pull` adds one")
    for preset in config.models.values():
        found += _on_waiting(preset, config)
        found += _on_sleep(preset, config)
        found += _on_port(preset, config)
        for number, way in enumerate(variant_presets(preset)):
            place = f"models.{preset.id}" + (f".variants[{number}]" if way.variant else "")
            said = (*_on_share(way), *_on_fit(way), *_on_keep_kv(way))
            found += [f"{config.where(place)}: {each}" for each in said]
    return tuple(found)


def _on_waiting(preset: Preset, config: Config) -> Iterator[str]:
    timeout, max_wait = config.policy.queue.timeout, config.policy.max_wait
    if timeout < max_wait + preset.drain_timeout:
        yield (
            f"{config.where('policy.queue.timeout')}: a request gives up after "
            f"{format_duration(timeout)}, but others may keep the memory {preset.id} holds for "
            f"max_wait + drain_timeout = {format_duration(max_wait + preset.drain_timeout)}"
        )


def _on_sleep(preset: Preset, config: Config) -> Iterator[str]:
    if preset.sleep is not None and preset.ttl is not None and preset.ttl <= preset.sleep:
        yield (
            f"{config.where(f'models.{preset.id}')}: it never sleeps: ttl unloads it after "
            f"{format_duration(preset.ttl)}, before sleep = {format_duration(preset.sleep)}"
        )


def _on_port(preset: Preset, config: Config) -> Iterator[str]:
    """Warn of a `cmd` that starts a container, whose port must be allowed (`served_by`)."""
    if preset.cmd is None or preset.cmd.takes_socket or preset.served_by != "cmd":
        return
    if (name := starts_container(preset.cmd.words)) is not None:
        place = config.where(f"models.{preset.id}.cmd")
        what = f"{name} starts a container, which holds the port"
        yield f"{place}: {what} - add `served_by: container`"


def _on_share(preset: Preset) -> Iterator[str]:
    size = number(preset, "ctx-size") or 0
    share = context_per_request(preset)
    if share is not None and share * 2 < size:
        yield (
            f"a request gets {share} tokens of context: {slots(preset)} slots divide "
            f"ctx-size {size} - set kv-unified: true, or ctx-size: {size * slots(preset)}"
        )


def _on_fit(preset: Preset) -> Iterator[str]:
    # What is set is never changed (common/fit.cpp): the context only when it is left to the model,
    # the offload only when it is left to llama-server.
    is_set = (number(preset, "ctx-size") or 0) > 0
    layers = effective(preset, "n-gpu-layers")
    if preset.fit == "shrink" and is_set and layers not in (None, "auto", -1, "-1"):
        yield (
            "fit: shrink changes nothing, because args set both ctx-size and n-gpu-layers - "
            "leave one of them out"
        )
    if preset.fit == "exact" and effective(preset, "fit-ctx") is not None:
        yield "fit-ctx does nothing without fit: shrink"


def _on_keep_kv(preset: Preset) -> Iterator[str]:
    if not preset.keep_kv:
        return
    if reason := keeps_nothing(preset):
        yield f"keep_kv does nothing: {reason}"
        return
    if preset.sleep is not None:
        yield "keep_kv keeps nothing of a model that has gone to sleep: llama-server forgot it all"
    if preset.args.get("mmproj"):
        yield "keep_kv with a projector: a llama-server that cannot save images keeps nothing"
