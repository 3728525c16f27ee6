"""What a running lswap answers besides its snapshot: records of its JSON, and its events. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from llamaswap_py.snapshot import DecisionView


class LoadReport(msgspec.Struct):
    """What `load` answers."""

    model: str
    state: str
    seconds: float = 0.0


class UnloadReport(msgspec.Struct):
    """What `unload` answers; `unloaded` is False when there was nothing to unload.

    `problem` says what did not go as it should. With the state `stopping`, something that the model
    started still runs.
    """

    model: str
    state: str
    unloaded: bool
    seconds: float = 0.0
    problem: str = ""


class PinReport(msgspec.Struct):
    """What `pin` and `unpin` answer; `impossible` names models that cannot be loaded beside it."""

    model: str
    pinned: bool
    impossible: list[str] = []


class ReservationLine(msgspec.Struct):
    """One line about a reservation; `state` is `waiting`, `held`, `refused` or `released`."""

    state: str
    name: str = ""
    message: str = ""


class DecisionList(msgspec.Struct):
    """What GET /lswap/v1/decisions answers, newest last."""

    decisions: tuple[DecisionView, ...]


class OpenRequest(msgspec.Struct, frozen=True):
    """One open request: `age` in seconds, `tokens` of its stream so far (about)."""

    id: str
    model: str
    client: str
    state: str
    age: float
    path: str = ""
    bytes: int = 0
    queue_ms: float = 0.0
    load_ms: float = 0.0
    tokens: int = 0


class Tokens(msgspec.Struct, frozen=True):
    """Tokens of a model's finished answers."""

    prompt: int = 0
    answer: int = 0


class OpenRequests(msgspec.Struct, frozen=True):
    """What GET /lswap/v1/requests answers."""

    requests: tuple[OpenRequest, ...]
    tokens: dict[str, Tokens] = {}


class ServerEvent(msgspec.Struct, frozen=True):
    """One event of GET /lswap/v1/events; `id` is None for those that are no record."""

    id: int | None
    event: str
    data: dict[str, Any]


class EventLines:
    """Joins the lines of an event stream (HTML standard, 9.2.6) to events."""

    def __init__(self) -> None:
        self._id: int | None = None
        self._event = ""
        self._data: list[str] = []

    def take(self, line: str) -> ServerEvent | None:
        """Take a line; return the event that it ends. What is not a JSON object is left out."""
        if not line:
            return self._end()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id" and value.isdecimal():
            self._id = int(value)
        elif name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        return None

    def _end(self) -> ServerEvent | None:
        id, event, text = self._id, self._event, "\n".join(self._data)
        self._id, self._event, self._data = None, "", []
        try:
            data = msgspec.json.decode(text, type=dict[str, Any])
        except msgspec.MsgspecError:
            return None
        return ServerEvent(id, event, data)
