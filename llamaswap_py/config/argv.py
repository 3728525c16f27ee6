"""A preset -> the words after llama-server's path, checked against what that binary knows.

The child adds `--host` and `--port` itself. Everything else lswap always passes is here
(docs/design/engine.md, "Spawning"); of those, what an older binary does not know is left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llamaswap_py.config.context import slots
from llamaswap_py.config.forms import HOST
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.llamacpp.option_values import fault_of, words
from llamaswap_py.llamacpp.option_values import word as as_word
from llamaswap_py.llamacpp.options import (
    Option,
    OptionTable,
    Owned,
    is_negation,
    long_name,
    switched,
    table_of,
    word_for,
)
from llamaswap_py.llamacpp.renamed_options import Said, carry_over
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llamaswap_py.config.forms import PerDevice
    from llamaswap_py.config.records import Config, Preset
    from llamaswap_py.llamacpp.options import Argument

# The default pool stalls under bursts; slots + 16 threads is the least that measured healthy.
SPARE_HTTP_THREADS: Final = 16
_SLOT_FOLDER: Final = "slot-save-path"
__all__ = [
    "Option",
    "PresetProblem",
    "build_args",
    "check_args",
    "check_preset",
    "place_of",
]


@dataclass(frozen=True, slots=True)
class PresetProblem:
    """Why one preset cannot work, while the others serve.

    `where` is like `config.yaml:12: models.a.args.x`.
    """

    preset: str
    where: str
    message: str
    remedy: str

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}"
        return f"{text} - {self.remedy}" if self.remedy else text


def build_args(
    preset: Preset,
    config: Config,
    options: Mapping[str, Option] | None,
    *,
    devices: Sequence[str] | None = None,
    cache_ram: int | None = None,
) -> tuple[str, ...]:
    """Return the words after the binary, without `--host` and `--port`.

    `preset` may be one of variant_presets(). `options` is the located binary's table (None:
    unknown, nothing is left out), `devices` the placement, in the order in which the child sees it
    (None: as the preset says), `cache_ram` bytes (None: as the file says). Arguments that
    check_args() names are left out.
    """
    table = table_of(options)
    command = ["--model", preset.model]
    size = config.memory.cache_ram if cache_ram is None else cache_ram
    for name, value in (*_always(preset, size), *_chosen(preset, config, devices)):
        if table.knows(name):
            command += [f"--{name}"] if value is None else [f"--{name}", value]
    for setting in _settings(preset, config, table):
        command += setting.words
    return (*command, *preset.extra)


def check_args(
    preset: Preset, config: Config, options: Mapping[str, Option] | None
) -> tuple[PresetProblem, ...]:
    """Return what is wrong with a preset's `args` and `extra`: owned, unknown, misused options."""
    table = table_of(options)
    found = [
        (key, f"this llama-server has no --{option}", "take a newer one, or remove the key")
        for key, option in _needed(preset)
        if not table.knows(option)
    ]
    found += [
        (f"args.{setting.name}", setting.message, setting.remedy)
        for setting in _settings(preset, config, table)
        if setting.message
    ]
    found += [("extra", *_refusal(word, mine)) for word, mine in table.owned_words(preset.extra)]
    if preset.keep_kv and (key := _own_slot_folder(preset)):
        found.append((key, "keep_kv has a folder of its own for slots", "keep one of the two"))
    return tuple(
        PresetProblem(preset.id, config.where(place_of(config, preset, key)), message, remedy)
        for key, message, remedy in found
    )


def check_preset(
    preset: Preset, config: Config, options: Mapping[str, Option] | None
) -> tuple[PresetProblem, ...]:
    """Return what check_args() says of a preset's variants, or of the preset that has none."""
    ways = variant_presets(preset)
    return tuple(dict.fromkeys(each for way in ways for each in check_args(way, config, options)))


