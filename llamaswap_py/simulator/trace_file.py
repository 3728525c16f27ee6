"""Reads traces, which are JSON lines; every error has the number of its line.

{"client": "c1", "model": "alpha", "at": 12.5, "service": 1.0}
{"client": "c2", "model": "beta", "think": 0.2, "service": 1.0, "gives_up_after": 30}
"""

from __future__ import annotations

import json
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any, Final

from llamaswap_py.errors import ConfigError
from llamaswap_py.scheduler.types import ClientId, PresetId
from llamaswap_py.simulator.run_records import TraceRequest

_TEXTS: Final = ("client", "model", "id", "parent")
_TIMES: Final = ("at", "think", "service", "gives_up_after")
_SWITCHES: Final = ("slot", "names_parent")
_NUMBERS: Final = ("priority", "retries")
PRIORITY_MOST: Final = 100
"""As in a file of keys."""
RETRIES_MOST: Final = 10_000
_KEYS: Final = (*_TEXTS, *_TIMES, *_SWITCHES, *_NUMBERS)


def parse_trace(
    text: str, models: Collection[str], *, name: str = "trace"
) -> tuple[TraceRequest, ...]:
    """Return the requests of a trace; raises ConfigError naming the line, and the remedy.

    `models` are the names a line may ask for. Empty lines are skipped.
    """
    asks: list[TraceRequest] = []
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{name}:{number}"
        ask = _ask(_fields(line, where), where, models)
        if ask.parent is not None and ask.parent not in names:
            raise ConfigError(
                f"no earlier line has the id {ask.parent!r}, which is named as parent",
                where=where,
                remedy='give the parent\'s line an "id"',
            )
        if ask.name in names:
            raise ConfigError(f"two lines have the id {ask.name!r}", where=where)
        names |= {ask.name} - {""}
        asks.append(ask)
    if not asks:
        raise ConfigError("the trace has no requests", where=name, remedy="write one per line")
    return tuple(asks)


def _fields(line: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"this is not JSON: {error}", where=where) from None
    if not isinstance(found, dict):
        raise ConfigError("this is not a JSON object", where=where)
    for key in found:
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, 1)
            remedy = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_KEYS)}"
            raise ConfigError(f"unknown key {key!r}", where=where, remedy=remedy)
    return found


def _ask(fields: dict[str, Any], where: str, models: Collection[str]) -> TraceRequest:
    for key in ("client", "model", "service"):
        if key not in fields:
            raise ConfigError(f"{key!r} is missing", where=where)
    texts = {key: _text(fields, key, where) for key in _TEXTS if key in fields}
    times = {key: _seconds(fields, key, where) for key in _TIMES if key in fields}
    if texts["model"] not in models:
        near = get_close_matches(texts["model"], models, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(models)}"
        raise ConfigError(f"unknown model {texts['model']!r}", where=where, remedy=remedy)
    if ("at" in times) == ("think" in times):
        raise ConfigError('a request needs either "at" or "think"', where=where)
    if "parent" in texts and "at" in times:
        raise ConfigError('a request with a "parent" has "think", not "at"', where=where)
    switches = {key: _switch(fields, key, where) for key in _SWITCHES}
    return TraceRequest(
        client=ClientId(texts["client"]),
        model=PresetId(texts["model"]),
        service=times["service"],
        at=times.get("at"),
        think=times.get("think"),
        slot=switches["slot"],
        gives_up_after=times.get("gives_up_after"),
        name=texts.get("id", ""),
        parent=texts.get("parent"),
        names_parent=switches["names_parent"],
        priority=_whole(fields, "priority", where, -PRIORITY_MOST, PRIORITY_MOST),
        retries=_whole(fields, "retries", where, 0, RETRIES_MOST),
    )


def _text(fields: dict[str, Any], key: str, where: str) -> str:
    value = fields[key]
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{key!r} must be a text that is not empty", where=where)
    return value


def _switch(fields: dict[str, Any], key: str, where: str) -> bool:
    value = fields.get(key, True)
    if not isinstance(value, bool):
        raise ConfigError(f"{key!r} must be true or false", where=where)
    return value


def _whole(fields: dict[str, Any], key: str, where: str, least: int, most: int) -> int:
    value = fields.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{key!r} must be a whole number from {least} to {most}", where=where)
    return value


def _seconds(fields: dict[str, Any], key: str, where: str) -> float:
    value = fields[key]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value < 1e9:  # NaN compares false
        raise ConfigError(f"{key!r} must be seconds, 0 or more", where=where)
    return float(value)
