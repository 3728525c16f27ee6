"""The scheduler's state: instances, presets, waiters and statistics. It decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from llamaswap_py.scheduler.actions import StopReason
from llamaswap_py.scheduler.demand import Demand
from llamaswap_py.scheduler.ledger import Amounts, Ledger
from llamaswap_py.scheduler.lifecycle import State, Trigger, advance
from llamaswap_py.scheduler.queues import Waiter, WaitQueue
from llamaswap_py.scheduler.rpc_servers import RpcServers
from llamaswap_py.scheduler.types import (
    Choice,
    Failure,
    Footprint,
    InstanceKey,
    Policy,
    PresetId,
    PresetPlan,
    RequestId,
)

# Access to a member of an Enum calls a function of its class, which is slow in Python 3.11.
READY: Final = State.READY


class Lease(msgspec.Struct, eq=False):
    """The right of one request to use one ready instance."""

    waiter: Waiter
    instance: Instance
    granted_at: float
    detached_at: float | None = None
    """The time its client left; the answer goes on, because the client may come back."""


@dataclass(slots=True, eq=False)
class Instance:
    """One child of a preset. `gate_for` names the waiting preset that closed its gate."""

    key: InstanceKey
    plan: PresetPlan
    choice: Choice
    charge: Footprint
    spawned_at: float
    state: State = State.LOADING
    ready_at: float | None = None
    slots: int = 1
    fraction: float | None = None
    leases: dict[RequestId, Lease] = field(default_factory=dict)
    generating: int = 0
    last_used: float = 0.0
    ttl: float | None = None
    """The ttl of its plan, unless a client asked for another."""
    served: int = 0
    priority: int = 0
    """That of the request that was granted last. Between two requests it stands for its clients."""
    claimed_by: PresetId | None = None
    gate_for: PresetId | None = None
    waking: bool = False
    drain_from: float | None = None
    """When a request began to wait for this drain; `drain_timeout` counts from here."""
    drain_reason: StopReason = StopReason.UNLOADED
    revoked_at: float | None = None
    reason: str = ""
    outlived: str = ""
    """What of it still runs after its process has ended, in words."""

    def __repr__(self) -> str:
        gate = f" gate closed for {self.gate_for}" if self.gate_for else ""
        return f"<{self.key} {self.state.value} leases={len(self.leases)}{gate}>"

    def move(self, trigger: Trigger) -> None:
        """Take a transition of the table; raises IllegalTransition and changes nothing."""
        self.state = advance(self.state, trigger)

    @property
    def load_seconds(self) -> float:
        """How long it took to become ready."""
        return 0.0 if self.ready_at is None else self.ready_at - self.spawned_at

    @property
    def concurrency(self) -> int:
        """How many open generations it is granted at once."""
        return self.plan.concurrency or self.slots

    @property
    def is_asleep(self) -> bool:
        """Whether it sleeps and is not being woken."""
        return self.state is State.SLEEPING and not self.waking

    def admits(self, *, slot: bool, nested: bool = False) -> bool:
        """Return whether a lease can be granted right now.

        A closed gate admits requests that are `nested` in a request of this instance: it could not
        drain without them.
        """
        if self.state is not READY or (self.gate_for is not None and not nested):
            return False
        return not slot or self.generating < (self.plan.concurrency or self.slots)


@dataclass(slots=True, eq=False)
class Preset:
    """A preset's queue, its serving instance, its back-off and what is learned of it."""

    plan: PresetPlan
    pin: bool
    queue: WaitQueue = field(default_factory=WaitQueue)
    serving: Instance | None = None
    wanted_since: float | None = None
    """When a command asked for it, until it is ready or failed."""
    wanted_by_eviction: bool = True
    evicted_at: float | None = None
    """Since when memory is being freed for it: no waiter, however old, may take that memory."""
    after: frozenset[InstanceKey] = frozenset()
    """Instances that must end before its next load, because it ran out of memory beside them."""
    retried_memory: bool = False
    kept_out_since: float | None = None
    """Since when other programs alone have kept it out, while it is wanted."""
    refitted: bool = False
    """Whether it has been fitted to what they leave, since it was first kept out."""
    failures: int = 0
    failure: Failure | None = None
    retry_at: float = 0.0
    downloading_since: float | None = None
    downloaded: float = 0.0
    """The downloaded fraction of its files, during a download."""
    load_seconds: float | None = None
    load_seeded: bool = False
    """`load_seconds` is only estimated from the size of its files."""
    service_seconds: float | None = None
    loads: int = 0
    reason: str = ""

    @property
    def since(self) -> float | None:
        """The earliest time since when a request or a command has wanted it."""
        ages = [age for age in (self.queue.oldest(), self.wanted_since) if age is not None]
        return min(ages, default=None)


