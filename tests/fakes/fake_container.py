"""Stands for a container engine: the client waits, the container is nobody's child.

    fake_container.py run FOLDER NAME PORT    start one that heeds no SIGTERM, wait for its end
    fake_container.py stop FOLDER NAME        SIGTERM, and soon SIGKILL, as `docker stop` does
    fake_container.py serve FOLDER NAME PORT  the container itself

A name that is in use is refused. FOLDER/NAME.pid has the process of a container that runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

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


def serve(file: Path, port: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    file.write_text(str(os.getpid()))
    ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


def run(file: Path, port: str) -> None:
    if running(file):
        sys.exit(f"Conflict: the container name {file.stem} is already in use")
    file.unlink(missing_ok=True)
    words = [sys.executable, __file__, "serve", str(file.parent), file.stem, port]
    subprocess.Popen(["setsid", "-f", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not file.exists():
        time.sleep(_PAUSE)

    def forward(number: int, frame: object) -> None:
        if pid := running(file):
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, forward)
    while running(file):
        time.sleep(_PAUSE)


def stop(file: Path) -> None:
    if pid := running(file):
        os.kill(pid, signal.SIGTERM)
        time.sleep(_PAUSE)
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    what, file = sys.argv[1], Path(sys.argv[2]) / f"{sys.argv[3]}.pid"
    if what == "stop":
        stop(file)
    elif what == "run":
        run(file, sys.argv[4])
    else:
        serve(file, sys.argv[4])
