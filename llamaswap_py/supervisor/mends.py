"""Seeks what makes a preset fit, and names the command that writes it into the file.

`lswap check`, `estimate`, `init` and `up` all ask here, so that they name the same.
"""

from __future__ import annotations

import asyncio
import os
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import msgspec

from llamaswap_py.config.discovery import FoundModel, models_in
from llamaswap_py.config.load import COMMAND_LINE
from llamaswap_py.config.scan import scan_folder
from llamaswap_py.config.sections import Config
from llamaswap_py.config.yaml_edit import Place
from llamaswap_py.devices import Device
from llamaswap_py.errors import LswapError
from llamaswap_py.estimate import Estimate, Estimator, Wanted
from llamaswap_py.estimate.files import open_header
from llamaswap_py.estimate.fitter import Fitter
from llamaswap_py.estimate.remedies import Args, Leaner, Remedies
from llamaswap_py.estimate.types import EstimateError, fits_in
from llamaswap_py.llamacpp.memory_settings import CACHE_RAM
from llamaswap_py.llamacpp.model_files import quant_of
from llamaswap_py.scheduler.types import Choice, PoolId, Remedy
from llamaswap_py.supervisor.chosen_ways import choose_ways, chooses
from llamaswap_py.supervisor.prepare import Prepared
from llamaswap_py.supervisor.preset_files import model_files
from llamaswap_py.supervisor.rooms import outer_of, room_for, rooms_for
from llamaswap_py.supervisor.ways import may_fit, wanted_for, ways_to_load, weighed
from llamaswap_py.units import format_size

_FILES_TRIED: Final = 4
"""How many smaller files of a model are fitted at most, the largest first."""
_SEPARATORS: Final = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True)
class Mend:
    """What makes a preset fit: options of one variant, or another file of the same model.

    `args` may name the prompt cache, which is a key of the file's top level. `footprint` is what
    the preset takes with them.
    """

    args: Args = field(default_factory=dict)
    variant: str = ""
    model: str = ""
    footprint: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_of_entry(self) -> bool:
        """Whether it changes only options in the preset's own entry, and so no other preset."""
        return bool(self.args) and CACHE_RAM not in self.args and not self.variant

    def keys(self, preset: str) -> dict[Place, str | int | bool]:
        """Return the keys of the file that say it."""
        if self.model:
            return {("models", preset, "model"): self.model}
        place: Place = ("models", preset)
        if self.variant:
            place = (*place, "variants", self.variant)
        return {
            ("memory", "cache_ram") if name == CACHE_RAM else (*place, "args", name): _value(text)
            for name, text in self.args.items()
        }


@dataclass(frozen=True, slots=True)
class Mender:
    """Seeks mends on the devices of a machine; `config` is the file that is to be changed."""

    devices: tuple[Device, ...]
    estimator: Estimator
    fitter: Fitter
    cache_ram: int
    config: Config | None

    async def seek(
        self,
        prepared: Prepared,
        choices: Sequence[Choice],
        estimate: Estimate,
        pinned: Mapping[str, int],
    ) -> tuple[list[Choice], tuple[Mend, ...]]:
        """Return the choices with remedies, and what may be written; none if one of them fits.

        `estimate` is that of the last choice. `pinned` are bytes per device that no eviction frees.
        """
        last = choices[-1]
        wanted = wanted_for(prepared, last, self.devices, self.cache_ram)
        room = self._room_to_seek(prepared, choices, pinned)
        if room is None or wanted is None or wanted.declared is not None:
            return list(choices), ()
        leaner = await self._leaner(prepared, last, wanted, estimate, room)
        within = outer_of(self.devices)
        enough = [one for one in leaner if fits_in(one.footprint, room, within)]
        enough.sort(key=lambda one: one.entry is None)  # those of its own entry come first
        command = command_of(self.config, prepared.preset.id)
        remedies = tuple(_remedy(one, command if one in enough[:1] else "") for one in leaner)
        changed = replace(last, remedies=remedies)
        mends = tuple(Mend(one.args, last.variant, footprint=one.footprint) for one in enough)
        if not enough and (found := await self._smaller_file(prepared, last.variant, pinned)):
            said = f"take {posixpath.basename(found.file.path)} ({format_size(found.size)}), which "
            said += "lies in the same folder and fits"
            said += f" (`{command}` writes it into the file)" if command else ""
            changed = replace(changed, smaller=said)
            mends = (Mend(model=found.file.path),)
        return [*choices[:-1], changed], mends

    def _room_to_seek(
        self, prepared: Prepared, choices: Sequence[Choice], pinned: Mapping[str, int]
    ) -> dict[str, int] | None:
        """Return the bytes per device that the preset has to fit into; None if it fits there."""
        preset = prepared.as_variant(choices[-1].variant).preset
        beside, alone = (room_for(preset, self.devices, taken) for taken in (pinned, {}))
        if any(may_fit(one, beside, self.devices) for one in choices):
            return None
        return beside if any(may_fit(one, alone, self.devices) for one in choices) else alone

    async def _leaner(
        self,
        prepared: Prepared,
        choice: Choice,
        wanted: Wanted,
        estimate: Estimate,
        room: Mapping[str, int],
    ) -> list[Leaner]:
        """Return settings that lower what a choice takes."""
        known = None if prepared.engine is None else prepared.engine.options
        extra = prepared.as_variant(choice.variant).preset.extra
        within = outer_of(self.devices)
        try:
            return await Remedies(
                self.estimator, wanted, estimate, room, within=within, known=known, extra=extra
            ).seek()
        except LswapError:  # the judgement stands without a remedy
            return []

    async def _smaller_file(
        self, prepared: Prepared, variant: str, pinned: Mapping[str, int]
    ) -> FoundModel | None:
        """Return the largest file of the same model beside its own with which it fits."""
        preset = prepared.preset
        if self.config is None or f"models.{preset.id}.model" not in self.config.lines:
            return None
        for found in await asyncio.to_thread(_smaller_files, preset.model):
            other = _with_model(prepared, found.file.path)
            try:
                ways = await self._ways(other, variant, pinned)
            except EstimateError:
                continue
            rooms = room_for(other.ways[variant].preset, self.devices, pinned)
            if any(may_fit(one, rooms, self.devices) for one in ways):
                return found
        return None

    async def _ways(
        self, prepared: Prepared, variant: str, pinned: Mapping[str, int]
    ) -> list[Choice]:
        """Return the ways to load a variant, with what each takes; raises EstimateError."""
        if chooses(prepared, variant):
            rooms = rooms_for(prepared.ways[variant].preset, self.devices, [pinned])
            found = await choose_ways(
                prepared, variant, self.devices, self.fitter, self.cache_ram, rooms
            )
            return [one.choice for one in found]
        ways = []
        for choice in ways_to_load(prepared, self.devices):
            wanted = wanted_for(prepared, choice, self.devices, self.cache_ram)
            if wanted is not None and choice.variant == variant:
                estimate = await self.estimator.estimate(wanted)
                ways.append(weighed(prepared, choice, estimate))
        return ways


