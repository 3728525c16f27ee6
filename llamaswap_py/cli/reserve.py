"""`lswap reserve SIZE --device DEVICE -- COMMAND`: hold memory while a command runs."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from llamaswap_py.client import calls
from llamaswap_py.errors import ConfigError, LswapError, RemoteError
from llamaswap_py.units import HOST, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from llamaswap_py.client.answers import ReservationLine
    from llamaswap_py.client.remote import Remote

_NOT_RUN = 127
"""Exit code for a command that cannot be started, as in shells."""
_FAREWELL = 5.0
"""Seconds that lswap may take to end its answer after the memory was released."""


def run(remote: Remote, size: str, device: str | None, command: Sequence[str]) -> int:
    """Wait for the memory, run the command, release the memory; return the command's exit code.

    Raises ConfigError for a wrong size, RemoteError when lswap cannot be reached or refuses.
    """
    try:
        parse_size(size)
    except ValueError as error:
        raise ConfigError(f"SIZE: {error}") from None
    chosen = device or _only_device(remote)
    with remote.stream(calls.reserve({chosen: size})) as lines:
        name = _wait_until_held(lines, f"{size} of {chosen}")
        print(f"lswap: {size} of {chosen} are reserved", file=sys.stderr)
        return _run(remote, name, lines, command)


def _only_device(remote: Remote) -> str:
    """Return the only card, or the host if there is none."""
    devices = [one.id for one in remote.ask(calls.state()).devices]
    cards = [one for one in devices if one != HOST]
    if len(cards) > 1:
        raise LswapError(
            f"there are several devices: {', '.join(devices)}", remedy="name one with --device"
        )
    return cards[0] if cards else HOST


def _wait_until_held(lines: Iterator[ReservationLine], what: str) -> str:
    name = ""
    for line in lines:
        name = name or line.name
        if line.state == "held":
            return name
        if line.state == "refused":
            raise RemoteError(line.message)
        if line.name:
            print(f"lswap: waiting for {what}", file=sys.stderr)
    raise RemoteError("lswap stopped before the memory was free")


def _run(
    remote: Remote, name: str, lines: Iterator[ReservationLine], command: Sequence[str]
) -> int:
    try:
        process = subprocess.Popen(command)
    except OSError as error:
        print(f"lswap: {command[0]}: {error.strerror}", file=sys.stderr)
        return _NOT_RUN
    try:
        remote.ask(calls.tell_pid(name, process.pid))
    except RemoteError as error:
        print(f"lswap: {error}", file=sys.stderr)
    watch = threading.Thread(target=_watch, args=(lines, process), daemon=True)
    watch.start()
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:
            continue  # the command gets the signal, too: wait until it has ended
    # lswap then ends the answer, which has to be read before the connection is closed.
    with suppress(LswapError):
        remote.ask(calls.release(name))
    watch.join(_FAREWELL)
    return 128 - code if code < 0 else code


def _watch(lines: Iterator[ReservationLine], process: subprocess.Popen[bytes]) -> None:
    """Read the signs of life. If they end before the command does, print that and go on."""
    try:
        for line in lines:
            if line.state == "released":
                break
    except (LswapError, OSError, RuntimeError):
        pass
    if process.poll() is None:
        text = (
            "lswap: the memory is no longer reserved (lswap ended, or the reservation was deleted)"
        )
        os.write(2, f"{text}\n".encode())
