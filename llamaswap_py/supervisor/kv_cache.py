"""The KV cache of an evicted model (`keep_kv`): saved before its stop, restored after a load.

It is saved slot by slot, with llama-server's own calls. Nothing depends on it: if a save or a
restore fails, the model stops or serves without it, at most `memory.keep_kv.timeout` later.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.children import ChildSpec
from llamaswap_py.children.ask import ask
from llamaswap_py.config.sections import Config, KeepKv
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import LswapError
from llamaswap_py.estimate.estimator import read_slot_shape
from llamaswap_py.estimate.files import identify
from llamaswap_py.llamacpp.command_line import SLOT_FOLDER
from llamaswap_py.llamacpp.slots import (
    LEAST_TOKENS,
    Costs,
    SlotUse,
    choose_slots,
    keeps_nothing,
    prompt_speed,
    read_counts,
    read_restored,
    read_saved,
    read_slots,
)
from llamaswap_py.scheduler import InstanceKey
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.state import SchedulerState
from llamaswap_py.scheduler.types import PoolId
from llamaswap_py.storage.kv_files import Kept, KeptFolder, KeptSlot
from llamaswap_py.storage.record_folder import kept_folder
from llamaswap_py.supervisor.prepare import LoadWay, Prepared
from llamaswap_py.tasks import guard
from llamaswap_py.units import HOST, KIB, MIB, format_duration, format_size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llamaswap_py.children.ask import HttpAnswer


async def look(
    endpoint: Endpoint, restored: Mapping[int, int], patience: float
) -> tuple[tuple[SlotUse, ...], float | None]:
    """Return the slots that hold something, and tokens per second of the prompts read so far.

    `restored` is as in read_slots(). Wakes a child that sleeps. Raises OSError.
    """
    answer, counts = await asyncio.gather(
        ask(endpoint, "GET", "/slots", timeout=patience), count_prompts(endpoint, patience)
    )
    try:
        slots = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        slots = None
    return read_slots(slots, restored), prompt_speed(counts)


async def count_prompts(endpoint: Endpoint, patience: float) -> dict[str, float]:
    """Return llama-server's counters of prompts, those that it has; raises OSError."""
    answer = await ask(endpoint, "GET", "/metrics", timeout=patience)
    return read_counts(answer.body.decode("utf-8", "replace"))


async def act(endpoint: Endpoint, slot: int, action: str, name: str, patience: float) -> HttpAnswer:
    """Have a slot saved to, or restored from, a file of the child's slot folder.

    Raises OSError: TimeoutError where the child is still at it, which nothing but its end stops.
    """
    path, body = f"/slots/{slot}?action={action}", msgspec.json.encode({"filename": name})
    return await ask(endpoint, "POST", path, timeout=patience, body=body)


_log: Final = logging.getLogger("lswap")
_OPTION: Final = f"--{SLOT_FOLDER}"
_SHARED_MEMORY: Final = Path("/dev/shm")
_USUAL_TOKEN: Final = 128 * KIB
"""Bytes a token where the header does not say: an 8B model's with 8 heads of keys and values."""
_SPEEDS: Final = {True: 1000 * MIB, False: 200 * MIB}
"""Bytes a second that are expected of main memory, and of a disk, before the first save."""
_NEWEST: Final = 0.5
_TELLING: Final = 8 * MIB
"""For fewer bytes the time of a save is mostly that of the request, not of the writing."""
_ASK_SECONDS: Final = 1.0
_USELESS: Final = 3
"""So many times in a row nothing that came back was used: it does nothing here."""


@dataclass(slots=True)
class KvUse:
    """What keeping knows of one child.

    `identity` is of everything that decides what a saved slot means: what was kept is brought back
    only into the same.
    """

    identity: str
    restored: dict[int, int] = field(default_factory=dict)
    """Tokens by slot that it was given at its start."""
    unfinished: list[str] = field(default_factory=list)
    """Files that it may be writing; they go when it is gone."""


