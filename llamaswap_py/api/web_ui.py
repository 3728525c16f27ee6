"""The web UI of llama.cpp: files of a folder, or what the located llama-server embeds.

llama-server without a model serves its UI like one with a model (server-http.cpp). So for `auto`
one is run for as long as a page is being opened; what it answers is kept.

What browsers get: llama.cpp's web UI, and a page that explains itself where there is none.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import logging
import mimetypes
import time
from dataclasses import dataclass, field
from html import escape
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from llamaswap_py import __version__
from llamaswap_py.children import Child, ChildEvent, ChildExited, ChildLog, ChildReady, ChildSpec
from llamaswap_py.children.ask import ask
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.storage.files import read_regular
from llamaswap_py.tasks import guard
from llamaswap_py.units import MIB

if TYPE_CHECKING:
    from llamaswap_py.api.request import Call
    from llamaswap_py.snapshot import ModelView


_READS: Final = frozenset({"GET", "HEAD"})


async def index(call: Call) -> None:
    """GET /: the web UI; to anything but a browser, what Ollama's clients look for."""
    call.extra = [*call.extra, (b"vary", b"accept")]
    call.stamp()
    if not _is_browser(call):
        call.respond_text(200, "Ollama is running")
        return
    ui = call.supervisor.config.ui
    asset = await call.supervisor.webui.find(ui, "/")
    if asset is not None:
        _send(call, asset)
        return
    call.status = 200
    page = _page(call, ui)
    headers = [(b"cache-control", b"no-cache"), (b"content-security-policy", _POLICY)]
    call.exchange.respond(200, page.encode(), "text/html; charset=utf-8", headers)


def _is_browser(call: Call) -> bool:
    """The page's own service worker fetches `/` too, and takes anything (Fetch Metadata, 2.3)."""
    head = call.exchange.head
    if b"text/html" in (head.get(b"accept") or b""):
        return True
    return head.get(b"sec-fetch-site") == b"same-origin"


async def serve_file(call: Call) -> bool:
    """Answer with a file of the web UI; False if the path is none."""
    head = call.exchange.head
    if head.method not in _READS or "." not in PurePosixPath(head.path).name:
        return False
    asset = await call.supervisor.webui.find(call.supervisor.config.ui, head.path)
    if asset is None:
        return False
    _send(call, asset)
    return True


def _send(call: Call, asset: Asset) -> None:
    """Send a file, or 304 where the browser has it already (RFC 9110, 13.1.2)."""
    head = call.exchange.head
    kind = asset.header(b"content-type").decode("latin-1")
    headers = [one for one in asset.headers if one[0] != b"content-type"]
    etag = asset.header(b"etag").removeprefix(b"W/")
    known = [
        one.strip().removeprefix(b"W/") for one in (head.get(b"if-none-match") or b"").split(b",")
    ]
    if etag and etag in known:
        call.status = 304
        call.exchange.respond(
            304, headers=[one for one in headers if one[0] != b"content-encoding"]
        )
        return
    body = asset.body
    packed = asset.header(b"content-encoding") == b"gzip"
    if packed and b"gzip" not in (head.get(b"accept-encoding") or b""):
        body = gzip.decompress(body)
        headers = [one for one in headers if one[0] != b"content-encoding"]
    if packed:
        headers.append((b"vary", b"accept-encoding"))
    call.status = 200
    call.exchange.respond(200, body, kind, headers)


_POLICY: Final = b"default-src 'none'; style-src 'unsafe-inline'; form-action 'none'"

_STYLE: Final = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 3rem auto; padding: 0 1rem;
  color: #222; background: #fff }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; padding: .3rem .6rem;
  border-bottom: 1px solid #8884 } code, pre { background: #8882; border-radius: 4px }
