"""A preset -> the words after llama-server's path, checked against what that binary knows.

The child adds `--host` and `--port` itself. Everything else lswap always passes is here (the list
is engine.md's "Spawning"); of those, what an older binary does not know is left out.
"""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from llamaswap_py.config.context import slots
from llamaswap_py.config.options import INSTEAD, Owned, long_name, owned, plain_name
from llamaswap_py.config.preset import variant_presets
from llamaswap_py.config.values import HOST
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llamaswap_py.config.records import Config, Preset
    from llamaswap_py.config.values import Argument, PerDevice

# The default pool stalls under bursts; slots + 16 threads is the least that measured healthy.
SPARE_HTTP_THREADS: Final = 16
_SLOT_FOLDER: Final = "slot-save-path"


class Option(Protocol):
    """One option of a located binary, as its `--help` says; names have their dashes."""

    @property
    def names(self) -> tuple[str, ...]:
        """The spellings that give it or switch it on: `-np`, `--parallel`."""

    @property
    def negated(self) -> tuple[str, ...]:
        """The spellings that switch it off: `--no-warmup`."""

    @property
    def name(self) -> str:
        """The spelling to use."""

    @property
    def values(self) -> int:
        """How many words follow it; 0 for a switch."""

    @property
    def hint(self) -> str:
        """What the help says about its values: `N`, `[on|off|auto]`."""

    @property
    def description(self) -> str: ...

    @property
    def removed(self) -> bool:
        """Whether the binary knows it only to say that it is gone."""


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
    table = _table_of(options)
    words = ["--model", preset.model]
    size = config.memory.cache_ram if cache_ram is None else cache_ram
    for name, value in (*_always(preset, size), *_chosen(preset, config, devices)):
        if table.knows(name):
            words += [f"--{name}"] if value is None else [f"--{name}", value]
    for setting in _settings(preset, table):
        words += setting.words
    return (*words, *preset.extra)


def check_args(
    preset: Preset, config: Config, options: Mapping[str, Option] | None
) -> tuple[PresetProblem, ...]:
    """Return what is wrong with a preset's `args` and `extra`: owned, unknown, misused options."""
    table = _table_of(options)
    found = [
        (key, f"this llama-server has no --{option}", "take a newer one, or remove the key")
        for key, option in _needed(preset)
        if not table.knows(option)
    ]
    found += [
        (f"args.{setting.name}", setting.message, setting.remedy)
        for setting in _settings(preset, table)
        if setting.message
    ]
    found += [("extra", *_refusal(word, mine)) for word, mine in table.owned_words(preset.extra)]
    if preset.keep_kv and (key := _own_slot_folder(preset)):
        found.append((key, "keep_kv has a folder of its own for slots", "keep one of the two"))
    return tuple(
        PresetProblem(preset.id, config.where(_place(config, preset, key)), message, remedy)
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


def _place(config: Config, preset: Preset, key: str) -> str:
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


def _settings(preset: Preset, table: _Table) -> list[_Setting]:
    """Return a setting for each option, the last one where two names mean the same option."""
    settings: dict[str, _Setting] = {}
    for name, value in preset.args.items():
        option = table.find(name)
        identity = name if option is None else option.name
        settings.pop(identity, None)
        settings[identity] = _setting(name, value, option, table)
    return list(settings.values())


def _setting(name: str, value: Argument, option: Option | None, table: _Table) -> _Setting:
    if mine := table.owned_word(f"--{name}"):
        message, remedy = _refusal(f"--{name}", mine)
        return _Setting(name, message=message, remedy=remedy)
    if option is None:
        if table.is_known:
            remedy = table.instead(name, value) or table.nearest(name) or "see llama-server --help"
            return _Setting(name, message="this llama-server has no such option", remedy=remedy)
        return _unchecked(name, value)
    if option.removed:
        return _Setting(name, message=option.description, remedy="see llama-server --help")
    return _valued(name, value, option) if option.values else _switch(name, value, option)


def _unchecked(name: str, value: Argument) -> _Setting:
    """Return the setting of an option nobody can look up, as llama.cpp usually spells it."""
    if isinstance(value, bool):
        return _Setting(name, (f"--{name}" if value else f"--no-{name}",))
    values = value if isinstance(value, tuple) else (value,)
    return _Setting(name, tuple(word for each in values for word in (f"--{name}", _word(each))))


def _switch(name: str, value: Argument, option: Option) -> _Setting:
    on = value if isinstance(value, bool) else _SWITCH_WORDS.get(str(value).lower())
    if on is None:
        return _Setting(name, message="this option takes no value", remedy="write true or false")
    if f"--{name}" in option.negated or f"-{name}" in option.negated:
        on = not on
    if on:
        return _Setting(name, (option.name,))
    # Without a negative form an option can only be switched on: leaving it out is `false`.
    return _Setting(name, option.negated[-1:])


def _valued(name: str, value: Argument, option: Option) -> _Setting:
    words: list[str] = []
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, bool) and "on|off" not in option.hint:
            remedy = f"write {name}: {option.hint}"
            return _Setting(name, message="this option takes a value", remedy=remedy)
        following = _word(each).split() if option.values > 1 else [_word(each)]
        if len(following) != option.values:
            remedy = f"write {name}: {option.hint}"
            return _Setting(name, message=f"takes {option.values} values", remedy=remedy)
        words += [option.name, *following]
    return _Setting(name, tuple(words))


