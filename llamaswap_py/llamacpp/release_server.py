"""Asks GitHub's API for llama.cpp's releases, and downloads their assets.

Requests go to the API's own server and to those that GitHub keeps the assets on, over TLS.
LSWAP_RELEASES_URL names a mirror instead.
"""

from __future__ import annotations

import os
import re
import socket
import time
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import urlsplit

import msgspec

from llamaswap_py.client.lean_httpx import httpx
from llamaswap_py.client.outgoing import Guard, OutgoingError, is_proxied, same_place
from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.archives import room_for
from llamaswap_py.llamacpp.release_assets import Release, ReleaseAsset
from llamaswap_py.redaction import without_user
from llamaswap_py.tasks.threads import Workers
from llamaswap_py.units import GIB, MIB, format_duration, format_size, showable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

__all__ = ["VARIABLE", "ReleaseServer", "limit_ends"]

RELEASES: Final = "https://api.github.com/repos/ggml-org/llama.cpp/releases"
VARIABLE: Final = "LSWAP_RELEASES_URL"
TOKEN: Final = "GITHUB_TOKEN"

API_HOST: Final = "https://api.github.com"
"""The only server that gets GITHUB_TOKEN."""
_ASSET_HOSTS: Final = re.compile(r"(api\.)?github\.com|[a-z0-9-]+\.githubusercontent\.com")
_LOOPBACK: Final = re.compile(r"127\.\d+\.\d+\.\d+|::1|localhost")
_CONNECT: Final = 5.0
"""Seconds for the name, and again for the connection: offline, the command should fail soon."""
_TIMEOUT: Final = 20.0  # seconds without a byte
_HEAD: Final = 60.0
"""Seconds until the head of an answer is complete."""
_LIST: Final = 60.0
"""Seconds for a list of releases."""
_DOWNLOAD: Final = 4 * 3600.0
"""Seconds for one archive: the largest (some 500 MiB) at 35 KiB/s."""
_HOPS: Final = 5
_LISTED: Final = 30
_MOST_JSON: Final = 16 * MIB
_MOST_ASSET: Final = 4 * GIB
_FRUITLESS: Final = 3
"""Tries without a new byte, after which a download that breaks off is given up."""
_MOST_TRIES: Final = 20
_WITHOUT: Final = "check the network; `lswap engine build` compiles one, and needs no release"

T = TypeVar("T")


class _BrokenOffError(EngineError):
    """Raised for an answer that ended too early; the rest may be asked for."""


