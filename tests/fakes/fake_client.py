"""Stands for the client of a daemon: what serves is started detached, and the client only waits.

    fake_client.py PORT MIB PID_FILE   start a server on PORT that holds MIB and heeds no SIGTERM,
                                       in a session of its own, adopted by another process

A PID_FILE whose process still runs is refused, as a container engine refuses a name.
"""

from __future__ import annotations

import os
import signal
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


def serve(port: int, size: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    held = bytearray(b"x") * (size << 20)
    assert len(held) == size << 20
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.serve_forever(poll_interval=_PAUSE)


def detach(port: int, size: int, file: Path) -> None:
    """Fork twice, with a session in between: the server is nobody's child."""
    if first := os.fork():
        os.waitpid(first, 0)
        return
    os.setsid()
    if second := os.fork():
        file.write_text(str(second))
        os._exit(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    serve(port, size)


def running(file: Path) -> int | None:
    """Return the process of a server that runs."""
    try:
        pid = int(file.read_text())
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else pid


def main() -> None:
    port, size = int(sys.argv[1]), int(sys.argv[2])
    file = Path(sys.argv[3])
    if pid := running(file):
        sys.exit(f"Conflict: the name is already in use by process {pid}")
    detach(port, size, file)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    while running(file):
        time.sleep(_PAUSE)


if __name__ == "__main__":
    main()
