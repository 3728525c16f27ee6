"""Estimates the memory of presets before they are loaded, and learns from their children."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Final, TypeAlias

from llamaswap_py.config.sections import Config
from llamaswap_py.devices import Device
from llamaswap_py.devices.host import process_trees
from llamaswap_py.devices.process_memory import read_process_use
from llamaswap_py.errors import ApiError, LswapError
from llamaswap_py.estimate import Estimate, Estimator, Wanted
from llamaswap_py.estimate.files import FileIdentity, file_sizes
from llamaswap_py.estimate.fitter import Fitter
from llamaswap_py.estimate.types import EstimateError, Part
from llamaswap_py.scheduler.ledger import rpc_pools
from llamaswap_py.scheduler.types import TENSOR_TOO_LARGE, Choice, Failure, PoolId
from llamaswap_py.storage.counters import LoadRates
from llamaswap_py.storage.record_folder import traffic_folder
from llamaswap_py.supervisor.chooser import Chooser, identities
from llamaswap_py.supervisor.chosen_ways import chooses
from llamaswap_py.supervisor.memory_budgets import Budgets
from llamaswap_py.supervisor.mends import Mender
from llamaswap_py.supervisor.prepare import Prepared
from llamaswap_py.supervisor.reservations import Reservations
from llamaswap_py.supervisor.rooms import bytes_of
from llamaswap_py.supervisor.ways import usable, wanted_for, ways_to_load, weighed
from llamaswap_py.tasks import guard
from llamaswap_py.units import HOST, format_age, format_size

_log: Final = logging.getLogger("lswap")
_PEAK_INTERVAL: Final = 30.0
"""Seconds between looks at how much the loaded children have grown."""

DRY_RUN: Final = 512 << 20
"""Bytes of each card that a dry run may take: it opens a context (docs/design/engine.md)."""
_PATIENCE: Final = 5.0
"""The most seconds by which a look at a preset's files may delay its load."""
_AHEAD: Final = 32
"""How many presets are estimated before they are asked for: a file may have thousands."""

Tell = Callable[[str, tuple[Choice, ...], float | None, bool], None]


@dataclass(frozen=True, slots=True)
class ReadyChild:
    """The facts of a child that learning from it needs."""

    preset: str
    choice: Choice
    pid: int
    load_seconds: float
    outside: tuple[int, ...] = ()
    """Processes of its container, which are not below it."""


