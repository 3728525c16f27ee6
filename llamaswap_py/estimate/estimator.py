"""The estimator: how much memory a preset takes, and which presets fit at the same time.

Figures that the file declares come first, then measured ones, then a dry run, then the formulas.
The header of a model also tells how large a saved slot is, and whether llama-server can use it.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from itertools import combinations
from typing import Final, NamedTuple, TypeAlias

import msgspec

from llamaswap_py.errors import EngineError
from llamaswap_py.estimate.buffer_limits import BufferLimits
from llamaswap_py.estimate.dry_run import as_does_not_run, dry_parts
from llamaswap_py.estimate.files import (
    FileIdentity,
    cpu_flags,
    file_sizes,
    identify,
    open_header,
    open_headers,
)
from llamaswap_py.estimate.formula import (
    analytic_parts,
    caveats,
    context_of,
    devices_used,
    draft_settings,
    has_windows,
    is_recurrent,
    lay_out,
    page_cache_notes,
    parts_and_layout,
    process_parts,
    repackable_kinds,
    token_bytes,
)
from llamaswap_py.estimate.layer_sizes import refused_devices
from llamaswap_py.estimate.types import (
    PROMPT_CACHE,
    DoesNotRunError,
    Estimate,
    EstimateError,
    Part,
    Source,
    surprise,
)
from llamaswap_py.estimate.wanted import SCHEMA, Wanted
from llamaswap_py.gguf.header import Header
from llamaswap_py.llamacpp.fit_params import (
    DryRuns,
    FitParamsAbortError,
    FitParamsError,
    draft_args,
    fit_args,
    has_table,
    is_cache_tensor,
    prints_table,
    read_refusal,
)
from llamaswap_py.llamacpp.memory_settings import Settings, read_settings, rpc_endpoints
from llamaswap_py.llamacpp.rpc_connect import connect
from llamaswap_py.storage import Facts, LearnedFacts, RecordFolder, estimates_folder, learned_folder
from llamaswap_py.units import HOST

Headers = tuple[Header, ...]
Room: TypeAlias = Callable[[Sequence[str], Sequence[str]], AbstractAsyncContextManager[None]]
"""Reserves memory on devices, and RPC servers, for a dry run; raises EstimateError if it cannot."""

ATTEMPTS: Final = 4
"""Runs for the table of llama-fit-params (see has_table), before its plain lines are used."""


class _Abort(msgspec.Struct, frozen=True):
    """A dry run that aborted: see DoesNotRunError."""

    message: str
    tensor: str = ""
    device: str = ""


class Opened(NamedTuple):
    """What is read of a preset's files once: headers, and the sizes of what runs beside them."""

    model: Headers
    draft: Headers
    projector: int
    adapters: int


