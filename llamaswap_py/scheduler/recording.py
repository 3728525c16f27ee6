"""The format of a recorded run: each call of the scheduler with its time, one line of JSON each.

The first line is the head: what the scheduler was built from. Each line after it is a step: an
event, its time, and the resulting actions. The last line says why the record ends. Each line has
its number, so that a missing line is noticed.

The same events give the same actions, so a record reproduces a run. It holds the actions as well,
to compare them. Names of requests and clients are replaced before they are written, and texts that
would show them are left out. A scheduler built from the record uses the replacements as names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias, get_args

import msgspec

from llamaswap_py.errors import ConfigError
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Note, Reject, StopReason
from llamaswap_py.scheduler.types import Policy, Pool, PoolId, PresetPlan

FORMAT: Final = "lswap record"
VERSION: Final = 1
"""Raise it when a change of the events or of this format makes older records unreadable."""
BEGINNING: Final = msgspec.json.encode({"format": FORMAT})[:-1]
"""The bytes with which every record begins."""
LEFT_OUT: Final = "[left out]"
"""Replaces the lines of a child's log, which may hold anything."""

_EVENTS: Final[dict[str, type]] = {one.__name__: one for one in get_args(ev.Event)}
# Messages with these codes, and decisions of these kinds, name a client or a request.
_NAMING_CODES: Final = ("queue_full", "would_deadlock")
_NAMING_KINDS: Final = ("detached", "attached")

_TEXTS: Final = frozenset({"summary", "text", "reason", "message", "remedy"})
"""Fields that hold sentences: they may quote a child, a file or a command line."""

Told: TypeAlias = tuple[str, dict[str, Any]]
"""The written form of an event or an action: the name of its type, and its fields."""


class RecordHead(msgspec.Struct, kw_only=True):
    """The first line. `at` is Unix time; `began` is the same moment in the time of the steps."""

    format: str = FORMAT
    version: int = VERSION
    lswap: str
    commit: str | None = None
    at: float
    began: float
    plans: tuple[PresetPlan, ...]
    pools: dict[PoolId, Pool]
    policy: Policy


