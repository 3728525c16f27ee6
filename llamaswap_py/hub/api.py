"""The API of the Hugging Face hub: lists of repositories, headers of remote files, and errors.

The HTTP session is safe in a process that forks, and limits harmful answers.
"""

from __future__ import annotations

import os
import re
import threading
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from llamaswap_py.gguf import GgufError, Header, read_header
from llamaswap_py.hub.refs import HubError, HubFile, HubRef
from llamaswap_py.tasks.threads import Workers
from llamaswap_py.units import MIB, format_size, is_utf8

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import httpx


ANSWERS: Final = 60.0
"""Seconds for a whole answer that is not a file. A timeout per read is not enough, because a server
that sends single bytes never reaches it."""
_T = TypeVar("_T")


def within(seconds: float, call: Callable[[], _T], moved: Callable[[], float] | None = None) -> _T:
    """Return the result of a call; raises HubError if it takes longer than `seconds`.

    `moved` returns the time (`time.monotonic()`) of its last progress; the seconds count from then.
    The call runs in a daemon thread, which may go on, but does not keep the process from ending.
    """
    threads = Workers(1, "hub")
    job = threads.submit(call)
    begun = time.monotonic()
    try:
        while True:
            since = max(begun, moved() if moved is not None else 0.0)
            try:
                return job.result(max(since + seconds - time.monotonic(), 0.0))
            except TimeoutError:
                if job.done() or (moved is not None and moved() > since):
                    continue
                raise HubError(
                    f"the hub has sent nothing usable for {seconds:.0f} s",
                    remedy="try again; the files so far are kept",
                ) from None
    finally:
        threads.shutdown(wait=False)


_FIRST: Final = threading.Lock()


def prepare_session() -> None:
    """Make huggingface_hub's session safe for forks; call it before the library's first request.

    The library closes its session in every forked child (utils/_http.py, os.register_at_fork). If
    another thread holds a lock of the session at that moment, the lock is never released in the
    child. The child would hang before it runs its program, and its parent would wait for ever.
    uvloop starts processes by such a fork.
    """
    with _FIRST:  # a second factory closes the session that a thread uses already
        _set_factory()


@cache
def _set_factory() -> None:
    from llamaswap_py.client.outgoing import Guard
    from llamaswap_py.hub.huggingface import constants, default_client_factory, set_client_factory

    def session() -> httpx.Client:
        client = default_client_factory()
        Guard(constants.ENDPOINT).watch(client)
        client.close = partial(_close, client.close, os.getpid())  # type: ignore[method-assign]
        return client

    set_client_factory(session)


def _close(close: Callable[[], None], owner: int) -> None:
    if os.getpid() == owner:
        close()