class Estimator:
    """Estimates presets, and learns from measured ones. One per process; it never blocks the loop.

    Threads read headers, the disk and smaps; dry runs are processes, one at a time.
    """

    def __init__(
        self,
        learned: LearnedFacts | None = None,
        cache: RecordFolder[Estimate] | None = None,
        dry_runs: DryRuns | None = None,
        repackable: Collection[str] | None = None,
        room: Room | None = None,
    ) -> None:
        self._learned = learned or LearnedFacts(learned_folder())
        self._cache = cache or RecordFolder(estimates_folder(), Estimate, version=SCHEMA)
        self._aborts = RecordFolder(self._cache.folder, _Abort, version=SCHEMA)
        self.limits = BufferLimits(self._cache.folder)
        self._dry_runs = dry_runs or DryRuns()
        self._room = room
        self._measured = True
        self._repackable = repackable_kinds(cpu_flags()) if repackable is None else repackable

    def without_measured(self) -> Estimator:
        """Return one that works out everything anew, and shares the rest with this one."""
        other = copy.copy(self)
        other._measured = False
        return other

    async def estimate(self, wanted: Wanted) -> Estimate:
        """Return what `wanted` takes, by the most reliable way that works.

        Raises EstimateError if none works: a file is missing or damaged, or of a kind that neither
        the engine nor the formulas know.
        """
        return await self._estimate(wanted, strict=False)

    async def prove(self, wanted: Wanted) -> Estimate:
        """Return the same; raises DoesNotRunError if the engine aborts with these options."""
        return await self._estimate(wanted, strict=True)

    async def _estimate(self, wanted: Wanted, *, strict: bool) -> Estimate:
        if wanted.declared is not None:
            return _declared(wanted)
        files = await asyncio.to_thread(identify, wanted.files)
        if not self._measured:
            return await self._work_out(wanted, files, strict=strict)
        facts = await asyncio.to_thread(self._learned.get, wanted.key(files, exact=False))
        if facts is not None and {HOST, *wanted.gpus} <= facts.at_ready.keys():
            return _measured(facts)
        worked_out = await self._work_out(wanted, files, strict=strict)
        return worked_out if facts is None or not facts.at_ready else _merged(facts, worked_out)

    async def work_out(self, wanted: Wanted) -> Estimate:
        """Return what `wanted` takes without measured figures: by a dry run, else the formulas."""
        return await self._work_out(wanted, None, strict=False)

    async def _work_out(
        self, wanted: Wanted, files: Sequence[FileIdentity] | None, *, strict: bool
    ) -> Estimate:
        if wanted.is_program:
            raise EstimateError(
                "what this program takes is known once it has run",
                remedy="declare its `memory`, or load it once",
            )
        if files is None:
            files = await asyncio.to_thread(identify, wanted.files)
        key = wanted.key(files, exact=True)
        if (known := await asyncio.to_thread(self._cache.read, key)) is not None:
            return known
        found = await self._fresh(wanted, key, strict=strict)
        # A dry run that failed may work next time, so only a final result is kept.
        if found.source is Source.DRY_RUN or wanted.fit_params is None:
            await asyncio.to_thread(self._cache.write, key, found)
        return found

    async def measured(self, wanted: Wanted, each: Sequence[Sequence[str]]) -> dict[int, Facts]:
        """Return what was measured with the arguments in `each`, by their place there."""
        if not self._measured:
            return {}
        files = await asyncio.to_thread(identify, wanted.files)

        def look() -> dict[int, Facts]:
            found: dict[int, Facts] = {}
            for at, args in enumerate(each):
                key = replace(wanted, args=tuple(args)).key(files, exact=False)
                if (facts := self._learned.get(key)) is not None and facts.at_ready:
                    found[at] = facts
            return found

        return await asyncio.to_thread(look)

    async def dry_run(self, wanted: Wanted) -> Estimate:
        """Return a dry run's figures; raises EstimateError when it does not work."""
        if wanted.fit_params is None:
            raise EstimateError("this engine has no llama-fit-params beside it")
        settings = read_settings(wanted.args)
        headers, notes = await _headers(wanted.model)
        projector, adapters = await asyncio.to_thread(_sizes_beside, settings)
        opened = Opened(headers, (), projector, adapters)
        used = devices_used(settings, wanted.gpus)
        parts = await self._dry_model(wanted, wanted.model, wanted.args, settings, headers)
        if headers:
            layout = lay_out(headers, settings, used, self._repackable)
            notes += page_cache_notes(parts, layout, settings)
        if settings.draft is not None:
            words, aside = draft_args(settings, wanted.args), draft_settings(settings)
            draft, more = await _headers(settings.draft.path)
            notes += more
            parts += await self._dry_model(wanted, settings.draft.path, words, aside, draft)
        return _finished(Source.DRY_RUN, parts, used, settings, opened, notes)

    async def analytic(self, wanted: Wanted) -> Estimate:
        """Return what the formulas say; raises EstimateError for files they do not know."""
        return self.reckon(await self.open(wanted), wanted.args, wanted.gpus)

    async def open(self, wanted: Wanted) -> Opened:
        """Read all that the formulas need of the files; raises EstimateError."""
        return await asyncio.to_thread(_open, wanted.model, read_settings(wanted.args))

    def reckon(self, opened: Opened, args: Sequence[str], gpus: Sequence[str]) -> Estimate:
        """Return what the formulas say of opened files with other arguments. Pure."""
        settings = read_settings(args)
        used = devices_used(settings, gpus)
        parts, layout = parts_and_layout(opened.model, settings, used, self._repackable)
        notes = page_cache_notes(parts, layout, settings)
        if settings.draft is not None and opened.draft:
            parts += analytic_parts(opened.draft, draft_settings(settings), used, self._repackable)
        return _finished(Source.ANALYTIC, parts, used, settings, opened, notes)

    async def in_place(self, wanted: Wanted) -> int | None:
        """Return the bytes of its files that must stay mapped while it runs; None if unknown."""
        if wanted.is_program:
            return None
        try:
            if wanted.declared is not None:  # such a preset has no dry run for anything else
                return (await self.analytic(wanted)).in_place
            return (await self.work_out(wanted)).in_place
        except EstimateError:
            return None

    async def learned_load(self, wanted: Wanted) -> float | None:
        """Return the seconds that loads took in earlier lives, None if there were none."""
        files = await asyncio.to_thread(identify, wanted.files)
        facts = await asyncio.to_thread(self._learned.get, wanted.key(files, exact=False))
        return None if facts is None else facts.load_seconds

    async def learn_ready(
        self,
        wanted: Wanted,
        estimate: Estimate | None,
        use: Mapping[str, int],
        load_seconds: float | None,
    ) -> str:
        """Keep what a child took when it became ready; `estimate` is None if it had none.

        `use` are bytes per device; a device that could not be read is left out of it, never zero.
        Returns a line if the estimate was wrong by more than 5 %, once per preset and placement.
        """
        key = wanted.key(await asyncio.to_thread(identify, wanted.files), exact=False)
        growth = None if estimate is None else _growth(wanted, estimate)
        facts = await asyncio.to_thread(
            self._learned.record_ready, key, wanted.preset, use, growth, load_seconds
        )
        if estimate is None or facts.reported or not (said := surprise(estimate, facts.footprint)):
            return ""
        await asyncio.to_thread(self._learned.record_reported, key)
        return said

    async def learn_peak(self, wanted: Wanted, use: Mapping[str, int]) -> None:
        """Keep the most a child took, sampled while it served or before it was stopped."""
        key = wanted.key(await asyncio.to_thread(identify, wanted.files), exact=False)
        await asyncio.to_thread(self._learned.record_peak, key, use)

    async def learn_refusal(self, wanted: Wanted, said: str) -> None:
        """Keep the size of a cache tensor that a device refused in a load; it printed `said`.

        Raises EstimateError for files that cannot be read.
        """
        error = as_does_not_run("", read_refusal(said), wanted.gpus, wanted.names)
        await self.keep_refusal(wanted, await self.open(wanted), error)

    async def keep_refusal(self, wanted: Wanted, opened: Opened, error: DoesNotRunError) -> int:
        """Keep the size of a cache tensor that a device refused, and return it.

        Return 0 for any other tensor: its size does not depend on the context.
        """
        if not is_cache_tensor(error.tensor) or not opened.model:
            return 0
        settings = read_settings(wanted.args)
        refused = refused_devices(opened.model[0], settings, wanted.gpus, {error.device: 0})
        if size := refused.get(error.device, 0):
            await asyncio.to_thread(self.limits.record, wanted, error.device, size)
        return size

    async def _fresh(self, wanted: Wanted, key: str, *, strict: bool) -> Estimate:
        try:
            return await self._dry_run_once(wanted, key)
        except EstimateError as error:
            if strict and isinstance(error, DoesNotRunError):
                raise
            found = await self.analytic(wanted)
            note = f"no dry run: {error}"
            return Estimate(found.source, found.parts, (*found.notes, note))

    async def _dry_run_once(self, wanted: Wanted, key: str) -> Estimate:
        """Return what a dry run says; one that aborted before is not repeated.

        With RPC servers it is repeated: it may have aborted because one of them ended.
        """
        name, servers = f"abort-{key}", rpc_endpoints(wanted.args)
        if (abort := await asyncio.to_thread(self._aborts.read, name)) is not None:
            raise DoesNotRunError(abort.message, tensor=abort.tensor, device=abort.device)
        try:
            room = None if wanted.fit_params is None else self._room
            async with nullcontext() if room is None else room(wanted.gpus, servers):
                await _all_answer(servers)
                return await self.dry_run(wanted)
        except DoesNotRunError as error:
            abort = _Abort(error.message, error.tensor, error.device)
            if not servers:
                await asyncio.to_thread(self._aborts.write, name, abort)
            raise

    async def _dry_model(
        self,
        wanted: Wanted,
        model: str,
        args: Sequence[str],
        settings: Settings,
        headers: Headers,
    ) -> list[Part]:
        assert wanted.fit_params is not None
        per_slot = bool(headers) and is_recurrent(headers[0])
        output = ""
        try:
            known = await self._dry_runs.options(wanted.fit_params)
            words = fit_args(model, args, settings, known, per_slot=per_slot)
            for _ in range(ATTEMPTS if prints_table(known) else 1):
                output = await self._dry_runs.answer(wanted.fit_params, words, wanted.env)
                if has_table(output):
                    break
            used = devices_used(settings, wanted.gpus)
            return dry_parts(output, headers, settings, used, self._repackable, wanted.names)
        except FitParamsAbortError as error:
            raise as_does_not_run(
                error.message, error.refusal, wanted.gpus, wanted.names
            ) from error
        except FitParamsError as error:
            raise EstimateError(error.message) from error


