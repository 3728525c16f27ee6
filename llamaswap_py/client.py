"""Talk to a running lswap: what the CLI commands use."""

from __future__ import annotations

import re
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote

import msgspec

from llamaswap_py.errors import RemoteError
from llamaswap_py.lean_httpx import httpx
from llamaswap_py.redaction import without_user
from llamaswap_py.snapshot import DecisionView, ReloadReport, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

DEFAULT_URL: Final = "http://127.0.0.1:8080"
_PORT: Final = re.compile(r":\d*\Z", re.ASCII)
_VERSION_PATH: Final = re.compile(r"(?:/+lswap)?/+v1(?:/.*)?\Z", re.DOTALL)
_HERE: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "[::]": "[::1]"}
"""What is typed for every address of this machine, and the address to ask."""
_EVENT: Final = re.compile(r"(?:id: \d+\n)?event: (\w+)\ndata: (.*)", re.DOTALL)
_UNAUTHORIZED: Final = 401
_T = TypeVar("_T")


class UnreachableError(RemoteError):
    """Raised when nothing answers at the URL, or what answers is not lswap."""


class LoadReport(msgspec.Struct):
    """What `load` answers."""

    model: str
    state: str
    seconds: float = 0.0


class UnloadReport(msgspec.Struct):
    """What `unload` answers; `unloaded` is False when there was nothing to unload."""

    model: str
    state: str
    unloaded: bool
    seconds: float = 0.0


class ReservationLine(msgspec.Struct):
    """One line about a reservation; `state` is `waiting`, `held`, `refused` or `released`."""

    state: str
    name: str = ""
    message: str = ""


class _Decisions(msgspec.Struct):
    decisions: tuple[DecisionView, ...]


class _ErrorBody(msgspec.Struct):
    message: str


class _ErrorAnswer(msgspec.Struct):
    error: _ErrorBody


class Remote:
    """A running lswap at `url`: `http://host:port`, `host:port` or `unix:PATH`.

    Use it as a context manager. Entering and every method raise UnreachableError when nothing
    answers (in `patience` seconds); a method raises RemoteError when lswap says no.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, key: str | None = None, patience: float = 30.0
    ) -> None:
        self._patience = patience
        base, self._path = base_of(url)
        self.url = without_user(base) if self._path is None else f"unix:{self._path}"
        try:
            # An lswap is spoken to directly: proxies from the environment are for other hosts.
            # Certificates are loaded only where they are needed (30 ms).
            self._http = httpx.Client(
                transport=httpx.HTTPTransport(uds=self._path, verify=base.startswith("https:")),
                base_url=base,
                headers=headers_of(key),
                timeout=httpx.Timeout(30.0, connect=5.0),
                trust_env=False,
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise RemoteError(
                f"{url!r} is not a URL: {error}", remedy="write http://host:port or unix:PATH"
            ) from None

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

    def snapshot(self) -> Snapshot:
        """Return everything lswap knows of itself now."""
        return self._decode(self._ask("GET", "/lswap/v1/state"), Snapshot)

    def decisions(self, model: str | None = None, limit: int = 20) -> tuple[DecisionView, ...]:
        """Return the newest decisions, newest last."""
        params = {"limit": str(limit)} | ({"model": model} if model else {})
        return self._decode(self._ask("GET", "/lswap/v1/decisions", params), _Decisions).decisions

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the events that are kept, oldest first: the kind of each, and its members."""
        text = self._ask("GET", "/lswap/v1/events", {"follow": "false"}).decode()
        found = [_EVENT.fullmatch(one) for one in text.split("\n\n")]
        return [(one[1], self._decode(one[2].encode(), dict[str, Any])) for one in found if one]

    def load(self, model: str, *, wait: bool = True) -> LoadReport:
        """Load a model; returns when it is ready, or at once when `wait` is False."""
        path = f"/lswap/v1/models/{path_of(model)}/load"
        return self._decode(
            self._ask("POST", path, {"wait": _word(wait)}, patient=True), LoadReport
        )

    def unload(self, model: str, *, force: bool = False, wait: bool = True) -> UnloadReport:
        """Unload a model: drained first, unless `force`."""
        path = f"/lswap/v1/models/{path_of(model)}/unload"
        params = {"force": _word(force), "wait": _word(wait)}
        return self._decode(self._ask("POST", path, params, patient=True), UnloadReport)

    def reload(self) -> ReloadReport:
        """Have the configuration read again."""
        return self._decode(self._ask("POST", "/lswap/v1/reload", patient=True), ReloadReport)

    def pin(self, model: str, *, pinned: bool) -> None:
        """Pin a model against eviction, or let it go."""
        self._ask("POST", f"/lswap/v1/models/{path_of(model)}/{'pin' if pinned else 'unpin'}")

    def logs(self, model: str | None, *, tail: int = 100, follow: bool = False) -> Iterator[str]:
        """Yield the last lines its llama-server wrote, then (`follow`) new ones as they come.

        Without a model: those of lswap itself.
        """
        path = "/lswap/v1/logs" if model is None else f"/lswap/v1/logs/{path_of(model)}"
        params = {"tail": str(tail), "follow": _word(follow)}
        timeout = httpx.Timeout(30.0, connect=5.0, read=None)
        with (
            told_errors(self.url),
            self._http.stream("GET", path, params=params, timeout=timeout) as answer,
        ):
            if not answer.is_success:
                answer.read()
                raise refusal(answer, self.url)
            yield from answer.iter_lines()

    @contextmanager
    def reserve(self, memory: dict[str, str]) -> Iterator[Iterator[ReservationLine]]:
        """Ask for memory; yields what lswap says of it, and gives it back at the end."""
        body = msgspec.json.encode({"memory": memory, "stream": True})
        timeout = httpx.Timeout(30.0, connect=5.0, read=None)
        with (
            told_errors(self.url),
            self._http.stream(
                "POST", "/lswap/v1/reservations", content=body, timeout=timeout
            ) as answer,
        ):
            if not answer.is_success:
                answer.read()
                raise refusal(answer, self.url)
            yield self._reservation_lines(answer)

    def _reservation_lines(self, answer: httpx.Response) -> Iterator[ReservationLine]:
        with told_errors(self.url):
            for line in answer.iter_lines():
                if line.strip():
                    yield self._decode(line.encode(), ReservationLine)

    def release(self, reservation: str) -> None:
        """Give a reservation back."""
        self._ask("DELETE", f"/lswap/v1/reservations/{path_of(reservation)}")

    def tell_pid(self, reservation: str, pid: int) -> None:
        """Say which process (with all below it) uses a reservation."""
        path = f"/lswap/v1/reservations/{path_of(reservation)}/heartbeat"
        with told_errors(self.url):
            answer = self._http.post(path, content=msgspec.json.encode({"pid": pid}))
        if not answer.is_success:
            raise refusal(answer, self.url)

    def _ask(
        self, method: str, path: str, params: dict[str, str] | None = None, *, patient: bool = False
    ) -> bytes:
        seconds = self._patience
        timeout = httpx.Timeout(
            seconds, connect=min(5.0, seconds), read=None if patient else seconds
        )
        with told_errors(self.url):
            answer = self._http.request(method, path, params=params, timeout=timeout)
        if not answer.is_success:
            raise refusal(answer, self.url)
        return answer.content

    def _decode(self, data: bytes, kind: type[_T]) -> _T:
        return decoded(data, kind, self.url)

    def _knock(self, path: str) -> None:
        """Try the socket: httpcore leaks one for each failure to connect."""
        with socket.socket(socket.AF_UNIX) as knocking:
            try:
                knocking.connect(path)
            except OSError as error:
                raise _nobody(self.url, error.strerror or str(error)) from None


