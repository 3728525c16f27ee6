"""What lswap's own routes answer, besides the views of snapshot.py. openapi.py describes them."""

from __future__ import annotations

import msgspec

from llamaswap_py.snapshot import DecisionView, ReservationView


class Health(msgspec.Struct, frozen=True):
    """It lives, or takes requests."""

    status: str


class Decisions(msgspec.Struct, frozen=True):
    """What was decided, the newest last."""

    decisions: tuple[DecisionView, ...]


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


class ErrorObject(msgspec.Struct, frozen=True):
    """What went wrong. `code` is one of the table in docs/api.md; some have more members."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """Every failure."""

    error: ErrorObject
