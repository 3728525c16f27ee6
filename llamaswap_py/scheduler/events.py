"""Events: what has happened, named in the past tense. `Scheduler.handle` takes them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

import msgspec

from llamaswap_py.scheduler.demand import Traffic
from llamaswap_py.scheduler.types import (
    Choice,
    ClientId,
    Failure,
    Footprint,
    InstanceKey,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
    RequestId,
)


class Outcome(Enum):
    """How a lease ended."""

    OK = "ok"
    CANCELLED = "cancelled"
    UPSTREAM_ERROR = "upstream_error"


#: Access to a member of an Enum calls a function of its class, which is slow in Python 3.11.
OK: Final = Outcome.OK


# The two events of every request are structs: making one takes a fifth of a dataclass's time.
class RequestArrived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A client wants a preset. `slot`: it generates; otherwise it only needs a ready child.

    `client` is the principal (key or address) that sent it: clients take turns, and share a full
    queue, by their `weight`. `since` is its first arrival, if it comes back after its lease was
    revoked unused. `patience` is how many seconds it waits at most, if less than the policy's.
    `when_full` overrides the preset's; `substitutable` says whether another model could answer.
    `parent` is the request within which this one was made. `allowed` names the presets that may
    answer it; None means any.
    """

    request: RequestId
    preset: PresetId
    client: ClientId
    slot: bool = True
    autoload: bool = True
    since: float | None = None
    priority: int = 0
    patience: float | None = None
    when_full: str = ""
    substitutable: bool = True
    parent: RequestId | None = None
    allowed: frozenset[str] | None = None
    weight: int = 1


@dataclass(frozen=True, slots=True)
class RequestLeft:
    """The client of a waiting request gave up."""

    request: RequestId


class RequestFinished(msgspec.Struct, frozen=True, gc=False):
    """A lease ended."""

    request: RequestId
    outcome: Outcome = Outcome.OK


@dataclass(frozen=True, slots=True)
class LeaseDetached:
    """The client of a lease has left; its answer goes on, because the client may come back."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class LeaseAttached:
    """A client reads the answer of a detached lease again."""

    request: RequestId


@dataclass(frozen=True, slots=True)
class InstanceProgressed:
    """A loading child is `fraction` (0..1) done; None: alive, no figure."""

    instance: InstanceKey
    fraction: float | None


@dataclass(frozen=True, slots=True)
class InstanceReady:
    """A child serves; `slots` is how many generations it runs at once."""

    instance: InstanceKey
    slots: int


@dataclass(frozen=True, slots=True)
class InstanceSlept:
    """An idle child gave its memory back and kept its process."""

    instance: InstanceKey


@dataclass(frozen=True, slots=True)
class InstanceWoke:
    """A sleeping child serves again."""

    instance: InstanceKey


@dataclass(frozen=True, slots=True)
class InstanceStalled:
    """A loading child shows no sign of progress."""

    instance: InstanceKey
    failure: Failure


@dataclass(frozen=True, slots=True)
class InstanceHung:
    """A child that serves shows no sign of life: its requests end, and it is killed."""

    instance: InstanceKey
    failure: Failure


@dataclass(frozen=True, slots=True)
class InstanceLost:
    """A child's process has ended by itself; it cannot serve, and is not reaped yet."""

    instance: InstanceKey


@dataclass(frozen=True, slots=True)
class InstanceRefused:
    """A child takes no more requests, though its process is there: it refused a connection.

    `ends`: it has begun to end, unasked, so its open answers will not be finished either.
    """

    instance: InstanceKey
    ends: bool = False


@dataclass(frozen=True, slots=True)
class InstanceNoted:
    """The supervisor did something to a child; it is listed with the decisions and changes none."""

    instance: InstanceKey
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class InstanceOutlived:
    """A child's process is gone, but what it started still runs with its memory; `text` says what.

    `InstanceExited` follows once that is gone.
    """

    instance: InstanceKey
    text: str


@dataclass(frozen=True, slots=True)
class InstanceExited:
    """A child's process was reaped. `failure` is None if it ended as asked."""

    instance: InstanceKey
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class LoadAsked:
    """An operator (or `preload`) wants a preset loaded; without `evict`, into free memory only."""

    preset: PresetId
    evict: bool = True