_MOST: Final = 32 * MIB
"""The most bytes of a list, enough for some hundred thousand files."""
_LARGEST: Final = 1 << 50
_LONGEST_PATH: Final = 1000
_LONGEST_NAME: Final = 200
_COMMIT: Final = re.compile(r"[A-Za-z0-9][\w-]{0,99}", re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RepoListing:
    """The files of a repository at one commit."""

    commit: str
    files: tuple[HubFile, ...]


class _Lfs(msgspec.Struct):
    sha256: str = ""


class _Sibling(msgspec.Struct):
    rfilename: str
    size: int | None = None
    lfs: _Lfs | None = None


class _Info(msgspec.Struct):
    """The fields of `GET /api/models/REPO` that lswap uses; the rest is skipped."""

    sha: str | None = None
    siblings: list[_Sibling] = []


_READ: Final = msgspec.json.Decoder(_Info)


def list_repo(ref: HubRef) -> RepoListing:
    """Return the files of a repository, using HF_ENDPOINT and HF_TOKEN. Raises HubError.

    Files with names that a repository cannot have (`..`, control characters) are left out.
    """
    prepare_session()
    with hub_errors(ref):
        info = within(ANSWERS, lambda: _ask(ref))
    files = [
        HubFile(one.rfilename, one.size or 0, _sha256(one.lfs.sha256) if one.lfs else "")
        for one in info.siblings
        if _is_path(one.rfilename) and 0 <= (one.size or 0) <= _LARGEST
    ]
    commit = info.sha or "main"
    if not _COMMIT.fullmatch(commit):
        raise _odd(ref, f"its commit is {commit[:80]!r}")
    return RepoListing(commit, tuple(files))


def _ask(ref: HubRef) -> _Info:
    from llamaswap_py.hub.huggingface import (
        build_hf_headers,
        constants,
        get_session,
        hf_raise_for_status,
    )

    url = f"{constants.ENDPOINT}/api/models/{ref.repo}"
    headers = {**build_hf_headers(), "Accept-Encoding": "gzip"}
    with get_session().stream(
        "GET", url, params={"blobs": True}, headers=headers, timeout=30, follow_redirects=True
    ) as answer:
        hf_raise_for_status(answer)
        text = b"".join(_bounded(ref, answer))
    try:
        return _READ.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _odd(ref, str(error)) from None


def _bounded(ref: HubRef, answer: httpx.Response) -> Iterator[bytes]:
    """Yield the body of an answer, unpacked; raises HubError when it is too long."""
    coding = answer.headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", "gzip"):
        raise _odd(ref, f"it is packed as {coding[:80]!r}")
    unpack = zlib.decompressobj(16 + zlib.MAX_WBITS) if coding == "gzip" else None
    left = _MOST
    for chunk in answer.iter_raw():
        try:
            piece = chunk if unpack is None else unpack.decompress(chunk, left + 1)
        except zlib.error as error:
            raise _odd(ref, str(error)) from None
        left -= len(piece)
        if left < 0:
            raise _odd(ref, f"it is longer than {format_size(_MOST)}")
        yield piece


def _sha256(text: str) -> str:
    return text.lower() if _HASH.fullmatch(text.lower()) else ""


def _is_path(path: str) -> bool:
    """Return whether a path stays in its folder, and can name a file there."""
    if not path.isprintable() or not is_utf8(path) or len(path.encode()) > _LONGEST_PATH:
        return False
    parts = path.split("/")
    return all(
        part not in ("", ".", "..") and len(part.encode()) <= _LONGEST_NAME for part in parts
    )


def _odd(ref: HubRef, what: str) -> HubError:
    return HubError(
        f"the hub's list of {ref.repo} cannot be used: {what}",
        remedy="check HF_ENDPOINT, or ask another server",
    )


@contextmanager
def hub_errors(ref: HubRef) -> Iterator[None]:
    """Turn what huggingface_hub raises into HubError with a remedy."""
    import httpx

    from llamaswap_py.client.outgoing import OutgoingError
    from llamaswap_py.hub.huggingface import errors

    try:
        yield
    except OutgoingError as error:
        raise HubError(error.message, remedy=error.remedy) from error
    except errors.GatedRepoError as error:
        raise HubError(
            f"{ref.repo} is gated: its authors must give you access",
            remedy=f"ask for it at {_page(ref)}, then set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no repository {ref.repo}, or it is private",
            remedy="check the name; for a private repository set HF_TOKEN",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 404:
            message = f"{ref.repo} does not have this file, or no longer has it"
            raise HubError(message, remedy="get its new list of files: lswap pull") from error
        if status in (401, 403):
            message = f"the hub refused access to {ref.repo} (HTTP {status})"
            raise HubError(message, remedy="set HF_TOKEN to a valid token") from error
        raise HubError(f"the hub failed for {ref.repo} (HTTP {status})", remedy="try again") from (
            error
        )
    except (httpx.RequestError, errors.OfflineModeIsEnabled) as error:
        said = str(error) or type(error).__name__
        raise HubError(
            f"the hub cannot be reached: {said}",
            remedy="check the network and HF_ENDPOINT; a download continues where it stopped",
        ) from error


def _page(ref: HubRef) -> str:
    from llamaswap_py.hub.huggingface import constants

    scheme, _, place = constants.ENDPOINT.partition("://")
    return f"{scheme}://{place.rpartition('@')[2]}/{ref.repo}"


FIRST: Final = 4 << 20
"""The size of the first range in bytes; each further range doubles what has been fetched."""
MOST: Final = 64 << 20
"""The most bytes of a header; vocabularies of 260,000 words with their merges take 16 MB."""
_TIMEOUT: Final = 30.0
_WHOLE: Final = 300.0
"""Seconds for a whole header."""


def read_remote_header(ref: HubRef, commit: str, file: HubFile) -> Header:
    """Return the header of one file of a repository, read with Range requests (RFC 9110, 14).

    It uses HF_ENDPOINT and HF_TOKEN. Raises HubError if the hub refuses, the file is not a GGUF,
    its header is longer than MOST, or the server does not serve ranges.
    """
    from llamaswap_py.hub.huggingface import build_hf_headers, get_hf_file_metadata, hf_hub_url

    prepare_session()
    url = hf_hub_url(ref.repo, file.path, revision=commit)
    with hub_errors(ref):
        about = within(ANSWERS, lambda: get_hf_file_metadata(url, timeout=_TIMEOUT))
    place = about.location
    headers = headers_for(place, url, build_hf_headers()) | {"Accept-Encoding": "identity"}
    there = _Beginning(ref, file, place, headers)
    try:
        return within(_WHOLE, lambda: read_header(there.read_at, file.size))
    except GgufError as error:
        raise HubError(f"{file.path} {error.message}", remedy=error.remedy) from error


class _Beginning:
    """The beginning of a remote file, of which more is fetched as it is read."""

    def __init__(self, ref: HubRef, file: HubFile, place: str, headers: Mapping[str, str]) -> None:
        self._ref = ref
        self._file = file
        self._place = place
        self._headers = headers
        self._bytes = bytearray()

    def read_at(self, offset: int, size: int) -> bytes:
        """Return `size` bytes, fewer at the end of the file; raises HubError."""
        end = min(offset + size, self._file.size)
        if end > MOST:
            raise HubError(f"the header of {self._file.path} is longer than {MOST >> 20} MiB")
        while len(self._bytes) < end:
            self._grow(max(FIRST, 2 * len(self._bytes)))
        return bytes(self._bytes[offset:end])

    def _grow(self, length: int) -> None:
        """Fetch more until `length` bytes are there, or the file ends."""
        from llamaswap_py.hub.huggingface import get_session, hf_raise_for_status

        begin, end = len(self._bytes), min(length, MOST, self._file.size)
        headers = {**self._headers, "Range": f"bytes={begin}-{end - 1}"}
        client = get_session()
        with (
            hub_errors(self._ref),
            client.stream(
                "GET", self._place, headers=headers, timeout=_TIMEOUT, follow_redirects=True
            ) as answer,
        ):
            hf_raise_for_status(answer)
            given = answer.headers.get("Content-Range", "")
            # A server that ignores the range would send the whole file, so nothing is read.
            if answer.status_code != 206 or not given.startswith(f"bytes {begin}-"):
                raise HubError(f"{_host(self._place)} does not serve ranges of {self._file.path}")
            for chunk in answer.iter_raw():
                self._bytes += chunk
                if len(self._bytes) >= end:
                    break
        if len(self._bytes) < end:
            raise HubError(f"{self._file.path} was cut off at byte {len(self._bytes):,}")
        del self._bytes[end:]


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).netloc


def headers_for(location: str, url: str, headers: dict[str, str]) -> dict[str, str]:
    """Return the headers for the host that has the file: only the hub's own host gets the token."""
    from llamaswap_py.client.outgoing import same_place

    if same_place(url, location):
        return headers
    return {name: value for name, value in headers.items() if name.lower() != "authorization"}
