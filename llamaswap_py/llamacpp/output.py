"""Reads the output of llama-server: loading, listening, ready, sleeping, or only a log line.

It has three forms, recognised line by line (llama.cpp b11434: tools/server/server.cpp and
server-models.cpp, common/log.cpp):

* child mode: stdout carries only `cmd_child_to_router:state:{json}`, in older builds (b9093)
  `cmd_child_to_router:` and `ready`, `info:{json}` or `sleep`;
* `--log-jsonl`: every log line is `{"type":"log","time":…,"level":…,"msg":…}`;
* plain logs, now (`0.00.013.109 I srv  llama_server: listening on http://…`) and in older builds
  (`main: server is listening on http://… - starting the main loop`).

Logs also contain prompts and chat templates, so a sign counts only if it is the whole message. This
module also splits the bytes of a stream into lines, each of bounded length.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import msgspec

from llamaswap_py.endpoint import Endpoint

# The longest line kept; a ready line is a few KiB.
LINE_LIMIT: Final = 64 * 1024


class LineSplitter:
    """Splits a byte stream into lines; bytes of a line beyond `limit` are dropped."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._held = 0

    def feed(self, data: bytes) -> list[str]:
        """Return the lines that `data` completes, without their ends; bad UTF-8 is replaced."""
        *complete, rest = data.split(b"\n")
        lines: list[str] = []
        for part in complete:
            self._hold(part)
            lines.append(self._take())
        self._hold(rest)
        return lines

    def close(self) -> list[str]:
        """Return the last line of the stream, if it ended without a newline."""
        return [self._take()] if self._held else []

    def _hold(self, part: bytes) -> None:
        room = self._limit - self._held
        if room > 0 and part:
            self._pieces.append(part[:room])
            self._held += min(room, len(part))

    def _take(self) -> str:
        line = b"".join(self._pieces)
        self._pieces.clear()
        self._held = 0
        return line.removesuffix(b"\r").decode("utf-8", "replace")


Stream: TypeAlias = Literal["stdout", "stderr"]

STATE_PREFIX: Final = "cmd_child_to_router:state:"
_OLD_READY: Final = "cmd_child_to_router:ready"
_OLD_INFO: Final = "cmd_child_to_router:info:"
_OLD_SLEEP: Final = "cmd_child_to_router:sleep"
EXIT_COMMAND: Final = "cmd_router_to_child:exit"

_LISTENING: Final = re.compile(
    r"(?:srv\s+\S+:\s|main:\s|llama_server:\s)?"
    r"(?:server is )?listening on (?:https?://(?P<tcp>\S+)|unix://(?P<unix>/.*\.sock))"
    r"(?: - starting the main loop)?"
)
_HOST_PORT: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})/?")
_CLEANING_UP: Final = re.compile(r"(?:srv\s+\S+:\s)?(?:\S+: )?cleaning up before exit\.\.\.")
# `M.ss.mmm.uuu L ` before a plain message, and the colours that a terminal would get.
_PLAIN_PREFIX: Final = re.compile(r"(?:\d+\.\d\d\.\d{3}\.\d{3} )?(?:(?P<level>[IWED]) )?")
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_LEVELS: Final = {"I": "info", "W": "warn", "E": "error", "D": "debug"}


@dataclass(frozen=True, slots=True)
class LoadingSign:
    """A load moved on: 0..1 over all its stages, and the stage it is in."""

    fraction: float | None
    stage: str | None


@dataclass(frozen=True, slots=True)
class ListeningSign:
    """It takes requests; `endpoint` is None if the line does not name a readable one."""

    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class ReadySign:
    """Child mode reports readiness; the payload is empty when it wakes from sleep."""

    payload: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SleepingSign:
    """It freed its model (`--sleep-idle-seconds`)."""


@dataclass(frozen=True, slots=True)
class EndingSign:
    """It began to clean up before its exit: no further signal is needed."""


@dataclass(frozen=True, slots=True)
class OutputLine:
    """One line of text; `level` is None if the line does not say it."""

    text: str
    level: str | None = None


Sign: TypeAlias = LoadingSign | ListeningSign | ReadySign | SleepingSign | EndingSign | OutputLine


def says_listening(line: str) -> bool:
    """Return whether a line of a log says that requests are taken from now on."""
    signs = Readiness(child_mode=False).feed("stderr", line)
    return any(isinstance(sign, ListeningSign) for sign in signs)


