"""Keeps a child to the devices of its preset, by variables that hide others or by `--device`. Pure.

A child that does not see a card opens no context on it, which saves hundreds of MiB per card. It
numbers the cards that it sees from 0; `Placement.names` are its names for ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llamaswap_py.llamacpp.backends import DEVICE_VARIABLES, SELECTABLE, Backend
from llamaswap_py.units import HOST

if TYPE_CHECKING:
    from llamaswap_py.devices.device import Device


def placement_env(devices: Sequence[str], backend: str, uuids: Mapping[str, str]) -> dict[str, str]:
    """Return the variables for a child of `backend` that may use only `devices`.

    `devices` are names like `CUDA1` or `host`. If it is empty, the child chooses among those of
    `uuids`, and numbers them as lswap does. The variables name a GPU by its value in `uuids` (UUID,
    or the driver's number), else by the number in its name.
    """
    kind = SELECTABLE.get(backend)
    if kind is None:
        return {}
    env = dict(kind.order or {})
    names = _visible(devices, kind, uuids)
    if not names and not devices:
        return env
    numbers = [uuids.get(one) or one[len(kind.prefix) :] for one in names]
    return {**env, **_hide_others(kind, numbers)}


def _visible(devices: Sequence[str], kind: Backend, uuids: Mapping[str, str]) -> list[str]:
    """Return our names of what the child sees, in its order."""
    wanted = devices or sorted(uuids, key=lambda name: (len(name), name))
    if not devices and kind.name == "vulkan":
        return []  # its numbers are a guess; a number beyond the last GPU stops the child
    return [name for name in wanted if re.fullmatch(rf"{kind.prefix}\d+", name, re.IGNORECASE)]


def _hide_others(kind: Backend, shown: Sequence[str]) -> dict[str, str]:
    """Return the variables that leave only `shown` visible, and override those we inherited."""
    env = {kind.variable: ",".join(shown) or kind.hides_all}
    if kind.second_variable:
        again = ",".join(str(number) for number in range(len(shown)))
        env[kind.second_variable] = again or kind.hides_all
    return env


# With an engine's own list


@dataclass(frozen=True, slots=True)
class Placement:
    """How a child is kept to some devices: variables, and words after its other arguments.

    `names` are the child's names of devices -> ours.
    """

    env: Mapping[str, str]
    args: tuple[str, ...]
    names: Mapping[str, str]


def seen_by(view: str, devices: Iterable[Device]) -> dict[str, str] | None:
    """Return our id of each device -> the engine's name for it, in the engine's order.

    None if the engine was not asked for its devices, or did not answer.
    """
    known = sorted(
        (seen.place, seen.name, one.id) for one in devices for seen in one.seen if seen.view == view
    )
    return {id: name for _, name, id in known if id != HOST} if known else None


def place(
    chosen: Sequence[str],
    devices: Sequence[Device],
    *,
    view: str,
    backend: str,
    own_env: Mapping[str, str],
    own_choice: bool = False,
) -> Placement:
    """Return how a child that may use only `chosen` is kept to them; empty leaves it to the child.

    Variables with UUIDs hide the other cards, so that the child opens no context there. Where the
    devices have none, or the preset itself sets such a variable (`own_env`), `--device` names them.
    `own_choice`: the preset's arguments have `--device`, and that stands.
    """
    names = seen_by(view, devices)
    uuids = {one.id: one.uuid for one in devices if one.uuid is not None}
    if names is None:
        return Placement(placement_env(chosen, backend, uuids), (), {})
    kind = SELECTABLE[backend].prefix if backend in SELECTABLE else ""
    by_uuid = (
        backend in _BY_UUID
        and DEVICE_VARIABLES.isdisjoint(own_env)
        and all(name.startswith(kind) and id in uuids for id, name in names.items())
    )
    wanted = [one for one in chosen or names if one != HOST]
    if by_uuid and not own_choice and (chosen or wanted):
        numbered = {f"{kind}{number}": id for number, id in enumerate(wanted)}
        return Placement(placement_env(chosen or wanted, backend, uuids), (), numbered)
    env = listing_env(backend, uuids if by_uuid else {}, own_env)
    ours = {name: id for id, name in names.items()}
    if own_choice or not ((chosen and names) or _leaves_out(view, devices)):
        return Placement(env, (), ours)
    words = ",".join(names.get(one, one) for one in wanted) or "none"
    return Placement(env, ("--device", words), ours)


def meant(name: str, view: str, devices: Sequence[Device]) -> str | None:
    """Return our id of the device that a preset calls `name`; None if its engine has none.

    `name` may be a UUID, or another engine's name for the same card.
    """
    one = next((one for one in devices if one.id == name), None) or _by_uuid(name, devices)
    names = seen_by(view, devices)
    if one is None or one.id == HOST or names is None or one.id in names or not one.seen:
        return None if one is None else one.id
    same = [each.id for each in devices if each.id in names and _memory(each) == _memory(one)]
    return same[0] if len(same) == 1 else None


def in_main_memory(device: Device, devices: Sequence[Device]) -> bool:
    """Return whether a device computes in main memory, perhaps under another name."""
    around = {one.id: one.within for one in devices}
    within = device.within
    while within is not None and within != HOST:
        within = around.get(within)
    return within == HOST


def _by_uuid(name: str, devices: Sequence[Device]) -> Device | None:
    """Return the only device whose UUID begins so."""
    if not name.lower().startswith(("gpu-", "mig-")):
        return None
    found = [one for one in devices if (one.uuid or "").lower().startswith(name.lower())]
    return found[0] if len(found) == 1 else None


def _memory(device: Device) -> str:
    """Return the device whose memory it is; one that computes in main memory is told by itself."""
    return device.id if device.within in (None, HOST) else str(device.within)


def listing_env(
    backend: str, uuids: Mapping[str, str], own_env: Mapping[str, str]
) -> dict[str, str]:
    """Return the variables with which an engine lists its devices, besides those of the preset.

    `uuids` are those of all its devices. Children get the same, so that the names mean the same.
    """
    return {} if not DEVICE_VARIABLES.isdisjoint(own_env) else placement_env((), backend, uuids)


def _leaves_out(view: str, devices: Iterable[Device]) -> bool:
    """Return whether an engine lists devices that lswap does not use."""
    hosts = (one for one in devices if one.id == HOST)
    return any(seen.view == view and seen.place >= 0 for one in hosts for seen in one.seen)


_BY_UUID: Final = ("cuda", "rocm")
