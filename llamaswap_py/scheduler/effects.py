"""The changes of instances and waiters: every state change, action and decision starts here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from llamaswap_py.scheduler.actions import (
    Action,
    Download,
    Grant,
    Kill,
    Note,
    Rechoose,
    Reduce,
    Refit,
    Reject,
    Reserve,
    Revoke,
    Spawn,
    Stop,
    StopReason,
    TryServer,
    Wake,
)
from llamaswap_py.scheduler.lifecycle import State, Trigger
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.refusals import Refusals
from llamaswap_py.scheduler.state import Instance, Lease, Preset, SchedulerState
from llamaswap_py.scheduler.types import (
    FILES_CHANGED,
    OUT_OF_MEMORY,
    RECHOSEN,
    REDUCED,
    REFITTED,
    RPC_LOST,
    TENSOR_TOO_LARGE,
    Choice,
    Decision,
    Failure,
    Footprint,
    InstanceKey,
    PresetId,
    RequestId,
)


class Effects:
    """Moves instances along the table of lifecycle.py; collects an event's actions in `out`."""

    def __init__(self, state: SchedulerState, *, first_epoch: int) -> None:
        self.state = state
        self.policy = state.policy
        self.refusals = Refusals(state)
        self.decisions: deque[Decision] = deque(maxlen=self.policy.decisions_kept)
        self.out: list[Action] = []
        self.now = 0.0
        self.loads = 0
        self.evictions = 0
        self._epoch = first_epoch
        self._sequence = 0

    def begin(self, preset: Preset, choice: Choice, why: str) -> None:
        """Carry out an option: wake, reserve, or start an instance."""
        preset.evicted_at = None
        if preset.serving is not None:
            self._wake(preset.serving, why)
        elif preset.plan.reservation:
            self._reserve(preset, why)
        else:
            self._spawn(preset, choice, why)

    def download(self, preset: Preset) -> None:
        """Begin the download of a preset's files."""
        preset.downloading_since, preset.downloaded = self.now, 0.0
        self.record_preset("download", preset, "its files are not here yet")
        self.out.append(Download(preset.plan.preset))

    def _wake(self, instance: Instance, why: str) -> None:
        self.recharge(instance, self.state.ledger.charge_of(instance.plan, instance.choice))
        instance.waking = True
        self.record("wake", instance, why)
        self.out.append(Wake(instance.key))

    def _reserve(self, preset: Preset, why: str) -> None:
        name = preset.plan.preset
        self.state.ledger.reserved[name] = self.state.ledger.charge_of(preset.plan)
        self.clear_wanted(preset)
        self.record_preset("reserved", preset, why)
        self.out.append(Reserve(name))

    def recharge(self, instance: Instance, charge: Footprint) -> None:
        """Change the charge of an instance."""
        instance.charge = self.state.ledger.charges[instance.key] = charge

    def _spawn(self, preset: Preset, choice: Choice, why: str) -> None:
        """Start an instance; it is charged from now until its memory is proven free."""
        key = InstanceKey(preset.plan.preset, self._epoch)
        self._epoch += 1
        charge = self.state.ledger.charge_of(preset.plan, choice)
        instance = Instance(key, preset.plan, choice, charge, self.now, ttl=preset.plan.ttl)
        self.state.instances[key] = instance
        self.state.ledger.charges[key] = charge
        preset.serving = instance
        self.loads += 1
        self.record("load", instance, why or "nothing limits it")
        self.out.append(Spawn(key, choice))

    def grant(self, waiter: Waiter, instance: Instance) -> None:
        """Open a lease, and emit `Grant`."""
        self.open_lease(waiter, instance)
        self.out.append(Grant(waiter.request, instance.key))

    def open_lease(self, waiter: Waiter, instance: Instance) -> None:
        """Open a lease."""
        lease = Lease(waiter, instance, self.now)
        instance.leases[waiter.request] = lease
        instance.generating += waiter.slot
        instance.last_used = self.now
        instance.priority = waiter.priority
        self.state.leases[waiter.request] = lease

    def drain(self, instance: Instance, reason: StopReason, why: str) -> None:
        """Grant no more leases; it stops, for `reason`, once the last one ends."""
        instance.move(Trigger.DRAIN)
        instance.drain_reason = reason
        instance.reason = why
        self.detach(instance)
        self.record("drain", instance, why)

    def stop(
        self,
        instance: Instance,
        reason: StopReason,
        why: str,
        *,
        kill: bool = False,
        hurried: bool = False,
    ) -> None:
        """Bring an instance to STOPPING along the table, and note it once."""
        if instance.state is State.STOPPING:
            return
        if instance.state in (State.READY, State.SLEEPING):
            instance.move(Trigger.DRAIN)
        instance.move(Trigger.STOP)
        instance.reason = why
        self.detach(instance)
        self.record("stop", instance, why if why == reason.value else f"{reason.value}: {why}")
        key = instance.key
        self.out.append(Kill(key, reason) if kill else Stop(key, reason, hurried))

    def kill(self, instance: Instance, reason: StopReason) -> None:
        """End an instance at once, also one that is stopping slowly."""
        if instance.state is State.STOPPING:
            self.out.append(Kill(instance.key, reason))
        else:
            self.stop(instance, reason, reason.value, kill=True)

    def revoke_leases(self, instance: Instance, reason: StopReason) -> None:
        """Revoke every open lease of an instance."""
        if not instance.leases or instance.revoked_at is not None:
            return
        instance.revoked_at = self.now
        instance.reason = reason.value
        count = len(instance.leases)
        ended = "1 request is cut" if count == 1 else f"{count} requests are cut"
        self.record("revoked", instance, f"{reason.value}: {ended}")
        for one in instance.leases:
            self.state.detached.pop(one, None)
            self.out.append(Revoke(one, instance.key, reason))

    def revoke_detached(self, request: RequestId, lease: Lease) -> None:
        """Revoke a lease with an answer that has no reader."""
        del self.state.detached[request]
        reason = StopReason.DETACHED
        self.record("revoked", lease.instance, f"{reason.value}: the answer to {request} ends")
        self.out.append(Revoke(request, lease.instance.key, reason))

    def detach(self, instance: Instance) -> None:
        """Make room for a new instance of the same preset."""
        preset = self.state.presets.get(instance.key.preset)
        if preset is not None and preset.serving is instance:
            preset.serving = None

    def fail(self, instance: Instance, failure: Failure, *, loading: bool) -> None:
        """Count a failure. A failed load begins a back-off; a first crash once ready does not."""
        preset = self.state.presets.get(instance.key.preset)
        if preset is not None and failure.kind == FILES_CHANGED:
            self._await_choice(preset, RECHOSEN, failure.summary, Rechoose(preset.plan.preset))
            return
        self.record("failed", instance, failure.summary)
        if preset is None:
            return
        preset.failures += 1
        preset.failure = failure
        if failure.kind == RPC_LOST:
            self.state.rpc_servers.doubt(instance.plan.endpoints)
        if loading and self._tries_otherwise(preset, instance, failure):
            return
        steps = preset.failures - (1 if loading else 2)
        if steps >= 0:
            self.back_off(preset, steps)

    def back_off(self, preset: Preset, steps: int) -> None:
        """Refuse all requests that wait, and those that come during the back-off."""
        pause = min(self.policy.backoff_first * 2 ** min(steps, 30), self.policy.backoff_last)
        preset.retry_at = self.now + pause
        preset.wanted_since = None
        self.reject_all(preset, self.refusals.failed(preset, self.now))

    def _retry_memory(self, preset: Preset, failed: Instance) -> bool:
        """Evict the idle instances beside a load that ran out of memory, and load once more."""
        beside = [
            one for one in self.state.idle(preset.plan) if set(one.charge) & set(failed.charge)
        ]
        wanted = preset.queue or preset.wanted_since is not None
        if preset.retried_memory or not beside or not wanted:
            return False
        preset.retried_memory = True
        preset.failures -= 1
        preset.after = frozenset(one.key for one in beside)
        for one in beside:
            self.evictions += 1
            why = f"{preset.plan.preset} ran out of memory beside it and is tried once more"
            self.stop(one, StopReason.EVICTED, why, hurried=True)
        return True

    def _tries_otherwise(self, preset: Preset, failed: Instance, failure: Failure) -> bool:
        """Return whether a load with more memory, or one that needs less, follows a failed one."""
        if failure.kind == OUT_OF_MEMORY:
            return self._retry_memory(preset, failed) or self._reduce(preset, failed, failure)
        return failure.kind == TENSOR_TOO_LARGE and self._reduce(preset, failed, failure)

    def _reduce(self, preset: Preset, failed: Instance, failure: Failure) -> bool:
        """Have less chosen for a preset whose load failed even alone."""
        if not failed.choice.leaner:
            return False
        preset.failures -= 1
        chosen, what = failed.choice.chosen or "what was chosen", "it ran out of memory"
        if failure.kind == TENSOR_TOO_LARGE:
            what = failure.summary
        why = f"{what} with {chosen}; lswap now chooses less"
        reduce = Reduce(preset.plan.preset, failed.choice, failure)
        self._await_choice(preset, REDUCED, why, reduce)
        return True

    def try_servers(self, endpoints: Iterable[str]) -> None:
        """Have RPC servers tried, each once at a time."""
        for endpoint in dict.fromkeys(endpoints):
            if self.state.rpc_servers.begin(endpoint):
                self.out.append(TryServer(endpoint))

    def judge_servers(self, preset: Preset) -> None:
        """Refuse the requests for a preset that cannot load because an RPC server is gone.

        End that failure if the server is back.
        """
        lost = self.state.rpc_servers.lost(preset.plan.endpoints)
        if preset.serving is not None:
            return  # its child is there, or finds out
        if lost is None:
            if preset.failure is not None and preset.failure.kind == RPC_LOST:
                preset.failure, preset.retry_at = None, self.now
            return
        if preset.queue or preset.wanted_since is not None:
            assert lost.failure is not None
            self.record_preset("failed", preset, lost.failure.summary)
        preset.failure, preset.retry_at = lost.failure, lost.retry_at
        preset.wanted_since = None
        self.reject_all(preset, self.refusals.failed(preset, self.now))

    def refit(self, preset: Preset, room: Footprint, why: str) -> None:
        """Have a choice made for a preset that fits into what other programs leave."""
        preset.refitted = True
        self._await_choice(preset, REFITTED, why, Refit(preset.plan.preset, room))

    def _await_choice(self, preset: Preset, kind: str, why: str, asked: Action) -> None:
        """Have another choice made for a preset; its requests wait for the estimate."""
        self.state.add_preset(replace(preset.plan, estimating=True))
        self.record_preset(kind, preset, why)
        self.out.append(asked)

    def abandon_unwanted(self, preset: Preset) -> None:
        """Stop a load that is not wanted any more, unless it has come far enough to keep."""
        loading = preset.serving
        if loading is None or loading.state is not State.LOADING:
            return
        if preset.queue or preset.wanted_since is not None:
            return
        by_time = 0.0
        if preset.load_seconds:
            by_time = (self.now - loading.spawned_at) / preset.load_seconds
        if max(loading.fraction or 0.0, by_time) < self.policy.keep_load_from:
            self.stop(loading, StopReason.ABANDONED, "nobody waits for it any more")

    def reject_all(self, preset: Preset, refuse: Callable[[Waiter], Reject]) -> None:
        """Refuse all requests that wait for a preset."""
        for waiter in list(preset.queue):
            self.out.append(refuse(waiter))
            self.remove_waiter(preset, waiter)
        self.state.settle_demand(preset)

    def refuse_deadlock(self, preset: Preset, waiter: Waiter) -> None:
        """Refuse a request that could only be served by ending the request that made it."""
        refusal = self.refusals.would_deadlock(preset, waiter)
        self.record_preset("refused", preset, refusal.message)
        self.out.append(refusal)

    def refuse_full_queue(self, preset: Preset, waiter: Waiter) -> None:
        """Refuse a request that finds no place; many in a row are one decision."""
        why = f"its queue is full: {len(preset.queue)} waiting, as `policy.queue.limit` allows"
        if preset.reason != f"refused: {why}":
            self.record_preset("refused", preset, why)
        self.out.append(self.refusals.queue_full(preset, waiter, self.now))

    def find_place(self, preset: Preset, waiter: Waiter) -> tuple[bool, Waiter | None]:
        """Return whether a queue has a place for `waiter`, and which waiter has to leave for it."""
        if waiter.came_back or len(preset.queue) < self.policy.queue_limit:
            return True, None
        leaver = preset.queue.gives_way(waiter, self.now)
        return leaver is not None, leaver

    def enqueue(self, preset: Preset, waiter: Waiter, leaver: Waiter | None) -> None:
        """Let a request wait, in the place of `leaver`."""
        farewell = None if leaver is None else self.refusals.displaced(preset, leaver, self.now)
        self.state.enqueue(preset, waiter)
        if leaver is not None and farewell is not None:
            self.out.append(farewell)
            self.remove_waiter(preset, leaver)

    def remove_waiter(self, preset: Preset, waiter: Waiter) -> None:
        """Remove a waiter that ends without a lease."""
        self.state.dequeue(preset, waiter)
        self.state.demand.ended(self.now)

    def clear_wanted(self, preset: Preset) -> None:
        """Drop a command's request to load a preset."""
        preset.wanted_since = None
        self.state.settle_demand(preset)

    def settled_late(self, key: InstanceKey) -> None:
        """Record that a device did not show a reaped child's bytes as free in time."""
        self._decide("settled", key.preset, key.epoch, "its memory did not show up as free in time")

    def blend(self, old: float | None, new: float) -> float:
        """Return the running mean of a learned time after a new measurement."""
        return new if old is None else old + self.policy.demand * (new - old)

    def record(self, kind: str, instance: Instance, reason: str) -> None:
        """Record a decision about an instance."""
        self._decide(kind, instance.key.preset, instance.key.epoch, reason)

    def record_preset(self, kind: str, preset: Preset, reason: str) -> None:
        """Record a decision about a preset that has no instance."""
        self._decide(kind, preset.plan.preset, None, reason)

    def _decide(self, kind: str, name: PresetId, epoch: int | None, reason: str) -> None:
        self._sequence += 1
        decision = Decision(self._sequence, self.now, kind, name, epoch, reason)
        self.decisions.append(decision)
        if preset := self.state.presets.get(name):
            preset.reason = f"{kind}: {reason}"
        self.out.append(Note(decision))
