"""`lswap status`: shows the running lswaps, in a few lines each."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.children.running_lswaps import find_running
from llamaswap_py.cli.show import state_text
from llamaswap_py.client import calls
from llamaswap_py.client.address import DEFAULT_URL
from llamaswap_py.client.remote import Remote
from llamaswap_py.errors import RemoteError
from llamaswap_py.units import format_age

if TYPE_CHECKING:
    from llamaswap_py.children.running_lswaps import RunningLswap
    from llamaswap_py.snapshot import Snapshot

_PATIENCE: Final = 5.0
"""Seconds that each may take to answer."""


class Status(msgspec.Struct):
    """One running lswap. With a `problem` it did not answer, and what only it knows is None."""

    urls: tuple[str, ...]
    pid: int
    state: str
    """`serving`, `stopping`, or `unknown` if it is still starting or has another version."""
    serves: str = ""
    started_at: float | None = None
    version: str | None = None
    loaded: list[str] | None = None
    models: int | None = None
    requests: int | None = None
    problem: str = ""


def run(url: str | None, key: str | None, *, as_json: bool) -> None:
    """Print the status of each lswap; raises UnreachableError if none runs."""
    running = [] if url else find_running(os.environ)
    found = [_local(one, key) for one in running]
    if not found:
        found = [_remote(url or DEFAULT_URL, key)]
    if as_json:
        print(msgspec.json.encode(found).decode())
        return
    print("\n".join(line for one in found for line in lines(one)))


def lines(status: Status) -> list[str]:
    """Return the lines about one lswap."""
    where = ", ".join(status.urls) or "an unknown address"
    since = ""
    if status.started_at is not None:
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(status.started_at))
        since = f", since {began} ({format_age(time.time() - status.started_at)})"
    version = f" {status.version}" if status.version else ""
    state = "running" if status.state == "unknown" else status.state
    said = [f"lswap{version} is {state} on {where}", f"  pid {status.pid}{since}"]
    if status.state == "unknown":
        said.append("  it is still starting, or has another version: name its address with --url")
    if status.serves:
        said.append(f"  serves {status.serves}")
    if status.loaded is not None:
        loaded = ": " + ", ".join(status.loaded) if status.loaded else ""
        requests = "1 request" if status.requests == 1 else f"{status.requests} requests"
        count = len(status.loaded)
        said.append(f"  {requests}, {count} of {status.models} models loaded{loaded}")
    if status.problem:
        said.append(f"  its models are unknown: {status.problem}")
    return said


def _local(one: RunningLswap, key: str | None) -> Status:
    if one.served is None or one.url is None:
        return Status((), one.pid, "unknown")
    served = one.served
    state = "stopping" if served.stopping else "serving"
    status = Status(served.urls, one.pid, state, served.what, served.started_at)
    try:
        with Remote(one.url, key=key, patience=_PATIENCE) as remote:
            return _with_snapshot(status, remote.ask(calls.state()))
    except RemoteError as error:
        status.problem = "" if served.stopping else str(error)
        return status


def _remote(url: str, key: str | None) -> Status:
    """Return the status of an lswap that has no runtime folder on this machine."""
    with Remote(url, key=key) as remote:
        snapshot = remote.ask(calls.state())
    state = "serving" if snapshot.state == "serving" else "stopping"
    what = snapshot.config_path or ""
    status = Status((remote.url,), snapshot.pid, state, what, snapshot.started_at)
    return _with_snapshot(status, snapshot)


def _with_snapshot(status: Status, snapshot: Snapshot) -> Status:
    status.version = snapshot.version
    status.loaded = [f"{one.preset} ({state_text(one)})" for one in snapshot.instances]
    status.models = len(snapshot.models)
    status.requests = snapshot.requests_open
    return status
