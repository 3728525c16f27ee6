"""The scheduler: decides which models are in memory, and which request is served next.

It does no I/O: events go in with a time, actions come out. It never reads a clock, a socket, a file
or a process, so the same object runs in production, in property tests and in a simulator.
"""

from __future__ import annotations

from llamaswap_py.scheduler.scheduler import Scheduler
from llamaswap_py.scheduler.types import InstanceKey, Policy, Pool, PresetPlan

__all__ = ["InstanceKey", "Policy", "Pool", "PresetPlan", "Scheduler"]
