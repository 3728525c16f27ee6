"""What `ps`, `models` and `why` print: tables with the same words as the state and the log."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llamaswap_py.cli.tables import print_table
from llamaswap_py.config.preset_names import spelled
from llamaswap_py.errors import LswapError
from llamaswap_py.units import HOST, format_age, format_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamaswap_py.snapshot import (
        AliasView,
        DecisionView,
        DeviceView,
        InstanceView,
        ModelView,
        Snapshot,
    )

PS_COLUMNS = ("model", "state", "requests", "waiting", "memory", "age", "idle", "ttl left", "why")
MODEL_COLUMNS = ("model", "state", "context/request", "memory", "ttl", "aliases", "note")


def ps_rows(snapshot: Snapshot, *, every: bool) -> list[tuple[str, ...]]:
    """Return a row per instance, and per model that waits or has failed (`every`: all models)."""
    models = {model.id: model for model in snapshot.models}
    rows = [_instance_row(snapshot, each, models.get(each.preset)) for each in snapshot.instances]
    loaded = {each.preset for each in snapshot.instances}
    for model in snapshot.models:
        if model.id not in loaded and (every or model.waiting or model.state != "unloaded"):
            why = model.failure.summary if model.failure else _why_it_waits(model)
            memory = memory_text(model.footprint)
            waiting = str(model.waiting)
            rows.append((_named(model), model.state, "0", waiting, memory, "-", "-", "-", why))
    return rows


def _instance_row(
    snapshot: Snapshot, instance: InstanceView, model: ModelView | None
) -> tuple[str, ...]:
    now = snapshot.now
    idle = instance.leases == 0 and instance.last_used_at is not None
    return (
        _named(model) if model else instance.preset,
        state_text(instance),
        f"{instance.leases}/{instance.slots}" if instance.slots else str(instance.leases),
        str(model.waiting) if model else "0",
        memory_text(model.footprint if model else None),
        format_age(now - instance.spawned_at),
        format_age(now - (instance.last_used_at or now)) if idle else "-",
        format_age(instance.evict_at - now) if instance.evict_at is not None else "-",
        instance.reason,
    )


def _why_it_waits(model: ModelView) -> str:
    gone = model.reason.removeprefix("gone: ")
    reason = model.reason if gone == model.reason else f"unloaded: {gone}"
    reason = _reason_text(reason).replace("unloaded: to ", "unloaded to ", 1)
    return f"{read_ahead_text(model)}; {reason}" if model.read_ahead else reason


def read_ahead_text(model: ModelView) -> str:
    """Return `1.2 GiB of 4.1 GiB read ahead`; "" if its files are not read ahead."""
    if (ahead := model.read_ahead) is None:
        return ""
    return f"{format_size(ahead.there)} of {format_size(ahead.size)} read ahead"


def _named(model: ModelView) -> str:
    return model.id + (" (pinned)" if model.pinned else "")


def state_text(instance: InstanceView) -> str:
    """Return `loading 43%`, `ready`, `ready, beta is next`."""
    text = instance.state
    if instance.state == "loading" and instance.progress is not None:
        text += f" {instance.progress:.0%}"
    return f"{text}, {instance.claimed_by} is next" if instance.claimed_by else text


def memory_text(footprint: dict[str, int] | None) -> str:
    """Return `CUDA0 18.9 GiB + host 1 GiB`; `?` if it is unknown."""
    if footprint is None:
        return "?"
    return " + ".join(f"{device} {format_size(size)}" for device, size in footprint.items()) or "0"


def device_line(device: DeviceView) -> str:
    """Return `RAM: 23.5 GiB – models 0 B, other programs 1.6 GiB, kept free 1 GiB, …`."""
    declared = " (declared)" if device.source == "declared" else ""
    name, inside = named_within(device.id, device.within)
    parts = [("models", device.used), ("reserved", device.reserved)]
    parts += [("other programs", device.strangers or 0), ("kept free", device.margin)]
    words = [f"{word} {format_size(size)}" for word, size in parts if size or word[0] == "m"]
    if device.source == "engine":
        words.insert(-1 if device.margin else len(words), "other programs not measured")
    available = format_size(max(device.free, 0))
    total = f"{format_size(device.total)}{inside}{declared}"
    return f"{name}: {total} – {', '.join(words)}, available {available}"


def named_within(id: str, within: str | None) -> tuple[str, str]:
    """Return a device's name, and what follows its size, to say in which memory it computes.

    `Vulkan0` and ` of RAM`; `RPC1, the same memory as RPC0` and nothing.
    """
    if within is None:
        return device_name(id), ""
    if within == HOST:
        return device_name(id), f" of {device_name(HOST)}"
    return f"{device_name(id)}, the same memory as {device_name(within)}", ""


def device_name(id: str) -> str:
    """Return a device's name for people: `RAM` for the host."""
    return "RAM" if id == HOST else id


def trouble_text(model: ModelView) -> str:
    """Return why a model has failed, or can never be loaded here; "" for all others."""
    if model.failure is not None:
        return model.failure.summary
    reason = model.reason.removeprefix("refused: ")
    return reason if model.state == "unloaded" and reason.startswith("can never fit") else ""


