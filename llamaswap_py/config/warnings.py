"""Warnings about a valid file: settings that work, but probably not as their author means."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llamaswap_py.config.forms import Fit
from llamaswap_py.config.model_forms import starts_container
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.llamacpp.context_size import (
    context_asked,
    context_per_request,
    gives_context,
    least_context,
    slots,
)
from llamaswap_py.llamacpp.slots import keeps_nothing
from llamaswap_py.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llamaswap_py.config.sections import Config, Preset


def skipped_files(config: Config) -> tuple[str, ...]:
    """Return a warning for each folder of models with file names that are not UTF-8."""
    where = config.where("model_dirs")
    return tuple(f"{where}: {one.warning}" for one in config.folders if one.warning)


def warnings(config: Config) -> tuple[str, ...]:
    """Return all warnings about a configuration, each one line with its place."""
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
            said = (*_on_share(way), *_on_fit(way, config, place), *_on_keep_kv(way))
            found += [f"{config.where(place)}: {each}" for each in said]
    return tuple(found)


def _on_waiting(preset: Preset, config: Config) -> Iterator[str]:
    timeout, max_wait = config.policy.queue.timeout, config.policy.max_wait
    if timeout < max_wait + preset.drain_timeout:
        yield (
            f"{config.where('policy.queue.timeout')}: a request waits at most "
            f"{format_duration(timeout)}, but {preset.id} may hold the memory for max_wait + "
            f"drain_timeout = {format_duration(max_wait + preset.drain_timeout)} - raise "
            "policy.queue.timeout above that"
        )


def _on_sleep(preset: Preset, config: Config) -> Iterator[str]:
    if preset.sleep is not None and preset.ttl is not None and preset.ttl <= preset.sleep:
        yield (
            f"{config.where(f'models.{preset.id}')}: sleep ({format_duration(preset.sleep)}) does "
            f"nothing, because ttl unloads the model after {format_duration(preset.ttl)} - make "
            "sleep shorter than ttl, or remove it"
        )


def _on_port(preset: Preset, config: Config) -> Iterator[str]:
    """Warn of a `cmd` that starts a container without `served_by: container`."""
    if preset.cmd is None or preset.cmd.takes_socket or preset.served_by != "cmd":
        return
    if (name := starts_container(preset.cmd.words)) is not None:
        place = config.where(f"models.{preset.id}.cmd")
        what = f"{name} starts a container, which holds the port"
        yield f"{place}: {what} - add `served_by: container`"


def _on_share(preset: Preset) -> Iterator[str]:
    size = context_asked(preset)
    share = context_per_request(preset)
    if share is not None and share * 2 < size:
        yield (
            f"a request gets {share} tokens of context: {slots(preset)} slots divide "
            f"ctx-size {size} - set kv-unified: true, or ctx-size: {size * slots(preset)}"
        )


def _on_fit(preset: Preset, config: Config, place: str) -> Iterator[str]:
    """Warn of limits of `fit` that the preset itself makes useless."""
    fit = preset.fit
    if not fit.chooses:
        if least_context(preset) is not None:
            yield "fit-ctx does nothing with fit: exact"
        return
    if f"{place}.fit" not in config.lines:
        return  # what `defaults` say is for other presets, too
    if gives_context(preset) and (fit.least, fit.want) != (Fit().least, Fit().want):
        yield "fit.context changes nothing, because args set ctx-size - leave one of them out"
    named = {device: size for device, size in fit.margin.devices.items() if size}
    kept = config.memory.margin
    if named and all(size <= kept.of(device) for device, size in named.items()):
        yield "fit.margin changes nothing, because memory.margin keeps as much free"


def _on_keep_kv(preset: Preset) -> Iterator[str]:
    if not preset.keep_kv:
        return
    if reason := keeps_nothing(preset):
        yield f"keep_kv does nothing: {reason}"
        return
    if preset.sleep is not None:
        yield (
            "keep_kv saves nothing once the model sleeps, because llama-server then drops its KV "
            "cache - remove sleep"
        )
    if preset.args.get("mmproj"):
        yield (
            "keep_kv saves nothing if this llama-server cannot save images, which the model "
            "takes (it has a projector)"
        )
