"""The messages of all refusals: what happened, why, what to do, and when to try again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from llamaswap_py.scheduler.actions import Reject
from llamaswap_py.scheduler.events import RequestArrived
from llamaswap_py.scheduler.feasibility import footprint_text
from llamaswap_py.scheduler.lifecycle import State
from llamaswap_py.scheduler.queues import Waiter
from llamaswap_py.scheduler.state import Instance, Preset, SchedulerState
from llamaswap_py.scheduler.types import TOO_LARGE, Failure
from llamaswap_py.snapshot import AWAITS_FIT
from llamaswap_py.units import format_duration

_Details: TypeAlias = tuple[tuple[str, str | int | float | tuple[str, ...] | None], ...]
_Refuse: TypeAlias = Callable[[Waiter], Reject]

_UNCONFIGURED_RETRY = 60.0
"""Seconds that a client is told to wait if only a changed configuration can repair the preset."""
_FOR_MEMORY = "waiting for memory"
_TOLD = 4
"""How many models a message names as holding memory; it counts the others."""
DISPLACED = "displaced"
"""The `reason` of a refusal after waiting."""
_MEND = "mend its entry in the configuration: a changed file is read again"


class Refusals:
    """Renders `Reject` actions from the state; changes nothing."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def eta(self, preset: Preset, position: int, now: float) -> float | None:
        """Return the expected seconds until a waiter at `position` is granted; None if unknown."""
        load = preset.load_seconds
        serving = preset.serving
        if preset.downloading_since is not None:
            return self._download_left(preset, now)
        slots = serving.concurrency if serving else preset.plan.concurrency or 1
        turns = position // slots + (1 if serving and serving.state is State.READY else 0)
        queue = turns * (preset.service_seconds or 0.0)
        if serving is not None and serving.state is State.READY and serving.gate_for is None:
            return queue
        if load is None:
            return None
        spent = now - serving.spawned_at if serving and serving.state is State.LOADING else 0.0
        return max(load - spent, 0.0) + queue

    def _download_left(self, preset: Preset, now: float) -> float | None:
        """Return the expected seconds of the rest of a download and of the load after it."""
        if preset.downloading_since is None or preset.downloaded <= 0:
            return None
        spent = now - preset.downloading_since
        rest = spent * (1 - preset.downloaded) / preset.downloaded
        return rest + (preset.load_seconds or 0.0)

    def unknown(self, event: RequestArrived) -> Reject:
        return Reject(
            event.request, event.preset, "model_not_found", f"no preset is named {event.preset!r}"
        )

    def at_the_door(
        self,
        preset: Preset,
        event: RequestArrived,
        waiter: Waiter,
        now: float,
        closing_at: float | None,
    ) -> Reject | None:
        """Return the refusal of a request that cannot be queued, or None."""
        if closing_at is not None:
            return self.closing(preset)(waiter)
        if refusal := self.broken(preset, waiter, now):
            return refusal
        if preset.serving is None and not event.autoload:
            return self.not_loaded(preset, waiter)
        return None

    def broken(self, preset: Preset, waiter: Waiter, now: float) -> Reject | None:
        """Return the refusal for a preset that cannot load now, or None."""
        if preset.plan.problem is not None:
            return self._failure(preset, preset.plan.problem, waiter, _UNCONFIGURED_RETRY)
        if preset.failure is not None and now < preset.retry_at and preset.serving is None:
            return self.failed(preset, now)(waiter)
        return None

    def not_loaded(self, preset: Preset, waiter: Waiter, *, asleep: bool = False) -> Reject:
        name = preset.plan.preset
        what = (
            f"model {name!r} sleeps, and a request that only reads does not wake it"
            if asleep
            else f"model {name!r} is not loaded, and a request that only reads does not load it"
        )
        remedy = "ask with autoload=true, or load it first"
        return Reject(waiter.request, name, "model_not_loaded", what, remedy=remedy)

    def still_loading(self, preset: Preset, waiter: Waiter, now: float) -> Reject:
        name = preset.plan.preset
        return Reject(
            waiter.request,
            name,
            "model_loading",
            f"model {name!r} is loading, and a request that only reads does not wait for it",
            remedy="ask again once it is ready, or with autoload=true",
            retry_after=self.eta(preset, 0, now) or 1.0,
            details=self._where(preset, 0, now),
        )

    def failed(self, preset: Preset, now: float) -> _Refuse:
        assert preset.failure is not None
        failure, wait = preset.failure, max(preset.retry_at - now, 0.0)
        return lambda waiter: self._failure(preset, failure, waiter, wait)

    def too_large(self, preset: Preset, shortfall: str, remedy: str) -> _Refuse:
        name = preset.plan.preset
        return lambda waiter: Reject(
            waiter.request,
            name,
            "model_too_large",
            f"model {name!r} can never fit: {shortfall}",
            remedy=remedy,
        )

    def timed_out(self, preset: Preset, waiter: Waiter, now: float) -> Reject:
        waited = format_duration(now - waiter.since)
        name = preset.plan.preset
        return Reject(
            waiter.request,
            name,
            "queue_timeout",
            f"waited {waited} for model {name!r}, which is {self._state_of(preset)}"
            f"{self._arithmetic(preset)}",
            remedy=f"{self._patience(waiter)}{self._in_the_way(preset)}",
            retry_after=self.eta(preset, 0, now) or 1.0,
            details=self._where(preset, preset.queue.position(waiter), now),
        )

    def full(self, preset: Preset, waiter: Waiter, why: str, now: float) -> Reject:
        name = preset.plan.preset
        return Reject(
            waiter.request,
            name,
            "memory_full",
            f"there is no room for model {name!r} without unloading a busy one: {why}",
            remedy=f"ask again later, or with `when_full: wait`{self._in_the_way(preset)}",
            retry_after=self.eta(preset, 0, now) or 1.0,
            details=self._where(preset, 0, now),
        )

    def would_deadlock(self, preset: Preset, waiter: Waiter) -> Reject:
        name, above = preset.plan.preset, self._state.leases[waiter.parent or waiter.request]
        outer, held = (waiter.parent or "").rpartition("/")[0] or waiter.parent, above.instance.key
        what = (
            f"every slot of model {name!r} is busy with a request that itself waits for this model"
            if held.preset == name
            else f"model {name!r} could only load by ending what runs on {held.preset!r}"
        )
        return Reject(
            waiter.request,
            name,
            "would_deadlock",
            f"{what}: this request was made under {outer}, which would wait for itself",
            remedy="use models that fit together, or let the outer request finish first",
        )

    def unloaded(self, preset: Preset) -> _Refuse:
        name = preset.plan.preset
        return lambda waiter: Reject(
            waiter.request,
            name,
            "unloaded",
            f"model {name!r} was unloaded by command while this request waited",
            remedy="ask again",
        )

    def removed(self, preset: Preset) -> _Refuse:
        name = preset.plan.preset
        return lambda waiter: Reject(
            waiter.request,
            name,
            "model_not_found",
            f"model {name!r} was taken out of the configuration while this request waited",
        )

    def closing(self, preset: Preset) -> _Refuse:
        name = preset.plan.preset
        return lambda waiter: Reject(
            waiter.request,
            name,
            "draining",
            "lswap is stopping and takes no new requests",
            remedy="try again once it is back",
            retry_after=5.0,
            details=(("state", "draining"),),
        )

    def queue_full(self, preset: Preset, waiter: Waiter, now: float) -> Reject:
        """Return the refusal of a request that finds a full queue, if no other has to leave it."""
        name, size = preset.plan.preset, len(preset.queue)
        mine = preset.queue.places.held(waiter.client)
        whose = f", and {waiter.client} holds {mine} of these places" if mine else ""
        return self._no_place(
            preset, waiter, f"{size} requests already wait for model {name!r}{whose}", now
        )

    def displaced(self, preset: Preset, waiter: Waiter, now: float) -> Reject:
        """Return the refusal of a waiter that loses its place in a full queue to another."""
        name, size = preset.plan.preset, self._state.policy.queue_limit
        mine = preset.queue.places.held(waiter.client)
        what = (
            f"the queue of model {name!r} is full, and this request gave its place to another: "
            f"{waiter.client} held {mine} of {size} places"
        )
        return self._no_place(preset, waiter, what, now, ("reason", DISPLACED))

    def _no_place(
        self, preset: Preset, waiter: Waiter, what: str, now: float, *more: tuple[str, str]
    ) -> Reject:
        position = self._state.policy.queue_limit
        eta = self.eta(preset, position, now)
        return Reject(
            waiter.request,
            preset.plan.preset,
            "queue_full",
            what,
            remedy=f"{_later(eta)}, or raise `policy.queue.limit`, which is "
            f"{self._state.policy.queue_limit}",
            retry_after=eta or 1.0,
            details=(*self._where(preset, position, now), *more),
        )

    def _failure(
        self, preset: Preset, failure: Failure, waiter: Waiter, retry_after: float
    ) -> Reject:
        name = preset.plan.preset
        details: _Details = (("state", "failed"), ("failure", failure.kind))
        if failure.kind == TOO_LARGE:  # another attempt would fail too
            return Reject(
                waiter.request,
                name,
                "model_too_large",
                f"model {name!r} does not work: {failure.summary}",
                remedy=_MEND,
                details=details,
            )
        if failure.exit_code is not None:
            details += (("exit_code", failure.exit_code),)
        if failure.tail:
            details += (("log", failure.tail),)
        return Reject(
            waiter.request,
            name,
            "model_failed",
            f"model {name!r} does not work: {failure.summary}",
            remedy=_next_try(name, failure, retry_after) if preset.plan.problem is None else _MEND,
            retry_after=retry_after,
            details=details,
        )

    def waits(self, preset: Preset) -> str:
        """Return what memory a preset waits for and which models hold it; "" if it does not."""
        waiting = len(preset.queue) > 0 or preset.wanted_since is not None
        if not waiting or preset.plan.estimating or self._state_of(preset) != _FOR_MEMORY:
            return ""
        return f"{_FOR_MEMORY}{self._arithmetic(preset)}{self._in_the_way(preset)}"

    def timed_out_reason(self, preset: Preset) -> str:
        """Return why requests for a preset gave up, with what was in their way."""
        timeout = format_duration(self._state.policy.queue_timeout)
        told = f"{self._state_of(preset)}{self._arithmetic(preset)}{self._in_the_way(preset)}"
        return f"requests gave up waiting (at most {timeout}) for it: {told}"

    def _arithmetic(self, preset: Preset) -> str:
        """Return the needed and the free memory, for a preset that waits for memory."""
        settled = preset.serving is not None or preset.downloading_since is not None
        if settled or preset.plan.estimating:
            return ""
        ledger = self._state.ledger
        charge, first = ledger.charge_of(preset.plan), preset.plan.choices[0]
        if not charge.keys() <= ledger.pools.keys():
            return ""
        return f" ({ledger.explain(charge, ledger.free(), first.lowered)})"

    def _patience(self, waiter: Waiter) -> str:
        timeout = self._state.policy.queue_timeout
        if waiter.deadline is not None and waiter.deadline < waiter.since + timeout:
            own = format_duration(waiter.deadline - waiter.since)
            return f"the request itself wanted to wait {own} at most: let it wait longer"
        return f"raise `policy.queue.timeout`, which is {format_duration(timeout)}"

    def _in_the_way(self, preset: Preset) -> str:
        """Return the loaded models that hold the needed memory, largest first, with their use."""
        wanted = self._state.ledger.charge_of(preset.plan)
        holders = [
            (sum(size for pool, size in one.charge.items() if pool in wanted), one)
            for one in self._state.instances.values()
            if one.key.preset != preset.plan.preset
        ]
        told = [
            f"{one.key.preset} ({footprint_text(one.charge)}, {self._use(one)})"
            for size, one in sorted(holders, key=lambda each: (-each[0], each[1].key))
            if size
        ]
        more = f" and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
        return f"; the memory is held by {', '.join(told[:_TOLD])}{more}" if told else ""

    def _use(self, one: Instance) -> str:
        if one.outlived:
            return f"ended, but {one.outlived}"
        if self._state.is_pinned(one):
            return "pinned"
        count = len(one.leases)
        return f"{count} request{'' if count == 1 else 's'}" if count else one.state.value

    def _where(self, preset: Preset, position: int, now: float) -> _Details:
        eta = self.eta(preset, position, now)
        rounded = None if eta is None else round(eta, 3)
        state = self._state_of(preset)
        return (("state", state), ("position", position), ("eta_seconds", rounded))

    def _state_of(self, preset: Preset) -> str:
        serving = preset.serving
        if preset.downloading_since is not None:
            return "downloading"
        if serving is None:
            if left := [one.outlived for one in self._state.left_by(preset) if one.outlived]:
                return f"waiting for its last run to end: {left[0]}"
            return AWAITS_FIT if preset.plan.estimating else _FOR_MEMORY
        return "draining" if serving.gate_for is not None else serving.state.value


def _later(eta: float | None) -> str:
    return "try again later" if not eta else f"try again in about {format_duration(eta)}"


def _next_try(name: str, failure: Failure, retry_after: float) -> str:
    said = f"the next try is in {format_duration(retry_after)}"
    written = failure.tail or failure.exit_code is not None  # not by a download that failed
    return f"see `lswap logs {name}`; {said}" if written else said
