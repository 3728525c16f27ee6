"""Actions: what the supervisor has to do, named in the imperative. They hold every decision."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import msgspec

from llamaswap_py.scheduler.types import (
    ANY_CHOICE,
    Choice,
    Decision,
    Failure,
    Footprint,
    InstanceKey,
    PresetId,
    RequestId,
)


class StopReason(Enum):
    """Why an instance is stopped."""

    EVICTED = "evicted"
    TTL = "ttl"
    UNLOADED = "unloaded"
    RETIRED = "retired"
    SHUTDOWN = "shutdown"
    LOST = "lost"
    # The complete list of invariant 1: only these reasons may end open leases or a load.
    REFUSED = "serves no more"
    FORCE = "force"
    DRAIN_DEADLINE = "drain deadline"
    SHUTDOWN_DEADLINE = "shutdown deadline"
    SHUTDOWN_NOW = "shutdown at once"
    LOAD_STALL = "load stall"
    FOUND_HUNG = "found hung"
    DETACHED = "nobody came back for it"
    ABANDONED = "abandoned load"


MAY_INTERRUPT = frozenset(
    {
        StopReason.REFUSED,
        StopReason.FORCE,
        StopReason.SHUTDOWN_NOW,
        StopReason.DRAIN_DEADLINE,
        StopReason.SHUTDOWN_DEADLINE,
        StopReason.LOAD_STALL,
        StopReason.FOUND_HUNG,
        StopReason.DETACHED,
        StopReason.ABANDONED,
    }
)


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a child for this instance, as `choice` says: its variant, on its devices."""

    instance: InstanceKey
    choice: Choice = ANY_CHOICE


@dataclass(frozen=True, slots=True)
class Wake:
    """Wake a sleeping child; `InstanceWoke` follows."""

    instance: InstanceKey


@dataclass(frozen=True, slots=True)
class Download:
    """Fetch the preset's files; `DownloadFinished` or `DownloadFailed` follows."""

    preset: PresetId


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """Read the files of these presets ahead, in this order, and stop reading others.

    They are (preset, variant) that wait for memory, in the order in which they will probably load.
    """

    presets: tuple[tuple[PresetId, str], ...]


@dataclass(frozen=True, slots=True)
class TryServer:
    """Try whether an RPC server (HOST:PORT) answers; `ServerTried` follows."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class Reserve:
    """Tell that a reservation holds its memory from now on."""

    name: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell that a reservation can never get its memory."""

    name: str
    message: str


KEEPS_CONVERSATIONS = frozenset({StopReason.EVICTED, StopReason.TTL, StopReason.DRAIN_DEADLINE})
"""After these an instance is expected back as it was."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Begin the stop recipe; `InstanceExited` follows.

    `hurried`: its memory is needed at once, by other programs or by a load that ran out of memory.
    """

    instance: InstanceKey
    reason: StopReason
    hurried: bool = False

    @property
    def may_keep(self) -> bool:
        """Whether the instance's conversations (its KV cache) may be saved first."""
        return self.reason in KEEPS_CONVERSATIONS and not self.hurried


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill the child's process group at once; `InstanceExited` follows."""

    instance: InstanceKey
    reason: StopReason


class Grant(msgspec.Struct, frozen=True, gc=False):
    """Let the request use the instance; its lease is open until `RequestFinished`."""

    request: RequestId
    instance: InstanceKey


@dataclass(frozen=True, slots=True)
class Reject:
    """Refuse the request; `code` is one of `errors.API_CODES`."""

    request: RequestId
    preset: PresetId
    code: str
    message: str
    remedy: str = ""
    retry_after: float | None = None
    details: tuple[tuple[str, str | int | float | tuple[str, ...] | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Revoke:
    """End this lease: an answer that has begun ends with an error, another waits again."""

    request: RequestId
    instance: InstanceKey
    reason: StopReason


@dataclass(frozen=True, slots=True)
class Reduce:
    """Choose less for a preset than `choice`: `failure` says why its load failed.

    `ChoicesEstimated` follows.
    """

    preset: PresetId
    choice: Choice
    failure: Failure


@dataclass(frozen=True, slots=True)
class Refit:
    """Choose what a preset's next load takes, so that it fits into `room`: bytes per pool.

    Other programs keep it out as it is. `ChoicesEstimated` follows.
    """

    preset: PresetId
    room: Footprint


@dataclass(frozen=True, slots=True)
class Rechoose:
    """Choose anew for a preset, because its files have changed; `ChoicesEstimated` follows."""

    preset: PresetId


@dataclass(frozen=True, slots=True)
class Note:
    """Keep and show a decision."""

    decision: Decision


Action: TypeAlias = (
    Spawn
    | Wake
    | Download
    | ReadAhead
    | TryServer
    | Reserve
    | Refuse
    | Stop
    | Kill
    | Grant
    | Reject
    | Revoke
    | Reduce
    | Refit
    | Rechoose
    | Note
)
