"""What is done about an event that the scheduler failed to handle, so that serving goes on.

The scheduler's state cannot be put back. So the actions that it had decided on are carried out:
then its state and the children agree. After that the event is handled once more. What the first
time has changed is not changed again; what it has not changed is changed now.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Grant, Reject
from llamaswap_py.tasks import guard

if TYPE_CHECKING:
    from llamaswap_py.scheduler.actions import Action
    from llamaswap_py.supervisor.recorder import Decider

_LOOK_AGAIN: Final = 1.0
"""Seconds until the scheduler is asked again after it failed to say when it wants to be."""


def recover(decider: Decider, event: ev.Event, error: Exception) -> list[Action]:
    """Return what is to be done after an event failed; a request that arrived gets an error."""
    guard.report("scheduler", error)
    actions = decider.begun()
    again: ev.Event = event
    if isinstance(event, ev.RequestArrived):
        if any(isinstance(one, Grant | Reject) and one.request == event.request for one in actions):
            return actions
        again = ev.RequestLeft(event.request)
        message = "lswap failed to schedule this request; this is a bug"
        remedy = "lswap's log has the details; send the request again"
        actions.append(Reject(event.request, event.preset, "internal", message, remedy))
    for one in (again, ev.TimePassed()):  # an event that comes late changes nothing
        try:
            actions += decider.handle(one, time.monotonic())
        except Exception as second:
            guard.report("scheduler", second)
            actions += decider.begun()
    return actions


def look_again(error: Exception) -> float:
    """Return when to ask a scheduler again that failed to say when it wants to be."""
    guard.report("scheduler", error)
    return time.monotonic() + _LOOK_AGAIN
