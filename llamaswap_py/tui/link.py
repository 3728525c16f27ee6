"""The server, asked without waiting in line: what `client.Remote` is for commands."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import httpx

from llamaswap_py.client import base_of, decoded, headers_of, path_of, refusal, told_errors
from llamaswap_py.redaction import without_user
from llamaswap_py.snapshot import Snapshot
from llamaswap_py.tui.records import EventLines, Requests

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from llamaswap_py.tui.records import ServerEvent

_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0)
# The feed sends a comment every 10 s: one that is silent for longer is dead.
_FEED_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0, read=30.0)
_LOG_TIMEOUT: Final = httpx.Timeout(10.0, connect=5.0, read=None)
_T = TypeVar("_T")


class Link:
    """A running lswap at `url`; use it as an async context manager.

    Every method raises UnreachableError when nothing answers, RemoteError when lswap says no.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self.url = without_user(url)
        base, path = base_of(url)
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=path, verify=base.startswith("https:")),
            base_url=base,
            headers=headers_of(key),
            timeout=_TIMEOUT,
            trust_env=False,
        )

    async def __aenter__(self) -> Link:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def state(self) -> Snapshot:
        """Return the snapshot."""
        return await self._get("/lswap/v1/state", Snapshot)

    async def requests(self) -> Requests:
        """Return the open requests and the counts of tokens."""
        return await self._get("/lswap/v1/requests", Requests)

    async def events(self, after: int) -> AsyncGenerator[ServerEvent, None]:
        """Yield what happened after event `after` and is kept, then what happens."""
        headers = {"last-event-id": str(after)}
        parser = EventLines()
        with told_errors(self.url):
            async with self._http.stream(
                "GET", "/lswap/v1/events", headers=headers, timeout=_FEED_TIMEOUT
            ) as answer:
                await self._check(answer)
                async for line in answer.aiter_lines():
                    event = parser.feed(line)
                    if event is not None:
                        yield event

    async def logs(self, model: str, tail: int) -> AsyncGenerator[str, None]:
        """Yield the last lines of a model's log, then new ones as they come."""
        params = {"tail": str(tail), "follow": "true"}
        path = f"/lswap/v1/logs/{path_of(model)}"
        with told_errors(self.url):
            async with self._http.stream(
                "GET", path, params=params, timeout=_LOG_TIMEOUT
            ) as answer:
                await self._check(answer)
                async for line in answer.aiter_lines():
                    yield line

    async def load(self, model: str) -> None:
        """Ask for a load; does not wait for it."""
        await self._post(f"/lswap/v1/models/{path_of(model)}/load", wait="false")

    async def unload(self, model: str, *, force: bool = False) -> bool:
        """Ask for an unload; does not wait for it. Returns whether there was anything loaded."""
        path = f"/lswap/v1/models/{path_of(model)}/unload"
        data = await self._post(path, wait="false", force="true" if force else "false")
        return bool(decoded(data, dict[str, Any], self.url).get("unloaded"))

    async def pin(self, model: str, *, pinned: bool) -> None:
        """Pin a model, or let it go."""
        await self._post(f"/lswap/v1/models/{path_of(model)}/{'pin' if pinned else 'unpin'}")

    async def cancel(self, request: str) -> None:
        """End an open request."""
        await self._post(f"/lswap/v1/requests/{path_of(request)}/cancel")

    async def _get(self, path: str, kind: type[_T]) -> _T:
        with told_errors(self.url):
            answer = await self._http.get(path)
        if not answer.is_success:
            raise refusal(answer, self.url)
        return decoded(answer.content, kind, self.url)

    async def _post(self, path: str, **params: str) -> bytes:
        with told_errors(self.url):
            answer = await self._http.post(path, params=params)
        if not answer.is_success:
            raise refusal(answer, self.url)
        return answer.content

    async def _check(self, answer: httpx.Response) -> None:
        if not answer.is_success:
            await answer.aread()
            raise refusal(answer, self.url)