@dataclass(frozen=True, slots=True)
class UnloadAsked:
    """An operator wants a preset's instances gone; `force` ends open requests."""

    preset: PresetId
    force: bool = False


@dataclass(frozen=True, slots=True)
class TtlChanged:
    """A client sets how long a preset's instance stays without a request; None: for ever.

    It holds until the instance is unloaded.
    """

    preset: PresetId
    ttl: float | None


@dataclass(frozen=True, slots=True)
class PinChanged:
    """An operator pinned or unpinned a preset."""

    preset: PresetId
    pin: bool


@dataclass(frozen=True, slots=True)
class ReservationAsked:
    """A foreign program wants memory: bytes per pool. `name` is unique among reservations.

    Without `evict` it gets free memory at once, or is refused.
    """

    name: str
    footprint: Footprint
    evict: bool = True


@dataclass(frozen=True, slots=True)
class ReservationReleased:
    """A reservation ends, held or still waiting."""

    name: str


@dataclass(frozen=True, slots=True)
class DownloadAsked:
    """An operator wants a preset's files fetched; it is not loaded for that."""

    preset: PresetId


@dataclass(frozen=True, slots=True)
class DownloadProgressed:
    """`fraction` (0..1) of the `total` bytes of a preset's files are downloaded."""

    preset: PresetId
    fraction: float
    total: int = 0


@dataclass(frozen=True, slots=True)
class DownloadFinished:
    """A preset's files are downloaded; `plan` is its new plan."""

    preset: PresetId
    plan: PresetPlan


@dataclass(frozen=True, slots=True)
class DownloadFailed:
    """The download of a preset's files failed."""

    preset: PresetId
    failure: Failure


@dataclass(frozen=True, slots=True)
class FilesRead:
    """Files of a preset were read ahead, or to keep them in memory (`kept`). Sizes are bytes.

    The first `there` of `size` are in the page cache; `read` of them came from the disk.
    """

    preset: PresetId
    there: int
    size: int
    read: int
    seconds: float
    kept: bool = False


@dataclass(frozen=True, slots=True)
class ServerTried:
    """An RPC server (HOST:PORT) was tried; `failure` is None if it answered."""

    endpoint: str
    failure: Failure | None


@dataclass(frozen=True, slots=True)
class PoolsMeasured:
    """The memory pools, as measured or declared. `strangers` in them exclude our own children."""

    pools: Mapping[PoolId, Pool]


@dataclass(frozen=True, slots=True)
class ChoicesEstimated:
    """The footprint of a preset is known, or known better; its running instances are recharged."""

    preset: PresetId
    choices: tuple[Choice, ...]
    load_seconds: float | None = None
    """Seconds of its earlier loads; None if unknown."""
    seeded: bool = False
    """`load_seconds` is only estimated, from the size of its files: the first load corrects it."""


@dataclass(frozen=True, slots=True)
class TrafficRecalled:
    """An earlier run's statistics of requests, `age` seconds old."""

    traffic: Traffic
    age: float


@dataclass(frozen=True, slots=True)
class PresetsChanged:
    """The configuration now holds these presets."""

    plans: tuple[PresetPlan, ...]


@dataclass(frozen=True, slots=True)
class ShutdownAsked:
    """lswap has to end: drain for `timeout` seconds; with `force`, at once."""

    timeout: float
    force: bool = False


@dataclass(frozen=True, slots=True)
class TimePassed:
    """The time that `Scheduler.deadline()` named has come."""


Event: TypeAlias = (
    RequestArrived
    | RequestLeft
    | RequestFinished
    | LeaseDetached
    | LeaseAttached
    | InstanceProgressed
    | InstanceReady
    | InstanceSlept
    | InstanceWoke
    | InstanceStalled
    | InstanceHung
    | InstanceLost
    | InstanceRefused
    | InstanceNoted
    | InstanceOutlived
    | InstanceExited
    | LoadAsked
    | UnloadAsked
    | TtlChanged
    | PinChanged
    | ReservationAsked
    | ReservationReleased
    | DownloadAsked
    | DownloadProgressed
    | DownloadFinished
    | DownloadFailed
    | FilesRead
    | ServerTried
    | PoolsMeasured
    | ChoicesEstimated
    | TrafficRecalled
    | PresetsChanged
    | ShutdownAsked
    | TimePassed
)
