"""One llama-server process: spawned, watched, stopped, and never left behind.

A child turns its process into events and decides nothing about models. The pure modules
`llamacpp.output` and `llamacpp.failures` interpret its output. `child` and `process` do the work.
`runtime_dir` and `orphans` make sure that nothing outlives the supervisor.
"""

from __future__ import annotations

from llamaswap_py.children.child import Child
from llamaswap_py.children.child_events import (
    ChildEnding,
    ChildEvent,
    ChildExited,
    ChildHung,
    ChildLost,
    ChildOutlived,
    ChildProgress,
    ChildReady,
    ChildSlept,
    ChildSpawned,
    ChildSpec,
    ChildStalled,
    ChildStopFailed,
    ChildWoke,
    Program,
)
from llamaswap_py.children.logs import ChildLog, LogLine
from llamaswap_py.children.orphans import InstanceRecord, Swept
from llamaswap_py.children.runtime_dir import RuntimeDir
from llamaswap_py.llamacpp.failures import Failure, FailureKind

__all__ = [
    "Child",
    "ChildEnding",
    "ChildEvent",
    "ChildExited",
    "ChildHung",
    "ChildLog",
    "ChildLost",
    "ChildOutlived",
    "ChildProgress",
    "ChildReady",
    "ChildSlept",
    "ChildSpawned",
    "ChildSpec",
    "ChildStalled",
    "ChildStopFailed",
    "ChildWoke",
    "Failure",
    "FailureKind",
    "InstanceRecord",
    "LogLine",
    "Program",
    "RuntimeDir",
    "Swept",
]