class _State(msgspec.Struct):
    state: str
    payload: dict[str, Any] | None = None


class _LogLine(msgspec.Struct, tag="log", tag_field="type"):
    msg: str
    level: str = "none"


_decode_state: Final = msgspec.json.Decoder(_State).decode
_decode_log: Final = msgspec.json.Decoder(_LogLine).decode


class Readiness:
    """Turns lines into signs; one per child. It keeps only the highest fraction so far."""

    def __init__(self, *, child_mode: bool) -> None:
        self._child_mode = child_mode
        self._fraction = 0.0
        self._said_info = False

    def feed(self, stream: Stream, line: str) -> list[Sign]:
        """Return what one line (without its end) means, at least an `OutputLine` or a state."""
        if self._child_mode and stream == "stdout":
            if line.startswith(STATE_PREFIX):
                return self._read_state(line)
            if (sign := self._read_old_state(line)) is not None:
                return [sign]
        if line.startswith('{"'):
            try:
                entry = _decode_log(line)
            except msgspec.DecodeError:
                return [OutputLine(line)]
            return _read_message(entry.msg, entry.level)
        plain = _COLOUR.sub("", line) if "\x1b" in line else line
        prefix = _PLAIN_PREFIX.match(plain)
        level = prefix["level"] if prefix else None
        message = plain[prefix.end() :] if prefix else plain
        return [*_read_signs(message), OutputLine(plain, _LEVELS.get(level or ""))]

    def _read_state(self, line: str) -> list[Sign]:
        try:
            said = _decode_state(line.removeprefix(STATE_PREFIX))
        except msgspec.DecodeError:
            return [OutputLine(line, "warn")]
        payload = said.payload or {}
        match said.state:
            case "loading":
                return [self._read_progress(payload)]
            case "ready":
                return [ReadySign(payload)]
            case "sleeping":
                return [SleepingSign()]
        return [OutputLine(line)]

    def _read_old_state(self, line: str) -> Sign | None:
        """Read a line of child mode in the form of older builds, which have no state lines.

        `ready` comes before `info` once a model is loaded, and alone when it wakes from sleep.
        """
        if line == _OLD_SLEEP:
            return SleepingSign()
        if line == _OLD_READY:
            return ReadySign() if self._said_info else OutputLine(line)
        if not line.startswith(_OLD_INFO):
            return None
        self._said_info = True
        try:
            info = msgspec.json.decode(line.removeprefix(_OLD_INFO))
        except msgspec.DecodeError:
            return ReadySign()
        return ReadySign(info if isinstance(info, dict) else {})

    def _read_progress(self, payload: dict[str, Any]) -> LoadingSign:
        """Spread the stages evenly over 0..1; the text model is by far the longest, but first."""
        stages = payload.get("stages")
        current = payload.get("current", payload.get("stage"))
        value = payload.get("value")
        stage = current if isinstance(current, str) else None
        if (
            not isinstance(stages, list)
            or stage not in stages
            or not isinstance(value, int | float)
            or not 0 <= value <= 1
        ):
            return LoadingSign(None, stage)
        fraction = (stages.index(stage) + value) / len(stages)
        self._fraction = max(self._fraction, fraction)
        return LoadingSign(self._fraction, stage)


def _read_message(message: str, level: str) -> list[Sign]:
    """Return the signs of one JSON log message, which may hold several lines."""
    text = message.rstrip("\n")
    if not text.strip(". \n"):
        return []  # the dots of a load in progress
    if "\n" in text:
        return [OutputLine(line, level) for line in text.split("\n") if line]
    return [*_read_signs(text), OutputLine(text, level)]


def _read_signs(message: str) -> list[Sign]:
    if "listening on" in message:
        match = _LISTENING.fullmatch(message.rstrip())
        if match:
            return [ListeningSign(_read_endpoint(match["tcp"], match["unix"]))]
    elif "cleaning up before exit" in message and _CLEANING_UP.fullmatch(message.rstrip()):
        return [EndingSign()]
    return []


def _read_endpoint(tcp: str | None, unix: str | None) -> Endpoint | None:
    if unix is not None:
        return Endpoint(path=unix)
    match = _HOST_PORT.fullmatch(tcp or "")
    if match is None or not 0 < int(match["port"]) < 65536:
        return None
    return Endpoint(host=match["host"].strip("[]"), port=int(match["port"]))