class SchedulerState:
    """Instances, presets, waiters and leases; its few mutations keep them consistent."""

    def __init__(self, ledger: Ledger, policy: Policy) -> None:
        self.ledger = ledger
        self.policy = policy
        self.presets: dict[PresetId, Preset] = {}
        self.instances: dict[InstanceKey, Instance] = {}
        self.wanted: dict[PresetId, None] = {}
        """Presets that are waited for (an ordered set): a plan looks only at these."""
        self.waiters: dict[RequestId, tuple[Preset, Waiter]] = {}
        self.leases: dict[RequestId, Lease] = {}
        self.detached: dict[RequestId, Lease] = {}
        """The leases without a client that are not revoked yet."""
        self.demand = Demand()
        self.rpc_servers = RpcServers(policy)

    def above(self, waiter: Waiter) -> dict[RequestId, Lease]:
        """Return the leases of the requests that this one was made in, the nearest parent first."""
        found: dict[RequestId, Lease] = {}
        parent = waiter.parent
        while parent is not None and (lease := self.leases.get(parent)) is not None:
            if parent in found:
                break
            found[parent] = lease
            parent = lease.waiter.parent
        return found

    def ancestors(self, waiter: Waiter) -> set[InstanceKey]:
        """Return the instances that answer the requests that this one was made in."""
        return {lease.instance.key for lease in self.above(waiter).values()}

    def is_nested(self, waiter: Waiter, serving: Instance | None) -> bool:
        """Return whether `serving` answers a request that this one was made in."""
        return (
            waiter.parent is not None
            and serving is not None
            and serving.key in self.ancestors(waiter)
        )

    def would_wait_for_itself(self, preset: Preset, waiter: Waiter) -> bool:
        """Return whether no slot of the serving instance can come free before `waiter` is served.

        That is so if each slot is held by a request that `waiter`, or another waiter, was made in.
        """
        if preset.serving is None or not waiter.slot:
            return False
        holders = {one for one, lease in preset.serving.leases.items() if lease.waiter.slot}
        stuck: set[RequestId] = set(self.above(waiter))
        for other in preset.queue.nested.values():
            if other.slot:
                stuck |= set(self.above(other))
        return holders <= stuck

    def add_preset(self, plan: PresetPlan) -> None:
        """Add a preset, or replace its plan."""
        self.ledger.open_pools(plan)
        if preset := self.presets.get(plan.preset):
            preset.plan, preset.pin = plan, plan.pin
        else:
            queue = WaitQueue(self.policy.max_wait)
            self.presets[plan.preset] = Preset(plan, pin=plan.pin, queue=queue)

    def unsure_servers(self, preset: Preset, now: float) -> list[str]:
        """Return the RPC servers of a preset to try before anything is done for it.

        One that a child or a dry run of ours uses is there; a try would take a place in its queue.
        """
        endpoints = preset.plan.endpoints
        if not endpoints:
            return []
        return self.rpc_servers.unsure(self.ledger.unused(endpoints), now)

    def servers_in_use(self) -> frozenset[str]:
        """Return the RPC servers that a child or a dry run of ours uses."""
        every = {one for preset in self.presets.values() for one in preset.plan.endpoints}
        return frozenset(every.difference(self.ledger.unused(every)))

    def patience(self, preset: Preset) -> float:
        """Return how long a waiter waits before it claims the memory of loaded models."""
        patience = max(preset.load_seconds or 0.0, self.policy.patience_floor)
        return min(patience, self.policy.max_wait)

    def residency_end(self, incumbent: Instance, since: float) -> float:
        """Return until when a loaded model with demand keeps its gate open against a waiter.

        `since` is when that waiter arrived (docs/design/scheduler.md, "Residency").
        """
        if incumbent.ready_at is None:
            return math.inf  # it has to serve first; when it is ready, a new pass runs
        load = incumbent.load_seconds
        service = self.presets[incumbent.key.preset].service_seconds or 0.0
        end = incumbent.ready_at + self.policy.residency * (load + service)
        cut = max(
            since + self.policy.max_wait, incumbent.ready_at + self.policy.residency_cut * load
        )
        return min(end, cut)

    def outranks(self, preset: Preset, incumbent: Instance, now: float) -> bool:
        """Return whether a waiter has a higher priority than the requests of an instance.

        These are the open ones, the last one, and those that wait for it, whose priority rises as
        they wait. An instance that has not served since it was loaded is not outranked: else low
        priorities would load it for nothing.
        """
        if not (incumbent.served or incumbent.leases):
            return False
        rank = preset.plan.priority + preset.queue.priority
        below = self.presets[incumbent.key.preset]
        base = below.plan.priority
        if rank <= base:
            return False
        using = [one.waiter.priority for one in incumbent.leases.values()]
        waiting = [below.queue.urgency(now)] if below.queue.size else []
        return rank > base + max([incumbent.priority, *using, *waiting])

    def linger_end(self, idle: Instance, now: float) -> float:
        """Return until when an idle instance keeps its wanted memory for its own clients.

        It keeps none if no client between two requests can mean it, or if its gate is closed, so
        that it could not serve (docs/design/scheduler.md, "Linger").
        """
        if idle.gate_for is not None or idle.state is State.SLEEPING:
            return now
        policy, name = self.policy, idle.key.preset
        load = idle.load_seconds
        window = max(policy.circulation_floor, policy.circulation_loads * load)
        away = self.demand.circulation.away(now, window)
        if not away:
            return now
        waiters = len(self.waiters)
        service = self.presets[name].service_seconds or 0.0
        gain = policy.linger_gain * load - policy.linger_service * waiters * service
        linger = self.demand.habits(name).worth_waiting(gain, waiters, policy.linger_most * load)
        return idle.last_used + linger if linger else now

    def reload_cost(self, instance: Instance, now: float) -> float:
        """Return the expected seconds of loading per second that its eviction would cost."""
        return self._reload(instance) * self.demand.demand_rate(instance.key.preset, now)

    def reload_loss(self, instance: Instance, now: float) -> float:
        """Return the expected seconds of loading that its eviction would cost before long."""
        rate = self.demand.demand_rate(instance.key.preset, now)
        return self._reload(instance) * min(rate * self.policy.needed_within, 1.0)

    def _reload(self, instance: Instance) -> float:
        """Return how many seconds a load of its preset takes."""
        preset = self.presets.get(instance.key.preset)
        return preset.load_seconds if preset and preset.load_seconds else instance.load_seconds

    def free_in(self, instance: Instance, now: float) -> float:
        """Return the expected seconds until its open requests end, by how long they usually take.

        One that is older than that is taken to last half as long again; where none has ended yet,
        as long again as it has lasted.
        """
        usual = self.presets[instance.key.preset].service_seconds
        ages = [now - one.granted_at for one in instance.leases.values()]
        if usual is None:
            return max(ages, default=0.0)
        return max((max(usual - age, usual / 2) for age in ages), default=0.0)

    def has_demand(self, instance: Instance) -> bool:
        """Return whether a request uses it or waits for it."""
        preset = self.presets.get(instance.key.preset)
        waiting = preset is not None and preset.serving is instance and preset.queue.size > 0
        return bool(instance.leases) or waiting

    def wanted_since(self, instance: Instance) -> float | None:
        """Return since when a request has waited for its memory or one of its slots."""
        names = {instance.claimed_by, instance.gate_for, instance.key.preset} - {None}
        presets = [self.presets[name] for name in names if name in self.wanted]
        ages = [one.since for one in presets if one.since is not None]
        if instance.drain_from is not None:
            ages.append(instance.drain_from)
        return min(ages, default=None)

    def is_pinned(self, instance: Instance) -> bool:
        """Return whether only an operator unloads it."""
        preset = self.presets.get(instance.key.preset)
        return preset is not None and preset.pin and preset.serving is instance

    def is_kept(self, instance: Instance, newcomer: PresetPlan | None) -> bool:
        """Return whether it must not be evicted for `newcomer`; None: not for a load.

        An instance of a persistent group may be evicted only for presets of that group.
        """
        preset = self.presets.get(instance.key.preset)
        if preset is None or preset.serving is not instance:
            return False
        fellows = newcomer.persistent if newcomer is not None else ()
        kept = preset.plan.persistent
        return preset.pin or (bool(kept) and not set(kept) & set(fellows))

    def kept_from(self, newcomer: Preset) -> list[InstanceKey]:
        """Return the instances of other presets that no eviction would ever free for `newcomer`."""
        return [
            one.key
            for one in self.instances.values()
            if self.is_kept(one, newcomer.plan) and one.key.preset != newcomer.plan.preset
        ]

    def groups_of(self, kept: Iterable[InstanceKey]) -> dict[InstanceKey, str]:
        """Return the persistent group of each instance that is kept for that, and is not pinned."""
        presets = {key: self.presets[key.preset] for key in kept}
        return {key: one.plan.persistent[0] for key, one in presets.items() if not one.pin}

    def lowered(self) -> Amounts:
        """Return the bytes of each pool's margin that loaded models may take."""
        most: Amounts = {}
        for one in self.instances.values():
            if one.waking or one.state in (State.LOADING, State.READY):
                for pool, size in one.choice.lowered.items():
                    most[pool] = max(most.get(pool, 0), size)
        return most

    def idle(self, newcomer: PresetPlan | None) -> Iterator[Instance]:
        """Iterate over instances that may be evicted at once: without requests, none about to come.

        Those that must not be evicted for `newcomer` are left out.
        """
        for instance in self.instances.values():
            if instance.state not in (State.READY, State.SLEEPING) or instance.waking:
                continue
            if instance.leases or self.is_kept(instance, newcomer):
                continue
            if self.has_demand(instance) and instance.gate_for is None:
                continue
            yield instance

    def leaving(self, preset: str) -> list[InstanceKey]:
        """Return the instances of a preset that are ending, however long it takes."""
        return [
            key
            for key, one in self.instances.items()
            if key.preset == preset and one.state in (State.DRAINING, State.STOPPING)
        ]

    def left_by(self, preset: Preset) -> list[Instance]:
        """Return the instances that must end before the preset can load again."""
        single = self.leaving(preset.plan.preset) if preset.plan.single else ()
        found = (self.instances.get(key) for key in preset.after.union(single))
        return [one for one in found if one is not None]

    def changing(self) -> frozenset[InstanceKey]:
        """Return the instances that may hold any part of their memory, from nothing to all."""
        return frozenset(
            key
            for key, one in self.instances.items()
            if one.waking or one.state in (State.LOADING, State.STOPPING)
        )

    def enqueue(self, preset: Preset, waiter: Waiter) -> None:
        """Add a waiter."""
        preset.queue.push(waiter)
        self.waiters[waiter.request] = preset, waiter
        self.wanted[preset.plan.preset] = None

    def dequeue(self, preset: Preset, waiter: Waiter) -> None:
        """Remove a waiter from its queue."""
        preset.queue.remove(waiter)
        del self.waiters[waiter.request]
        self.settle_demand(preset)

    def settle_demand(self, preset: Preset) -> None:
        """Take a preset off the wanted ones once no request or command wants it."""
        if not preset.queue and preset.wanted_since is None:
            self.wanted.pop(preset.plan.preset, None)
            preset.evicted_at = preset.kept_out_since = None
            preset.refitted = False
