"""The one immutable picture of a running lswap that CLI, dashboard, API and metrics read.

Times are Unix seconds, durations seconds, sizes bytes. `GET /lswap/v1/state` is this, as JSON.
"""

from __future__ import annotations

import msgspec


class DeviceView(msgspec.Struct, frozen=True):
    """A memory pool and who holds it; `used` is what lswap's instances are charged."""

    id: str
    total: int
    margin: int
    used: int
    source: str
    """How `total` is known: `declared`, `nvml`, `sysfs`, `engine`, `psutil`, `cgroup`, `gone`."""
    strangers: int | None = 0
    """What other programs hold, as last measured; None: it is not measured."""
    reserved: int = 0
    free: int = 0
    """What may still be promised: below 0 where other programs took the margin."""
    within: str | None = None
    """The device in whose memory it computes: what it is charged, that one is charged too."""
    description: str = ""
    """What its driver calls it."""


class FailureView(msgspec.Struct, frozen=True):
    """Why a preset does not work now, and when the next load may start."""

    kind: str
    summary: str
    exit_code: int | None = None
    log: tuple[str, ...] = ()
    retry_at: float | None = None


class InstanceView(msgspec.Struct, frozen=True):
    """One child process of a preset."""

    preset: str
    epoch: int
    state: str
    pid: int | None
    endpoint: str | None
    progress: float | None
    stage: str | None
    spawned_at: float
    ready_at: float | None
    load_seconds: float | None
    leases: int
    slots: int | None
    n_ctx: int | None
    gate: str
    """`open`, or `closed`: no new leases are granted."""
    claimed_by: str | None
    last_used_at: float | None
    evict_at: float | None
    """When its ttl runs out, if it stays idle."""
    reason: str
    ttl: float | None = None
    detached: int = 0
    """Those of its leases whose client has left and may come back."""
    memory: dict[str, int] = {}
    """Bytes it is charged, by device."""
    inputs: tuple[str, ...] = ()
    """What it takes (`text`, `image`, `audio`, `video`), once it has said so."""


AWAITS_FIT = "waiting until its memory is known"
"""The beginning of the reason of a model that requests wait for while lswap estimates it."""


class ReadAheadView(msgspec.Struct, frozen=True):
    """How far the files of a waiting model were read ahead: the first `there` of `size` bytes.

    `read` of them came from the disk, the others were in the page cache.
    """

    there: int
    size: int
    read: int


class ModelView(msgspec.Struct, frozen=True):
    """One preset, whether loaded or not."""

    id: str
    aliases: tuple[str, ...]
    state: str
    """`unloaded`, `loading`, `ready`, `sleeping`, `draining`, `stopping`, `failed` or
    `downloading`."""
    pinned: bool
    ttl: float | None
    leases: int
    waiting: int
    eta_seconds: float | None
    footprint: dict[str, int] | None
    footprint_source: str
    context_per_request: int | None
    """What its running child says, else what its arguments ask for."""
    loads: int
    load_seconds: float | None
    """Learned: what a load is expected to take."""
    reason: str
    failure: FailureView | None
    metadata: dict[str, str | int | float | bool]
    created: int
    args: tuple[str, ...]
    downloaded: float | None = None
    """The fraction of its files that is there, while they are downloaded."""
    repository: str | None = None
    """Where its files are fetched from (`hf`)."""
    made_of: dict[str, str] = {}
    """For people: the parts of its footprint, by device."""
    chosen: str = ""
    """For people: what lswap chose where the file leaves things open, and for how much memory."""
    read_ahead: ReadAheadView | None = None
    """While it waits for memory: what of its files is in the page cache by now."""
    per_name: tuple[str, ...] = ()
    """Names of `request.per_name`: it answers to them, with other settings."""
    unlisted: bool = False
    """Clients do not find it in lists of models."""

    @property
    def other_names(self) -> tuple[str, ...]:
        """What it answers to besides its id."""
        return tuple(name for name in (*self.aliases, *self.per_name) if name != self.id)


class AliasView(msgspec.Struct, frozen=True):
    """A name that chooses among presets: by shares, or the first that will do."""

    name: str
    presets: tuple[str, ...]
    shares: tuple[int, ...] = ()
    """Of each of them; empty for the first that will do."""


class DecisionView(msgspec.Struct, frozen=True):
    """One decision of the scheduler, newest last."""

    seq: int
    at: float
    kind: str
    preset: str
    epoch: int | None
    reason: str


class ReservationView(msgspec.Struct, frozen=True):
    """Memory for a foreign program: bytes per device; `state` is `waiting` or `held`."""

    name: str
    memory: dict[str, int]
    state: str
    asked_at: float
    held_at: float | None = None
    pid: int | None = None


class ReloadReport(msgspec.Struct, frozen=True):
    """What a reload changed: names of models, and keys that wait for a restart."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    needs_restart: tuple[str, ...]


class EngineView(msgspec.Struct, frozen=True):
    """The llama-server in use."""

    path: str
    build: int | None
    backend: str


class Snapshot(msgspec.Struct, frozen=True):
    """Everything at one moment."""

    version: str
    name: str
    pid: int
    started_at: float
    now: float
    listen: tuple[str, ...]
    config_path: str | None
    state: str
    """`serving` or `draining` (shutting down)."""
    engine: EngineView
    devices: tuple[DeviceView, ...]
    models: tuple[ModelView, ...]
    instances: tuple[InstanceView, ...]
    requests_open: int
    requests_total: int
    loads_total: int
    evictions_total: int
    reservations: tuple[ReservationView, ...] = ()
    read_ahead_bytes_total: int = 0
    """What was brought into the page cache, of models that waited and of those that are kept."""
    aliases: tuple[AliasView, ...] = ()
    """Names that choose among the models."""
    kept_kv: int = 0
    """Bytes of conversations that are kept for models that are not loaded (`keep_kv`)."""
