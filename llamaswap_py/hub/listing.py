"""Ask the hub what a repository holds, and put its refusals into words."""

from __future__ import annotations

import re
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from llamaswap_py.hub.refs import HubError, HubFile, HubRef
from llamaswap_py.hub.session import ANSWERS, prepare_session, within
from llamaswap_py.units import MIB, format_size, is_utf8

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

_MOST: Final = 32 * MIB
"""Bytes of a list, which are some hundred thousand files."""
_LARGEST: Final = 1 << 50
_LONGEST_PATH: Final = 1000
_LONGEST_NAME: Final = 200
_COMMIT: Final = re.compile(r"[A-Za-z0-9][\w-]{0,99}", re.ASCII)
_HASH: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Listing:
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
    """What of `GET /api/models/REPO` is used; the rest is skipped."""

    sha: str | None = None
    siblings: list[_Sibling] = []


_READ: Final = msgspec.json.Decoder(_Info)


def list_repo(ref: HubRef) -> Listing:
    """Return what a repository holds; HF_ENDPOINT and HF_TOKEN are honoured. Raises HubError.

    Files with names that no repository has (`..`, control characters) are left out.
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
    return Listing(commit, tuple(files))


def _ask(ref: HubRef) -> _Info:
    from huggingface_hub import constants
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

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
    """Yield the body of an answer, unpacked; raises HubError when it is too much."""
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
    """Tell whether a path stays in its folder, and can be a file's there."""
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
    from huggingface_hub import errors

    from llamaswap_py.outgoing import OutgoingError

    try:
        yield
    except OutgoingError as error:
        raise HubError(error.message, remedy=error.remedy) from error
    except errors.GatedRepoError as error:
        raise HubError(
            f"{ref.repo} is gated: its authors must let you in",
            remedy=f"ask at {_page(ref)}, then set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no repository {ref.repo}, or it is private",
            remedy="check the name; for a private one set HF_TOKEN",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status == 404:
            message = f"{ref.repo} has no such file (any more)"
            raise HubError(message, remedy="list it anew: lswap pull") from error
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
            remedy="check the network and HF_ENDPOINT; downloads go on where they stopped",
        ) from error


def _page(ref: HubRef) -> str:
    from huggingface_hub import constants

    scheme, _, place = constants.ENDPOINT.partition("://")
    return f"{scheme}://{place.rpartition('@')[2]}/{ref.repo}"
