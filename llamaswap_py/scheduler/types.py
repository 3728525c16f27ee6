"""The scheduler's input: presets, memory pools and policy, and the ids it uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple, NewType, TypeAlias

PresetId = NewType("PresetId", str)
RequestId = NewType("RequestId", str)
ClientId = NewType("ClientId", str)
PoolId = NewType("PoolId", str)
"""A memory pool of a device (opaque), or one of the counting pools of `ledger.py`."""

Footprint: TypeAlias = Mapping[PoolId, int]
"""Bytes needed per pool."""


class InstanceKey(NamedTuple):
    """The id of one child of a preset. Epochs only grow, so late events of an old one are known."""

    preset: PresetId
    epoch: int

    def __str__(self) -> str:
        return f"{self.preset}#{self.epoch}"


TOO_LARGE = "too_large"
"""The kind of a problem that another attempt cannot solve: the preset can never fit."""


OUT_OF_MEMORY = "out_of_memory"
"""The kind of a failure: a load found too little memory."""
TENSOR_TOO_LARGE = "tensor_too_large"
"""The kind of a failure: a device cannot compute with one tensor of a model, as it is too large."""
FILES_CHANGED = "files_changed"
"""The kind of a failure: nothing was loaded, because the preset's files are not those that its
choices were made for."""

REDUCED = "reduced"
"""The kind of the decision that less is to be chosen for a preset: a load with more failed."""
REFITTED = "refitted"
"""The kind of the decision that a preset is to fit into what other programs leave now."""
RECHOSEN = "rechosen"
"""The kind of the decision that is made when a preset's files have changed before a load."""


RPC_LOST = "rpc_lost"
"""The kind of the failure of a preset whose RPC server is gone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a child ended: kind, one line of text, exit code and the last log lines."""

    kind: str
    summary: str
    exit_code: int | None = None
    tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pool:
    """Memory that instances share, in bytes; `margin` always stays free.

    `strangers` is what other programs hold. `watched`: lswap keeps measuring it, so a stopped child
    counts until the device shows its bytes as free; a declared pool is not watched. `within` is the
    pool whose memory this one is a part of: each charge here is charged there too.
    """

    total: int
    margin: int = 0
    strangers: int = 0
    watched: bool = False
    within: PoolId | None = None


@dataclass(frozen=True, slots=True)
class Remedy:
    """Settings that lower a preset's footprint: their text for messages, and the new footprint.

    `command` writes them into the file; "" if others are written instead.
    """

    words: str
    footprint: Footprint
    command: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to load a preset: a variant on a placement, and its footprint.

    `footprint` None means unknown: then such presets load one at a time per pool named in
    `devices`, unless `Policy.max_loaded` says how many may be loaded. `devices` is the placement;
    empty leaves it to the child. `source` says how the footprint is known.
    """

    footprint: Footprint | None = None
    devices: tuple[PoolId, ...] = ()
    variant: str = ""
    source: str = "declared"
    sleeping: Footprint | None = None
    """Its footprint while it sleeps; None: it never sleeps."""
    remedies: tuple[Remedy, ...] = ()
    """Settings that lower its footprint, the best first; sought only if it does not fit."""
    made_of: tuple[tuple[str, str], ...] = ()
    """Text for messages: the parts of its footprint, for each device."""
    words: tuple[str, ...] = ()
    """Added to the preset's command line: what was chosen where its file leaves things open."""
    chosen: str = ""
    """Text for people: what was chosen, and for how much memory."""
    leaner: bool = False
    """Whether less may be chosen if a load with it runs out of memory."""
    beside: bool = False
    """Whether it has less context than the choice of its variant before it, so that it fits beside
    the models in use: a variant of its own."""
    passing: bool = False
    """Whether it was chosen for what other programs left at one moment: one more variant, but only
    while they keep the preset out."""
    lowered: Footprint = field(default_factory=dict)
    """Bytes of each pool's margin that it may take, because nothing smaller fits."""
    smaller: str = ""
    """Text for people: the smaller file of the model that would fit; sought only if none does."""


