"""Translates the options of a draft into those of the engine in use. Pure.

The source may have been written for another llama-server. Renamed or merged options are carried
over. Options that the engine does not have, or values that it would misread, are corrected or left
out, and noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

from llamaswap_py.importing.draft import Draft
from llamaswap_py.llamacpp.option_values import fault_of, word
from llamaswap_py.llamacpp.options import Option, OptionTable, plain_name, switched, word_for
from llamaswap_py.llamacpp.renamed_options import LOADING, GivenOption, carry_over

_NO_SUCH: Final = "this llama-server has no such option"
_USUAL_MARGIN: Final = 1024
"""MiB that llama.cpp leaves free on each device by default, as lswap does."""


def settle_margin(draft: Draft) -> None:
    """Lower `memory.margin` where the whole source asks for less than lswap keeps free.

    Each preset has its own margin in `fit`, but what stays free for all counts besides. The largest
    value counts, so that each model's own margin stays free.
    """
    if not draft.margins:
        return
    asked = [_mib(text) for text in draft.margins.values()]
    of_llama_server = [one for one in draft.models.values() if "cmd" not in one]
    everywhere = "[*]" in draft.margins or len(draft.margins) >= len(of_llama_server)
    kept = min(max(asked), _USUAL_MARGIN) if everywhere else _USUAL_MARGIN
    if kept != _USUAL_MARGIN:
        draft.setting("memory", "margin", f"{kept}MiB")
    for place, said in draft.margins.items():
        if _mib(said) < kept:
            text = f"lswap keeps {kept}MiB of every device free, for all models (`memory.margin`)"
            draft.note(f"{place}.--fit-target", text, said)


def _mib(text: str) -> int:
    return max((int(each) for each in text.split(",") if each.strip().isdigit()), default=0)


def fit_to_engines(draft: Draft, table_for: Callable[[str], OptionTable]) -> None:
    """Change the options of all presets of a draft; `table_for` knows each engine by its path."""
    defaults = draft.settings.get("defaults", {})
    inherited = {name: value for name, value in defaults.get("args", {}).items() if name in LOADING}
    _fit(defaults, "defaults", {}, table_for(""), draft)
    for name, preset in draft.models.items():
        if "cmd" not in preset:
            table = table_for(str(preset.get("engine", "")))
            _fit(preset, f"models.{name}", inherited, table, draft)


def _fit(
    preset: dict[str, Any],
    place: str,
    inherited: Mapping[str, Any],
    table: OptionTable,
    draft: Draft,
) -> None:
    args = preset.get("args", {})
    if not table.is_known:
        return
    if args.keys() & LOADING:  # how a file is loaded is one setting, said in several places
        args = {**inherited, **args}
    said = [GivenOption(name, tuple(v) if isinstance(v, list) else v) for name, v in args.items()]
    kept: dict[str, Any] = {}
    for one in carry_over(said, table):
        found = table.usable(*one.names)
        try:
            if found is None:
                raise ValueError(_unknown(one, table))
            option, spelling = found
            value = _value(one, option, partial(draft.note, f"{place}.--{one.place}"))
        except ValueError as error:
            draft.note(f"{place}.--{one.place}", f"left out: {error}", _text(one))
            continue
        kept[_key(option, spelling)] = value
    if "args" in preset and kept:
        preset["args"] = kept
    elif "args" in preset:
        del preset["args"]
    _fit_words(preset, place, table, draft)


def _fit_words(preset: dict[str, Any], place: str, table: OptionTable, draft: Draft) -> None:
    """Keep of `extra` the options that the engine has, with as many words as each takes."""
    kept: list[str] = []
    for option, *values in _groups(preset.pop("extra", [])):
        known = table.usable(plain_name(option.partition("=")[0]))
        if known is None and option.startswith("-"):
            draft.note(f"{place}.{option}", f"left out: {_NO_SUCH}", " ".join(values))
            continue
        taken = len(values) if known is None else known[0].values
        kept += [option, *values[:taken]]
        if lost := values[taken:]:
            draft.note(f"{place}.{option}", "left out: words that it does not take", " ".join(lost))
    if kept:
        preset["extra"] = kept


def _key(option: Option, spelling: str) -> str:
    """Return the name of an option in `args`: as it was written, if that is a long name."""
    if any(plain_name(each) == spelling for each in option.negated):
        return spelling
    return plain_name(word_for(option, spelling))


def _unknown(one: GivenOption, table: OptionTable) -> str:
    gone = table.find(one.name)
    said = gone.description if gone is not None else _NO_SUCH
    near = "" if gone is not None else table.nearest(one.name)
    return f"{said} ({near})" if near else said.rstrip(".")


def _value(one: GivenOption, option: Option, note: Callable[..., None]) -> Any:
    """Return a value that the engine reads as it is meant; raises ValueError if there is none."""
    if not option.values:
        on = None if isinstance(one.value, tuple) else switched(one.value)
        if on is None:
            note("it takes no value: what follows it is left out", _text(one))
        return on is not False
    values = one.value if isinstance(one.value, tuple) else (one.value,)
    found = [_one(one.place, value, option, note) for value in values]
    return found if isinstance(one.value, tuple) else found[0]


def _one(
    place: str, value: bool | int | float | str, option: Option, note: Callable[..., None]
) -> bool | int | float | str:
    if isinstance(value, bool):
        if "on|off" not in option.hint:
            raise ValueError(f"it takes a value ({option.hint})")
        return value
    fault = fault_of(place, word(value), option)
    if fault is None:
        return value
    if not fault.instead:
        raise ValueError(f"{fault.message} ({fault.remedy})")
    note(f"{fault.message}; written as {fault.instead}, which is meant")
    return int(fault.instead) if fault.instead.lstrip("+-").isdigit() else float(fault.instead)


def _text(one: GivenOption) -> str:
    values = one.value if isinstance(one.value, tuple) else (one.value,)
    return " ".join("" if value is True else str(value) for value in values)


def _groups(words: list[str]) -> Iterator[list[str]]:
    """Yield each option of a command line with its values."""
    group: list[str] = []
    for each in words:
        if each.startswith("--") or (each.startswith("-") and each[1:2].isalpha()):
            if group:
                yield group
            group = []
        group.append(each)
    if group:
        yield group