def base_of(url: str) -> tuple[str, str | None]:
    """Return the base of every URL at `url`, and the path of the unix socket, if it is one.

    People paste what they gave their clients: a path that begins with `/v1` is cut off, a missing
    scheme is http, a missing host this machine. `0.0.0.0` is where lswap listens, not where it is.
    """
    text = url.strip()
    if text.startswith("unix:"):
        return "http://localhost", text.removeprefix("unix:")
    scheme, separator, rest = text.rpartition("://")
    scheme = scheme.lower()
    place, _, path = rest.partition("/")
    if not separator:
        scheme = "http"
        place = f":{place}" if place.isdecimal() else place
        place += "" if _PORT.search(place) else ":8080"
    host, port = _split_port(place)
    place = _HERE.get(host, host) + port
    return f"{scheme}://{place}{_VERSION_PATH.sub('', f'/{path}').rstrip('/')}", None


def _split_port(place: str) -> tuple[str, str]:
    found = _PORT.search(place)
    return (place, "") if found is None else (place[: found.start()], found[0])


def path_of(name: str) -> str:
    """Return a name as one segment of a path, whatever is in it."""
    # A client drops `.` and `..` from a path, or takes a step back for them.
    return quote(name, safe="") if name.strip(".") else name.replace(".", "%2E")


def headers_of(key: str | None) -> dict[str, str]:
    """Return the headers that every request carries."""
    return {"authorization": f"Bearer {key}"} if key else {}


@contextmanager
def told_errors(url: str) -> Iterator[None]:
    """Turn the HTTP client's errors into UnreachableError, in the words of the commands."""
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


def refusal(answer: httpx.Response, url: str) -> RemoteError:
    """Return what an answer that is not a success means."""
    try:
        message = msgspec.json.decode(answer.content, type=_ErrorAnswer).error.message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _stranger(url)
    if answer.status_code == _UNAUTHORIZED:
        given = "authorization" in answer.request.headers
        return RemoteError(
            f"lswap at {url} does not know this key"
            if given
            else f"lswap at {url} wants an API key",
            remedy="pass one with --key or LSWAP_KEY; `lswap key new NAME --kind admin` makes one",
        )
    return RemoteError(message)


def decoded(data: bytes, kind: type[_T], url: str) -> _T:
    """Return an answer as `kind`; raises UnreachableError for one that lswap never gives."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise _stranger(url) from None


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


def _word(value: Any) -> str:
    return "true" if value else "false"