_SWITCH_WORDS: Final = {"on": True, "yes": True, "off": False, "no": False}


def _word(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return repr(value) if isinstance(value, int | float) else value


_TABLES: Final[dict[int, tuple[Mapping[str, Option] | None, _Table]]] = {}
_MOST_TABLES: Final = 8


def _table_of(options: Mapping[str, Option] | None) -> _Table:
    """Return the table of a binary, made once: it has 400 spellings, a file 10,000 presets."""
    made = _TABLES.get(id(options))
    if made is None or made[0] is not options:
        if len(_TABLES) >= _MOST_TABLES:
            _TABLES.clear()
        made = _TABLES[id(options)] = (options, _Table(options))
    return made[1]


class _Table:
    """The binary's options by any spelling without dashes; None: everything is let through."""

    def __init__(self, options: Mapping[str, Option] | None) -> None:
        self.is_known = options is not None
        self._by_name: dict[str, Option] = {}
        for option in (options or {}).values():
            for spelling in (*option.names, *option.negated):
                self._by_name[plain_name(spelling)] = option

    def find(self, name: str) -> Option | None:
        return self._by_name.get(name)

    def knows(self, name: str) -> bool:
        return not self.is_known or name in self._by_name

    def owned_words(self, words: tuple[str, ...]) -> Iterator[tuple[str, Owned]]:
        """Return the words of a command line that are lswap's, with the reason."""
        for word in words:
            if mine := self.owned_word(word):
                yield word, mine

    def owned_word(self, word: str) -> Owned | None:
        """Return why a word is lswap's, if it is: `--host`, `--host=x`, `-a`, `--no-slots`."""
        if not word.startswith("-"):
            return None
        name = plain_name(word.partition("=")[0])
        if mine := owned(name):
            return mine
        option = self.find(name)
        spellings = (*option.names, *option.negated) if option is not None else ()
        return next((mine for spelling in spellings if (mine := owned(plain_name(spelling)))), None)

    def instead(self, name: str, value: Argument) -> str:
        """Return what replaced an option that llama-server used to have; empty if nothing did."""
        plain = plain_name(name)
        on = value is not False and str(value).lower() not in ("0", "off", "false")
        switch = plain.removeprefix("no-")
        found = INSTEAD.get(switch if on is (plain == switch) else f"no-{switch}", "")
        return f"write {found}" if found and self.find(found.partition(":")[0]) else ""

    def nearest(self, name: str) -> str:
        close = difflib.get_close_matches(name, self._by_name, n=1, cutoff=0.6)
        return f"did you mean {long_name(close[0])}?" if close else ""
