"""The life of an instance, as a table.

Rule 1: every transition an instance can make stands in TRANSITIONS; nothing else assigns a state.
Rule 2: a pair that is not in the table raises IllegalTransition, and nothing has changed.

    loading -> ready <-> sleeping
    loading | ready | sleeping -> draining -> stopping -> gone
    loading -> stopping          abandoned or stalled
    any -> gone                  the process is reaped
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """The state of an instance."""

    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    DRAINING = "draining"
    STOPPING = "stopping"
    GONE = "gone"


class Trigger(Enum):
    """The causes of transitions."""

    BECAME_READY = "became ready"
    SLEPT = "slept"
    WOKE = "woke"
    DRAIN = "drain"
    STOP = "stop"
    EXITED = "exited"


TRANSITIONS: Final[dict[tuple[State, Trigger], State]] = {
    (State.LOADING, Trigger.BECAME_READY): State.READY,
    (State.READY, Trigger.SLEPT): State.SLEEPING,
    (State.SLEEPING, Trigger.WOKE): State.READY,
    (State.LOADING, Trigger.DRAIN): State.DRAINING,
    (State.READY, Trigger.DRAIN): State.DRAINING,
    (State.SLEEPING, Trigger.DRAIN): State.DRAINING,
    (State.DRAINING, Trigger.STOP): State.STOPPING,
    (State.LOADING, Trigger.STOP): State.STOPPING,
    **{(state, Trigger.EXITED): State.GONE for state in State if state is not State.GONE},
}


class IllegalTransition(Exception):
    """Raised for a pair that is not in TRANSITIONS: a bug in lswap, not in its input."""

    def __init__(self, state: State, trigger: Trigger) -> None:
        super().__init__(f"an instance that is {state.value} cannot take '{trigger.value}'")
        self.state = state
        self.trigger = trigger


def advance(state: State, trigger: Trigger) -> State:
    """Return the next state; raises IllegalTransition."""
    try:
        return TRANSITIONS[state, trigger]
    except KeyError:
        raise IllegalTransition(state, trigger) from None
