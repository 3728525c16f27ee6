"""`Scheduler.handle(event, now) -> actions`: applies an event, then settles what follows from it.

An event first changes the state (state.py). Then one pass runs, always in the same order: deadlines
that have come (timers.py), the plan for all that wait (planner.py), the grant of free slots. A
request for a ready instance with a free slot needs no pass: it is granted, and given back, in
constant time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Reject, StopReason
from llamaswap_py.scheduler.demand import Traffic
from llamaswap_py.scheduler.effects import Effects
from llamaswap_py.scheduler.handlers import OnFiles, OnInstances, OnOperators, OnRequests
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.pins import shut_out_by
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.settle import SchedulingPass
from llamaswap_py.scheduler.state import READY, Instance, Preset, SchedulerState
from llamaswap_py.scheduler.timers import Timers
from llamaswap_py.scheduler.types import (
    ClientId,
    Decision,
    InstanceKey,
    Policy,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
    RequestId,
)


class Scheduler:
    """The core. Feed it events in order of time; carry out the actions it returns, in order.

    `deadline()` is the time at which it wants a `TimePassed`. Same events, same actions.
    """

    def __init__(
        self,
        plans: Iterable[PresetPlan],
        pools: Mapping[PoolId, Pool],
        policy: Policy | None = None,
        *,
        first_epoch: int = 1,
    ) -> None:
        self.policy = policy or Policy()
        self.state = SchedulerState(Ledger(pools, self.policy), self.policy)
        for plan in plans:
            self.state.add_preset(plan)
        self._effects = Effects(self.state, first_epoch=first_epoch)
        self._timers = Timers(self.state, self._effects)
        self._pass = SchedulingPass(self.state, self._effects, self._timers)
        self._requests = OnRequests(self.state, self._effects, self._timers)
        self._handlers = self._table()

    def _table(self) -> dict[type, Callable[[Any], bool]]:
        """Return the handler of each event; it says whether a pass has to follow."""
        requests = self._requests
        instances = OnInstances(self.state, self._effects)
        operators = OnOperators(self.state, self._effects, self._timers)
        files = OnFiles(self.state, self._effects)
        return {
            ev.RequestArrived: requests.request_arrived,
            ev.RequestLeft: requests.request_left,
            ev.RequestFinished: requests.request_finished,
            ev.LeaseDetached: requests.lease_detached,
            ev.LeaseAttached: requests.lease_attached,
            ev.InstanceProgressed: instances.instance_progressed,
            ev.InstanceReady: instances.instance_ready,
            ev.InstanceSlept: instances.instance_slept,
            ev.InstanceWoke: instances.instance_woke,
            ev.InstanceStalled: instances.instance_stalled,
            ev.InstanceHung: instances.instance_hung,
            ev.InstanceLost: instances.instance_lost,
            ev.InstanceRefused: instances.instance_refused,
            ev.InstanceNoted: instances.instance_noted,
            ev.InstanceOutlived: instances.instance_outlived,
            ev.InstanceExited: instances.instance_exited,
            ev.LoadAsked: operators.load_asked,
            ev.UnloadAsked: operators.unload_asked,
            ev.TtlChanged: operators.ttl_changed,
            ev.PinChanged: operators.pin_changed,
            ev.ReservationAsked: operators.reservation_asked,
            ev.ReservationReleased: operators.reservation_released,
            ev.DownloadAsked: files.download_asked,
            ev.DownloadProgressed: files.download_progressed,
            ev.DownloadFinished: files.download_finished,
            ev.DownloadFailed: files.download_failed,
            ev.FilesRead: files.files_read,
            ev.ServerTried: instances.server_tried,
            ev.PoolsMeasured: operators.pools_measured,
            ev.ChoicesEstimated: operators.choices_estimated,
            ev.TrafficRecalled: operators.traffic_recalled,
            ev.PresetsChanged: operators.presets_changed,
            ev.ShutdownAsked: operators.shutdown_asked,
            ev.TimePassed: lambda _: True,
        }

    @property
    def decisions(self) -> deque[Decision]:
        """The newest decisions, oldest first."""
        return self._effects.decisions

    @property
    def loads(self) -> int:
        """How many instances were spawned in all."""
        return self._effects.loads

    @property
    def evictions(self) -> int:
        """How many instances were stopped to make room."""
        return self._effects.evictions

    @property
    def now(self) -> float:
        """The time of the last event."""
        return self._effects.now

    @property
    def closing(self) -> bool:
        """Whether a shutdown was asked for."""
        return self._timers.closing_at is not None

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Apply one event at time `now` (seconds, any origin; an earlier one counts as equal)."""
        effects = self._effects
        effects.now = now if now > effects.now else effects.now
        effects.out = []
        if self._handlers[type(event)](event):
            self._pass.run()
        out, effects.out = effects.out, []
        return out

    def begun(self) -> list[Action]:
        """Return the actions so far of the last event, if `handle` raised."""
        return list(self._effects.out)

    def grant_at_once(self, event: ev.RequestArrived, now: float) -> Instance | None:
        """Apply an arrival if its only action is a Grant, and return what was granted.

        None if `handle` would do anything else: then nothing has changed.
        """
        effects = self._effects
        effects.now = now if now > effects.now else effects.now
        return self._requests.grant_at_once(event)

    def finish_at_once(self, event: ev.RequestFinished, now: float) -> bool:
        """Apply the end of a lease, if no action follows from it and `deadline` stays as it is.

        False if `handle` would do anything else: then nothing has changed.
        """
        effects, state = self._effects, self.state
        effects.now = now = now if now > effects.now else effects.now
        lease = state.leases.get(event.request)
        if lease is None or state.wanted or lease.instance.state is not READY:
            return False
        ttl, due = lease.instance.ttl, self._timers.deadline
        if ttl is not None and (due is None or due > now + ttl):
            return False
        self._requests.close(event, lease)
        return True

    def look(self, name: PresetId, now: float, *, wakes: bool) -> InstanceKey | Reject:
        """Return which instance answers a request that only reads, or why none does.

        A read asks for a child's properties or its state. It does not load, wake or evict a model,
        and does not wait. It does not count as use, neither for the ttl nor for the choice of the
        model to evict. `wakes`: a sleeping child would wake to answer it. Nothing changes.
        """
        preset, refusals = self.state.presets[name], self._effects.refusals
        waiter = Waiter(RequestId(""), ClientId(""), False, now)
        found = _answering(self.state, preset)
        if found is not None and not (wakes and found.state is State.SLEEPING):
            return found.key
        if self.closing:
            return refusals.closing(preset)(waiter)
        if found is None and preset.plan.problem is None and preset.serving is not None:
            return refusals.still_loading(preset, waiter, now)
        refusal = refusals.broken(preset, waiter, now)
        return refusal or refusals.not_loaded(preset, waiter, asleep=found is not None)

    def traffic(self) -> Traffic:
        """Return the statistics of requests, for a later run."""
        return self.state.demand.traffic(self._effects.now)

    def neighbours(self, seconds: float) -> frozenset[PresetId]:
        """Return the presets that a request came for in the last so many seconds.

        Other presets should fit beside them. Returns none if only one model is loaded at a time.
        """
        if self.policy.max_loaded == 1:
            return frozenset()
        return self.state.demand.used_since(self._effects.now - seconds)

    def shut_out_by(self, preset: PresetId) -> list[PresetId]:
        """Return the presets that cannot be loaded beside a pinned one, and could be without it."""
        return shut_out_by(self.state, self.state.presets[preset])

    def deadline(self) -> float | None:
        """Return when to send `TimePassed`, or None."""
        return self._timers.deadline

    def eta(self, preset: PresetId, position: int = 0) -> float | None:
        """Return the expected seconds until a waiter at `position` gets its lease."""
        return self._effects.refusals.eta(self.state.presets[preset], position, self._effects.now)

    def waits(self, preset: PresetId) -> str:
        """Return what memory a preset waits for, and which models hold it; "" if it does not."""
        return self._effects.refusals.waits(self.state.presets[preset])


def _answering(state: SchedulerState, preset: Preset) -> Instance | None:
    """Return the instance that serves, else the newest one that still finishes its answers."""
    serving = preset.serving
    if serving is not None and serving.state in (State.READY, State.SLEEPING):
        return serving
    draining = [
        one
        for one in state.instances.values()
        if one.key.preset == preset.plan.preset
        and one.state is State.DRAINING
        and one.ready_at is not None
        and one.drain_reason is not StopReason.REFUSED
    ]
    return max(draining, key=lambda one: one.key.epoch, default=None)
