"""Values of llama-server's options: finds those it would misread, and how to write them.

llama-server reads numbers with std::stoi and std::stof, which stop at the first character that does
not fit: they read `8k` as 8. The binary's `--help` tells which kind of value an option takes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from llamaswap_py.llamacpp.path_options import PATH_LISTS
from llamaswap_py.units import parse_tokens

if TYPE_CHECKING:
    from llamaswap_py.llamacpp.options import Argument, Option

Kind: TypeAlias = Literal["int", "float", "number"]
"""Kinds of numbers; `number`: the help does not say which of the other two."""

_FRACTIONS: Final = frozenset({"rope-scale", "rope-freq-base", "rope-freq-scale", "defrag-thold"})
"""Options that take fractions, although the default in their help does not show it."""
_DEFAULT: Final = re.compile(r"default: (-?[0-9]+(\.[0-9]+)?)(?![\w.])")
_NUMERIC: Final = re.compile(r"N|P|L|[A-Z]+|<[0-9]+\.\.\.[0-9]+>")
_SERIES: Final = re.compile(r"([A-Za-z]+)0,\1[0-9,]*.*")
_WORD: Final = re.compile(r"'([a-z][a-z-]*)'")
_CHOICES: Final = re.compile(r"\[([\w|-]+)\]|\{([\w,-]+)\}|<([\w-]+(?:\|[\w-]+)+)>")
_ALLOWED: Final = re.compile(r"allowed values: ((?:[\w-]+, )*[\w-]+)")
_SYNONYMS: Final = {
    "on": ("enabled", "true", "1"),
    "off": ("disabled", "false", "0"),
    "auto": ("-1",),
}
"""What is_truthy, is_falsey and is_autoy in common/arg.cpp take besides."""

_WHOLE: Final = re.compile(r"[+-]?[0-9]+", re.ASCII)
_FRACTION: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", re.ASCII)
_EITHER: Final = re.compile(rf"{_DECIMAL.pattern}(?:[eE]-[0-9]+)?", re.ASCII)
_SEPARATED: Final = re.compile(r"[+-]?[0-9]{1,3}(?:([,_' ])[0-9]{3})(?:\1[0-9]{3})*", re.ASCII)
_GROUPED: Final = re.compile(r"[+-]?[0-9]+(?:_[0-9]+)+", re.ASCII)
_HEX: Final = re.compile(r"0[xX][0-9a-fA-F]+", re.ASCII)
_TIMES: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kKmM])(?:i?[bB]?)", re.ASCII)
_FACTORS: Final = {"k": 1024, "m": 1024 * 1024}
_LASTS: Final = re.compile(r"([0-9]+) ?(s|m|min|h)", re.ASCII)
_SECONDS: Final = {"s": 1, "m": 60, "min": 60, "h": 3600}
_INT: Final = range(-(2**31), 2**31)
_COUNTS: Final = frozenset({"ctx-size", "batch-size", "ubatch-size"})
"""Token ids, which llama-server keeps without a sign: it turns -1 into 4294967295."""


REPEATED: Final = PATH_LISTS | {"override-tensor", "override-kv", "logit-bias"}
"""Options that may be repeated; each one adds to the ones before."""


TOKENS: Final = _COUNTS | {
    *("fit-ctx", "ctx-size-draft", "kv-unified-per-slot", "predict", "keep", "cache-reuse"),
    *("yarn-orig-ctx", "checkpoint-min-step", "image-min-tokens", "image-max-tokens"),
    *("grp-attn-w", "reasoning-budget"),
}
"""Options whose value is a number of tokens."""


def token_count(name: str, value: bool | int | float | str) -> bool | int | float | str:
    """Return the number that `8k` means where an option counts tokens, else the value itself."""
    if name not in TOKENS or not isinstance(value, str):
        return value
    return value if (tokens := parse_tokens(value)) is None else tokens


class ValueFault(NamedTuple):
    """Why a value is wrong; `instead` is the right one, "" if that is not certain."""

    message: str
    remedy: str
    instead: str = ""


def number_kind(option: Option) -> Kind | None:
    """Return what kind of number an option takes by its help; None when it takes none."""
    hint = option.hint
    if not _NUMERIC.fullmatch(hint):
        return None
    default = _DEFAULT.search(option.description)
    if hint != "N" and hint[0] != "<" and default is None and len(hint) > 1:
        return None  # FNAME, TYPE
    if hint == "M":
        return None  # a mask of processors: hexadecimal digits
    if default is not None:
        return "float" if default[2] else "int"
    names = {each.lstrip("-") for each in option.names}
    return "float" if names & _FRACTIONS else "number"


def choices(option: Option) -> tuple[str, ...]:
    """Return the words that an option takes, if its help lists them all."""
    if (match := _CHOICES.fullmatch(option.hint)) is not None:
        listed = next(group for group in match.groups() if group)
        return tuple(re.split(r"[|,]", listed))
    allowed = _ALLOWED.search(option.description)
    return tuple(allowed[1].split(", ")) if allowed is not None and option.hint == "TYPE" else ()


def fault_of(name: str, text: str, option: Option) -> ValueFault | None:
    """Return why llama-server would misread or refuse one value, None if it would not."""
    if known := choices(option):
        bare = option.hint.startswith("[")
        taken = [*known, *(word for one in known if bare for word in _SYNONYMS.get(one, ()))]
        if text in taken:
            return None
        said = ", ".join(known)
        return ValueFault(f"{text!r} is none of {said}", f"write {name}: {_closest(text, known)}")
    if (kind := number_kind(option)) is not None:
        if text in _WORD.findall(option.description):
            return None
        lasts = _LASTS.fullmatch(text) if "seconds" in option.description else None
        if lasts is not None:
            meant = str(int(lasts[1]) * _SECONDS[lasts[2]])
            message = f"{text!r} is not a number of seconds"
            return ValueFault(message, f"write {name}: {meant}", meant)
        fault = _number(name, text, kind)
        if fault is None and kind == "int" and option.hint == "N" and int(text) not in _INT:
            return ValueFault(f"{text} is more than llama-server counts", f"at most {_INT[-1]}")
        if (
            fault is None
            and text.startswith("-")
            and _COUNTS & {each.lstrip("-") for each in option.names}
        ):
            return ValueFault(f"{text} is below 0", f"write {name}: 0 or more, or take it out")
        return fault
    if _SERIES.fullmatch(option.hint):
        for part in re.split(r"[,/]", text):
            if (fault := _number(name, part.strip(), "number")) is not None:
                return ValueFault(
                    fault.message, f"write numbers with commas between them: {name}: 3,1"
                )
    if option.hint == "START END":
        return next(filter(None, (_number(name, each, "int") for each in text.split())), None)
    return None


def _number(name: str, text: str, kind: Kind) -> ValueFault | None:
    pattern = {"int": _WHOLE, "float": _FRACTION, "number": _EITHER}[kind]
    if pattern.fullmatch(text):
        return None
    meant = _meant(text)
    what = "a whole number" if kind == "int" else "a number"
    if meant is None or (kind == "int" and not _WHOLE.fullmatch(meant)):
        return ValueFault(f"{text!r} is not {what}", f"write {what} in digits")
    read = re.match(r"\s*([+-]?[0-9]+)", text)
    misread = f": llama-server would read {read[1]}" if read and read[1] != meant else ""
    return ValueFault(f"{text!r} is not {what}{misread}", f"write {name}: {meant}", meant)


def _meant(text: str) -> str | None:
    """Return the number that a text in another notation means, None if it is not clear."""
    text = text.strip()
    if _DECIMAL.fullmatch(text):
        value = float(text)
        return str(int(value)) if value.is_integer() and "." in text else text
    if _SEPARATED.fullmatch(text) or _GROUPED.fullmatch(text):
        return re.sub(r"[,_' ]", "", text)
    if _HEX.fullmatch(text):
        return str(int(text, 16))
    if (times := _TIMES.fullmatch(text)) is not None:
        return f"{float(times[1]) * _FACTORS[times[2].lower()]:.0f}"
    if _FRACTION.fullmatch(text) and abs(value := float(text)) < float(_INT[-1]):
        return str(int(value)) if value.is_integer() else str(value)
    return None


def _closest(text: str, known: tuple[str, ...]) -> str:
    lowered = text.lower()
    return next((word for word in known if word.lower() == lowered), " or ".join(known))


def word(value: bool | int | float | str) -> str:
    """Return one value as a word of a command line."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return repr(value) if isinstance(value, int | float) else value


def words(value: Argument) -> tuple[str, ...]:
    """Return each value of an option that may be repeated as a word."""
    return tuple(map(word, value)) if isinstance(value, tuple) else (word(value),)
