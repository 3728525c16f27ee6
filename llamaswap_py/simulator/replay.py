"""Replays a recorded run: gives a fresh scheduler the same events at the same times.

It compares the actions with the recorded ones, and checks the invariants after every event. It
stops at the first difference, because the later events followed from other actions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import msgspec

from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Grant, Spawn
from llamaswap_py.scheduler.invariants import check, check_spawn
from llamaswap_py.scheduler.recording import RecordedStep, RecordHead, Told, as_read, event_of


@dataclass(frozen=True, slots=True)
class Difference:
    """The first action of a step that differs; "" where one side has no more."""

    recorded: str
    replayed: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """The result of one step. `raised` is the error that ended it, `broken` a broken invariant."""

    line: int
    seconds: float
    event: ev.Event
    actions: Sequence[Action]
    raised: str = ""
    broken: str = ""
    difference: Difference | None = None


def replay(head: RecordHead, steps: Iterable[RecordedStep], name: str) -> Iterator[Replayed]:
    """Yield the result of each step, up to the first difference. Reading raises ConfigError."""
    scheduler = Scheduler(head.plans, head.pools, head.policy)
    for step in steps:
        event = event_of(step, f"{name}:{step.line}")
        actions, error = _take(scheduler, event, step)
        one = Replayed(
            step.line,
            step.at - head.began,
            event,
            actions,
            raised="" if error is None else f"{type(error).__name__}: {error}",
            broken="" if error is not None else _broken(scheduler, actions),
            difference=_difference(step, actions, error),
        )
        yield one
        if one.difference is not None:
            return


def _take(
    scheduler: Scheduler, event: ev.Event, step: RecordedStep
) -> tuple[Sequence[Action], Exception | None]:
    """Return the scheduler's actions for one event, and the error that it raised."""
    try:
        if not step.at_once:
            return scheduler.handle(event, step.at), None
        assert isinstance(event, ev.RequestArrived)
        instance = scheduler.grant_at_once(event, step.at)
    except Exception as error:
        return () if step.at_once else scheduler.begun(), error
    return () if instance is None else (Grant(event.request, instance.key),), None


def _broken(scheduler: Scheduler, actions: Sequence[Action]) -> str:
    try:
        check(scheduler)
        for action in actions:
            if isinstance(action, Spawn):
                check_spawn(scheduler, action.instance)
    except AssertionError as error:
        return str(error)
    return ""


def _difference(
    step: RecordedStep, actions: Sequence[Action], error: Exception | None
) -> Difference | None:
    raised = "" if error is None else type(error).__name__
    if raised != step.raised:
        return Difference(step.raised and f"raised {step.raised}", raised and f"raised {error!r}")
    found = as_read(actions)
    if found == step.actions:
        return None
    pairs = zip_longest(step.actions, found)
    recorded, replayed = next(pair for pair in pairs if pair[0] != pair[1])
    return Difference(_told(recorded), _told(replayed))


def _told(action: Told | None) -> str:
    """Return an action as a line for people."""
    if action is None:
        return ""
    name, fields = action
    return f"{name} {msgspec.json.encode(fields).decode()}"
