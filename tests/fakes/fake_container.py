"""Stands for a container engine: the client waits, the container is the child of a daemon.

    fake_container.py daemon FOLDER           start what clients want
    fake_container.py run FOLDER NAME PORT [MIB]
                                              start one that heeds no SIGTERM and takes so much
                                              memory, wait for its end
    fake_container.py stop FOLDER NAME        SIGTERM, and soon SIGKILL, as `docker stop` does
    fake_container.py serve FOLDER NAME PORT MIB  the container itself

A name that is in use is refused. FOLDER/NAME.pid has the process of a container that runs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PAUSE = 0.05


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *args: object) -> None:
        pass


def running(file: Path) -> int | None:
    """Return the process of a container that runs."""
    try:
        pid = int(file.read_text())
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid


def serve(file: Path, port: str, size: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held = bytearray(b"x") * (int(size) << 20)
    assert len(held) == int(size) << 20
    file.write_text(str(os.getpid()))
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


def run(file: Path, *port_and_size: str) -> None:
    if running(file):
        sys.exit(f"Conflict: the container name {file.stem} is already in use")
    file.unlink(missing_ok=True)
    part = file.with_suffix(".part")
    part.write_text(" ".join(port_and_size))
    part.rename(file.with_suffix(".wanted"))
    while not running(file):
        time.sleep(_PAUSE)

    def forward(number: int, frame: object) -> None:
        if pid := running(file):
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, forward)
    while running(file):
        time.sleep(_PAUSE)


def daemon(folder: Path) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for containers
    while True:
        for wanted in folder.glob("*.wanted"):
            words = [sys.executable, __file__, "serve", str(folder), wanted.stem]
            port, *size = wanted.read_text().split()
            wanted.unlink()
            subprocess.Popen([*words, port, *(size or ["0"])])
        time.sleep(_PAUSE)


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[None]:
    """Run the daemon beside a test."""
    with subprocess.Popen([sys.executable, __file__, "daemon", str(folder)]) as process:
        try:
            yield
        finally:
            process.kill()


def stop(file: Path) -> None:
    if pid := running(file):
        os.kill(pid, signal.SIGTERM)
        time.sleep(_PAUSE)
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1], Path(sys.argv[2]), *sys.argv[3:]
    if what == "daemon":
        daemon(folder)
    file = folder / f"{rest[0]}.pid"
    if what == "stop":
        stop(file)
    elif what == "run":
        run(file, *rest[1:])
    else:
        serve(file, rest[1], rest[2])
