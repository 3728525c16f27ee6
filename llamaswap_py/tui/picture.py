"""The contents of the screen as rows of values, before they are drawn. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llamaswap_py.tui.history import Rates
from llamaswap_py.units import format_age

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamaswap_py.client.answers import OpenRequest
    from llamaswap_py.snapshot import DeviceView, InstanceView, ModelView, Snapshot
    from llamaswap_py.tui.history import History

_EARLY = 0.05
"""Above this fraction, the remaining time of a load is computed from its speed so far."""


@dataclass(frozen=True, slots=True)
class BarPart:
    """A part of a device; `kind` is `model`, `reserved`, `strangers` or `margin`."""

    kind: str
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device, with sizes in bytes; `total` without `parts` is free."""

    id: str
    total: int
    used: int
    parts: tuple[BarPart, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A model, with times in seconds: `eta` until it is ready, `ttl_left` until it is unloaded."""

    id: str
    state: str
    progress: float | None = None
    eta: float | None = None
    leases: int = 0
    slots: int | None = None
    waiting: int = 0
    rate: float = 0.0
    age: float | None = None
    ttl_left: float | None = None
    pinned: bool = False
    memory: int | None = None
    reason: str = ""
    chosen: str = ""

    @property
    def active(self) -> bool:
        """Whether it is in any other state than unloaded, or requests wait for it."""
        return self.state != "unloaded" or self.waiting > 0


@dataclass(frozen=True, slots=True)
class Picture:
    """All rows that are shown, and the numbers of all models and requests without the filter."""

    title: str = ""
    trouble: str | None = None
    devices: tuple[DeviceRow, ...] = ()
    models: tuple[ModelRow, ...] = ()
    models_total: int = 0
    requests: tuple[OpenRequest, ...] = ()
    requests_total: int = 0


def make_picture(history: History, filter_text: str = "") -> Picture:
    """Return the picture, with only those rows that contain `filter_text`."""
    snapshot, wanted = history.snapshot, filter_text.strip().lower()
    if snapshot is None:
        return Picture(trouble=history.trouble)
    models = model_rows(snapshot, history.rates if history.trouble is None else Rates())
    requests = history.requests.requests if history.requests is not None else ()
    return Picture(
        title=_title(snapshot),
        trouble=history.trouble,
        devices=tuple(device_row(each, snapshot.instances) for each in snapshot.devices),
        models=tuple(row for row in models if _model_has(row, snapshot, wanted)),
        models_total=len(models),
        requests=tuple(
            one for one in requests if any_has(wanted, one.model, one.client, one.id, one.state)
        ),
        requests_total=len(requests),
    )


def device_row(device: DeviceView, instances: Sequence[InstanceView]) -> DeviceRow:
    """Return the parts of a device; the margin is shown as far as others have not used it."""
    charged = [(one.memory.get(device.id, 0), one.preset) for one in instances]
    charged.sort(key=lambda each: (-each[0], each[1]))
    parts = [BarPart("model", name, size) for size, name in charged if size]
    # An older server does not report memory by model; and memory of a child that has just ended may
    # still count.
    rest = device.used - sum(part.size for part in parts)
    if rest > 0:
        parts.append(BarPart("model", "being given back" if parts else "models", rest))
    for kind, name, size in (
        ("reserved", "reserved", device.reserved),
        ("strangers", "others", device.strangers or 0),
    ):
        if size > 0:
            parts.append(BarPart(kind, name, size))
    left = device.total - sum(part.size for part in parts)
    if left > 0 and device.margin > 0:
        parts.append(BarPart("margin", "margin", min(left, device.margin)))
    note = "others not measured" if device.source == "engine" else ""
    return DeviceRow(device.id, device.total, device.used, tuple(parts), note)


def model_rows(snapshot: Snapshot, rates: Rates) -> list[ModelRow]:
    """Return a row for each model: active ones first, then the others, in the file's order."""
    newest: dict[str, InstanceView] = {}
    for one in snapshot.instances:
        if one.preset not in newest or one.epoch > newest[one.preset].epoch:
            newest[one.preset] = one
    rows = [
        _model_row(model, newest.get(model.id), snapshot.now, rates.of(model.id))
        for model in snapshot.models
    ]
    return sorted(rows, key=lambda row: not row.active)


def _model_row(
    model: ModelView, instance: InstanceView | None, now: float, rate: float
) -> ModelRow:
    loading = model.state == "loading" and instance is not None
    progress = model.downloaded if model.state == "downloading" else None
    if loading and instance is not None:
        progress = instance.progress
    footprint = instance.memory if instance and instance.memory else model.footprint
    ttl_ends = instance.evict_at if instance else None
    return ModelRow(
        id=model.id,
        state="waiting" if model.state == "unloaded" and model.waiting else model.state,
        progress=progress,
        eta=_eta(model, instance if loading else None, now),
        leases=model.leases,
        slots=instance.slots if instance else None,
        waiting=model.waiting,
        rate=rate,
        age=None if instance is None else max(0.0, now - instance.spawned_at),
        ttl_left=None if ttl_ends is None else max(0.0, ttl_ends - now),
        pinned=model.pinned,
        memory=sum(footprint.values()) if footprint else None,
        reason=_reason(model, instance, now),
        chosen=model.chosen,
    )


def _eta(model: ModelView, loading: InstanceView | None, now: float) -> float | None:
    """Return the seconds until a model is ready: as learned, or less if this load is faster."""
    if model.state not in ("loading", "downloading") and not model.waiting:
        return None
    learned = model.eta_seconds or None
    fraction = 0.0 if loading is None else min(1.0, loading.progress or 0.0)
    if loading is None or fraction < _EARLY:
        return learned
    as_it_goes = (now - loading.spawned_at) * (1 - fraction) / fraction
    return as_it_goes if learned is None else min(learned, as_it_goes)


def _reason(model: ModelView, instance: InstanceView | None, now: float) -> str:
    if model.failure is not None:
        retry = model.failure.retry_at
        again = f" (again in {retry - now:.0f} s)" if retry is not None and retry > now else ""
        last = f": {model.failure.log[-1]}" if model.failure.log else ""
        return f"{model.failure.summary}{again}{last}"
    if instance is not None and instance.claimed_by:
        return f"{instance.reason}; {instance.claimed_by} gets its memory next"
    reason = instance.reason if instance is not None and instance.reason else model.reason
    return reason.replace("gone: makes room for", "unloaded to make room for", 1)


def _title(snapshot: Snapshot) -> str:
    loaded = sum(1 for one in snapshot.instances if one.ready_at is not None)
    words = [
        f"lswap {_place(snapshot)}",
        snapshot.state,
        f"up {format_age(snapshot.now - snapshot.started_at)}",
        f"{loaded} of {len(snapshot.models)} loaded",
        f"{snapshot.requests_open} open",
        f"{snapshot.requests_total} answered",
        f"{snapshot.loads_total} loads",
        f"{snapshot.evictions_total} evicted",
    ]
    return " · ".join(words)


def _place(snapshot: Snapshot) -> str:
    """Return the server's file, or where it listens, to tell it from other servers."""
    folder, _, name = (snapshot.config_path or "").rpartition("/")
    if name:
        return f"{folder.rpartition('/')[2]}/{name}".lstrip("/")
    return snapshot.listen[0].removeprefix("http://") if snapshot.listen else snapshot.name


def _model_has(row: ModelRow, snapshot: Snapshot, wanted: str) -> bool:
    model = next(each for each in snapshot.models if each.id == row.id)
    return any_has(wanted, row.id, row.state, *model.other_names)


def any_has(wanted: str, *texts: str) -> bool:
    """Return whether any text contains `wanted`, which is in lower case."""
    return not wanted or any(wanted in text.lower() for text in texts)
