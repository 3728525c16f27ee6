"""Ask a running lswap: `Remote` waits for each answer, `AsyncRemote` does so on an event loop."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from llamaswap_py.client.address import DEFAULT_URL, base_of
from llamaswap_py.client.lean_httpx import httpx
from llamaswap_py.errors import RemoteError
from llamaswap_py.redaction import without_user

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from types import TracebackType

    from llamaswap_py.client.calls import ApiCall, ApiStream

_CONNECT: Final = 5.0
_UNAUTHORIZED: Final = 401
_T = TypeVar("_T")


class UnreachableError(RemoteError):
    """Raised when nothing answers at the URL, or what answers is not lswap."""


class Remote:
    """A running lswap at `url`: `http://host:port`, `host:port` or `unix:PATH`.

    Use it as a context manager. Entering and every method raise UnreachableError when nothing
    answers (in `patience` seconds); a method raises RemoteError when lswap refuses.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, key: str | None = None, patience: float = 30.0
    ) -> None:
        self._patience = patience
        base, self._path = base_of(url)
        self.url = _shown(base, self._path)
        with _url_errors(url):
            transport = httpx.HTTPTransport(uds=self._path, verify=base.startswith("https:"))
            self._http = httpx.Client(transport=transport, **_options(base, key))

    def __enter__(self) -> Remote:
        if self._path is not None:
            self._knock(self._path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def ask(self, call: ApiCall[_T]) -> _T:
        """Return what a call answers."""
        with _told_errors(self.url):
            answer = self._http.request(**_sent(call, self._patience))
            _check(answer, self.url)
            return call.decode(answer.content)

    @contextmanager
    def stream(self, call: ApiStream[_T]) -> Iterator[Iterator[_T]]:
        """Begin a call; yields its items as they come, and ends it with the block."""
        with (
            _told_errors(self.url),
            self._http.stream(**_sent(call, self._patience)) as answer,
        ):
            if not answer.is_success:
                answer.read()
            _check(answer, self.url)
            yield self._items(call, answer)

    def _items(self, call: ApiStream[_T], answer: httpx.Response) -> Iterator[_T]:
        take = call.parser()
        with _told_errors(self.url):
            for line in answer.iter_lines():
                if (item := take(line)) is not None:
                    yield item

    def _knock(self, path: str) -> None:
        """Try the socket: httpcore leaks one for each failure to connect."""
        with socket.socket(socket.AF_UNIX) as knocking:
            try:
                knocking.connect(path)
            except OSError as error:
                raise _nobody(self.url, error.strerror or str(error)) from None


class AsyncRemote:
    """The same for an event loop; use it as an async context manager."""

    def __init__(
        self, url: str = DEFAULT_URL, *, key: str | None = None, patience: float = 10.0
    ) -> None:
        self._patience = patience
        base, path = base_of(url)
        self.url = _shown(base, path)
        with _url_errors(url):
            transport = httpx.AsyncHTTPTransport(uds=path, verify=base.startswith("https:"))
            self._http = httpx.AsyncClient(transport=transport, **_options(base, key))

    async def __aenter__(self) -> AsyncRemote:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def ask(self, call: ApiCall[_T]) -> _T:
        """Return what a call answers."""
        with _told_errors(self.url):
            answer = await self._http.request(**_sent(call, self._patience))
            _check(answer, self.url)
            return call.decode(answer.content)

    @asynccontextmanager
    async def stream(self, call: ApiStream[_T]) -> AsyncIterator[AsyncIterator[_T]]:
        """Begin a call; yields its items as they come, and ends it with the block."""
        with _told_errors(self.url):
            async with self._http.stream(**_sent(call, self._patience)) as answer:
                if not answer.is_success:
                    await answer.aread()
                _check(answer, self.url)
                yield self._items(call, answer)

    async def _items(self, call: ApiStream[_T], answer: httpx.Response) -> AsyncIterator[_T]:
        take = call.parser()
        async for line in answer.aiter_lines():
            if (item := take(line)) is not None:
                yield item


# What both share


def _shown(base: str, path: str | None) -> str:
    """Return the address as messages show it."""
    return without_user(base) if path is None else f"unix:{path}"


def _options(base: str, key: str | None) -> dict[str, Any]:
    # An lswap is spoken to directly: proxies from the environment are for other hosts.
    # Certificates are loaded only where they are needed (30 ms).
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return {"base_url": base, "headers": headers, "trust_env": False}


def _sent(call: ApiCall[Any] | ApiStream[Any], patience: float) -> dict[str, Any]:
    connect, read = min(_CONNECT, patience), call.silence(patience)
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params),
        "content": call.content,
        "timeout": httpx.Timeout(patience, connect=connect, read=read),
    }


@contextmanager
def _url_errors(url: str) -> Iterator[None]:
    try:
        yield
    except (httpx.InvalidURL, ValueError) as error:
        raise RemoteError(
            f"{url!r} is not a URL: {error}", remedy="write http://host:port or unix:PATH"
        ) from None


@contextmanager
def _told_errors(url: str) -> Iterator[None]:
    """Turn errors of HTTP and of JSON into UnreachableError, in the words of the commands."""
    try:
        yield
    except httpx.ConnectError as error:
        raise _nobody(url, _reason(error)) from None
    except httpx.TimeoutException:
        raise UnreachableError(
            f"lswap at {url} did not answer in time", remedy="see its log"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UnreachableError(
            f"the connection to lswap at {url} broke ({_reason(error)})",
            remedy="has it been stopped?",
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _stranger(url) from None


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Error


def _check(answer: httpx.Response, url: str) -> None:
    """Raise what an answer means that is not a success."""
    if answer.is_success:
        return
    message = msgspec.json.decode(answer.content, type=_Refusal).error.message
    if answer.status_code == _UNAUTHORIZED:
        given = "authorization" in answer.request.headers
        raise RemoteError(
            f"lswap at {url} does not know this key"
            if given
            else f"lswap at {url} wants an API key",
            remedy="pass one with --key or LSWAP_KEY; `lswap key new NAME --kind admin` makes one",
        )
    raise RemoteError(message)


def _stranger(url: str) -> UnreachableError:
    return UnreachableError(
        f"what answers at {url} is not lswap (or another version of it)",
        remedy="name the right one with --url or LSWAP_URL",
    )


def _nobody(url: str, reason: str) -> UnreachableError:
    return UnreachableError(
        f"no lswap answers at {url} ({reason})",
        remedy="start one with `lswap up CONFIG`, or name it with --url or LSWAP_URL",
    )


def _reason(error: Exception) -> str:
    text = str(error)
    return text.partition("] ")[2] or text or type(error).__name__
