"""The memory that a preset may have of each device, and how far margins may be lowered. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llamaswap_py.config.preset import Preset
from llamaswap_py.devices import Device
from llamaswap_py.scheduler.feasibility import LEAST_MARGIN
from llamaswap_py.scheduler.ledger import spread
from llamaswap_py.scheduler.types import Footprint


@dataclass(frozen=True, slots=True)
class DeviceRoom:
    """Bytes of each device that a preset may have; negative where more is taken than there is.

    `less` are the same with smaller and smaller margins, for a preset that fits in no other way. It
    is empty if the margins stay.
    """

    whole: Mapping[str, int]
    less: tuple[Mapping[str, int], ...] = ()


def with_least_margins(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Return devices whose margins may be lowered, because nobody has set them.

    An eighth stays, 128 MiB of 1 GiB: the same part that is left when a smaller margin is named as
    a remedy. It is above what the Linux kernel keeps for itself (`vm.min_free_kbytes`, 66 MiB with
    transparent huge pages) and below which it has to reclaim memory at once.
    """
    return tuple(replace(one, least_margin=one.margin // LEAST_MARGIN) for one in devices)


def room_for(preset: Preset, devices: Sequence[Device], taken: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes of each device that a preset may have, without those in `taken`."""
    return positive(_left(devices, taken, {one.id: _margin(preset, one) for one in devices}))


def positive(room: Mapping[str, int]) -> dict[str, int]:
    """Return bytes of each device, at least 0."""
    return {device: max(size, 0) for device, size in room.items()}


def rooms_for(
    preset: Preset, devices: Sequence[Device], each: Sequence[Mapping[str, int]]
) -> list[DeviceRoom]:
    """Return what a preset may have beside each of these amounts of bytes."""
    now = {one.id: _margin(preset, one) for one in devices}
    margins = [now, *lowered_margins(now, {one.id: _least(preset, one) for one in devices})]
    return [
        DeviceRoom(whole, tuple(less))
        for taken in each
        for whole, *less in ([_left(devices, taken, one) for one in margins],)
    ]


def outer_of(devices: Sequence[Device]) -> dict[str, str | None]:
    """Return for each device the one in whose memory it computes; None if it has its own."""
    return {one.id: one.within for one in devices}


def bytes_of(footprint: Footprint | None) -> dict[str, int]:
    """Return the bytes of a footprint per device; empty if it is unknown."""
    return {str(pool): size for pool, size in (footprint or {}).items()}


def lowered_for(
    footprint: Mapping[str, int],
    devices: Sequence[Device],
    whole: Mapping[str, int],
    room: Mapping[str, int],
) -> dict[str, int]:
    """Return the bytes of each margin that a footprint may take so that it fits into `room`.

    A margin that it does not need stays as it is.
    """
    takes = spread(footprint, outer_of(devices))
    return {
        one.id: room[one.id] - whole[one.id]
        for one in devices
        if takes.get(one.id, 0) > max(whole[one.id], 0) and room[one.id] > whole[one.id]
    }


def _left(
    devices: Sequence[Device], taken: Mapping[str, int], margins: Mapping[str, int]
) -> dict[str, int]:
    held = spread(taken, outer_of(devices))
    return {one.id: one.total - margins[one.id] - held.get(one.id, 0) for one in devices}


def _margin(preset: Preset, device: Device) -> int:
    return max(device.margin, preset.fit.margin.of(device.id))


def lowered_margins(
    margins: Mapping[str, int], least: Mapping[str, int]
) -> Iterator[dict[str, int]]:
    """Yield margins that are halved again and again, down to the least ones."""
    now = dict(margins)
    while now != least:
        now = {device: max(size // 2, least[device]) for device, size in now.items()}
        yield now


def _least(preset: Preset, device: Device) -> int:
    """Return down to where the margin of a device may go; what the preset asks for stays."""
    asked = preset.fit.margin.of(device.id)
    if asked or device.least_margin is None:
        return max(device.margin, asked)
    return device.least_margin