class Estimation:
    """Owns one task that estimates presets one by one, first those that requests wait for.

    `tell(preset, choices, load_seconds, seeded)` hands over what was found. `load_seconds` is what
    earlier loads took, or, if `seeded`, what a load should take by the size of the files.
    `ready_children` returns the children to measure, `strangers` the bytes of each device that
    other programs steadily hold, `config` the configuration as it is now.
    """

    def __init__(
        self,
        prepared: Mapping[str, Prepared],
        devices: tuple[Device, ...],
        cache_ram: int,
        tell: Tell,
        ready_children: Callable[[], list[ReadyChild]],
        estimator: Estimator | None = None,
        reservations: Reservations | None = None,
        strangers: Callable[[], Mapping[str, int]] = dict,
        config: Callable[[], Config | None] = lambda: None,
        used: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._prepared = prepared
        self._devices = devices
        self._cache_ram = cache_ram
        self._tell = tell
        self._ready_children = ready_children
        self._reservations = reservations
        self._config = config
        self._budgets = Budgets(prepared, devices, reservations, strangers, used)
        self._estimator = estimator or Estimator(room=self._room)
        self._fitter = Fitter(self._estimator)
        self._chooser = Chooser(
            prepared, self._budgets, self._fitter, cache_ram, self._estimated, self._record_found
        )
        self._load_rates = LoadRates(traffic_folder())
        self._found: dict[_Way, Estimate] = {}
        self._in_place: dict[_Way, int | None] = {}
        self._redone: Counter[str] = Counter()
        self._todo = deque(_ahead_of_need(prepared))
        self._working: tuple[str, float] | None = None
        self._files: dict[str, dict[str, tuple[FileIdentity, ...] | None]] = {}
        """The files that each preset was estimated with, by variant."""
        self._rechosen: set[str] = set()
        """Presets that were chosen anew for other files, until they are loaded."""
        self._leftovers: dict[str, dict[str, int]] = {}
        self._refused: dict[str, tuple[Choice, str]] = {}
        """Choices with a tensor that a device refused, and what the engine said of it."""
        self._seen: set[str] = set()
        self._done: set[str] = set()
        self._ready: deque[ReadyChild] = deque()
        self._work = asyncio.Event()
        self._came = asyncio.Event()

    async def next(self) -> None:
        """Wait until the next estimate."""
        self._came.clear()
        await self._came.wait()

    def use(self, devices: tuple[Device, ...]) -> None:
        """Take other devices: each preset is worked out anew for them."""
        self._devices = self._budgets.devices = devices
        self.redo(tuple(self._prepared))

    def hurry(self, preset: str) -> None:
        """A request waits for this preset: estimate it next. An unknown name is ignored."""
        if preset not in self._seen and preset in self._prepared:
            self._seen.add(preset)
            self._todo.appendleft(preset)
            self._work.set()

    def redo(self, presets: Iterable[str]) -> None:
        """Work these out anew: what was known of them is out of date.

        What the file pins leaves other memory to all presets, so they are out of date with it.
        """
        gone = set(presets)
        if self._budgets.repinned(gone):
            gone |= self._chooser.known
        self._seen -= gone
        self._done -= gone
        self._found = {key: one for key, one in self._found.items() if key[0] not in gone}
        self._in_place = {key: one for key, one in self._in_place.items() if key[0] not in gone}
        self._chooser.forget(gone)
        self._budgets.discard(gone)
        self._redone.update(gone)
        self._todo.extend(name for name in gone if name in self._prepared)
        self._work.set()

    def reduce(self, preset: str, failed: Choice, failure: Failure) -> None:
        """A load failed for its size: choose the next step instead, until something changes."""
        self._chooser.reduce(preset, failed)
        if failure.kind == TENSOR_TOO_LARGE:
            self._refused[preset] = failed, "\n".join(failure.tail)
        self._do_next(preset)

    def refit(self, preset: str, room: Mapping[PoolId, int]) -> None:
        """Choose what fits into `room`, which other programs leave, for the next load alone."""
        self._leftovers[preset] = bytes_of(room)
        self._do_next(preset)

    def _do_next(self, preset: str) -> None:
        """Estimate a preset next; an estimate of it that is under way is out of date."""
        self._redone[preset] += 1
        self._done.discard(preset)
        self._todo.appendleft(preset)
        self._work.set()

    async def are_outdated(self, preset: str) -> bool:
        """Return whether the choices of a preset were made for other files than there are now.

        After `rechoose` it returns False until a load succeeds, so that a file which changes all
        the time is loaded in the end.
        """
        prepared, known = self._prepared.get(preset), self._files.get(preset)
        if prepared is None or known is None or preset in self._rechosen:
            return False
        try:
            async with asyncio.timeout(_PATIENCE):
                now = await asyncio.to_thread(_files_of, prepared)
        except TimeoutError:  # a disk that hangs: the load will tell
            return False
        return now != known and None not in now.values()

    def rechoose(self, preset: str) -> None:
        """Choose anew for a preset with other files."""
        self._rechosen.add(preset)
        self.redo((preset,))

    def record_ready(self, ready: ReadyChild) -> None:
        """A child is ready: measure it soon."""
        self._ready.append(ready)
        self._work.set()

    def stage(self, preset: str) -> str:
        """Say how long lswap has worked on a preset, or on what it works first; "" if neither."""
        ahead = list(takewhile(lambda one: one != preset, self._todo))
        working, began = self._working or ("", 0.0)
        age = format_age(asyncio.get_running_loop().time() - began)
        if working == preset:
            prepared = self._prepared.get(preset)
            chosen = prepared and any(chooses(prepared, variant) for variant in prepared.ways)
            what = "choosing its context and layers" if chosen else "estimating its memory"
            return f"lswap has been {what} for {age}"
        if preset not in self._todo or not (working or ahead):
            return ""
        first = [f"{working} (for {age})"] if working else []
        first += [f"{len(ahead)} other model{'s' * (len(ahead) > 1)}"] if ahead else []
        return f"lswap works on {' and '.join(first)} first"

    async def run(self) -> None:
        """Estimate everything, then learn, until cancelled."""
        while True:
            if self._ready:
                await self._learn_ready(self._ready.popleft())
            elif self._todo:
                preset = self._todo.popleft()
                for one in (*self._budgets.pinned_before(preset), preset):
                    if one not in self._done and one in self._prepared:
                        self._done.add(one)
                        await self._estimate_or_say_unknown(one)
            elif due := self._chooser.in_other_company(self._loaded()):
                self._done.difference_update(due)
                self._todo.extend(due)
            else:
                self._work.clear()
                try:
                    await asyncio.wait_for(self._work.wait(), _PEAK_INTERVAL)
                except TimeoutError:
                    await self._learn_peaks()
                    self.choose_anew(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def _room(self, gpus: Sequence[str], servers: Sequence[str]) -> AsyncIterator[None]:
        """Charge the GPUs with the context of a dry run; no model is unloaded for it.

        It needs its RPC servers for itself, too: one that a child uses would make it wait for ever.
        """
        if self._reservations is None or not (gpus or servers):
            yield
            return
        taken = {**dict.fromkeys(gpus, DRY_RUN), **dict.fromkeys(map(str, rpc_pools(servers)), 1)}
        try:
            async with self._reservations.hold(taken, evict=False):
                yield
        except ApiError as error:
            raise EstimateError(f"no room for a dry run: {error.message}") from None

    async def _estimate_or_say_unknown(self, preset: str) -> None:
        """Estimate; if that fails, tell the scheduler, so that requests do not wait for ever."""
        redone = self._redone[preset]
        self._working = preset, asyncio.get_running_loop().time()
        try:
            await self._estimate(preset)
        except Exception as error:
            guard.report("estimate", error)
            prepared = self._prepared.get(preset)
            if prepared is not None and redone == self._redone[preset]:
                self._hand_over(preset, tuple(prepared.plan.choices), None, False)
        finally:
            self._working = None

    def _hand_over(
        self, preset: str, choices: tuple[Choice, ...], seconds: float | None, seeded: bool
    ) -> None:
        self._tell(preset, choices, seconds, seeded)
        self._came.set()

    async def _estimate(self, preset: str) -> None:
        prepared, redone = self._prepared[preset], self._redone[preset]
        choices = list(prepared.plan.choices)
        if prepared.plan.estimating:
            await self._learn_refusal(preset)
            self._files[preset] = await asyncio.to_thread(_files_of, prepared)
            choices = await self._ways(preset, prepared)
            choices = await self._with_remedies(preset, choices)
        seconds, seeded = await self._learned_load(preset, choices), False
        if seconds is None:
            seconds, seeded = await self._seeded_load(prepared), True
        if redone != self._redone[preset]:
            return  # this is of an older configuration, and it is worked out anew
        self._budgets.record(preset, choices)
        self._hand_over(preset, tuple(choices), seconds, seeded)

    async def _ways(self, preset: str, prepared: Prepared) -> list[Choice]:
        """Return the ways to load a preset, with what each takes."""
        every = ways_to_load(prepared, self._devices)
        found: list[Choice] = []
        for variant in prepared.ways:
            plain = [one for one in every if one.variant == variant]
            if not chooses(prepared, variant):
                found += [await self._estimated(preset, one) for one in plain]
                continue
            try:
                found += await self._chooser.choose(preset, prepared, variant)
            except LswapError as error:
                _log.warning("%s: no estimate of its memory: %s", preset, error)
                found += plain
        if (room := self._leftovers.pop(preset, None)) is not None:
            found += await self._chooser.choose_for_leftovers(preset, prepared, room)
        return found

    async def _learn_refusal(self, preset: str) -> None:
        """Keep the size of a tensor that a device refused in a load, for all later choices."""
        failed, said = self._refused.pop(preset, (None, ""))
        wanted = None if failed is None else self._wanted(preset, failed)
        if wanted is not None:
            with contextlib.suppress(EstimateError):
                await self._estimator.learn_refusal(wanted, said)

    def choose_anew(self, now: float) -> None:
        """Choose again for presets whose memory has been clearly more or less for long, by `now`.

        A preset that is loaded keeps what it runs with.
        """
        for preset in self._chooser.outgrown(self._loaded(), now):
            _log.info("%s: its memory has differed for 10 minutes; lswap chooses anew", preset)
            self.redo([preset])

    def _loaded(self) -> set[str]:
        return {str(one.preset) for one in self._ready_children()}

    def _record_found(self, preset: str, choice: Choice, estimate: Estimate) -> None:
        self._found[_way_of(preset, choice)] = estimate

    async def _seeded_load(self, prepared: Prepared) -> float | None:
        """Return the expected seconds of a first load, by the bytes to read; None if unknown."""
        if prepared.engine is None:
            return None
        try:
            size = await asyncio.to_thread(file_sizes, prepared.files)
        except LswapError:
            return None
        return await asyncio.to_thread(self._load_rates.expect, prepared.engine.backend, size)

    async def _learned_load(self, preset: str, choices: list[Choice]) -> float | None:
        known: list[float] = []
        for choice in choices:
            if (wanted := self._wanted(preset, choice)) is None:
                continue
            with contextlib.suppress(LswapError):
                if (seconds := await self._estimator.learned_load(wanted)) is not None:
                    known.append(seconds)
        return min(known, default=None)

    async def _estimated(self, preset: str, choice: Choice) -> Choice:
        """Return a choice with its footprint, if that can be estimated."""
        wanted = self._wanted(preset, choice)
        if wanted is None:
            return choice
        known = self._prepared[preset]  # it may be gone from the file at any await
        try:
            estimate = await self._estimator.estimate(wanted)
        except LswapError as error:
            _log.warning("%s: no estimate of its memory: %s", preset, error)
            return choice
        self._found[_way_of(preset, choice)] = estimate
        return weighed(known, choice, estimate)

    async def _with_remedies(self, preset: str, choices: list[Choice]) -> list[Choice]:
        """Say what would help a preset that cannot fit beside those that the file pins."""
        prepared = self._prepared.get(preset)
        if prepared is None:
            return choices
        last = choices[-1]
        estimate = self._found.get(_way_of(preset, last))
        if estimate is None or last.variant not in prepared.ways:
            return choices
        mender = Mender(
            self._devices, self._estimator, self._fitter, self._cache_ram, self._config()
        )
        return (await mender.seek(prepared, choices, estimate, self._budgets.pinned(preset)))[0]

    def _wanted(self, preset: str, choice: Choice) -> Wanted | None:
        known = self._prepared.get(preset)
        if known is None or choice.variant not in known.ways:
            return None  # it runs on, but the file does not have it any more
        return wanted_for(known, choice, self._devices, self._cache_ram)

    async def _learn_ready(self, ready: ReadyChild) -> None:
        wanted = self._wanted(ready.preset, ready.choice)
        if wanted is None:
            return
        self._rechosen.discard(ready.preset)
        engine = self._prepared[ready.preset].engine  # it may be gone from the file at any await
        use = await self._use(ready, wanted)
        known = self._found.get(_way_of(ready.preset, ready.choice))
        try:
            estimate = known
            if estimate is None and (engine is not None or wanted.declared is not None):
                estimate = await self._estimator.estimate(wanted)
            said = await self._estimator.learn_ready(wanted, estimate, use, ready.load_seconds)
        except LswapError as error:
            _log.debug("%s: nothing learned: %s", ready.preset, error)
            return
        if said:
            _log.info("%s: %s; from now on lswap counts with the measurement", ready.preset, said)
        with contextlib.suppress(LswapError):
            size = await asyncio.to_thread(file_sizes, wanted.files)
            if engine is not None:
                backend = engine.backend
                await asyncio.to_thread(self._load_rates.record, backend, size, ready.load_seconds)
        if wanted.declared is None and ready.preset in self._prepared:
            await self._estimate(ready.preset)

    async def _learn_peaks(self) -> None:
        for ready in self._ready_children():
            wanted = self._wanted(ready.preset, ready.choice)
            if wanted is None:
                continue
            with contextlib.suppress(LswapError):  # its file is gone: it serves on all the same
                await self._estimator.learn_peak(wanted, await self._use(ready, wanted))

    async def _use(self, ready: ReadyChild, wanted: Wanted) -> dict[str, int]:
        prepared = self._prepared[ready.preset]
        way = prepared.ways[ready.choice.variant]
        devices = [
            one
            for one in usable(way, prepared.engine, self._devices)
            if not ready.choice.devices or one.id in ready.choice.devices
        ]
        in_place, pids = None, [ready.pid]
        if wanted.is_program:
            trees = await asyncio.to_thread(process_trees, [ready.pid, *ready.outside])
            pids = sorted(frozenset().union(*trees.values()))
        else:
            in_place = await self._in_place_of(ready, wanted)
        used = await asyncio.to_thread(read_process_use, pids, way.files, devices, in_place)
        known = self._found.get(_way_of(ready.preset, ready.choice))
        parts = known.parts if known is not None else ()
        inside = {one.id for one in devices if one.in_process}
        return without_inside(used.devices, parts, inside)

    async def _in_place_of(self, ready: ReadyChild, wanted: Wanted) -> int | None:
        """Return the bytes of its files that must stay mapped; worked out once."""
        kind = _way_of(ready.preset, ready.choice)
        if kind not in self._in_place:
            self._in_place[kind] = await self._estimator.in_place(wanted)
        return self._in_place.get(kind)  # a reload may have dropped it


def without_inside(
    used: Mapping[str, int], parts: Iterable[Part], inside: Collection[str]
) -> dict[str, int]:
    """Return what a process uses, without the devices of `inside`, whose memory is its own.

    A driver that computes on the CPU takes the memory of its process. It cannot be measured apart,
    so the estimate of such a device stays, and the host has the rest.
    """
    kept = {device: size for device, size in used.items() if device not in inside}
    if inside and HOST in kept:
        at_ready = sum(part.size for part in parts if part.device in inside and not part.grows)
        kept[HOST] = max(kept[HOST] - at_ready, 0)
    return kept


_Way: TypeAlias = tuple[str, str, tuple[PoolId, ...], tuple[str, ...]]
"""A preset, a variant, a placement, and the words that were chosen."""


def _way_of(preset: str, choice: Choice) -> _Way:
    return preset, choice.variant, choice.devices, choice.words


def _files_of(prepared: Prepared) -> dict[str, tuple[FileIdentity, ...] | None]:
    """Return the identities of the files of each variant. Blocks."""
    return {name: identities(way.files) for name, way in prepared.ways.items()}


def _ahead_of_need(prepared: Mapping[str, Prepared]) -> list[str]:
    """Return the presets to estimate at the start: those that will be loaded first come first."""
    names = [name for name, one in prepared.items() if one.plan.estimating]
    first = [name for name in names if prepared[name].preset.preload]
    return list(dict.fromkeys([*first, *names[:_AHEAD]]))


def describe(choice: Choice) -> str:
    """Return `host 4.1 GiB (dry-run)` for people."""
    if choice.footprint is None:
        return "unknown"
    sizes = ", ".join(f"{pool} {format_size(size)}" for pool, size in choice.footprint.items())
    return f"{sizes} ({choice.source})"