def print_ps(snapshot: Snapshot, *, every: bool = False) -> None:
    """Print the models that are loaded, loading, waited for or failed, and the devices."""
    rows = ps_rows(snapshot, every=every)
    if rows:
        print_table(PS_COLUMNS, rows)
    else:
        count = len(snapshot.models)
        known = "1 model is known" if count == 1 else f"{count} models are known"
        print(f"nothing is loaded; {known} (`lswap models`)")
    for device in snapshot.devices:
        print(device_line(device))
    for one in snapshot.reservations:
        print(f"reservation {one.name}: {memory_text(one.memory)}, {one.state}")


def only_model(snapshot: Snapshot, name: str) -> Snapshot:
    """Return a snapshot of one model alone, by any of its names. Raises LswapError."""
    found = find_model(snapshot, name)
    if found is None:
        names = [each for one in snapshot.models for each in (one.id, *one.other_names)]
        near = get_close_matches(name, names, 1)
        remedy = f"did you mean {near[0]}?" if near else "`lswap models` lists them"
        raise LswapError(f"there is no model {name!r}", remedy=remedy)
    instances = tuple(one for one in snapshot.instances if one.preset == found.id)
    return replace(snapshot, models=(found,), instances=instances, aliases=())


def print_models(snapshot: Snapshot) -> None:
    """Print every model of the file, and the aliases that choose among them."""
    rows = [_model_row(model) for model in snapshot.models]
    print_table(MODEL_COLUMNS, rows + [_alias_row(alias) for alias in snapshot.aliases])


def find_model(snapshot: Snapshot, name: str) -> ModelView | None:
    """Return the model that a name means; for an alias that chooses, its first model."""
    names = {alias.name: alias.presets[0] for alias in snapshot.aliases}
    for model in snapshot.models:
        names |= dict.fromkeys(model.other_names, model.id)
    names |= {model.id: model.id for model in snapshot.models}
    known = spelled(name, names)
    return next((one for one in snapshot.models if known and one.id == names[known]), None)


def _model_row(model: ModelView) -> tuple[str, ...]:
    return (
        _named(model),
        model.state,
        f"{model.context_per_request:,}" if model.context_per_request else "?",
        memory_text(model.footprint),
        format_age(model.ttl) if model.ttl is not None else "never",
        ", ".join(model.other_names) or "-",
        "; ".join(_notes(model)),
    )


def _state_line(model: ModelView, decisions: Sequence[DecisionView], now: float) -> str:
    """Return `beta: unloaded 44 s ago to make room for alpha (…)`, or `beta is ready: …`."""
    last = decisions[-1] if decisions else None
    if model.waiting and model.state == "unloaded" and model.reason.startswith("waiting for"):
        return f"{model.id} is {model.reason}"
    if model.state == "unloaded" and last is not None and last.kind == "gone":
        reason = _reason_text(last.reason)
        glue = " " if reason.startswith("to ") else ": "
        return f"{model.id}: unloaded {format_age(now - last.at)} ago{glue}{reason}"
    reason = model.reason.removeprefix(f"{model.state}: ")
    return f"{model.id} is {model.state}" + (f": {reason}" if reason else "")


def _reason_text(reason: str) -> str:
    """Return a decision's reason in the words of the screen."""
    return reason.replace("makes room for ", "to make room for ", 1)


def _notes(model: ModelView) -> list[str]:
    trouble = trouble_text(model)
    return [
        *(["unlisted"] if model.unlisted else []),
        *([trouble] if trouble else [model.chosen] if model.chosen else []),
    ]


def _alias_row(alias: AliasView) -> tuple[str, ...]:
    if alias.shares:
        whole = sum(alias.shares)
        parts = zip(alias.shares, alias.presets, strict=True)
        said = ", ".join(f"{share / whole:.0%} {preset}" for share, preset in parts)
    else:
        said = f"first of {', '.join(alias.presets)}"
    return (alias.name, "alias", "-", "-", "-", "-", said)


def print_why(model: ModelView, decisions: Sequence[DecisionView], now: float) -> None:
    """Print what a model's state is, why, and the decisions that led there."""
    print(_state_line(model, decisions, now))
    if model.chosen:
        print(model.chosen)
    for device, size in (model.footprint or {}).items():
        parts = model.made_of.get(device)
        print(f"{device}: {format_size(size)}{f' = {parts}' if parts else ''}")
    if model.read_ahead is not None:
        print(read_ahead_text(model))
    if model.failure is not None:
        print(f"failure: {model.failure.summary}")
        for line in model.failure.log:
            print(f"  | {line}")
        if model.failure.retry_at is not None and model.failure.retry_at > now:
            print(f"next try in {format_age(model.failure.retry_at - now)}")
    rows = [
        (f"{format_age(now - each.at)} ago", each.kind, _reason_text(each.reason))
        for each in decisions
    ]
    if rows:
        print_table(("when", "what", "why"), rows)
    else:
        print("no decisions about it yet")
