"""A small server that speaks Hugging Face's protocol, and can be told to misbehave.

Repository information (`/api/models/…`), HEAD and GET of `/REPO/resolve/COMMIT/FILE` with ranges,
ETag, X-Repo-Commit and X-Linked-Size, as the hub documents and huggingface_hub expects them.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(frozen=True)
class Sparse:
    """A file of `size` bytes that begins with `head` and goes on with zeros."""

    head: bytes
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.size)
        return self.head[start:stop].ljust(stop - start, b"\0")


@dataclass
class FakeHub:
    """What it holds, how it misbehaves, and what it was asked."""

    repos: Mapping[str, Mapping[str, bytes | Sparse]]
    token: str = ""
    gated: set[str] = field(default_factory=set)
    cut_after: int | None = None
    """Close the connection once, after so many bytes of a file."""
    corrupt: bool = False
    """Send other bytes than the hash promises."""
    status: int = 0
    """Answer everything with this status."""
    url: str = ""
    serves_ranges: bool = True
    """Otherwise a file is sent whole, whatever range is asked for."""
    store: FakeHub | None = None
    """Where files really are: it answers with a redirect to the same path there."""
    tokens: list[str] = field(default_factory=list)
    """The Authorization header of each GET of a file."""
    ranges: list[tuple[str, str]] = field(default_factory=list)
    """(file, Range header) of each GET of a file."""
    stall: threading.Event | None = None
    """Wait for this after half of a file."""


def sha256(data: bytes | Sparse) -> str:
    if isinstance(data, Sparse):  # nobody downloads one, so no hash of it is ever compared
        return hashlib.sha256(data.head + b"%d" % data.size).hexdigest()
    return hashlib.sha256(data).hexdigest()


@contextmanager
def serve_hub(hub: FakeHub) -> Iterator[FakeHub]:
    """Serve `hub` on a free port of the loopback; `hub.url` is its endpoint."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            given = self.headers.get("Authorization", "")
            if hub.status:
                self._say(hub.status, {"error": "told to fail"})
            elif hub.token and given != f"Bearer {hub.token}":
                self._say(401, {"error": "Invalid username or password."}, "RepoNotFound")
            elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/[^/]+)?", path):
                self._repo(match[1])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(match[1], match[3], with_body)
            else:
                self._say(404, {"error": "no such path"})

        def _say(self, status: int, body: Any, code: str = "") -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def _repo(self, repo: str) -> None:
            if repo in hub.gated:
                self._say(403, {"error": "gated"}, "GatedRepo")
            elif (files := hub.repos.get(repo)) is None:
                self._say(404, {"error": "Repository not found"}, "RepoNotFound")
            else:
                listed = [
                    {
                        "rfilename": name,
                        "size": len(data),
                        "lfs": {"sha256": sha256(data), "size": len(data), "pointerSize": 135},
                    }
                    for name, data in files.items()
                ]
                self._say(200, {"id": repo, "sha": COMMIT, "siblings": listed})

        def _file(self, repo: str, name: str, with_body: bool) -> None:
            data = hub.repos.get(repo, {}).get(name)
            if data is None:
                self._say(404, {"error": "Entry not found"}, "EntryNotFound")
                return
            start = 0
            given = self.headers.get("Range", "")
            if with_body:
                hub.ranges.append((name, given))
                hub.tokens.append(self.headers.get("Authorization", ""))
            if hub.store is not None:
                self._elsewhere(hub.store.url + self.path, data)
                return
            if not hub.serves_ranges:
                given = ""
            if match := re.fullmatch(r"bytes=(\d+)-(\d*)", given):
                start = int(match[1])
                end = min(int(match[2]) + 1 if match[2] else len(data), len(data))
            else:
                end = len(data)
            body = data[start:end] if with_body else b""
            self.send_response(206 if given else 200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(end - start))
            if given:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{sha256(data)}"')
            self.send_header("X-Linked-Etag", f'"{sha256(data)}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self._send(bytes(len(body)) if hub.corrupt else body)

        def _elsewhere(self, url: str, data: bytes | Sparse) -> None:
            self.send_response(302)
            self.send_header("Location", url)
            self.send_header("Content-Length", "0")
            self.send_header("X-Linked-Etag", f'"{sha256(data)}"')
            self.send_header("X-Linked-Size", str(len(data)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()

        def _send(self, body: bytes) -> None:
            if hub.cut_after is not None and len(body) > hub.cut_after:
                body, hub.cut_after = body[: hub.cut_after], None
                self.wfile.write(body)
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.wfile.flush()
            if hub.stall is not None:
                hub.stall.wait(30)
            self.wfile.write(body[half:])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        if hub.stall is not None:
            hub.stall.set()
        server.shutdown()
        server.server_close()
        thread.join(5)
