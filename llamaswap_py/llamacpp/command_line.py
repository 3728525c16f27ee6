"""llama-server's command line: the given options, their spelling, and those lswap adds. Pure.

lswap always passes some words (docs/design/engine.md, "Spawning"); they are here. The binary's
`--help` tells an option's names and whether it takes a value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, NamedTuple

from llamaswap_py.llamacpp.option_values import fault_of, words
from llamaswap_py.llamacpp.option_values import word as as_word
from llamaswap_py.llamacpp.options import (
    Option,
    OptionTable,
    Owned,
    is_negation,
    long_name,
    switched,
    word_for,
)
from llamaswap_py.llamacpp.renamed_options import GivenOption, carry_over
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from llamaswap_py.llamacpp.options import Argument, Given

SLEEP: Final = "sleep-idle-seconds"
SLOT_FOLDER: Final = "slot-save-path"
"""The option that names the folder where slots are saved."""
# The default pool stalls under bursts; slots + 16 threads is the least that measured healthy.
_SPARE_HTTP_THREADS: Final = 16
SMALL: Final = ("--ctx-size", "512", "--parallel", "1", "--threads", "1")
"""What a trial of an engine with a tiny model needs."""
WRONG: Final[Mapping[str, tuple[str, ...]]] = {
    "an unknown argument": ("--no-such-flag",),
    "a value that is not a number": ("--ctx-size", "plenty"),
}
"""Words that each llama-server refuses, by what is wrong with them."""


class Options(NamedTuple):
    """Options given in another place than a preset."""

    args: Mapping[str, Argument]
    extra: tuple[str, ...] = ()


def number(given: Given, name: str) -> int | None:
    """Return the whole number that an option ends up with, None where it has none."""
    value = effective(given, name)
    if isinstance(value, tuple):
        value = value[-1] if value else None
    try:
        return None if value is None or isinstance(value, bool) else int(value)
    except (ValueError, OverflowError):
        return None


def effective(given: Given, name: str) -> Argument | None:
    """Return the value llama-server ends up with: `extra` comes last and wins."""
    value: Argument | None = given.args.get(name)
    if f"no-{name}" in given.args:
        value = not given.args[f"no-{name}"]
    words = (*given.extra, "-")
    for word, following in pairwise(words):
        if word.startswith("-") and long_name(word) == name:
            value = True if following.startswith("--") or following == "-" else following
        elif word.startswith("-") and long_name(word) in (f"no-{name}", "no-kvu") and "kv" in name:
            value = False
    return value


def place_of_slot_folder(given: Given) -> str:
    """Return where `slot-save-path` is given: `args.slot-save-path`, `extra`, or "" for nowhere."""
    if SLOT_FOLDER in given.args:
        return f"args.{SLOT_FOLDER}"
    said = (word.partition("=")[0] for word in given.extra if word.startswith("-"))
    return "extra" if any(long_name(word) == SLOT_FOLDER for word in said) else ""


# What lswap sets itself


def own_words(
    table: OptionTable,
    *,
    model: str,
    alias: str,
    cache_ram: int,
    requests: int,
    sleep: float | None,
) -> list[str]:
    """Return the words that lswap adds itself, without those that an older binary does not know.

    `cache_ram` in bytes, `requests` at once, `sleep` in seconds.
    """
    found = ["--model", model]
    for name, value in _own_options(alias, cache_ram, requests, sleep):
        if table.knows(name):
            found += [f"--{name}"] if value is None else [f"--{name}", value]
    return found


def _own_options(
    alias: str, cache_ram: int, requests: int, sleep: float | None
) -> Iterator[tuple[str, str | None]]:
    yield "alias", alias
    yield "metrics", None
    yield "slots", None
    yield "offline", None
    yield "log-jsonl", None
    yield "log-colors", "off"
    yield "cors-origins", "localhost"  # it warns of pages of any origin, which never reach it
    yield "cache-ram", str(cache_ram // MIB)
    yield "threads-http", str(requests + _SPARE_HTTP_THREADS)
    yield "fit", "off"  # what is open is chosen by lswap, and written out
    if sleep is not None:  # it takes whole seconds, from 1 on
        yield SLEEP, str(math.ceil(sleep))


def listen_words(socket_path: str | None) -> tuple[str, ...]:
    """Return the words for the address to listen at: a unix socket, or a free port of 127.0.0.1."""
    if socket_path is not None:
        return ("--host", socket_path)
    return ("--host", "127.0.0.1", "--port", "0")


# How options are written


@dataclass(frozen=True, slots=True)
class Setting:
    """The result for one given option: its words, or a message why there are none."""

    name: str
    words: tuple[str, ...] = ()
    message: str = ""
    remedy: str = ""


def settings_of(given: Iterable[GivenOption], table: OptionTable) -> list[Setting]:
    """Return a setting for each option, the last one where two names mean the same option."""
    settings: dict[str, Setting] = {}
    for one in carry_over(given, table):
        found = table.usable(*one.names)
        identity = one.name if found is None else found[0].name
        settings.pop(identity, None)
        settings[identity] = _setting(one, found, table)
    return list(settings.values())


def refusal(spelling: str, mine: Owned) -> tuple[str, str]:
    """Return message and remedy for an option that lswap sets itself."""
    return f"lswap sets {spelling.partition('=')[0]} itself: {mine.reason}", mine.instead


def _setting(one: GivenOption, found: tuple[Option, str] | None, table: OptionTable) -> Setting:
    place = one.place
    if mine := table.owned_word(f"--{place}"):
        message, remedy = refusal(f"--{place}", mine)
        return Setting(place, message=message, remedy=remedy)
    if not table.is_known:
        return _unchecked(place, one.value)
    if found is None:
        gone = table.find(one.written) or table.find(one.name)
        if gone is not None:
            return Setting(place, message=gone.description, remedy="see llama-server --help")
        remedy = table.nearest(one.written or one.name) or "see llama-server --help"
        return Setting(place, message="this llama-server has no such option", remedy=remedy)
    option, spelling = found
    if option.values:
        return _valued(place, spelling, one.value, option)
    return _switch(place, spelling, one.value, option)


def _unchecked(name: str, value: Argument) -> Setting:
    """Return the setting of an option that no table has, spelled as llama.cpp usually does."""
    if isinstance(value, bool):
        return Setting(name, (f"--{name}" if value else f"--no-{name}",))
    return Setting(name, tuple(word for each in words(value) for word in (f"--{name}", each)))


def _switch(place: str, spelling: str, value: Argument, option: Option) -> Setting:
    on = None if isinstance(value, tuple) else switched(value)
    if on is None:
        return Setting(place, message="this option takes no value", remedy="write true or false")
    if is_negation(option, spelling):
        on = not on
    if on:
        return Setting(place, (word_for(option, spelling),))
    # Without a negative form an option can only be switched on: leaving it out is `false`.
    return Setting(place, option.negated[-1:])


def _valued(place: str, spelling: str, value: Argument, option: Option) -> Setting:
    said: list[str] = []
    name = word_for(option, spelling)
    for each in value if isinstance(value, tuple) else (value,):
        if isinstance(each, bool) and "on|off" not in option.hint:
            remedy = f"write {place}: {option.hint}"
            return Setting(place, message="this option takes a value", remedy=remedy)
        text = as_word(each)
        following = text.split() if option.values > 1 else [text]
        if len(following) != option.values:
            remedy = f"write {place}: {option.hint}"
            return Setting(place, message=f"takes {option.values} values", remedy=remedy)
        if (fault := fault_of(place, text, option)) is not None:
            return Setting(place, message=fault.message, remedy=fault.remedy)
        said += [name, *following]
    return Setting(place, tuple(said))
