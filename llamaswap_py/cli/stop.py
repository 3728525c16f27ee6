"""`lswap stop`: ends a running lswap by signals, as Ctrl-C does, and waits until it has ended.

Signals reach only this user's processes on this machine, so it needs no key.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from llamaswap_py.children.running_lswaps import find_running, start_time
from llamaswap_py.cli.servers import choose_one
from llamaswap_py.client import calls
from llamaswap_py.client.address import DEFAULT_URL, base_of
from llamaswap_py.client.remote import Remote, UnreachableError
from llamaswap_py.errors import RemoteError, StateError

if TYPE_CHECKING:
    from llamaswap_py.children.running_lswaps import RunningLswap

_PATIENCE: Final = 2.0
"""Seconds that lswap may take to answer how many requests run; the number is only printed."""
_POLL: Final = 0.05


def run(url: str | None, key: str | None, *, now: bool, as_json: bool) -> None:
    """Stop the lswap that the options name. Raises UnreachableError if none runs here."""
    one = _chosen(url, key)
    began = start_time(one.pid)
    if not as_json:
        print(f"lswap: {_what_comes(one, key, now=now)}", file=sys.stderr)
    _signal(one, now=now)
    while began is not None and start_time(one.pid) == began:
        time.sleep(_POLL)
    if as_json:
        print(f'{{"pid":{one.pid},"stopped":true}}')
    else:
        print(f"lswap (pid {one.pid}) has stopped")


def _signal(one: RunningLswap, *, now: bool) -> None:
    """Send the signals of Ctrl-C: the first drains, the second ends lswap at once.

    They have different numbers, because two equal signals may become one. If lswap drains already,
    a second `lswap stop` without --now sends none, so that it does not cut the requests.
    """
    drains = one.served is not None and one.served.stopping
    numbers = [*([] if drains else [signal.SIGTERM]), *([signal.SIGINT] if now else [])]
    try:
        for number in numbers:
            os.kill(one.pid, number)
    except ProcessLookupError:
        return  # it has just ended
    except PermissionError:
        raise StateError(
            f"lswap (pid {one.pid}) is another user's", remedy="stop it as that user, or with sudo"
        ) from None


def _chosen(url: str | None, key: str | None) -> RunningLswap:
    running = find_running(os.environ)
    if url:
        return _at(url, key, running)
    if not running:
        raise UnreachableError("no lswap of yours runs here", remedy=_elsewhere(key))
    if len(running) > 1:
        raise choose_one(running)
    return running[0]


def _elsewhere(key: str | None) -> str:
    """Return advice on how to stop an lswap that has no runtime folder on this machine."""
    try:
        with Remote(DEFAULT_URL, key=key, patience=_PATIENCE) as remote:
            pid = remote.ask(calls.state()).pid
    except RemoteError:
        return "`lswap service status` shows a service; stop one in a container there"
    return (
        f"the one at {DEFAULT_URL} (pid {pid}) is another user's, runs in a container, or was "
        "started with another XDG_RUNTIME_DIR: stop it there"
    )


def _place(url: str) -> tuple[str, str | None]:
    base, socket = base_of(url)
    return base.replace("://localhost:", "://127.0.0.1:"), socket


def _at(url: str, key: str | None, running: list[RunningLswap]) -> RunningLswap:
    """Return the lswap at an address, as its runtime folder or its own answer describes it."""
    wanted = _place(url)
    for one in running:
        if one.served is not None and wanted in map(_place, one.served.urls):
            return one
    with Remote(url, key=key) as remote:
        snapshot = remote.ask(calls.state())
    for one in running:
        if (one.pid, one.name) == (snapshot.pid, snapshot.name):
            return one
    raise StateError(
        f"the lswap at {url} is not one of yours on this machine",
        remedy="stop it where it runs: its terminal, its service, its container",
    )


def _what_comes(one: RunningLswap, key: str | None, *, now: bool) -> str:
    requests = 0
    with (
        suppress(RemoteError),
        Remote(one.url or DEFAULT_URL, key=key, patience=_PATIENCE) as remote,
    ):
        snapshot = remote.ask(calls.state())
        requests = snapshot.requests_open if snapshot.pid == one.pid else 0
    said = f"stopping {one}"
    if requests and not now:
        count = "1 request" if requests == 1 else f"{requests} requests"
        said += f": {count} may end first; `lswap stop --now` does not wait"
    return said
