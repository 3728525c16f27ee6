"""Finds settings with which a preset that does not fit would take less memory.

Each setting is estimated like the preset itself (a dry run, else the formulas). So the figures in a
message are computed for this model, never guessed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from llamaswap_py.estimate.contexts import USUAL
from llamaswap_py.estimate.files import open_header
from llamaswap_py.estimate.formula import context_of
from llamaswap_py.estimate.types import PROMPT_CACHE, Estimate, EstimateError, Source, fits_in
from llamaswap_py.llamacpp.memory_settings import (
    CACHE_RAM,
    names_of,
    option_words,
    read_settings,
    with_context,
    with_experts_on_host,
    with_layers_on_card,
)
from llamaswap_py.units import HOST

if TYPE_CHECKING:
    from llamaswap_py.estimate.estimator import Estimator
    from llamaswap_py.estimate.wanted import Wanted
    from llamaswap_py.gguf.header import Header

BOUND: Final = 15.0
"""Seconds to seek all remedies of one preset; the message names those found by then."""
_KEYS: Final = {CACHE_RAM: "memory.cache_ram"}
"""Options that are keys of the file, outside `args`."""
Args: TypeAlias = Mapping[str, str]


class Leaner(NamedTuple):
    """Options added to the preset's own, and the memory it takes with them."""

    args: Args
    footprint: Mapping[str, int]

    @property
    def words(self) -> str:
        """The options as a message names them: by the keys of the file."""
        return " and ".join(f"`{_KEYS.get(name, name)}: {self.args[name]}`" for name in self.args)

    @property
    def entry(self) -> Args | None:
        """The options as `args` of the preset's entry; None if another key is needed."""
        return None if self.args.keys() & _KEYS.keys() else self.args


class Remedies:
    """Seeks the settings with which one preset fits into `room` (bytes per device).

    `within` names the device in whose memory another one computes. `known` are the options of its
    engine. `fixed` are those in the command line's extra words: `args` cannot change them.
    `estimate` is what the preset takes unchanged.
    """

    def __init__(
        self,
        estimator: Estimator,
        wanted: Wanted,
        estimate: Estimate,
        room: Mapping[str, int],
        *,
        within: Mapping[str, str | None],
        known: Collection[str] | None,
        extra: Sequence[str] = (),
    ) -> None:
        self._estimator = estimator
        self._wanted = wanted
        self._estimate = estimate
        self._room = room
        self._within = within
        self._known = known
        self._fixed = names_of(extra)
        self._beyond: dict[str, int] = {}
        self._tried: dict[tuple[tuple[str, str], ...], Leaner] = {}

    async def seek(self) -> list[Leaner]:
        """Return the settings to name, the best first, without those tried only on the way."""
        found: list[Leaner] = []
        try:
            async with asyncio.timeout(BOUND):
                await self._seek(found)
        except (TimeoutError, EstimateError):
            pass
        return found

    async def _seek(self, found: list[Leaner]) -> None:
        await self._compare()
        together: dict[str, str] = {}
        for args in self._lossless():
            one = await self._need(args)
            if self._fits(one):
                found.append(one)
            together |= args
        if not found and len(together) > 1:
            both = await self._need(together)
            if self._fits(both):
                found.append(both)
        header = await asyncio.to_thread(open_header, self._wanted.model)
        contexts, layers = self._contexts(header), self._layers(header)
        for base in ({}, together):
            if found and base:
                break
            for steps in (contexts, layers):
                found += await self._largest(base, steps)
        least = {**together, **(contexts[-1] if contexts else {})}
        if not found and least:  # then the message says that even this is too much
            found.append(await self._need(least))

    async def _compare(self) -> None:
        """Note how far measured memory exceeds the worked-out one: no remedy changes that part."""
        if self._estimate.source is not Source.MEASURED:
            return
        worked_out = (await self._estimator.work_out(self._wanted)).footprint
        for device, size in self._estimate.footprint.items():
            self._beyond[device] = max(size - worked_out.get(device, 0), 0)

    def _lossless(self) -> list[Args]:
        """Return options that do not make answers worse, if the estimate shows their saving."""
        held = {part.what for part in self._estimate.parts if part.device == HOST}
        unknown = self._estimate.source in (Source.MEASURED, Source.DECLARED)
        settings = read_settings(self._wanted.args)
        found: list[Args] = []
        if settings.prompt_cache and (unknown or PROMPT_CACHE in held):
            found.append({CACHE_RAM: "0"})
        return [one for one in found if self._may(one)]

    def _contexts(self, header: Header) -> list[Args]:
        """Return shorter contexts than the preset's, the longest first."""
        settings = read_settings(self._wanted.args)
        now = settings.context or header.integer("context_length", 4096)
        unified = context_of(header, settings).streams == 1
        least = USUAL[0] * (1 if unified else settings.slots)
        steps = [one for one in reversed(USUAL) if least <= one < now]
        return [one for step in steps if self._may(one := with_context(step))]

    def _layers(self, header: Header) -> list[Args]:
        """Return the steps of moving a model off the GPUs: experts, then layers, by quarters."""
        if not self._wanted.gpus:
            return []
        layers = header.integer("block_count")
        steps: list[Args] = []
        if header.integer("expert_count"):
            steps += [with_experts_on_host(layers * part // 4) for part in (1, 2, 3, 4)]
        else:
            steps += [with_layers_on_card(layers * part // 4) for part in (3, 2, 1)]
        return [one for one in steps if self._may(one)]

    async def _largest(self, args: Args, steps: Sequence[Args]) -> list[Leaner]:
        """Return the first of `steps` that fits beside `args`; each takes less than the last."""
        low, high = 0, len(steps)
        while low < high:
            middle = (low + high) // 2
            if self._fits(await self._need({**args, **steps[middle]})):
                high = middle
            else:
                low = middle + 1
        return [await self._need({**args, **steps[low]})] if low < len(steps) else []

    async def _need(self, args: Args) -> Leaner:
        key = tuple(sorted(args.items()))
        if key not in self._tried:
            words = [word for name, value in args.items() for word in option_words(name, value)]
            wanted = replace(self._wanted, args=(*self._wanted.args, *words), declared=None)
            takes = dict((await self._estimator.work_out(wanted)).footprint)
            for device, more in self._beyond.items():
                takes[device] = takes.get(device, 0) + more
            self._tried[key] = Leaner(args, takes)
        return self._tried[key]

    def _fits(self, one: Leaner) -> bool:
        return fits_in(one.footprint, self._room, self._within)

    def _has(self, name: str) -> bool:
        return self._known is None or f"--{name}" in self._known

    def _may(self, args: Args) -> bool:
        return all(self._has(name) and name not in self._fixed for name in args)