class KvCache:
    """Keeps conversations of the presets that ask for it, and brings them back."""

    def __init__(
        self,
        config: Config,
        runtime: Path,
        state: SchedulerState,
        tasks: asyncio.TaskGroup,
        dispatch: Callable[[ev.Event], None],
    ) -> None:
        wanted = config.memory.keep_kv
        self.folder = KeptFolder(_places(wanted, runtime), wanted.limit)
        self.counts: Counter[str] = Counter()
        """How many slots were `saved`, `restored` or `lost`, and how many loads with some were
        `reused` by their first answer, or of `no use` to it."""
        self._timeout = wanted.timeout
        self._config = config
        self._state = state
        self._tasks = tasks
        self._dispatch = dispatch
        self._guarded: set[str] = set()
        self._writing = 0
        self._bytes_per_second: float | None = None
        self._token_bytes: dict[str, float] = {}
        self._useless: Counter[str] = Counter()
        self.folder.sweep()

    @property
    def in_memory(self) -> int:
        """Bytes of kept conversations in main memory, freed as soon as they are needed."""
        return self.folder.in_memory

    def guards(self, preset: str) -> bool:
        """Return whether the slot files of a preset's children are ours, for no client to name."""
        asked = self._config.models.get(preset)
        return preset in self._guarded or (asked is not None and asked.keep_kv)

    def use(self, config: Config) -> None:
        """Take another configuration; what it does not want kept is forgotten."""
        self._config = config
        wanted = {name for name, preset in config.models.items() if preset.keep_kv}
        self.discard(set(self.folder.presets) - wanted)

    def discard(self, presets: Iterable[str]) -> None:
        """Remove the kept conversations of these presets."""
        for preset in presets:
            self.folder.discard(preset)

    def close(self) -> None:
        """Remove everything."""
        self.folder.close()

    def give_way(self, loading: str = "") -> None:
        """Give back main memory that instances or other programs need; `loading` goes last."""
        if self.in_memory and (free := self._state.ledger.free().get(PoolId(HOST))) is not None:
            gone = self.folder.shrink(max(free, 0), last={loading, *self._awaited()})
            if gone:
                _log.info("gave up %s of kept conversations for memory", format_size(gone))

    def prepare(
        self, preset: str, prepared: Prepared, way: LoadWay, spec: ChildSpec
    ) -> tuple[ChildSpec, KvUse | None]:
        """Return how to start a child whose slots can be kept, where that is wanted and possible.

        A child that listens on a port is left out: any local user could make it read and write
        files.
        """
        asked = self._config.models.get(preset)
        unable = asked is None or not asked.keep_kv or bool(keeps_nothing(way.preset))
        if unable or spec.socket_path is None or not _knows_option(prepared):
            return spec, None
        try:
            identity = _identity(spec, way)
        except LswapError:  # the load will say what is wrong
            return spec, None
        folder = self.folder.path() if self._useless[identity] < _USELESS else None
        if folder is None:
            self.folder.discard(preset)
            return spec, None
        self._guarded.add(preset)
        return replace(spec, args=(*spec.args, _OPTION, str(folder))), KvUse(identity)

    # Before a stop

    async def save(self, key: InstanceKey, use: KvUse, endpoint: Endpoint) -> bool:
        """Keep what a child's slots hold; False if it is still writing when its time is over.

        llama-server cannot be stopped in the middle of that: such a child has to be killed. One
        that sleeps must not be asked: it would wake.
        """
        if not self._wants(key, use):
            return True
        began = time.monotonic()
        deadline = began + self._timeout
        try:
            slots, speed = await look(endpoint, use.restored, _left(deadline))
        except OSError:
            return True
        awaited = self._awaited()
        room = self._room() - self.folder.size_of(awaited)  # those are about to be brought back
        costs = Costs(self._token_size(use), self._write_speed(), speed)
        left = deadline - time.monotonic()
        chosen = choose_slots(slots, costs, room=room, seconds=left)
        size = sum(map(costs.size, chosen))
        self.folder.shrink(self._room() - size, last=awaited)
        self._writing += size
        kept: list[KeptSlot] = []
        try:
            for slot in chosen:
                if _left(deadline) > costs.seconds(slot):
                    kept += await self._save(endpoint, use, slot, deadline)
        except TimeoutError:
            self.counts["timed out"] += 1
            took = format_duration(self._timeout)
            self._dispatch(
                ev.InstanceNoted(key, "not kept", f"writing a slot took longer than {took}")
            )
            return False
        except OSError as error:  # it has died of it, or was killed meanwhile
            _log.debug("%s: its slots are not kept: %s", key, error)
        finally:
            self._writing -= size
            self._take_over(key, use, kept, time.monotonic() - began)
        return True

    async def _save(
        self, endpoint: Endpoint, use: KvUse, slot: SlotUse, deadline: float
    ) -> list[KeptSlot]:
        """Return the file of a slot, nothing if the child refuses; raises OSError."""
        began = time.monotonic()
        name = self.folder.new_name()
        use.unfinished.append(name)
        answer = await act(endpoint, slot.id, "save", name, _left(deadline))
        tokens, size = read_saved(answer.json())
        if answer.status == HTTPStatus.NOT_IMPLEMENTED:
            self._useless[use.identity] = _USELESS
        done = None
        if tokens >= LEAST_TOKENS:
            self._token_bytes[use.identity] = size / tokens
            if size >= _TELLING:
                speed = size / max(time.monotonic() - began, 1e-4)
                self._bytes_per_second = _blend(self._bytes_per_second, speed)
            done = self.folder.finish(slot.id, name, tokens, size)
        if done is None:
            self.folder.remove_files((name,))
            return []
        return [done]

    def _take_over(
        self, key: InstanceKey, use: KvUse, slots: list[KeptSlot], seconds: float
    ) -> None:
        if not slots:
            return
        kept = Kept(use.identity, tuple(slots))
        self.folder.put(key.preset, kept)
        self.folder.shrink(self._room(), last=self._awaited())
        if key.preset not in self.folder:  # it turned out larger than there is room for
            return
        self.counts["saved"] += len(slots)
        tokens = sum(one.tokens for one in slots)
        self._dispatch(ev.InstanceNoted(key, "kept", _said(len(slots), tokens, kept.size, seconds)))

    def gone(self, use: KvUse) -> None:
        """A child is reaped: what it did not finish can be removed."""
        self.folder.remove_files(use.unfinished)

    # After a load

    async def restore(
        self, key: InstanceKey, use: KvUse | None, way: LoadWay, endpoint: Endpoint
    ) -> None:
        """Give a child that is ready what was kept of its preset; its files are gone afterwards.

        Where something came back, `check_use` is to be called after its first answer.
        """
        kept = self.folder.take(key.preset)
        if use is not None and use.identity not in self._token_bytes:
            work = self._work_out(use.identity, way)
            self._tasks.create_task(guard.contained("keeping", work))
        if kept is None:
            return
        try:
            if use is None or kept.identity != use.identity:
                _log.info("%s: what was kept is of another version of it", key)
            else:
                await self._restore(key, endpoint, use, kept)
        finally:
            self.folder.remove_files(one.name for one in kept.slots)

    async def _restore(self, key: InstanceKey, endpoint: Endpoint, use: KvUse, kept: Kept) -> None:
        began = time.monotonic()
        deadline = began + self._timeout
        size = 0
        for one in kept.slots:
            if not self.folder.is_whole(one):
                continue
            try:
                answer = await act(endpoint, one.slot, "restore", one.name, _left(deadline))
            except OSError as error:
                _log.debug("%s: slot %d is not restored: %s", key, one.slot, error)
                break
            if answer.status == HTTPStatus.OK and read_restored(answer.json()) == one.tokens:
                use.restored[one.slot] = one.tokens
                size += one.size
        count, tokens = len(use.restored), sum(use.restored.values())
        self.counts["restored"] += count
        self.counts["lost"] += len(kept.slots) - count
        seconds = time.monotonic() - began
        text = _said(count, tokens, size, seconds)
        if count < len(kept.slots):
            text += f"; {len(kept.slots) - count} could not be"
        self._dispatch(ev.InstanceNoted(key, "restored", text))

    def check_use(self, key: InstanceKey, endpoint: Endpoint, use: KvUse) -> None:
        """Look whether the first answer of a child made use of what came back."""
        work = self._check_use(key, endpoint, use)
        self._tasks.create_task(guard.contained("keeping", work))

    async def _check_use(self, key: InstanceKey, endpoint: Endpoint, use: KvUse) -> None:
        """Ask, once its first answer is complete, whether that came from what was restored.

        A restore can succeed and do nothing (a sliding window without its checkpoints, say).
        """
        try:
            counts = await count_prompts(endpoint, _ASK_SECONDS)
        except OSError:
            return
        reused = counts.get("prompt_tokens_cached_total")
        if reused is None:  # an engine that does not count it
            return
        if reused:
            self._useless[use.identity] = 0
            self.counts["reused"] += 1
            _log.debug("%s: %d tokens were not computed again", key, int(reused))
            return
        self._useless[use.identity] += 1
        self.counts["no use"] += 1
        text = "the first answer made no use of them"
        if self._useless[use.identity] >= _USELESS:
            text += f", for the {_USELESS}rd time: keep_kv does nothing here, and is off for it"
        self._dispatch(ev.InstanceNoted(key, "restored", text))

    # What is known

    def _wants(self, key: InstanceKey, use: KvUse) -> bool:
        asked = self._config.models.get(key.preset)
        if asked is None or not asked.keep_kv or self._useless[use.identity] >= _USELESS:
            return False
        return self.folder.path() is not None

    def _room(self) -> int:
        """Return how many bytes may be kept in all; the ledger's free ones are without them."""
        room = self.folder.room()
        if self.folder.place is not None and self.folder.place.in_memory:
            free = self._state.ledger.free().get(PoolId(HOST))
            room = room if free is None else min(room, max(free, 0))
        return max(room - self._writing, 0)

    def _awaited(self) -> frozenset[str]:
        """Return the presets that requests wait for."""
        return frozenset(self._state.wanted)

    def _token_size(self, use: KvUse) -> float:
        return self._token_bytes.get(use.identity, _USUAL_TOKEN)

    def _write_speed(self) -> float:
        place = self.folder.place
        return self._bytes_per_second or _SPEEDS[place is not None and place.in_memory]

    async def _work_out(self, identity: str, way: LoadWay) -> None:
        """Read from the model's header what a token takes, until the first save tells."""
        try:
            shape = await asyncio.to_thread(read_slot_shape, way.preset.model, way.args)
        except LswapError:
            return
        self._token_bytes.setdefault(identity, shape.token_bytes or _USUAL_TOKEN)
        if shape.windows:
            self._useless[identity] = _USELESS