async def _all_answer(servers: Sequence[str]) -> None:
    """Raise EstimateError unless all RPC servers are there: a dry run would abort."""
    try:
        for one in servers:
            await asyncio.to_thread(connect, one)
    except EngineError as error:
        raise EstimateError(error.message) from error


async def _headers(model: str) -> tuple[Headers, list[str]]:
    """Read a model's headers, if possible; the engine may read files that lswap cannot."""
    try:
        return await asyncio.to_thread(open_headers, model), []
    except EstimateError as error:
        return (), [f"the dry run is used unchanged: {error.message}"]


def _open(model: str, settings: Settings) -> Opened:
    draft = () if settings.draft is None else open_headers(settings.draft.path)
    return Opened(open_headers(model), draft, *_sizes_beside(settings))


def _sizes_beside(settings: Settings) -> tuple[int, int]:
    """Return the bytes of the projector's file and of the adapters'."""
    projector = file_sizes([settings.projector]) if settings.projector else 0
    return projector, file_sizes(settings.adapters)


def _finished(
    source: Source,
    parts: Sequence[Part],
    gpus: Sequence[str],
    settings: Settings,
    opened: Opened,
    notes: Sequence[str],
) -> Estimate:
    """Add the parts of the process itself, join parts of one kind, note what may differ."""
    of_process = process_parts(settings, gpus, projector=opened.projector, adapters=opened.adapters)
    said = list(notes)
    if opened.model:
        said += caveats(opened.model[0], settings, context_of(opened.model[0], settings))
    return Estimate(source, _joined([*parts, *of_process]), tuple(said))


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    sizes: dict[tuple[str, str, bool], int] = {}
    for part in parts:
        kind = (part.device, part.what, part.grows)
        sizes[kind] = sizes.get(kind, 0) + part.size
    return tuple(
        Part(device, what, size, grows) for (device, what, grows), size in sizes.items() if size
    )


