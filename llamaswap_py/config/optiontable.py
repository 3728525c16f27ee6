"""The options of one llama-server, as its `--help` has them, found by any of their spellings."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final, Protocol

from llamaswap_py.config.llama_options import Owned, long_name, owned, plain_name, spellings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from llamaswap_py.config.forms import Argument


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


_TABLES: Final[dict[int, tuple[Mapping[str, Option] | None, OptionTable]]] = {}
_MOST_TABLES: Final = 8


def table_of(options: Mapping[str, Option] | None) -> OptionTable:
    """Return the table of a binary, made once: it has 400 spellings, a file 10,000 presets."""
    made = _TABLES.get(id(options))
    if made is None or made[0] is not options:
        if len(_TABLES) >= _MOST_TABLES:
            _TABLES.clear()
        made = _TABLES[id(options)] = (options, OptionTable(options))
    return made[1]


class OptionTable:
    """The binary's options by any spelling without dashes; None: everything is let through."""

    def __init__(self, options: Mapping[str, Option] | None) -> None:
        self.is_known = options is not None
        self._by_name: dict[str, Option] = {}
        self._by_env: dict[str, tuple[Option, bool]] = {}
        for option in (options or {}).values():
            for spelling in (*option.names, *option.negated):
                self._by_name[plain_name(spelling)] = option
            variable: str | None = getattr(option, "env", None)
            if variable:
                self._by_env[variable] = option, True
                if option.negated:  # common_arg::get_env in common/arg.cpp
                    negated = variable.replace("LLAMA_ARG_", "LLAMA_ARG_NO_")
                    self._by_env[negated] = option, False

    def find(self, name: str) -> Option | None:
        """Return the option that has exactly this spelling."""
        return self._by_name.get(name)

    def find_env(self, name: str) -> tuple[Option, bool] | None:
        """Return the option that a variable sets, and whether it sets rather than unsets it."""
        return self._by_env.get(name)

    def knows(self, name: str) -> bool:
        """Return whether the binary has the option and uses it; True where nobody can tell."""
        option = self._by_name.get(name)
        return not self.is_known or (option is not None and not option.removed)

    def usable(self, *names: str) -> tuple[Option, str] | None:
        """Return the first option of these that the binary uses, and the spelling that it has.

        What was written comes first; another spelling of the same option is next.
        """
        for name in (*names, *(other for each in names for other in spellings(each))):
            option = self._by_name.get(name)
            if option is not None and not option.removed:
                return option, name
        return None

    def owned_words(self, words: tuple[str, ...]) -> Iterator[tuple[str, Owned]]:
        """Yield the words of a command line that are lswap's, with the reason."""
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
        names = (*option.names, *option.negated) if option is not None else ()
        return next((mine for each in names if (mine := owned(plain_name(each)))), None)

    def nearest(self, name: str) -> str:
        """Return a question that names the option that may be meant, or ""."""
        meant = _ELSEWHERE.get(plain_name(name).replace("_", "-").lower(), "")
        if self.usable(meant) is not None:
            return f"did you mean {meant}?"
        close = difflib.get_close_matches(name, self._by_name, n=1, cutoff=0.6)
        return f"did you mean {long_name(close[0])}?" if close else ""


def word_for(option: Option, name: str) -> str:
    """Return the binary's own word for a spelling without dashes: `--temp` stays `--temp`.

    A short one becomes the long name that llama.cpp's preset files use.
    """
    long = f"--{name}"
    return long if long in option.names else option.name


def is_negation(option: Option, name: str) -> bool:
    """Return whether a spelling without dashes is one that switches the option off."""
    return any(plain_name(each) == name for each in option.negated)


def switched(value: Argument) -> bool | None:
    """Return what a word means for a switch (is_truthy in common/arg.cpp), None if nothing."""
    if isinstance(value, bool):
        return value
    return _SWITCH_WORDS.get(str(value).lower())


_ELSEWHERE: Final = {
    **dict.fromkeys(
        ("context", "context-size", "context-length", "num-ctx", "max-model-len"), "ctx-size"
    ),
    **dict.fromkeys(("num-gpu", "gpu-layer-count"), "n-gpu-layers"),
    "num-thread": "threads",
    "num-batch": "batch-size",
    "num-predict": "predict",
    "num-parallel": "parallel",
}
"""What other programs call an option -> its name here."""
_SWITCH_WORDS: Final = {
    **dict.fromkeys(("on", "enabled", "true", "1", "yes"), True),
    **dict.fromkeys(("off", "disabled", "false", "0", "no"), False),
}
