"""What a child is told (its spec), and what it tells (its events)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pathlib import Path

    from llamaswap_py.children.cgroups import Group
    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.llamacpp.failures import Failure


@dataclass(frozen=True, slots=True)
class Program:
    """How a child that is not a llama-server shows that it serves, and the folder it runs in.

    It serves once GET `http` answers 2xx, or a line of its output contains or matches `line`. The
    command `stop`, if set, stops it, with its pid and port put in for `{pid}` and `{port}`.
    `served_by` says which processes may hold its port: `cmd`, `container` or `anyone`.
    """

    http: str | None
    line: str | None
    cwd: str
    stop: tuple[str, ...] = ()
    served_by: str = "cmd"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """All that starting and watching one child needs; times in seconds.

    `args` is everything after the binary except the endpoint, which the child adds itself:
    `socket_path` (at most 107 bytes, ending in `.sock`), or 127.0.0.1 and a port of the system's
    choice when it is None. `env` is added to the cleaned environment of the supervisor.
    `files` are the model files; their sizes make the progress fraction. With a `program`, `args`
    have `{port}` or `{socket}` in place of the endpoint, and `env` is added to the supervisor's
    whole environment. A file at `log_path` that has reached `log_rotate` bytes is set aside.
    `liveness` matters only to a `Child` that is given `requests`. `written` maps values of the
    environment to the names by which logs show them. The child lives in the cgroup `group`, if it
    can have one; `mark` is in its environment.
    """

    name: str
    preset: str
    epoch: int
    binary: str
    args: tuple[str, ...]
    env: Mapping[str, str]
    socket_path: str | None
    child_mode: bool
    files: tuple[str, ...]
    log_path: Path | None
    stop_timeout: float
    load_stall: float
    log_rotate: int | None = None
    liveness: float | None = 120.0
    program: Program | None = None
    written: Mapping[str, str] = field(default_factory=dict)
    group: Group | None = None
    mark: str = ""


@dataclass(frozen=True, slots=True)
class ChildSpawned:
    """The process runs; its group has the same id."""

    pid: int


@dataclass(frozen=True, slots=True)
class ChildProgress:
    """Loading moved on; `fraction` is 0..1 and never falls, None when it cannot be measured."""

    fraction: float | None
    stage: str | None


@dataclass(frozen=True, slots=True)
class ChildReady:
    """It said that it is ready, and answered a request; comes once.

    `n_ctx` is the context of one slot in tokens. `inputs` are the kinds of input it takes (`text`,
    `image`, …; empty if it did not say). `info` is the payload of the child's own ready line (id,
    architecture, meta), empty outside child mode.
    """

    endpoint: Endpoint
    slots: int
    n_ctx: int | None
    inputs: tuple[str, ...]
    info: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChildSlept:
    """It was idle for its `--sleep-idle-seconds` and gave its memory back."""


@dataclass(frozen=True, slots=True)
class ChildWoke:
    """It serves again after a sleep."""


@dataclass(frozen=True, slots=True)
class ChildHung:
    """It does not serve any more; `summary` says how that shows. Comes once."""

    summary: str


@dataclass(frozen=True, slots=True)
class ChildStalled:
    """A load gave no sign of life for `load_stall`; comes again only after a new sign."""


@dataclass(frozen=True, slots=True)
class ChildEnding:
    """It said that it ends, unasked: it answers no request now, but its process may live on."""


@dataclass(frozen=True, slots=True)
class ChildLost:
    """Its process ended unasked and cannot serve; `ChildExited` follows once it is reaped."""


@dataclass(frozen=True, slots=True)
class ChildStopFailed:
    """Its stop did not go as it should: its command failed, or what it started still runs."""

    text: str


@dataclass(frozen=True, slots=True)
class ChildOutlived:
    """Its process is gone, but what it started still runs. `ChildExited` follows its end."""

    text: str


@dataclass(frozen=True, slots=True)
class ChildExited:
    """It is reaped and its process group is gone.

    `failure` is None when it ended because it was asked to. A signal that lswap did not send is a
    failure, even after a stop has begun.
    """

    code: int | None
    signal: int | None
    failure: Failure | None
    tail: tuple[str, ...]


ChildEvent: TypeAlias = (
    ChildSpawned
    | ChildProgress
    | ChildReady
    | ChildSlept
    | ChildWoke
    | ChildHung
    | ChildStalled
    | ChildEnding
    | ChildLost
    | ChildStopFailed
    | ChildOutlived
    | ChildExited
)
