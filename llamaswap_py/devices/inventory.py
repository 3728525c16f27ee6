"""The devices to schedule on, and their total memory: listed by the engines, declared or measured.

An engine's list says which devices there are. lswap leaves out a device whose memory is not known,
because counting it as empty or as full would be a guess. One line in the log says so, and asks the
user to declare the device. Presets without declared memory then load one at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from llamaswap_py.devices.cards import Cards
from llamaswap_py.devices.device import GONE, Device, EngineList, SeenAs
from llamaswap_py.devices.host import ROOT, read_host_total
from llamaswap_py.devices.joining import join_lists
from llamaswap_py.llamacpp.backends import SELECTABLE
from llamaswap_py.units import HOST

_log: Final = logging.getLogger("lswap.devices")


def read_devices(
    declared: Mapping[str, int] | None,
    margin_of: Callable[[str], int],
    *,
    backends: frozenset[str],
    environment: Mapping[str, str],
    lists: Sequence[EngineList] = (),
    cards: Cards | None = None,
    root: Path = ROOT,
) -> tuple[Device, ...]:
    """Return the devices to schedule on, the host last.

    `lists` are what the engines say. `backends` are those of engines that do not say it: their GPUs
    are what the drivers know. If there are `declared` budgets, the devices are these and the host,
    which is measured if it is not declared. GPUs keep the UUIDs that a driver tells. Devices that
    cannot be read are left out; they never count as zero. `root` is that of the file system, and
    `cards` are its cards, if the caller has read them.
    """
    total, source = read_host_total(root)
    gpus = {one.id: one for one in _find(backends, environment, lists, total, cards or Cards(root))}
    if declared is not None:
        named = [gpus.get(name) or Device(name, 0, 0, "declared") for name in declared]
        sized = [replace(one, total=declared[one.id], source="declared") for one in named]
    else:
        sized = [one for one in gpus.values() if _is_readable(one)]
    found = [replace(one, margin=margin_of(one.id)) for one in sized]
    if declared is None or HOST not in declared:
        found.append(Device(HOST, total, margin_of(HOST), source))
    return _rooted(found, gpus, lists)


def with_gone(now: Sequence[Device], before: Sequence[Device]) -> tuple[Device, ...]:
    """Return the devices that there are now, and those that are gone, with nothing.

    So idle models leave a device that is gone, and a model that wants it is told that it is empty.
    """
    ids = {one.id for one in now}
    gone = [one for one in before if one.id not in ids]
    without = [Device(one.id, 0, 0, GONE, description=one.description) for one in gone]
    if not without:
        return tuple(now)
    on_host = [one for one in now if one.id == HOST]
    return (*(one for one in now if one.id != HOST), *without, *on_host)


def _find(
    backends: frozenset[str],
    environment: Mapping[str, str],
    lists: Sequence[EngineList],
    host_total: int,
    cards: Cards,
) -> tuple[Device, ...]:
    listed = join_lists(lists, cards.of, host_total)
    if backends.isdisjoint(SELECTABLE):
        return listed
    known = {one.bus_id for one in listed if one.bus_id} | {one.id for one in listed}
    guessed = cards.named_for(backends, environment)
    return (*listed, *(one for one in guessed if known.isdisjoint({one.bus_id, one.id})))


def _rooted(
    devices: Sequence[Device], gpus: Mapping[str, Device], lists: Sequence[EngineList]
) -> tuple[Device, ...]:
    """Return the devices, each within one that is there; the host has what is not used.

    Every engine that was asked sees the host. Devices that it lists and lswap does not use are
    names of the host there, so that nothing is placed on them.
    """
    ids = {one.id for one in devices}
    left_out = [seen for gpu in gpus.values() if gpu.id not in ids for seen in gpu.seen]
    on_host = (*(SeenAs(one.view, HOST, -1) for one in lists), *left_out)
    stand_ins: dict[str, str] = {}
    rooted: list[Device] = []
    for one in devices:
        within = one.within
        if within is not None and within not in ids:  # it is not declared: the next stands for it
            stand_in = stand_ins.setdefault(within, one.id)
            within = None if stand_in == one.id else stand_in
        seen = on_host if one.id == HOST else one.seen
        rooted.append(replace(one, within=within, seen=seen))
    return tuple(rooted)


def _is_readable(found: Device) -> bool:
    """Return whether its size is known; log if it is not."""
    if not found.total:
        _log.warning(
            "%s: its memory cannot be read, so lswap leaves it out; declare it (and all others to "
            "use) under memory.devices",
            found.id,
        )
    return bool(found.total)
