"""A preset -> the arguments of its llama-server, checked against the options the binary has.

This module decides which options a preset sets; llamacpp/command_line.py writes them. `--host` and
`--port` are not among them: they are added when the process starts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamaswap_py.config.preset import variant_presets
from llamaswap_py.llamacpp.command_line import (
    SLEEP,
    own_words,
    place_of_slot_folder,
    refusal,
    settings_of,
)
from llamaswap_py.llamacpp.context_size import slots
from llamaswap_py.llamacpp.options import table_of
from llamaswap_py.llamacpp.renamed_options import GivenOption
from llamaswap_py.llamacpp.rpc import known_fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llamaswap_py.config.sections import Config, Preset
    from llamaswap_py.llamacpp.features import Option


@dataclass(frozen=True, slots=True)
class PresetProblem:
    """A mistake that stops one preset, while the others serve.

    `where` is like `config.yaml:12: models.a.args.x`. `kind` is that of the failure which requests
    for the preset get.
    """

    preset: str
    where: str
    message: str
    remedy: str
    kind: str = "config"

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}"
        return f"{text} - {self.remedy}" if self.remedy else text


def build_args(
    preset: Preset,
    config: Config,
    options: Mapping[str, Option] | None,
    *,
    cache_ram: int | None = None,
) -> tuple[str, ...]:
    """Return the arguments of the binary, without `--host` and `--port`.

    `preset` may be one of variant_presets(). `options` are those of the binary (None: unknown, so
    no argument is left out). `cache_ram` is in bytes (None: as the file says). Arguments that
    check_args() reports are left out.
    """
    table = table_of(options)
    command = own_words(
        table,
        model=preset.model,
        alias=preset.id,
        cache_ram=config.memory.cache_ram if cache_ram is None else cache_ram,
        requests=max(slots(preset), preset.concurrency or 0),
        sleep=preset.sleep,
    )
    for setting in settings_of(_said(preset, config), table):
        command += setting.words
    return (*command, *preset.extra)


def check_args(
    preset: Preset, config: Config, options: Mapping[str, Option] | None
) -> tuple[PresetProblem, ...]:
    """Return the mistakes in `args` and `extra`: options that lswap sets, unknown, or misused."""
    table = table_of(options)
    found = [
        (key, f"this llama-server has no --{option}", "take a newer one, or remove the key")
        for key, option in _needed(preset)
        if not table.knows(option)
    ]
    found += [
        (f"args.{setting.name}", setting.message, setting.remedy)
        for setting in settings_of(_said(preset, config), table)
        if setting.message
    ]
    found += [("extra", *refusal(word, mine)) for word, mine in table.owned_words(preset.extra)]
    if preset.keep_kv and (key := place_of_slot_folder(preset)):
        found.append((key, "keep_kv has its own folder for slots", "keep one of the two"))
    if (fault := known_fault(build_args(preset, config, options))) is not None:
        found.append(("args.rpc", *fault))
    return tuple(
        PresetProblem(preset.id, config.where(place_of(config, preset, key)), message, remedy)
        for key, message, remedy in found
    )


def check_preset(
    preset: Preset, config: Config, options: Mapping[str, Option] | None
) -> tuple[PresetProblem, ...]:
    """Return the mistakes of all variants of a preset, or of the preset if it has none."""
    ways = variant_presets(preset)
    return tuple(dict.fromkeys(each for way in ways for each in check_args(way, config, options)))


def _needed(preset: Preset) -> Iterator[tuple[str, str]]:
    """Yield the keys of a preset that need an option of llama-server, with that option."""
    if preset.sleep is not None:
        yield "sleep", SLEEP


def place_of(config: Config, preset: Preset, key: str) -> str:
    """Return where the file sets `key`: in the variant, in the preset, or in the defaults."""
    own = f"models.{preset.id}.{key}"
    names = [each.name for each in preset.variants]
    inside = names.index(preset.variant) if preset.variant in names else None
    places = (f"models.{preset.id}.variants[{inside}].{key}", own, f"defaults.{key}")
    return next((place for place in places if place in config.lines), own)


def _said(preset: Preset, config: Config) -> Iterator[GivenOption]:
    """Yield the options of a preset, as they are written in the file."""
    for name, value in preset.args.items():
        place = place_of(config, preset, f"args.{name}") if config.spelled else ""
        yield GivenOption(name, value, config.spelled.get(place, ""))
