"""What becomes of an event that the scheduler failed to take in, so that serving goes on.

Nothing else can put its state back: it says what it does in actions, and those that it had come to
are done, so that it and the children agree. Then the event is handed in once more: what it was to
change and did not is changed now, and what it has changed already is not found a second time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from llamaswap_py import guarding
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Grant, Reject

if TYPE_CHECKING:
    from llamaswap_py.scheduler import Scheduler
    from llamaswap_py.scheduler.actions import Action

_LOOK_AGAIN: Final = 1.0
"""Seconds until the scheduler is asked again after it failed to say when it wants to be."""


def recover(scheduler: Scheduler, event: ev.Event, error: Exception) -> list[Action]:
    """Return what is to be done after an event failed; a request that arrived gets an error."""
    guarding.report("scheduler", error)
    actions = scheduler.begun()
    again: ev.Event = event
    if isinstance(event, ev.RequestArrived):
        if any(isinstance(one, Grant | Reject) and one.request == event.request for one in actions):
            return actions
        again = ev.RequestLeft(event.request)
        message = "lswap failed to take this request in; this is a bug"
        remedy = "its log has the details; send the request again"
        actions.append(Reject(event.request, event.preset, "internal", message, remedy))
    for one in (again, ev.TimePassed()):  # what is late changes nothing, and then nothing follows
        try:
            actions += scheduler.handle(one, time.monotonic())
        except Exception as second:
            guarding.report("scheduler", second)
            actions += scheduler.begun()
    return actions


def next_look(scheduler: Scheduler) -> float | None:
    """Return when the scheduler wants to be asked again."""
    try:
        return scheduler.deadline()
    except Exception as error:
        guarding.report("scheduler", error)
        return time.monotonic() + _LOOK_AGAIN
