"""Stands for another local user who takes a port, and keeps what it is told.

    usurper.py PORT FILE [USER ID] [--reuse] [--address A]

It takes the port as soon as it can, says "holds" then, and answers every request with 200 and
"{}". All that it is sent goes into FILE, which is there from the beginning.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_STRANGER = 65534  # nobody
_PATIENCE = 60.0


def main() -> None:
    words = sys.argv[1:]
    reuse = "--reuse" in words
    address = words[words.index("--address") + 1] if "--address" in words else "127.0.0.1"
    heard = open(words[1], "ab", buffering=0)  # noqa: SIM115 (to the end)
    if len(words) > 2 and words[2].isdigit():
        os.setgroups([])
        os.setgid(int(words[2]))
        os.setuid(int(words[2]))
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    deadline = time.monotonic() + _PATIENCE
    while True:
        sock = socket.socket(family)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            sock.bind((address, int(words[0])))
            sock.listen(128)
        except OSError:
            sock.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            break
    print("holds", flush=True)
    while True:
        threading.Thread(target=serve, args=(sock.accept()[0], heard), daemon=True).start()


def serve(peer: socket.socket, heard: object) -> None:
    with contextlib.suppress(OSError), peer:
        while data := peer.recv(65536):
            heard.write(data)  # type: ignore[attr-defined]
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")


def user() -> int:
    """Return another user's id where there can be one: only root may become somebody else."""
    return _STRANGER if os.geteuid() == 0 else os.geteuid()


class Usurper:
    """A process that wants a port. `heard` is what it was sent."""

    def __init__(self, port: int, file: Path, *words: str, own: bool = False) -> None:
        import subprocess

        file.touch()
        other = [] if own or user() == os.geteuid() else [str(user())]
        self._file = file
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(port), str(file), *other, *words],
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid

    @property
    def heard(self) -> bytes:
        return self._file.read_bytes()

    def wait(self) -> None:
        """Wait until it holds the port; blocks."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "holds\n"

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextmanager
def usurping(port: int, folder: Path, *words: str) -> Iterator[Usurper]:
    """Have another process want a port, for the length of the block."""
    usurper = Usurper(port, folder / "heard", *words)
    try:
        yield usurper
    finally:
        usurper.end()


if __name__ == "__main__":
    main()