def _declared(wanted: Wanted) -> Estimate:
    """The memory that the file declares, and the prompt cache if it declares none of the host."""
    assert wanted.declared is not None
    parts = [Part(device, "declared", size) for device, size in wanted.declared.items()]
    if HOST not in wanted.declared and wanted.cache_ram:
        parts.append(Part(HOST, PROMPT_CACHE, wanted.cache_ram, grows=True))
    return Estimate(Source.DECLARED, tuple(parts))


def _measured(facts: Facts) -> Estimate:
    parts: list[Part] = []
    for device, size in facts.footprint.items():
        ready = facts.at_ready[device]
        parts.append(Part(device, "at readiness", ready))
        if size > ready:
            parts.append(Part(device, "with use", size - ready, grows=True))
    return Estimate(Source.MEASURED, tuple(parts))


def _merged(facts: Facts, worked_out: Estimate) -> Estimate:
    """Use the measured figures where there are some, and worked-out ones for the other devices."""
    measured = _measured(facts)
    others = tuple(part for part in worked_out.parts if part.device not in facts.at_ready)
    unread = ", ".join(sorted({part.device for part in others}))
    note = f"{unread} could not be measured: {worked_out.source} for it"
    return Estimate(Source.MEASURED, measured.parts + others, (*worked_out.notes, note))


