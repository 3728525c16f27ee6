"""The web UI of llama.cpp: files of a folder, or those embedded in the located llama-server.

llama-server serves its UI even without a model (server-http.cpp). So for `auto` lswap runs one
without a model while a page is being opened, and keeps its answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import mimetypes
import time
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final

from llamaswap_py.children import Child, ChildEvent, ChildExited, ChildLog, ChildReady, ChildSpec
from llamaswap_py.children.ask import ask
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.llamacpp.router_mode import FILES_ONLY
from llamaswap_py.storage.regular_files import read_regular
from llamaswap_py.tasks import guard
from llamaswap_py.units import MIB

_log: Final = logging.getLogger("lswap")
_IDLE: Final = 20.0
"""Seconds after the last request for a file, after which that llama-server is stopped."""
_PATIENCE: Final = 10.0
_MOST_KEPT: Final = 64 * MIB
_LARGEST: Final = 32 * MIB
_MOST_MISSES: Final = 1000
"""How many names without a file are stored; a client may ask for any name."""
INDEX: Final = "index.html"
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
    """One file of the UI, with the headers of its answer."""

    body: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def header(self, name: bytes) -> bytes:
        """Return the header `name` (lower case), empty if it has none."""
        return dict(self.headers).get(name, b"")


class WebUi:
    """Finds the files of the UI that the configuration's `ui` names.

    `engine` is the located llama-server, None if there is none. `socket` is the path at which an
    instance for the UI may listen; that instance runs only within the context.
    """

    def __init__(self, engine: Path | None = None, socket: str | None = None) -> None:
        self._tasks = asyncio.TaskGroup()
        self._installed = None if engine is None else engine.parent.parent / "ui"
        self._embedded = None if engine is None else Embedded(engine, socket, self._tasks)

    async def __aenter__(self) -> WebUi:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._embedded is not None:
            self._embedded.cancel()
        await self._tasks.__aexit__(kind, error, trace)

    async def find(self, ui: str, path: str) -> Asset | None:
        """Return the file at `path` (`/` is the page itself), None if there is none.

        `ui` is `auto`, `none` or a folder.
        """
        if ui == "none":
            return None
        name = path.removeprefix("/") or INDEX
        if ui != "auto":
            return await asyncio.to_thread(read_file, Path(ui), name)
        if self._installed is None or self._embedded is None:
            return None
        if await asyncio.to_thread((self._installed / INDEX).is_file):
            return await asyncio.to_thread(read_file, self._installed, name)
        return await self._embedded.find(name)


def read_file(folder: Path, name: str) -> Asset | None:
    """Read a file below `folder`; None if there is none, or if a link leads outside. Blocks."""
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
    """The UI inside a llama-server binary; at most one process of it runs at a time.

    After a failure it is not started again for `pause` seconds.
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
        """Return a file, by its path without the first slash."""
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
        except (OSError, ValueError) as error:  # it is not known whether there is such a file
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
        """Return its endpoint, starting it if needed; raises OSError. May be cancelled."""
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
        """Run llama-server without a model; the future gives its endpoint, None if it failed."""
        ready: asyncio.Future[Endpoint | None] = asyncio.get_running_loop().create_future()

        def said(event: ChildEvent) -> None:
            if isinstance(event, ChildReady | ChildExited) and not ready.done():
                ready.set_result(event.endpoint if isinstance(event, ChildReady) else None)

        spec = ChildSpec(
            name="the web UI",
            preset="",
            epoch=0,
            binary=str(self.engine),
            args=FILES_ONLY,
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