ANY_CHOICE = Choice()
"""The choice with an unknown footprint; the child chooses the placement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetPlan:
    """The scheduler's view of a preset. Times are seconds.

    `choices` come in order of preference: variants as the file has them, and for each the
    placements to consider. Choices that fit beside other models are one more variant, and so are
    choices for what other programs leave.
    With `prefer_fit` the first variant that fits without evicting is taken, else the first one that
    can fit at all.
    `concurrency` None means as many open generations as the child has slots. `groups` are
    exclusive: of the presets in one, only one is loaded. Those of them in `persistent` keep it
    from being evicted for a preset that is not in the same group. `when_full` is `wait`,
    `refuse`, `substitute:NAME` or `substitute:loaded`.
    `problem` is set when the preset cannot work at all (file missing, bad argument).
    """

    preset: PresetId
    choices: tuple[Choice, ...] = (ANY_CHOICE,)
    fingerprint: str = ""
    """Stands for its command line and environment: if it differs, a running child is outdated."""
    prefer_fit: bool = True
    groups: tuple[str, ...] = ()
    persistent: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    """The RPC servers that its children connect to: each serves one child at a time."""
    priority: int = 0
    when_full: str = "wait"
    estimating: bool = False
    """Its footprint is being estimated: requests for it wait for that first."""
    absent: bool = False
    """Its files are not there yet: requests for it wait for their download first."""
    kind: str = "chat"
    """The requests it answers: `chat`, `embedding` or `rerank`. A substitute must have the same."""
    single: bool = False
    """It cannot run twice at once, like a container with a name: a load waits for the last end."""
    reservation: bool = False
    """It is memory for another program: lswap holds the memory and spawns nothing."""
    pin: bool = False
    ttl: float | None = None
    concurrency: int | None = None
    drain_timeout: float = 120.0
    cancel_at_drain_deadline: bool = True
    problem: Failure | None = None

    def same_as(self, other: PresetPlan) -> bool:
        """Return whether both describe the same preset, apart from its footprint."""
        bare = replace(
            self, choices=other.choices, estimating=other.estimating, absent=other.absent
        )
        return bare == other


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings of the configuration file, and constants. Times are seconds."""

    max_loaded: int = 0
    max_wait: float = 60.0
    queue_limit: int = 512
    queue_timeout: float = 900.0
    settle: float = 5.0
    """How long a stopped child's bytes may take to show up as free on a watched device."""

    # Found by simulation (docs/scheduling.md, "How the constants were chosen"): only here.
    residency: float = 4.0
    """α: a loaded model with demand keeps its gate open for α x (load time + service time)."""
    residency_cut: float = 2.0
    """… and for this many load times once a waiter is older than `max_wait`."""
    patience_floor: float = 0.1
    linger_gain: float = 2.0
    """Load times saved when a client comes back to an idle model in time: its own reload, and that
    of the model that gives way to it. Found by simulation; 1 to 3 differ little."""
    linger_service: float = 0.75
    """… less this share of the returning request's service time, for each that waits meanwhile."""
    linger_most: float = 0.5
    """… for which it stays at most this share of its load time."""
    needed_within: float = 30.0
    """Seconds in which an evicted model is taken to be needed again, if its rate of use says so."""
    circulation_floor: float = 5.0
    circulation_loads: float = 5.0
    """Window, in seconds and in load times, in which a client counts as still circulating."""
    backoff_first: float = 1.0
    backoff_last: float = 60.0
    keep_load_from: float = 0.5
    """A load that no request waits for any more goes on if it is at least this far."""
    revoke_grace: float = 2.0
    """How long a revoked lease may take to end before its child is stopped anyway."""
    detached_timeout: float = 300.0
    """How long an answer goes on after its client has left, in case the client comes back."""
    detached_patience: float = 10.0
    """… and how long once a request waits for its memory, or for its slot."""
    demand: float = 0.3
    """Weight of the newest load or service time in the running mean."""
    decisions_kept: int = 1000


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision and its reason, as `lswap why` shows it."""

    seq: int
    at: float
    kind: str
    preset: PresetId
    epoch: int | None
    reason: str
