"""A server on loopback that speaks as much of GitHub's releases API as an installation needs.

A test puts archives into releases, and says how a path is answered where it shall go wrong.
"""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

Answer = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class FakeReleases:
    """The releases, newest first as GitHub lists them, and what was asked of the server."""

    base: str = ""
    releases: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    special: dict[str, list[Answer]] = field(default_factory=dict)
    """By path: answers that come before the ordinary one, each once."""
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def release(self, tag: str, **more: Any) -> Self:
        """Add a release without assets."""
        self.releases.append({"tag_name": tag, "draft": False, "prerelease": False, **more})
        self.releases[-1].setdefault("assets", [])
        return self

    def asset(self, name: str, content: bytes, **more: Any) -> str:
        """Add an asset to the last release; return its path."""
        path = f"/download/{self.releases[-1]['tag_name']}/{name}"
        self.files[path] = content
        record = {
            "name": name,
            "state": "uploaded",
            "size": len(content),
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "browser_download_url": f"{self.base}{path}",
            "uploader": {"login": "github-actions[bot]"},
        }
        self.releases[-1]["assets"].append(record | more)
        return path

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        headers = {name.lower(): value for name, value in request.headers.items()}
        path, _, query = request.path.partition("?")
        self.asked.append((request.path, headers))
        if self.special.get(path):
            self.special[path].pop(0)(request)
        elif path in self.files:
            send_file(request, self.files[path])
        elif path == "/releases" and query == "per_page=30":
            send_json(request, self.releases)
        else:
            tags = {f"/releases/tags/{one['tag_name']}": one for one in self.releases}
            status = 200 if path in tags else 404
            send_json(request, tags.get(path, {"message": "Not Found"}), status=status)


def send_json(
    request: BaseHTTPRequestHandler, value: object, *, status: int = 200, **headers: str
) -> None:
    body = json.dumps(value).encode()
    request.send_response(status)
    for name, text in headers.items():
        request.send_header(name.replace("_", "-"), text)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


def send_file(request: BaseHTTPRequestHandler, content: bytes, *, cut: int | None = None) -> None:
    """Send a file, or the rest that a Range asks for; `cut`: break off after so many bytes."""
    begin = int((request.headers.get("range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
    request.send_response(206 if begin else 200)
    if begin:
        total = len(content)
        request.send_header("Content-Range", f"bytes {begin}-{total - 1}/{total}")
    request.send_header("Content-Length", str(len(content) - begin))
    request.end_headers()
    with suppress(OSError):
        request.wfile.write(content[begin : None if cut is None else begin + cut])
    request.close_connection = True


def redirecting(target: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", target)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[FakeReleases]:
    """Serve on a port of this machine while the block runs; over TLS with a certificate and key."""
    fake = FakeReleases()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fake.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    fake.base = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