def _always(preset: Preset, cache_ram: int) -> Iterator[tuple[str, str | None]]:
    yield "alias", preset.id
    yield "metrics", None
    yield "slots", None
    yield "offline", None
    yield "log-jsonl", None
    yield "log-colors", "off"
    yield "cors-origins", "localhost"  # it warns of pages of any origin, which never reach it
    yield "cache-ram", str(cache_ram // MIB)
    threads = max(slots(preset), preset.concurrency or 0) + SPARE_HTTP_THREADS
    yield "threads-http", str(threads)


def _chosen(
    preset: Preset, config: Config, devices: Sequence[str] | None
) -> Iterator[tuple[str, str]]:
    """Yield the options behind keys of the preset."""
    if preset.fit == "shrink":
        yield "fit", "on"
        yield "fit-target", _fit_target(preset, config.memory.margin, devices)
    else:
        yield "fit", "off"
    if preset.sleep is not None:  # it takes whole seconds, from 1 on
        yield "sleep-idle-seconds", str(math.ceil(preset.sleep))


def _needed(preset: Preset) -> Iterator[tuple[str, str]]:
    """Yield the keys of a preset that mean nothing without an option of llama-server."""
    if preset.fit == "shrink":
        yield "fit", "fit-target"
    if preset.sleep is not None:
        yield "sleep", "sleep-idle-seconds"


def _own_slot_folder(preset: Preset) -> str:
    """Return where a preset says `slot-save-path` itself, "" if it does not."""
    if _SLOT_FOLDER in preset.args:
        return f"args.{_SLOT_FOLDER}"
    said = (word.partition("=")[0] for word in preset.extra if word.startswith("-"))
    return "extra" if any(long_name(word) == _SLOT_FOLDER for word in said) else ""


def _fit_target(preset: Preset, margin: PerDevice, devices: Sequence[str] | None) -> str:
    """Return what is to stay free of each device, in MiB; a single value counts for all of them.

    An open placement gets the largest margin of any card.
    """
    if devices is None:
        devices = () if preset.device == "auto" else preset.device
    cards = [each for each in devices if each != HOST]
    if cards:
        sizes = [margin.of(each) for each in cards]
    elif devices:
        sizes = [margin.of(HOST)]
    else:
        named = (size for device, size in margin.devices.items() if device != HOST)
        sizes = [max((margin.default, *named))]
    targets = [str(-(-size // MIB)) for size in sizes]
    return targets[0] if len(set(targets)) == 1 else ",".join(targets)


def place_of(config: Config, preset: Preset, key: str) -> str:
    """Return where the file says `key`: in the variant, in the preset, or in the defaults."""
    own = f"models.{preset.id}.{key}"
    names = [each.name for each in preset.variants]
    inside = names.index(preset.variant) if preset.variant in names else None
    places = (f"models.{preset.id}.variants[{inside}].{key}", own, f"defaults.{key}")
    return next((place for place in places if place in config.lines), own)


def _refusal(spelling: str, mine: Owned) -> tuple[str, str]:
    return f"lswap sets {spelling.partition('=')[0]} itself: {mine.reason}", mine.instead


# One argument


@dataclass(frozen=True, slots=True)
class _Setting:
    """What one entry of `args` comes to: words, or a message why not."""

    name: str
    words: tuple[str, ...] = ()
    message: str = ""
    remedy: str = ""


def _settings(preset: Preset, config: Config, table: OptionTable) -> list[_Setting]:
    """Return a setting for each option, the last one where two names mean the same option."""
    settings: dict[str, _Setting] = {}
    for one in carry_over(_said(preset, config), table):
        found = table.usable(*one.names)
        identity = one.name if found is None else found[0].name
        settings.pop(identity, None)
        settings[identity] = _setting(one, found, table)
    return list(settings.values())


def _said(preset: Preset, config: Config) -> Iterator[Said]:
    """Yield the options of a preset, as they were written."""
    for name, value in preset.args.items():
        place = place_of(config, preset, f"args.{name}") if config.spelled else ""
        yield Said(name, value, config.spelled.get(place, ""))


def _setting(one: Said, found: tuple[Option, str] | None, table: OptionTable) -> _Setting:
    place = one.place
    if mine := table.owned_word(f"--{place}"):
        message, remedy = _refusal(f"--{place}", mine)
        return _Setting(place, message=message, remedy=remedy)
    if not table.is_known:
        return _unchecked(place, one.value)
    if found is None:
        gone = table.find(one.written) or table.find(one.name)
        if gone is not None:
            return _Setting(place, message=gone.description, remedy="see llama-server --help")
        remedy = table.nearest(one.written or one.name) or "see llama-server --help"
        return _Setting(place, message="this llama-server has no such option", remedy=remedy)
    option, spelling = found
    if option.values:
        return _valued(place, spelling, one.value, option)
    return _switch(place, spelling, one.value, option)


def _unchecked(name: str, value: Argument) -> _Setting:
    """Return the setting of an option nobody can look up, as llama.cpp usually spells it."""
    if isinstance(value, bool):
        return _Setting(name, (f"--{name}" if value else f"--no-{name}",))
    return _Setting(name, tuple(word for each in words(value) for word in (f"--{name}", each)))


def _switch(place: str, spelling: str, value: Argument, option: Option) -> _Setting:
    on = None if isinstance(value, tuple) else switched(value)
    if on is None:
        return _Setting(place, message="this option takes no value", remedy="write true or false")
    if is_negation(option, spelling):
        on = not on
    if on:
        return _Setting(place, (word_for(option, spelling),))
    # Without a negative form an option can only be switched on: leaving it out is `false`.
    return _Setting(place, option.negated[-1:])


def _valued(place: str, spelling: str, value: Argument, option: Option) -> _Setting:
    said: list[str] = []
    name = word_for(option, spelling)
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, bool) and "on|off" not in option.hint:
            remedy = f"write {place}: {option.hint}"
            return _Setting(place, message="this option takes a value", remedy=remedy)
        text = as_word(each)
        following = text.split() if option.values > 1 else [text]
        if len(following) != option.values:
            remedy = f"write {place}: {option.hint}"
            return _Setting(place, message=f"takes {option.values} values", remedy=remedy)
        if (fault := fault_of(place, text, option)) is not None:
            return _Setting(place, message=fault.message, remedy=fault.remedy)
        said += [name, *following]
    return _Setting(place, tuple(said))