code { padding: .1em .3em } pre { padding: .8rem; overflow-x: auto }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #181818 } }
"""


def _page(call: Call, ui: str) -> str:
    snapshot = call.supervisor.snapshot()
    rows = "".join(map(_row, snapshot.models))
    models = f"<table><tr><th>model<th>state<th>context</tr>{rows}</table>"
    if call.services.access.keys is not None:
        models = "<p>This server asks for an API key; <code>GET /v1/models</code> lists the models."
    host = (call.exchange.head.get(b"host") or b"").decode("latin-1") or "127.0.0.1:8080"
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>lswap</title><style>{_STYLE}</style>"
        f"<h1>lswap {escape(__version__)}</h1>"
        "<p>Many local models, one address: each is loaded when a request names it.</p>"
        f"{models}<h2>Point a client here</h2>"
        f"<pre>base URL   http://{escape(host)}/v1\nAPI key    anything, unless keys are asked for"
        "</pre><p>Ollama's and Anthropic's clients: the same address without <code>/v1</code>.</p>"
        f"<h2>No web UI</h2><p>{_why_no_ui(ui)}</p></html>"
    )


def _row(model: ModelView) -> str:
    context = model.context_per_request or ""
    return f"<tr><td>{escape(model.id)}<td>{escape(model.state)}<td>{context}</tr>"


def _why_no_ui(ui: str) -> str:
    if ui == "none":
        return "The configuration says <code>ui: none</code>."
    if ui != "auto":
        return (
            f"<code>{escape(ui)}</code> has no index.html (<code>ui</code> in the configuration)."
        )
    return (
        "The llama-server in use was built without one. <code>lswap engine build --ui</code> adds "
        "llama.cpp's (it needs npm); <code>ui: FOLDER</code> in the configuration serves another."
    )


_log: Final = logging.getLogger("lswap")
_IDLE: Final = 20.0
"""Seconds after the last file was asked for, before that llama-server is stopped."""
_PATIENCE: Final = 10.0
_MOST_KEPT: Final = 64 * MIB
_LARGEST: Final = 32 * MIB
_MOST_MISSES: Final = 1000
"""Names without a file that are remembered: anybody may ask for any."""
INDEX: Final = "index.html"
# Names that stay while their contents change (server-http.cpp); every other name has a hash.
_CHANGING: Final = frozenset(
    {INDEX, "sw.js", "manifest.webmanifest", "_app/version.json", "build.json"}
)
_TYPES: Final = {
    ".js": "application/javascript",
    ".mjs": "application/javascript",
    ".css": "text/css",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".webmanifest": "application/manifest+json",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_PASSED: Final = (b"content-type", b"content-encoding", b"etag", b"cache-control")
_ISOLATED: Final = (b"cross-origin-embedder-policy", b"cross-origin-opener-policy")


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of the UI, and the headers it is sent with."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def header(self, name: bytes) -> bytes:
        """Return the header `name` (lower case), empty if it has none."""
        return dict(self.headers).get(name, b"")


class WebUi:
    """Finds the files of the UI that the configuration's `ui` means.

    `engine` is the located llama-server, `socket` where one of our own may listen, `tasks` the
    supervisor's group.
    """

    def __init__(self, engine: Path, socket: str | None, tasks: asyncio.TaskGroup) -> None:
        self._installed = engine.parent.parent / "ui"
        self._embedded = Embedded(engine, socket, tasks)

    async def find(self, ui: str, path: str) -> Asset | None:
        """Return the file at `path` (`/` is the page itself), None if there is none.

        `ui` is `auto`, `none` or a folder.
        """
        if ui == "none":
            return None
        name = path.removeprefix("/") or INDEX
        if ui != "auto":
            return await asyncio.to_thread(read_file, Path(ui), name)
        if await asyncio.to_thread((self._installed / INDEX).is_file):
            return await asyncio.to_thread(read_file, self._installed, name)
        return await self._embedded.find(name)

    def cancel(self) -> None:
        """End the llama-server that serves the UI, if one runs."""
        self._embedded.cancel()


def read_file(folder: Path, name: str) -> Asset | None:
    """Read a file below `folder`; None for anything else, links out of it included. Blocks."""
    if "\\" in name or "\0" in name or ".." in PurePosixPath(name).parts:
        return None
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root) or not path.is_file() or path.stat().st_size > _LARGEST:
            return None
        body = read_regular(path)
    except (OSError, ValueError):
        return None
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
    immutable = name.startswith("_app/immutable/")
    headers = [
        (b"content-type", (kind or "application/octet-stream").encode()),
        (b"etag", etag.encode()),
        (b"cache-control", b"public, max-age=31536000, immutable" if immutable else b"no-cache"),
    ]
    if name == INDEX:  # as llama-server sends them
        headers.append((b"cross-origin-embedder-policy", b"require-corp"))
        headers.append((b"cross-origin-opener-policy", b"same-origin"))
    return Asset(body, tuple(headers))


@dataclass(slots=True)
class Embedded:
    """The UI inside a llama-server binary, of which one process at a time runs.

    `pause` is how long one that failed is not tried again, in seconds.
    """

    engine: Path
    socket: str | None
    tasks: asyncio.TaskGroup
    pause: float = 10.0
    _kept: dict[str, Asset | None] = field(default_factory=dict)
    _size: int = 0
    _misses: int = 0
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _child: Child | None = None
    _life: asyncio.Task[None] | None = None
    _ready: asyncio.Future[Endpoint | None] | None = None
    _stopping: bool = False
    _retry_at: float = 0.0
    _idle: asyncio.TimerHandle | None = None

    async def find(self, name: str) -> Asset | None:
        """Return one of its files, by its path without the first slash."""
        if name in self._kept:
            return self._kept[name]
        async with self._lock:
            if name != INDEX and await self._look(INDEX) is None:
                return None  # without a page there is nothing else
            return await self._look(name)

    def cancel(self) -> None:
        """End its llama-server."""
        if self._idle is not None:
            self._idle.cancel()
        if self._child is not None:
            self._stopping = True
            self._child.stop()

    async def _look(self, name: str) -> Asset | None:
        if name in self._kept:
            return self._kept[name]
        try:
            asset = await self._fetch(name)
        except (OSError, ValueError) as error:  # nobody knows yet whether there is such a file
            _log.debug("the web UI's %s: %s", name, error)
            return None
        if asset is None and name != INDEX:
            self._misses += 1
            if self._misses > _MOST_MISSES:
                return None
        self._size += len(asset.body) if asset else 0
        if self._size < _MOST_KEPT:
            self._kept[name] = asset
        return asset

    async def _fetch(self, name: str) -> Asset | None:
        endpoint = await self._serving()
        path = "/" if name == INDEX else f"/{name}"
        answer = await ask(
            endpoint, "GET", path, timeout=_PATIENCE, headers="Accept-Encoding: gzip\r\n"
        )
        wanted = (*_PASSED, *_ISOLATED)
        headers = tuple((key, value) for key, value in answer.headers if key in wanted)
        kind = dict(headers).get(b"content-type", b"")
        if answer.status != 200 or (name == INDEX and not kind.startswith(b"text/html")):
            return None
        return Asset(answer.body, headers)

    async def _serving(self) -> Endpoint:
        """Return where it serves, starting it if need be; raises OSError. May be cancelled."""
        if self._life is not None and self._stopping:
            await asyncio.wait({self._life})
        if self._life is None or self._ready is None:
            if time.monotonic() < self._retry_at:
                raise ConnectionError("it failed a moment ago")
            self._ready = self._start()
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE, self.cancel)
        try:
            async with asyncio.timeout(_PATIENCE):
                endpoint = await asyncio.shield(self._ready)
        except TimeoutError:
            endpoint = None
        if endpoint is None:
            self.cancel()
            self._retry_at = time.monotonic() + self.pause
            raise ConnectionError("it does not serve")
        return endpoint

    def _start(self) -> asyncio.Future[Endpoint | None]:
        """Run llama-server without a model; the future says where it serves, None: nowhere."""
        ready: asyncio.Future[Endpoint | None] = asyncio.get_running_loop().create_future()

        def said(event: ChildEvent) -> None:
            if isinstance(event, ChildReady | ChildExited) and not ready.done():
                ready.set_result(event.endpoint if isinstance(event, ChildReady) else None)

        spec = ChildSpec(
            name="the web UI",
            preset="",
            epoch=0,
            binary=str(self.engine),
            args=("--offline", "--no-models-autoload"),
            env={},
            socket_path=self.socket,
            child_mode=False,
            files=(),
            log_path=None,
            stop_timeout=2.0,
            load_stall=_PATIENCE,
        )
        self._child = Child(spec, said, ChildLog())
        self._life = self.tasks.create_task(
            guard.contained("web UI", self._run(self._child)), name="the web UI"
        )
        return ready

    async def _run(self, child: Child) -> None:
        try:
            ended = await child.run()
            if ended.failure is not None:
                _log.info("%s embeds no web UI: %s", self.engine, ended.failure)
        finally:
            self._child = self._life = self._ready = None
            self._stopping = False
