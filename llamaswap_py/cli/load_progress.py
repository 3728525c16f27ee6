"""`lswap load`: waits for a load, and shows its progress on a terminal."""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.cli.show import find_model
from llamaswap_py.client import calls
from llamaswap_py.errors import RemoteError
from llamaswap_py.snapshot import AWAITS_FIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamaswap_py.client.answers import LoadReport
    from llamaswap_py.client.remote import Remote
    from llamaswap_py.snapshot import Snapshot

_INTERVAL: Final = 0.25
_WIDTH: Final = 24


def load_with_progress(remote: Remote, model: str, *, wait: bool, quiet: bool) -> LoadReport:
    """Load `model`. Raises RemoteError with the reason when it fails."""
    shown = wait and not quiet and sys.stderr.isatty()
    with _progress(remote, model) if shown else nullcontext():
        return remote.ask(calls.load(model, wait=wait))


def unload_each(
    remote: Remote, models: Sequence[str] | None, force: bool, wait: bool, as_json: bool
) -> None:
    """Unload models (None: all that are loaded), and print the state of each.

    Raises RemoteError at the end if something that one of them started still runs.
    """
    if models is None:
        models = list(dict.fromkeys(one.preset for one in remote.ask(calls.state()).instances))
        if not models and not as_json:
            print("nothing is loaded")
    outlived: list[str] = []
    for model in models:
        report = remote.ask(calls.unload(model, force=force, wait=wait))
        if report.problem and report.state == "stopping":
            outlived.append(f"{report.model} is not unloaded: {report.problem}")
        if as_json:
            print(msgspec.json.encode(report).decode(), flush=True)
        elif not report.unloaded:
            print(f"{report.model} was not loaded")
        elif not report.problem:
            print(f"{report.model} is {report.state}")
        elif report.state != "stopping":
            print(f"{report.model} is {report.state}, but {report.problem}")
    if outlived:
        raise RemoteError("; ".join(outlived))


def progress_line(snapshot: Snapshot, model: str) -> str:
    """Return `alpha: loading [#####     ] 43%`, or its state if there is no progress yet."""
    preset = find_model(snapshot, model)
    if preset is None:
        return model
    running = [each for each in snapshot.instances if each.preset == preset.id]
    if running and running[-1].state == "loading" and running[-1].progress is not None:
        done = min(1.0, max(0.0, running[-1].progress))
        bar = "#" * round(done * _WIDTH)
        return f"{preset.id}: loading [{bar:<{_WIDTH}}] {done:.0%}"
    awaits = AWAITS_FIT if preset.reason.startswith(AWAITS_FIT) else "waiting for memory"
    state = awaits if preset.state == "unloaded" else preset.state
    return f"{preset.id}: {state}"


@contextmanager
def _progress(remote: Remote, model: str) -> Iterator[None]:
    """Redraw the line from a thread until the block ends."""
    done = threading.Event()
    thread = threading.Thread(target=_draw, args=(remote, model, done), name="progress")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _draw(remote: Remote, model: str, done: threading.Event) -> None:
    while not done.wait(_INTERVAL):
        try:
            line = progress_line(remote.ask(calls.state()), model)
        except RemoteError:
            return  # the load itself reports the error
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
