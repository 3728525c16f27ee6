"""The options of a draft, put into words that the engine in use knows. Pure.

The source may have been written for another llama-server. What was renamed or merged is carried
over; what the engine does not have, or would misread, is put right or left out, and named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from llamaswap_py.config.options import plain_name
from llamaswap_py.config.optiontable import Option, OptionTable, switched, word_for
from llamaswap_py.config.optionvalues import fault_of, word
from llamaswap_py.config.replaced import LOADING, Said, carry_over
from llamaswap_py.importing.draft import Draft


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
    said = [Said(name, tuple(v) if isinstance(v, list) else v) for name, v in args.items()]
    kept: dict[str, Any] = {}
    for one in carry_over(said, table):
        found = table.usable(*one.names)
        try:
            if found is None:
                raise ValueError(_unknown(one, table))
            option, spelling = found
            value = _value(one, option, lambda text: draft.note(place, text))
        except ValueError as error:
            draft.note(place, f"--{one.place} {_text(one)}".rstrip() + f": {error}: left out")
            continue
        kept[_key(option, spelling)] = value
    if "args" in preset and kept:
        preset["args"] = kept
    elif "args" in preset:
        del preset["args"]
    if extra := preset.pop("extra", []):
        known = [each for each in _groups(extra) if _is_known(each[0], table)]
        for lost in (each for each in _groups(extra) if each not in known):
            draft.note(place, f"{' '.join(lost)}: this llama-server has no such option: left out")
        if words := [each for group in known for each in group]:
            preset["extra"] = words


def _key(option: Option, spelling: str) -> str:
    """Return the name of an option in `args`: as it was written, if that is a long name."""
    if any(plain_name(each) == spelling for each in option.negated):
        return spelling
    return plain_name(word_for(option, spelling))


def _unknown(one: Said, table: OptionTable) -> str:
    gone = table.find(one.name)
    said = gone.description if gone is not None else "this llama-server has no such option"
    near = "" if gone is not None else table.nearest(one.name)
    return f"{said} ({near})" if near else said.rstrip(".")


def _value(one: Said, option: Option, note: Callable[[str], None]) -> Any:
    """Return a value that the engine takes for what it is; raises ValueError if there is none."""
    if not option.values:
        on = None if isinstance(one.value, tuple) else switched(one.value)
        if on is None:
            raise ValueError("this option takes no value")
        return on
    values = one.value if isinstance(one.value, tuple) else (one.value,)
    found = [_one(one.place, value, option, note) for value in values]
    return found if isinstance(one.value, tuple) else found[0]


def _one(
    place: str, value: bool | int | float | str, option: Option, note: Callable[[str], None]
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
    note(f"--{place} {value}: {fault.message}; written as {fault.instead}, which is meant")
    return int(fault.instead) if fault.instead.lstrip("+-").isdigit() else float(fault.instead)


def _text(one: Said) -> str:
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


def _is_known(option: str, table: OptionTable) -> bool:
    return not option.startswith("-") or table.knows(plain_name(option.partition("=")[0]))
