"""Gives events to the scheduler, and has its actions carried out.

A bug in one step must not stop the others: an event that fails is handled once more, and after an
action that fails the next one is still carried out.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Grant, Reject
from llamaswap_py.supervisor.recorder import Decider
from llamaswap_py.tasks import guard

_LOOK: Final = 1.0
"""Seconds until the scheduler is asked again, if it failed to say when it wants to be asked."""


class Timer:
    """Calls `ring` once at the time it was last set to (monotonic seconds)."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._at: float | None = None

    def set(self, at: float | None) -> None:
        """Ring at `at` instead; None: not at all."""
        if at == self._at:
            return
        self.cancel()
        self._at = at
        if at is not None:
            delay = max(at - time.monotonic(), 0.0)
            self._timer = asyncio.get_running_loop().call_later(delay, self._due)

    def cancel(self) -> None:
        """Do not ring."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._at = None

    def _due(self) -> None:
        self._timer = self._at = None
        self._ring()


class Dispatcher:
    """Gives each event to `decider`, and each action that follows to `carry_out`, in order.

    `record` gets every event with its actions. `failed` gets an action at which `carry_out` failed.
    The scheduler says when time alone would change something: then it gets `TimePassed`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        decider: Decider,
        record: Callable[[ev.Event, Sequence[Action]], None],
        carry_out: Callable[[Action], None],
        failed: Callable[[Action, Exception], None],
    ) -> None:
        self._scheduler, self._decider = scheduler, decider
        self._record, self._carry_out, self._failed = record, carry_out, failed
        self._pending, self._dispatching = deque[ev.Event](), False
        self._timer = Timer(lambda: self.dispatch(ev.TimePassed()))

    def close(self) -> None:
        """End the timer: time alone changes nothing any more."""
        self._timer.cancel()

    def dispatch(self, event: ev.Event) -> None:
        """Give an event to the scheduler and carry out what it says."""
        if self._dispatching:
            # An action caused this event; it is handled after that action's siblings.
            self._pending.append(event)
            return
        try:
            actions = self._decider.handle(event, time.monotonic())
        except Exception as error:
            actions = recover(self._decider, event, error)
        if actions or type(event) is not ev.RequestFinished:
            self._settle(event, actions)
        try:
            at = self._scheduler.deadline()
        except Exception as error:
            guard.report("scheduler", error)
            at = time.monotonic() + _LOOK
        self._timer.set(at)

    def finish(self, event: ev.RequestFinished) -> None:
        """Give a lease back: at once if no action follows from that, else as `dispatch` does."""
        if not self._dispatching:
            try:
                if self._decider.finish_at_once(event, time.monotonic()):
                    return
            except Exception as error:
                guard.report("scheduler", error)
        self.dispatch(event)

    def _settle(self, event: ev.Event, actions: Sequence[Action]) -> None:
        """Carry out what followed from an event, and from those that this causes."""
        self._dispatching = True
        try:
            while True:
                try:
                    self._record(event, actions)
                except Exception as error:
                    guard.report("feed", error)
                for action in actions:
                    try:
                        self._carry_out(action)
                    except Exception as error:
                        self._failed(action, error)
                if not self._pending:
                    return
                event = self._pending.popleft()
                try:
                    actions = self._decider.handle(event, time.monotonic())
                except Exception as error:
                    actions = recover(self._decider, event, error)
        finally:
            self._dispatching = False


def recover(decider: Decider, event: ev.Event, error: Exception) -> list[Action]:
    """Return what is to be done after an event failed; a request that arrived gets an error.

    The scheduler's state cannot be put back. So the actions that it had decided on are carried out:
    then its state and the children agree. After that the event is handled once more. What the first
    time has changed is not changed again; what it has not changed is changed now.
    """
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
