"""The memory that each preset may have: its budget, which a choice has to fit into.

It is what a preset could have if all that may be unloaded were unloaded. So a preset runs with the
same settings, whichever models are loaded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from llamaswap_py.scheduler.types import Choice
from llamaswap_py.supervisor.rooms import DeviceRoom, bytes_of, rooms_for

if TYPE_CHECKING:
    from llamaswap_py.config.preset import Preset
    from llamaswap_py.devices import Device
    from llamaswap_py.supervisor.prepare import Prepared
    from llamaswap_py.supervisor.reservations import Reservations


class Budgets:
    """Works out budgets from what pinned presets take and from what other programs hold.

    `strangers` returns the bytes of each device that other programs steadily hold, `used` the
    presets that requests came for in the last day.
    """

    def __init__(
        self,
        prepared: Mapping[str, Prepared],
        devices: tuple[Device, ...],
        reservations: Reservations | None = None,
        strangers: Callable[[], Mapping[str, int]] = dict,
        used: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self.devices = devices
        self._prepared = prepared
        self._reservations = reservations
        self._strangers = strangers
        self._used = used
        self._told: dict[str, tuple[Choice, ...]] = {}
        self._pins = _pins(prepared)

    def record(self, preset: str, choices: Iterable[Choice]) -> None:
        """Note the choices of a preset, which other presets then count with."""
        self._told[preset] = tuple(choices)

    def discard(self, presets: Iterable[str]) -> None:
        """Forget the choices of these presets."""
        for preset in presets:
            self._told.pop(preset, None)

    def repinned(self, presets: Collection[str]) -> bool:
        """Return whether the file pins others than before, or one of `presets`.

        A change of the pins changes the memory that all presets may have.
        """
        before, self._pins = self._pins, _pins(self._prepared)
        return before != self._pins or any(one in self._pins for one in presets)

    def pinned_before(self, preset: str) -> tuple[str, ...]:
        """Return the presets that the file pins and that are fitted before this one."""
        pinned = self._pins
        return pinned[: pinned.index(preset)] if preset in pinned else pinned

    def pinned(self, preset: str) -> Counter[str]:
        """Return the bytes per device of what the file pins and that is fitted before this one."""
        taken: Counter[str] = Counter()
        for name in self.pinned_before(preset):
            first = self._told.get(name, self._prepared[name].plan.choices)[0]
            taken.update(bytes_of(first.footprint))
        return taken

    def rooms(self, preset: str, said: Preset) -> list[DeviceRoom]:
        """Return what a preset may have: beside what stays and other programs, or without them.

        What other programs hold may go, and a pin may be lifted: neither makes a preset too large.
        """
        pinned = self.pinned(preset)
        nothing: Counter[str] = Counter()
        taken = (self._held() + pinned, pinned, nothing)
        return rooms_for(said, self.devices, taken)

    def in_use(self, preset: str) -> dict[str, list[dict[str, int]]]:
        """Return the models of the last day that may be loaded beside a preset, and their sizes.

        A size is bytes per device, for each of the best ways to load. They come in the file's
        order.
        """
        used = self._used()
        stays = {preset, *self.pinned_before(preset)}
        groups = set(self._prepared[preset].plan.groups)
        found: dict[str, list[dict[str, int]]] = {}
        for name in self._prepared if used else ():
            choices = self._told.get(name, ())
            if name not in used or name in stays or not choices:
                continue
            if groups & set(self._prepared[name].plan.groups):
                continue  # of a group one model is loaded at a time
            found[name] = [
                bytes_of(one.footprint)
                for one in choices
                if one.footprint is not None
                and (one.variant, one.beside) == (choices[0].variant, False)
            ]
        return found

    def _held(self) -> Counter[str]:
        """Return the bytes per device of other programs and of reservations."""
        held: Counter[str] = Counter(self._strangers())
        for one in () if self._reservations is None else self._reservations.held:
            held.update(bytes_of(one.footprint))
        return held


def _pins(prepared: Mapping[str, Prepared]) -> tuple[str, ...]:
    """Return the presets that the file pins, in its order."""
    return tuple(name for name, one in prepared.items() if one.preset.pin)