def command_of(config: Config | None, preset: str) -> str:
    """Return the command that writes a mend into the file; "" without a file that it can name."""
    if config is None or config.sources is None:
        return ""
    place = os.path.abspath(config.source)
    files = [name for name in config.sources.names if name != COMMAND_LINE]
    if not os.path.exists(place) or (os.path.isfile(place) and files != [config.source]):
        return ""
    return shlex.join(["lswap", "estimate", place, preset, "--write"])


def _remedy(one: Leaner, command: str) -> Remedy:
    """Return it as the scheduler's data."""
    footprint = {PoolId(device): size for device, size in one.footprint.items()}
    return Remedy(one.words, footprint, command)


def _value(text: str) -> str | int | bool:
    if text == "true":
        return True
    return int(text) if text.isdecimal() else text


def _with_model(prepared: Prepared, path: str) -> Prepared:
    """Return a preset as if its file were another one of the same model."""
    old = prepared.preset.model
    ways = {}
    for name, way in prepared.ways.items():
        preset = msgspec.structs.replace(way.preset, model=path)
        args = tuple(path if word == old else word for word in way.args)
        ways[name] = replace(way, preset=preset, args=args, files=model_files(preset))
    return replace(prepared, preset=msgspec.structs.replace(prepared.preset, model=path), ways=ways)


def _smaller_files(path: str) -> list[FoundModel]:
    """Return smaller files of the same model in its folder, the largest first; blocks."""
    models = models_in([scan_folder(posixpath.dirname(path))])
    own = next((one for one in models if path in (one.file.path, one.file.real)), None)
    if own is None:
        return []
    smaller = [one for one in models if one.size < own.size and _named(one) == _named(own)]
    smaller.sort(key=lambda one: -one.size)
    return [one for one in smaller if _is_same(one.file.path, path)][:_FILES_TRIED]


def _named(model: FoundModel) -> str:
    """Return the name of a model's file without its quantisation."""
    stem = posixpath.basename(model.file.path).lower().removesuffix(".gguf")
    stem = stem.replace(quant_of(model.file.path).lower() or "\0", "")
    return _SEPARATORS.sub("-", stem).strip("-")


def _is_same(one: str, other: str) -> bool:
    """Return whether two files are of one model: the name and all numbers of its shape agree."""
    try:
        headers = [open_header(path) for path in (one, other)]
    except EstimateError:
        return False
    shapes = [
        {
            key: value
            for key, value in header.metadata.items()
            if key == "general.name"
            or (key.startswith(f"{header.architecture}.") and isinstance(value, (int, float)))
        }
        for header in headers
    ]
    return headers[0].architecture == headers[1].architecture and shapes[0] == shapes[1]
