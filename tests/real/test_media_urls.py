"""No request has llama-server ask other servers for images, unless the file allows it."""

from __future__ import annotations

import base64
import http.server
import json
import struct
import threading
import zlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.lab import Lab

pytestmark = pytest.mark.anyio


def png() -> bytes:
    """Return a black picture of 28 by 28."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 28, 28, 8, 2, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\0" * 84) * 28)
    start = b"\x89PNG\r\n\x1a\n"
    return start + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@contextmanager
def pictures() -> Iterator[tuple[str, list[str]]]:
    """Serve a picture on a port of this machine; yield its URL and the paths that were asked."""
    asked: list[str] = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(png())))
            self.end_headers()
            self.wfile.write(png())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(60)


def asks(url: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the ways in which the engine can be asked to fetch a picture, by a name."""
    image = {"type": "image_url", "image_url": {"url": url}}
    escaped = {"type": "image_url", "image_url": {"url": url.replace("http", "HTTP-ESCAPED")}}
    source = {"type": "image", "source": {"type": "url", "url": url}}
    response = {"type": "input_image", "image_url": url}

    def talk(part: Any) -> dict[str, Any]:
        say = {"type": "text", "text": "what is it?"}
        return {
            "model": "alpha",
            "max_tokens": 8,
            "messages": [{"role": "user", "content": [say, part]}],
        }

    turn = {"type": "message", "role": "user", "content": [response]}
    return {
        "chat": ("/v1/chat/completions", talk(image)),
        "escaped": ("/v1/chat/completions", talk(escaped)),
        "count": ("/v1/chat/completions/input_tokens", talk(image)),
        "template": ("/apply-template", talk(image)),
        "anthropic": ("/v1/messages", talk(source)),
        "responses": ("/v1/responses", {"model": "alpha", "input": [turn]}),
        "upstream": ("/upstream/alpha/chat/completions", talk(image)),
        "ollama": ("/api/chat", {**talk(image), "stream": False}),
    }


def body_of(ask: dict[str, Any]) -> bytes:
    return json.dumps(ask).encode().replace(b"HTTP-ESCAPED", b"\\u0068t\\u0074p")


async def test_nothing_is_fetched_unless_the_file_allows_it(lab: Lab) -> None:
    alpha = lab.preset("alpha", args={"mmproj": str(lab.write_projector())})
    data = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    with pictures() as (url, asked):
        async with lab.lswap({"alpha": alpha}) as lswap:
            for name, (path, ask) in asks(data).items():
                answer = await lswap.client.post(path, content=body_of(ask))
                assert answer.status_code == 200, (name, answer.text)
            for name, (path, ask) in asks(f"{url}/secret").items():
                answer = await lswap.client.post(path, content=body_of(ask))
                assert answer.status_code == 400, (name, answer.text)
                assert "allow_media_urls" in answer.text
        assert not asked
        async with lab.lswap({"alpha": alpha}, allow_media_urls=True) as lswap:
            for name, (path, ask) in asks(f"{url}/allowed").items():
                answer = await lswap.client.post(path, content=body_of(ask))
                assert answer.status_code == 200, (name, answer.text)
                assert asked == ["/allowed"], name  # so each of them is a way to fetch something
                asked.clear()


async def test_files_stay_closed_without_a_folder_for_them(lab: Lab) -> None:
    """llama-server reads file:// below `media-path` alone, and nothing without it."""
    folder = lab.folder / "media"
    folder.mkdir()
    (folder / "a.png").write_bytes(png())
    (lab.folder / "b.png").write_bytes(png())
    projector = str(lab.write_projector())
    models = {
        "closed": lab.preset("closed", args={"mmproj": projector}),
        "open": lab.preset("open", args={"mmproj": projector, "media-path": str(folder)}),
    }
    tried = {"file://a.png": 200, "file://../b.png": 400, f"file://{lab.folder}/b.png": 400}
    async with lab.lswap(models) as lswap:
        for name in models:
            for url, status in tried.items():
                image = {"type": "image_url", "image_url": {"url": url}}
                said = [{"role": "user", "content": [image]}]
                answer = await lswap.client.post(
                    "/v1/chat/completions", json={"model": name, "messages": said, "max_tokens": 4}
                )
                wanted = status if name == "open" else 400
                assert answer.status_code == wanted, (name, url, answer.text)