def _places(wanted: KeepKv, runtime: Path) -> list[Path]:
    """Return where conversations may be kept, the best place first: folders of our own."""
    own = f"lswap-{os.getuid()}"
    if wanted.dir is not None:
        return [Path(wanted.dir, own)]
    return [runtime.parent / "kv", _SHARED_MEMORY / own, kept_folder()]


def _knows_option(prepared: Prepared) -> bool:
    options = None if prepared.engine is None else prepared.engine.options
    return options is not None and any(_OPTION in one.names for one in options.values())


def _identity(spec: ChildSpec, way: LoadWay) -> str:
    """Return the identity of a saved slot: only a child with the same identity may restore it.

    The devices are not part of it: llama.cpp writes a cache the same way on every device. Raises
    LswapError for a missing file.
    """
    files = identify((spec.binary, *way.files))
    told = (way.args, sorted(way.preset.env.items()), [tuple(one) for one in files])
    return hashlib.sha256(msgspec.json.encode(told)).hexdigest()


def _blend(old: float | None, new: float) -> float:
    return new if old is None else _NEWEST * new + (1 - _NEWEST) * old


def _said(count: int, tokens: int, size: int, seconds: float) -> str:
    """Return `2 slots (1,024 tokens, 1.3 MiB, 12 ms)`."""
    slots = "1 slot" if count == 1 else f"{count} slots"
    return f"{slots} ({tokens:,} tokens, {format_size(size)}, {seconds * 1000:.0f} ms)"


def _left(deadline: float) -> float:
    return max(deadline - time.monotonic(), 0.0)
