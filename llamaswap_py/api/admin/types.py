"""What lswap's own routes take and answer, besides the views of snapshot.py."""

from __future__ import annotations

from typing import Annotated

import msgspec

from llamaswap_py.snapshot import DecisionView, ReservationView


class Health(msgspec.Struct, frozen=True):
    """It lives, or takes requests."""

    status: str


class Decisions(msgspec.Struct, frozen=True):
    """What was decided, the newest last."""

    decisions: tuple[DecisionView, ...]


class RequestView(msgspec.Struct, frozen=True):
    """One open request; `age` in seconds, `bytes` what its client got.

    `state` is `running`, `waiting`, or `detached`: its client has left and may come back.
    `tokens` are those its stream brought so far, about: llama-server writes an event for each.
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
    """The tokens of a model's finished answers since the start, as the answers told."""

    prompt: int
    answer: int


class Requests(msgspec.Struct, frozen=True):
    """The open requests for models, the oldest first, and the tokens of each model."""

    requests: tuple[RequestView, ...]
    tokens: dict[str, TokensView]


class LoadAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`ready` after so many seconds, or `loading` for who did not wait."""

    model: str
    state: str
    seconds: float | None = None


class UnloadAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`unloaded` says whether an instance was told to go; `state` is what the model is now."""

    model: str
    state: str
    unloaded: bool
    seconds: float | None = None


class PinAnswer(msgspec.Struct, frozen=True):
    """Whether it is pinned now."""

    model: str
    pinned: bool


class CancelAnswer(msgspec.Struct, frozen=True):
    """The request ends."""

    id: str
    state: str


class Reservations(msgspec.Struct, frozen=True):
    """Memory that is held, or waited for, in the name of other programs."""

    reservations: tuple[ReservationView, ...]


class ReservationAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """`state` is `held` or `released`; `memory` in bytes per device."""

    name: str
    state: str
    memory: dict[str, int] | None = None
    heartbeat_seconds: float | None = None


class LoadRequest(msgspec.Struct, forbid_unknown_fields=True):
    """`args` are options of llama-server over those of the file, until the model is unloaded."""

    args: dict[str, bool | int | float | str | list[bool | int | float | str]] | None = None


class ReservationRequest(msgspec.Struct, forbid_unknown_fields=True):
    """What a program asks for: bytes per device, as a number or with a unit (`14GiB`).

    `pid` is its process: what its tree takes counts against the reservation. `stream`: hold it as
    long as this connection is open, and say so in lines of JSON; else heartbeats keep it (30 s).
    """

    memory: Annotated[dict[str, int | str], msgspec.Meta(min_length=1)]
    name: str | None = None
    pid: int | None = None
    stream: bool = False


class HeartbeatRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A sign of life; `pid` may be told late."""

    pid: int | None = None


class ErrorObject(msgspec.Struct, frozen=True):
    """What went wrong. `code` is one of the table in docs/api.md; some have more members."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Every failure."""

    error: ErrorObject