def _growth(wanted: Wanted, estimate: Estimate) -> dict[str, int] | None:
    """Return the memory that will be taken with use; None keeps the figures learned before."""
    if estimate.source is Source.MEASURED:
        return None
    if estimate.source is Source.DECLARED:
        return {HOST: wanted.cache_ram}
    return estimate.growth


class SlotShape(NamedTuple):
    """`token_bytes` are what a token takes, at most.

    With `windows` (a sliding window) a saved slot cannot be continued: llama-server saves one token
    too few of the window, and no checkpoint (b11434, server-context.cpp: pos_min >= pos_min_thold).
    It then reads the whole prompt again.
    """

    token_bytes: int
    windows: bool


def read_slot_shape(model: str, args: Sequence[str]) -> SlotShape:
    """Read the header of a model; `args` are llama-server's. Blocks; raises EstimateError."""
    header, settings = open_header(model), read_settings(args)
    return SlotShape(token_bytes(header, settings), has_windows(header, settings))


Needs = Mapping[str, Mapping[str, int]]
"""Preset -> bytes per device."""

EXACT: Final = 12
"""Up to this many presets all sets are tried; with more, each set is filled in the file's order."""


def fits(names: Sequence[str], needs: Needs, room: Mapping[str, int]) -> bool:
    """Return whether all of `names` fit at once; a missing device has no room."""
    used: dict[str, int] = {}
    for name in names:
        for device, size in needs[name].items():
            used[device] = used.get(device, 0) + size
    return all(size <= room.get(device, 0) for device, size in used.items() if size)


def largest_sets(needs: Needs, room: Mapping[str, int]) -> list[tuple[str, ...]]:
    """Return the sets that fit and cannot take another preset, the largest first."""
    names = [name for name in needs if fits([name], needs, room)]
    if len(names) > EXACT:
        grown = {_grown([name], names, needs, room) for name in names}
        return sorted(grown, key=lambda one: (-len(one), [names.index(each) for each in one]))
    found: list[tuple[str, ...]] = []
    for size in range(len(names), 0, -1):
        for chosen in combinations(names, size):
            inside = any(set(chosen) <= set(larger) for larger in found)
            if not inside and fits(chosen, needs, room):
                found.append(chosen)
    return found


def evicted_for(
    name: str, loaded: Sequence[str], needs: Needs, room: Mapping[str, int]
) -> tuple[str, ...] | None:
    """Return the smallest set of `loaded` that must be unloaded to make room for `name`.

    Of sets of one size it is the one with the fewest bytes. () if none must be unloaded, None if
    `name` does not fit even alone. The scheduler also weighs how soon each would be wanted again.
    """
    others = [one for one in loaded if one != name]
    if not fits([name], needs, room):
        return None
    if len(others) > EXACT:
        kept = _grown([name], others, needs, room)
        return tuple(one for one in others if one not in kept)
    for size in range(len(others) + 1):
        sets = [
            gone
            for gone in combinations(others, size)
            if fits([name, *(one for one in others if one not in gone)], needs, room)
        ]
        if sets:
            return min(sets, key=lambda gone: sum(sum(needs[one].values()) for one in gone))
    return None


def _grown(
    start: Sequence[str], names: Sequence[str], needs: Needs, room: Mapping[str, int]
) -> tuple[str, ...]:
    chosen = list(start)
    for name in names:
        if name not in chosen and fits([*chosen, name], needs, room):
            chosen.append(name)
    order = {name: at for at, name in enumerate(names)}
    return tuple(sorted(chosen, key=lambda one: order.get(one, -1)))