class RecordedStep(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One call. `at_once`: it was `grant_at_once`; `raised`: the error that ended it, if any."""

    line: int
    at: float
    event: Told
    actions: tuple[Told, ...] = ()
    at_once: bool = False
    raised: str = ""


class RecordEnd(msgspec.Struct, kw_only=True):
    """The last line: why the record ends."""

    line: int
    end: str


class _AnyLine(msgspec.Struct, kw_only=True):
    """The fields that tell whether a line is the head, a step or the end."""

    format: str = ""
    version: int = 0
    lswap: str = ""
    line: int = 0
    end: str | None = None


class Hiding:
    """Replaces private values in a record; without arguments it replaces nothing.

    `name(kind, value)` returns the replacement of a `request`, a `client` or a `fingerprint`: the
    same for the same value. `text` returns a text without secrets.
    """

    def __init__(
        self,
        name: Callable[[str, str], str] = lambda _, value: value,
        text: Callable[[str], str] = str,
    ) -> None:
        self._name = name
        self._text = text

    def __call__(self, key: str, value: Any) -> Any:
        """Return the value of the field `key`, with private values in it replaced."""
        if isinstance(value, str):
            if key in ("request", "parent"):
                return self._name("request", value)
            if key in ("client", "fingerprint"):
                return self._name(key, value) if value else value
            return self._text(value) if key in _TEXTS else value
        if isinstance(value, dict):
            return {name: self(name, one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            first = value[0] if value else None  # a model may have the name of a field
            if key == "tail" and isinstance(first, str):
                return [LEFT_OUT]
            if key == "details" and isinstance(first, list | tuple):
                return [(name, [LEFT_OUT] if name == "log" else one) for name, one in value]
            return [self(key, one) for one in value]
        return value


def encode_head(head: RecordHead, hiding: Hiding) -> bytes:
    """Return the first line."""
    return _line(hiding("", msgspec.to_builtins(head)))


def encode_step(
    line: int,
    event: ev.Event,
    now: float,
    actions: Sequence[Action],
    hiding: Hiding,
    *,
    at_once: bool = False,
    raised: str = "",
) -> bytes:
    """Return the line of one call."""
    event_told = type(event).__name__, hiding("", msgspec.to_builtins(event))
    told = tuple(told_actions(actions, hiding)) if actions else ()
    step = RecordedStep(
        line=line, at=now, event=event_told, actions=told, at_once=at_once, raised=raised
    )
    return _line(step)


def encode_end(line: int, why: str) -> bytes:
    """Return the last line."""
    return _line(RecordEnd(line=line, end=why))


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def told_actions(actions: Sequence[Action], hiding: Hiding) -> Iterator[Told]:
    """Yield actions as they are written, without the texts that name a client or a request."""
    private = {_naming_text(one) for one in actions}
    for one in actions:
        fields = hiding("", msgspec.to_builtins(one))
        if isinstance(one, Reject) and one.message in private:
            fields["message"] = ""
        elif isinstance(one, Note) and one.decision.reason in private:
            fields["decision"]["reason"] = ""
        yield type(one).__name__, fields


def _naming_text(action: Action) -> str:
    """Return the text of an action if it names a client or a request."""
    if isinstance(action, Reject):
        return action.message if action.code in _NAMING_CODES else ""
    if isinstance(action, Note):
        decision = action.decision
        nobody_reads = decision.reason.startswith(StopReason.DETACHED.value)
        if decision.kind in _NAMING_KINDS or (decision.kind == "revoked" and nobody_reads):
            return decision.reason
    return ""


def read_head(line: bytes, name: str, *, reader: str) -> RecordHead:
    """Return the head of a record; `reader` is the version of this lswap. Raises ConfigError."""
    known = _AnyLine()
    with suppress(msgspec.MsgspecError):
        known = msgspec.json.decode(line, type=_AnyLine)
    if known.format != FORMAT:
        message = "this is not a record that `lswap up --record` has written"
        raise ConfigError(message, where=name, remedy="a trace of requests is read by --trace")
    if known.version != VERSION:
        message = f"the record has version {known.version}, and lswap {reader} reads {VERSION}"
        raise ConfigError(message, where=name, remedy=f"replay it with lswap {known.lswap}")
    try:
        return msgspec.json.decode(line, type=RecordHead)
    except msgspec.MsgspecError as error:
        message = f"the head of the record is damaged: {error}"
        raise ConfigError(message, where=f"{name}:1", remedy="record again") from None


def read_steps(
    lines: Iterable[bytes], name: str, *, until: int | None = None
) -> Iterator[RecordedStep]:
    """Yield the steps of a record from its second line on, up to line `until`.

    Raises ConfigError for a line that is damaged or missing, and for a record without its end. It
    does not read the lines after `until`.
    """
    number = 1
    for number, line in enumerate(lines, start=2):
        if until is not None and number > until:
            return
        where, rest = f"{name}:{number}", _what_is_left(number)
        if not line.endswith(b"\n"):
            message = "this line is incomplete: the file was cut, or lswap still writes it"
            raise ConfigError(message, where=where, remedy=rest)
        try:
            known = msgspec.json.decode(line, type=_AnyLine)
            if known.line != number:
                message = f"this line says that it is line {known.line}: lines are missing"
                raise ConfigError(message, where=where, remedy=rest)
            if known.end is not None:
                return
            yield msgspec.json.decode(line, type=RecordedStep)
        except msgspec.MsgspecError as error:
            message = f"this line is damaged: {error}"
            raise ConfigError(message, where=where, remedy=rest) from None
    if until is None or until > number:
        message = f"the record stops after line {number} without an end"
        remedy = "lswap was killed or still runs, or the file was cut"
        raise ConfigError(message, where=name, remedy=f"{remedy}; {_what_is_left(number + 1)}")


def _what_is_left(number: int) -> str:
    """Return the remedy for a record that is good only before line `number`."""
    return f"`--until {number - 1}` replays what comes before" if number > 2 else "record again"


def event_of(step: RecordedStep, where: str) -> ev.Event:
    """Return the event of a step; raises ConfigError if this lswap does not know it."""
    name, fields = step.event
    kind = _EVENTS.get(name)
    if kind is None:
        message = f"this lswap has no event {name!r}"
        raise ConfigError(message, where=where, remedy="replay it with the lswap that recorded it")
    try:
        event: ev.Event = msgspec.convert(fields, type=kind)
    except msgspec.MsgspecError as error:
        remedy = "replay it with the lswap that recorded it"
        raise ConfigError(f"{name} is damaged: {error}", where=where, remedy=remedy) from None
    return event


def as_read(actions: Sequence[Action]) -> tuple[Told, ...]:
    """Return actions in the form that reading a record gives."""
    if not actions:
        return ()
    told = tuple(told_actions(actions, Hiding()))
    return msgspec.json.decode(msgspec.json.encode(told), type=tuple[Told, ...])
