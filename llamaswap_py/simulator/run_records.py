"""The records of a simulation: models, memory, the requests of a trace, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llamaswap_py.scheduler.types import (
    Choice,
    ClientId,
    Footprint,
    Policy,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
)


@dataclass(frozen=True, slots=True)
class SimulatedCrash:
    """The process of a model's `load`-th load (from 1) dies `after` seconds after its spawn."""

    load: int
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model of the simulated machine. Times are seconds; the scheduler has to learn them.

    A request works in one of `slots`; further ones queue inside the child. `footprint` is bytes per
    pool, as the peers see it; `given` is what the scheduler is told, if that differs.
    """

    name: PresetId
    footprint: Footprint
    load: float
    slots: int = 1
    pin: bool = False
    ttl: float | None = None
    drain_timeout: float = 120.0
    faults: tuple[SimulatedCrash, ...] = ()
    given: PresetPlan | None = None
    variant_loads: Mapping[str, float] = field(default_factory=dict)
    """The load times of its variants by name, where they differ from `load`."""

    def plan(self) -> PresetPlan:
        """Return what the scheduler is told about it."""
        return self.given or PresetPlan(
            preset=self.name,
            choices=(Choice(self.footprint),),
            pin=self.pin,
            ttl=self.ttl,
            drain_timeout=self.drain_timeout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request of a trace.

    Open loop: it comes at the time `at`. Closed loop: it comes `think` seconds after the previous
    answer to its client, or, with `parent`, after that request's lease began. The parent's lease
    then lasts at least until this one is answered. `names_parent`: the request names its parent
    (`x-lswap-parent`).
    """

    client: ClientId
    model: PresetId
    service: float
    at: float | None = None
    think: float | None = None
    slot: bool = True
    gives_up_after: float | None = None
    name: str = ""
    parent: str | None = None
    names_parent: bool = True
    priority: int = 0
    retries: int = 0
    """How often its client asks again after it gave up. Its wait counts from its first request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A scenario and a trace. `stop` is how long a child takes to end and give its memory back."""

    name: str
    models: tuple[Model, ...]
    pools: Mapping[PoolId, Pool]
    asks: tuple[TraceRequest, ...]
    stop: float = 0.05
    note: str = ""
    policy: Policy = field(default_factory=Policy)

    def model(self, name: PresetId) -> Model:
        """Return a model by its name; raises KeyError."""
        return {one.name: one for one in self.models}[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The result of one case under one policy. Times are seconds of virtual time.

    A wait lasts from asking until a slot begins to work; only answered requests count.
    `loads` are all spawns, `swaps` those after the first stop, when memory had been filled once.
    `lost` is the share of `elapsed` in which a child was loading or stopping. `eta_used` is the
    largest share of its bound (invariant 4) that a wait took.
    """

    case: str
    policy: str
    requests: int
    answered: int
    refused: int
    left: int
    cut: int
    loads: int
    swaps: int
    mean: float
    p50: float
    p99: float
    worst: float
    lost: float
    elapsed: float
    events: int
    eta_used: float = 0.0
    breaches: tuple[str, ...] = ()
    waits: Mapping[PresetId, float] = field(default_factory=dict)
    """The worst wait per model."""
    client_means: Mapping[ClientId, float] = field(default_factory=dict)
    """The mean wait per client."""