class ReleaseServer:
    """A connection to the releases of llama.cpp: GitHub's API, or a mirror that speaks like it.

    Use it as a context manager. Every method raises EngineError with a remedy.
    """

    def __init__(self) -> None:
        self._base = (os.environ.get(VARIABLE) or RELEASES).rstrip("/")
        self._token = os.environ.get(TOKEN, "").strip()
        if not _is_safe(self._base):
            raise EngineError(
                f"{VARIABLE}={without_user(self._base)} is not an address that lswap asks",
                remedy="write https://…; http:// is only for an address of this machine",
            )
        timeout = httpx.Timeout(_TIMEOUT, connect=_CONNECT)
        self._client = httpx.Client(timeout=timeout, follow_redirects=False)
        Guard(self._base).watch(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def release(self, tag: str) -> Release:
        """Return the release with a tag."""
        missing = EngineError(
            f"llama.cpp has no release {tag}", remedy="see its releases, or leave --ref out"
        )
        return self._read(f"{self._base}/tags/{tag}", Release, missing)

    def newest(self) -> list[Release]:
        """Return the newest releases; the first may not have its assets yet."""
        url = f"{self._base}?per_page={_LISTED}"
        missing = EngineError(f"{_host(url)} lists no releases", remedy=f"check {VARIABLE}")
        return self._read(url, list[Release], missing)

    def _read(self, url: str, kind: type[T], missing: EngineError) -> T:
        self._resolve(url)
        body = bytearray()
        headers = {"accept": "application/vnd.github+json", "x-github-api-version": "2022-11-28"}
        end = time.monotonic() + _LIST
        with _explained(url), self._open(url, headers) as answer:
            if answer.status_code == 404:
                raise missing
            self._refuse(answer)
            for chunk in answer.iter_bytes():
                body += chunk
                _check_time(url, end, _LIST)
                if len(body) > _MOST_JSON:
                    raise EngineError(
                        f"{_host(url)} sends a list of more than {format_size(_MOST_JSON)}",
                        remedy=f"check {VARIABLE}",
                    )
        try:
            return msgspec.json.decode(body, type=kind)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise EngineError(
                f"{_host(url)} does not answer as GitHub's API does ({error})",
                remedy=f"check {VARIABLE}; `lswap engine build` needs no release",
            ) from error

    def download(
        self, asset: ReleaseAsset, target: Path, on_progress: Callable[[int, int | None], None]
    ) -> None:
        """Write an asset to `target`, of exactly the size that the release names.

        A download that breaks off goes on where it was; the caller compares the digest.
        """
        most = min(room_for(target.parent), _MOST_ASSET)
        if asset.size > most:
            raise EngineError(
                f"{asset.name} has {format_size(asset.size)}, and there is room for "
                f"{format_size(most)}",
                remedy="make room, or choose another --backend",
            )
        fruitless = done = 0
        end = time.monotonic() + _DOWNLOAD
        for _ in range(_MOST_TRIES):
            with suppress(_BrokenOffError), _explained(asset.browser_download_url):
                self._fetch(asset, target, done, end, on_progress)
            got = target.stat().st_size if target.exists() else 0
            if got == asset.size:
                return
            fruitless = fruitless + 1 if got <= done else 0
            if fruitless == _FRUITLESS:
                break
            done = got
        raise EngineError(
            f"the download of {asset.name} broke off after {format_size(done)} of "
            f"{format_size(asset.size)}",
            remedy="try again; nothing was installed",
        )

    def _fetch(
        self,
        asset: ReleaseAsset,
        target: Path,
        done: int,
        end: float,
        on_progress: Callable[[int, int | None], None],
    ) -> None:
        headers = {"accept": "application/octet-stream", "accept-encoding": "identity"}
        if done:
            headers["range"] = f"bytes={done}-"
        with self._open(asset.browser_download_url, headers) as answer:
            if done and answer.status_code == 416:  # the file ends where we are
                return
            self._refuse(answer)
            goes_on = done and answer.headers.get("content-range", "").startswith(f"bytes {done}-")
            with target.open("ab" if goes_on else "wb") as file:
                for chunk in answer.iter_raw():  # as it comes: what came is kept
                    if file.tell() + len(chunk) > asset.size:
                        raise EngineError(
                            f"{asset.name} is longer than the release says "
                            f"({format_size(asset.size)})",
                            remedy="nothing was installed: the file is not that of the release",
                        )
                    file.write(chunk)
                    _check_time(asset.browser_download_url, end, _DOWNLOAD)
                    on_progress(file.tell(), asset.size)

    @contextmanager
    def _open(self, url: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """Yield the answer for a URL, with its redirects followed by our rules."""
        for _ in range(_HOPS):
            self._check(url)
            own = {"user-agent": "lswap", **headers}
            if self._token and url.startswith(f"{API_HOST}/"):
                own["authorization"] = f"Bearer {self._token}"
            answer = self._send(self._client.build_request("GET", url, headers=own))
            try:
                if not answer.has_redirect_location:
                    yield answer
                    return
                url = str(answer.url.join(answer.headers["location"]))
            finally:
                answer.close()
        raise EngineError(f"{_host(url)} redirects without end", remedy=_WITHOUT)

    def _send(self, request: httpx.Request) -> httpx.Response:
        """Return the answer to a request once its head is here.

        httpx waits for each byte of a head anew, so a server could send one byte now and then.
        """
        threads = Workers(1, "lswap-release")
        answer = threads.submit(partial(self._client.send, request, stream=True))
        try:
            return answer.result(_HEAD)
        except TimeoutError as error:
            if answer.done():  # the system's own: the connection timed out
                raise
            raise EngineError(
                f"{_host(str(request.url))} began no answer within {format_duration(_HEAD)}",
                remedy=_WITHOUT,
            ) from error
        finally:
            threads.shutdown(wait=False)

    def _check(self, url: str) -> None:
        if not _is_address(url):
            raise EngineError(
                f"{_host(self._base)} leads to {without_user(url)!r}, which is not an address",
                remedy="nothing was installed; try again later, or take another --ref",
            )
        parts = urlsplit(url)
        if not _is_asset_host(url) and not same_place(self._base, url):
            raise EngineError(
                f"{_host(self._base)} leads to {parts.scheme}://{parts.netloc.rpartition('@')[2]}, "
                "which is not a server of the release",
                remedy=f"nothing was installed; check {VARIABLE} if it is set",
            )

    def _refuse(self, answer: httpx.Response) -> None:
        """Raise EngineError for an answer that is not the thing that was asked for."""
        if answer.status_code in (200, 206):
            return
        host = _host(str(answer.url))
        if ends := limit_ends(answer.status_code, answer.headers, time.time()):
            why = f"the limit of {TOKEN} is used up" if self._token else "it allows 60 an hour"
            how = "wait" if self._token else f"wait, or set {TOKEN} to a token of yours"
            raise EngineError(
                f"{host} answers no more requests {ends}: {why} ({answer.status_code})",
                remedy=f"{how}; `lswap engine build` needs no release",
            )
        if answer.status_code == 401:
            raise EngineError(
                f"{host} does not accept {TOKEN} (401)", remedy=f"take {TOKEN} away, or renew it"
            )
        raise EngineError(
            f"{host} answers {answer.status_code} {showable(answer.reason_phrase)}".strip(),
            remedy=_WITHOUT,
        )

    def _resolve(self, url: str) -> None:
        """Raise EngineError if the server's name has no address soon; httpx would wait for ever."""
        if is_proxied(url):
            return
        parts = urlsplit(url)
        threads = Workers(1, "lswap-resolve")
        found = threads.submit(socket.getaddrinfo, parts.hostname, parts.port or 443)
        try:
            found.result(_CONNECT)
        except TimeoutError as error:
            raise _unreachable(url, f"no address within {_CONNECT:.0f} s") from error
        except (OSError, UnicodeError) as error:
            raise _unreachable(url, getattr(error, "strerror", None) or str(error)) from error
        finally:
            threads.shutdown(wait=False)


def _check_time(url: str, end: float, most: float) -> None:
    """Raise EngineError after the time `end`: a server may send just enough to be waited for."""
    if time.monotonic() > end:
        raise EngineError(
            f"{_host(url)} did not send all within {format_duration(most)}", remedy=_WITHOUT
        )


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn what the HTTP client raises into EngineError."""
    try:
        yield
    except OutgoingError as error:
        raise EngineError(error.message, remedy="nothing was installed; try again") from error
    except (httpx.ReadError, httpx.ReadTimeout, httpx.RemoteProtocolError) as error:
        raise _BrokenOffError(f"{_host(url)} broke off ({error})", remedy=_WITHOUT) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _unreachable(url, str(error) or type(error).__name__) from error


def _unreachable(url: str, why: str) -> EngineError:
    return EngineError(f"{_host(url)} cannot be reached ({why})", remedy=_WITHOUT)


def _is_address(url: str) -> bool:
    try:
        return urlsplit(url).port != 0
    except ValueError:  # brackets without an end, or a port that is not one
        return False


def _is_safe(url: str) -> bool:
    if not _is_address(url):
        return False
    parts = urlsplit(url)
    if parts.scheme == "http":
        return bool(_LOOPBACK.fullmatch(parts.hostname or ""))
    return parts.scheme == "https" and bool(parts.hostname)


def _is_asset_host(url: str) -> bool:
    parts = urlsplit(url)
    known = _ASSET_HOSTS.fullmatch(parts.hostname or "") is not None
    return parts.scheme == "https" and known and parts.port in (None, 443)


def _host(url: str) -> str:
    return urlsplit(url).netloc.rpartition("@")[2]


def limit_ends(status: int, headers: Mapping[str, str], now: float) -> str:
    """Return when GitHub's API answers again, in words; "" if the answer is not about a limit.

    The limit of an hour names its end in `x-ratelimit-reset`, the one of too many requests at once
    the seconds in `retry-after`.
    """
    if status not in (403, 429):
        return ""
    seconds: float | None = None
    if headers.get("x-ratelimit-remaining") == "0":
        seconds = _number(headers.get("x-ratelimit-reset"), 4102444800)
        seconds = None if seconds is None else seconds - now
    if seconds is None:
        seconds = _number(headers.get("retry-after"), 86400)
    if seconds is None:
        return "for now" if status == 429 or headers.get("x-ratelimit-remaining") == "0" else ""
    seconds = max(seconds, 1.0)
    at = time.strftime("%H:%M", time.localtime(now + seconds))
    return f"until {at} (in {format_duration(seconds)})"


def _number(text: str | None, most: int) -> float | None:
    digits = text if text and text.isascii() and text.isdigit() and len(text) <= 12 else None
    return None if digits is None else float(min(int(digits), most))
