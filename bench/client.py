"""A client that measures: one chat request, timed from connect to the first event of its answer."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llamaswap_py.endpoint import Endpoint

PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: seconds until its first event and its end, clock readings, and its text.

    `text` is everything received; `whole` is False for anything but a complete 200.
    """

    began: float
    first: float
    ended: float
    text: str
    whole: bool

    @property
    def first_event(self) -> float:
        """Seconds from before the connection was made to the first event."""
        return self.first - self.began


def chat(endpoint: Endpoint, model: str, *, max_tokens: int = 8) -> Answer:
    """Ask a model for a streamed answer and read all of it; never raises for a bad one."""
    ask = {
        "model": model,
        "stream": True,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": "hello"}],
    }
    return post(endpoint, "/v1/chat/completions", ask, first=b"data: ", last="data: [DONE]")


def post(
    endpoint: Endpoint, path: str, ask: Mapping[str, Any], *, first: bytes, last: str
) -> Answer:
    """POST once on a connection of its own; `first` marks the first event, `last` the end."""
    body = json.dumps(ask).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    began = time.perf_counter()
    received, at = b"", 0.0
    try:
        with _connect(endpoint) as sock:
            sock.sendall(head.encode() + body)
            while piece := sock.recv(1 << 16):
                received += piece
                if not at and first in received:
                    at = time.perf_counter()
    except OSError as error:
        received += f"\n{error}".encode()
    ended = time.perf_counter()
    text = received.decode(errors="replace")
    whole = bool(at) and text.startswith("HTTP/1.1 200") and last in text
    return Answer(began, at or ended, ended, text, whole)


def _connect(endpoint: Endpoint) -> socket.socket:
    if endpoint.path is None:
        return socket.create_connection((endpoint.host, endpoint.port), timeout=PATIENCE)
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(endpoint.path)
    return sock


def get_json(endpoint: Endpoint, path: str) -> Any:
    """GET a JSON document."""
    with _connect(endpoint) as sock:
        sock.sendall(f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        received = b""
        while piece := sock.recv(1 << 16):
            received += piece
    return json.loads(received.partition(b"\r\n\r\n")[2])
