"""Types of the requests and answers of lswap's own routes; snapshot.py has the others."""

from __future__ import annotations

from typing import Annotated

import msgspec

from llamaswap_py.snapshot import DecisionView, ReservationView


class Health(msgspec.Struct, frozen=True):
    """lswap runs, or accepts requests."""

    status: str


class Decisions(msgspec.Struct, frozen=True):
    """Decisions, the newest last."""

    decisions: tuple[DecisionView, ...]


class RequestView(msgspec.Struct, frozen=True):
    """One open request; `age` is in seconds, `bytes` have been sent to its client.

    `state` is `running`, `waiting`, or `detached`: its client disconnected and may come back.
    `tokens` is about the number of tokens in its stream so far, one for each event.
    """

    id: str
    method: str
    path: str
    model: str
    client: str
    state: str
    age: float
    bytes: int
    queue_ms: float
    load_ms: float
    tokens: int = 0


class TokensView(msgspec.Struct, frozen=True):
    """The tokens of a model's finished answers since the start, as reported by the answers."""

    prompt: int
    answer: int


class Requests(msgspec.Struct, frozen=True):
    """The open requests for models, the oldest first, and the tokens of each model."""

    requests: tuple[RequestView, ...]
    tokens: dict[str, TokensView]


class LoadAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`ready`, with the seconds of the load, or `loading` with `wait=false`."""

    model: str
    state: str
    seconds: float | None = None


class UnloadAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`unloaded`: whether an instance is being unloaded; `state`: the model's present state.

    `problem`: what did not go as it should. With the state `stopping`, something that the model
    started still runs.
    """

    model: str
    state: str
    unloaded: bool
    seconds: float | None = None
    problem: str = ""


class PinAnswer(msgspec.Struct, frozen=True):
    """Whether the model is pinned now, and which models can never be loaded beside it."""

    model: str
    pinned: bool
    impossible: list[str] = []


class CancelAnswer(msgspec.Struct, frozen=True):
    """The request is being ended."""

    id: str
    state: str


class Reservations(msgspec.Struct, frozen=True):
    """Memory that other programs hold or wait for."""

    reservations: tuple[ReservationView, ...]


class ReservationAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`state` is `held` or `released`; `memory` is in bytes per device."""

    name: str
    state: str
    memory: dict[str, int] | None = None
    heartbeat_seconds: float | None = None


class LoadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`args` are options of llama-server that override the file's until the model is unloaded."""

    args: dict[str, bool | int | float | str | list[bool | int | float | str]] | None = None


class ReservationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The memory that a program needs: bytes per device, as a number or with a unit (`14GiB`).

    `pid` is the program's process; the memory of its process tree counts against the reservation.
    `stream`: the reservation lasts as long as this connection, which gets lines of JSON; without it
    a heartbeat is needed every 30 s.
    """

    memory: Annotated[dict[str, int | str], msgspec.Meta(min_length=1)]
    name: str | None = None
    pid: int | None = None
    stream: bool = False


class HeartbeatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Keeps a reservation; `pid` may be given here if it was not known before."""

    pid: int | None = None


class ErrorObject(msgspec.Struct, frozen=True):
    """An error. `code` is one of those in docs/api.md; some errors have more members."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The answer of every failed request."""

    error: ErrorObject
