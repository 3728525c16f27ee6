"""The policies of other programs (peers), with the scheduler's interface.

Each does what the source of its program does when a request comes. None holds requests back from a
loaded model, so requests beyond its slots queue inside the child. All evict only models that no
request uses, and none drains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Grant, Spawn, Stop, StopReason
from llamaswap_py.scheduler.ledger import Amounts, add, fits
from llamaswap_py.scheduler.types import InstanceKey, PresetId, RequestId
from llamaswap_py.simulator.run_records import Case, Model

KEEP_ALIVE: Final = 300.0
"""Ollama's OLLAMA_KEEP_ALIVE: the seconds after which an idle model is unloaded."""


@dataclass(slots=True, eq=False)
class _Loaded:
    key: InstanceKey
    ready: bool = False
    leaving: bool = False
    users: set[RequestId] = field(default_factory=set)
    last_used: float = 0.0

    @property
    def idle(self) -> bool:
        return self.ready and not self.leaving and not self.users


class Peer:
    """What they share: the queue in order of arrival, the loaded models, and the free memory."""

    def __init__(self, case: Case) -> None:
        self.models: dict[PresetId, Model] = {one.name: one for one in case.models}
        self.room: Amounts = {name: one.total - one.margin for name, one in case.pools.items()}
        self.loaded: dict[PresetId, _Loaded] = {}
        self.leaving: dict[InstanceKey, _Loaded] = {}
        self.queue: dict[RequestId, PresetId] = {}
        self.users: dict[RequestId, _Loaded] = {}
        self.now = 0.0
        self.out: list[Action] = []
        self._epoch = 0

    def deadline(self) -> float | None:
        """Return when to look again, or None."""
        return None

    def decide(self) -> None:
        """Grant, load and evict as this peer does."""
        raise NotImplementedError

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Apply one event and return what to do."""
        self.now, self.out = now, []
        match event:
            case ev.RequestArrived(request=request, preset=preset):
                self.queue[request] = preset
            case ev.RequestLeft(request=request):
                self.queue.pop(request, None)
            case ev.RequestFinished(request=request):
                if one := self.users.pop(request, None):
                    one.users.discard(request)
                    one.last_used = now
            case ev.InstanceReady(instance=key):
                self.loaded[key.preset].ready = True
                self.loaded[key.preset].last_used = now
            case ev.InstanceExited(instance=key):
                self._exited(key)
        self.decide()
        return self.out

    def _exited(self, key: InstanceKey) -> None:
        self.leaving.pop(key, None)
        one = self.loaded.get(key.preset)
        if one is not None and one.key == key:
            del self.loaded[key.preset]

    @property
    def loading(self) -> bool:
        return any(not one.ready for one in self.loaded.values())

    def free(self) -> Amounts:
        """Return the free memory; children that are stopping still hold theirs."""
        free = dict(self.room)
        for one in (*self.loaded.values(), *self.leaving.values()):
            add(free, self.models[one.key.preset].footprint, -1)
        return free

    def serves(self, preset: PresetId) -> bool:
        return preset in self.loaded and self.loaded[preset].ready

    def grant(self, request: RequestId) -> None:
        one = self.loaded[self.queue.pop(request)]
        one.users.add(request)
        one.last_used = self.now
        self.users[request] = one
        self.out.append(Grant(request, one.key))

    def grant_all(self) -> None:
        """Grant requests for loaded models, in order of arrival."""
        for request, preset in list(self.queue.items()):
            if self.serves(preset):
                self.grant(request)

    def load(self, preset: PresetId) -> None:
        self._epoch += 1
        key = InstanceKey(preset, self._epoch)
        self.loaded[preset] = _Loaded(key, last_used=self.now)
        self.out.append(Spawn(key))

    def evict(self, one: _Loaded) -> None:
        one.leaving = True
        del self.loaded[one.key.preset]
        self.leaving[one.key] = one
        self.out.append(Stop(one.key, StopReason.EVICTED))

    def idle(self) -> list[_Loaded]:
        """Return the models that could be evicted, least recently used first."""
        idle = [one for one in self.loaded.values() if one.idle]
        pinned = {name for name, model in self.models.items() if model.pin}
        order = sorted(idle, key=lambda one: (one.last_used, one.key))
        return [one for one in order if one.key.preset not in pinned]

    def make_room(self, preset: PresetId) -> bool:
        """Evict idle models, least recently used first, until it fits; True if it fits now."""
        need = self.models[preset].footprint
        coming = self.free()
        for one in self.leaving.values():
            add(coming, self.models[one.key.preset].footprint, 1)
        victims = []
        for one in self.idle():
            if fits(need, coming):
                break
            add(coming, self.models[one.key.preset].footprint, 1)
            victims.append(one)
        if fits(need, coming):
            for one in victims:
                self.evict(one)
        return fits(need, self.free())


class Fifo(Peer):
    """Strictly first come, first served: the oldest request delays all behind it."""

    def decide(self) -> None:
        while self.queue:
            request, preset = next(iter(self.queue.items()))
            if self.serves(preset):
                self.grant(request)
            elif preset in self.loaded or not self.make_room(preset):
                return
            else:
                self.load(preset)
                return


class Router(Peer):
    """llama.cpp's router: at most N models; the least recently used idle one is evicted.

    One cold load at a time; it waits until some model is idle, and a busy one goes on taking
    requests meanwhile, so it can wait for ever (tools/server/server-models.cpp, `load_lru`). It
    counts models and knows no memory: N is the largest number of which any fit together.
    """

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.limit = safe_count(case)

    def decide(self) -> None:
        self.grant_all()
        if self.loading or not self.queue:
            return
        preset = next(iter(self.queue.values()))
        if len(self.loaded) + len(self.leaving) < self.limit:
            self.load(preset)
        elif len(self.loaded) == self.limit and (idle := self.idle()):
            self.evict(idle[0])


class Collate(Peer):
    """llama-swap with its default group: one model at a time, all its requests first.

    Requests for the loaded model are served at once, also while others wait. When it is idle, the
    oldest waiting request decides which model is loaded next.
    """

    def decide(self) -> None:
        self.grant_all()
        if not self.queue or self.leaving:
            return
        if not self.loaded:
            self.load(next(iter(self.queue.values())))
        elif all(one.idle for one in self.loaded.values()):
            for one in list(self.loaded.values()):
                self.evict(one)


class KeepAlive(Peer):
    """Ollama: one pending queue; all requests wait behind its head.

    The head is served if its model is loaded. If not, the model is loaded if it fits. Else the
    model with the shortest keep-alive is evicted once it is idle, among equals the least recently
    used (server/sched.go, `processPending`, `findRunnerToUnload`). Memory is known. One load at a
    time.
    """

    def decide(self) -> None:
        self._expire()
        while self.queue:
            request, preset = next(iter(self.queue.items()))
            if self.serves(preset):
                self.grant(request)
            elif preset in self.loaded or self.loading or not self.make_room(preset):
                return
            else:
                self.load(preset)
                return

    def idle(self) -> list[_Loaded]:
        return sorted(super().idle(), key=lambda one: self._keep(one.key.preset))

    def deadline(self) -> float | None:
        ends = [one.last_used + self._keep(one.key.preset) for one in self.idle()]
        return min(ends, default=None)

    def _expire(self) -> None:
        for one in self.idle():
            if self.now >= one.last_used + self._keep(one.key.preset):
                self.evict(one)

    def _keep(self, preset: PresetId) -> float:
        ttl = self.models[preset].ttl
        return KEEP_ALIVE if ttl is None else ttl


def safe_count(case: Case) -> int:
    """Return the largest number of which any models fit together, as a limit by count needs it."""
    room = {name: one.total - one.margin for name, one in case.pools.items()}

    def all_fit(number: int) -> bool:
        return all(
            sum(sorted(one.footprint.get(pool, 0) for one in case.models)[-number:]) <= size
            for pool, size in room.items()
        )

    counts = range(1, len(case.models) + 1)
    return max((number for number in counts if all_fit(number)), default=1)


def fewest_loads(case: Case) -> int | None:
    """Return the least number of loads for one sequential client and models of one size.

    It is Belady's offline optimum: evict the model that is needed farthest in the future. None
    where that is not the optimum.
    """
    sizes = {tuple(sorted(one.footprint.items())) for one in case.models}
    if len({ask.client for ask in case.asks}) != 1 or len(sizes) != 1:
        return None
    if any(ask.at is not None or ask.parent for ask in case.asks):
        return None
    return _belady([ask.model for ask in case.asks], safe_count(case))


def _belady(asked: Sequence[PresetId], places: int) -> int:
    held: set[PresetId] = set()
    loads = 0
    for index, name in enumerate(asked):
        if name in held:
            continue
        loads += 1
        if len(held) == places:
            rest = asked[index:]
            held.remove(max(sorted(held), key=lambda one: _next_use(rest, one)))
        held.add(name)
    return loads


def _next_use(rest: Sequence[PresetId], name: PresetId) -> int:
    return rest.index(name) if name in rest else len(rest)


def most_runs(case: Case) -> int | None:
    """Return the most runs of one model in any client's sequence, where only one model fits.

    A client that asks one thing after another needs a load for each run, so every policy needs as
    many.
    """
    if safe_count(case) != 1:
        return None
    runs: dict[str, int] = {}
    last: dict[str, PresetId] = {}
    for ask in case.asks:
        if ask.at is not None or ask.parent is not None:
            return None
        runs[ask.client] = runs.get(ask.client, 0) + (last.get(ask.client) != ask.model)
        last[ask.client] = ask.model
    return max(runs.values())
