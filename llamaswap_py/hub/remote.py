"""Read the header of a model file that is still on the hub: a few MB of many GB."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.gguf import GgufError, Header, read_header
from llamaswap_py.hub.fetch import headers_for
from llamaswap_py.hub.listing import hub_errors
from llamaswap_py.hub.refs import HubError, HubFile, HubRef
from llamaswap_py.hub.session import ANSWERS, prepare_session, within

if TYPE_CHECKING:
    from collections.abc import Mapping

FIRST: Final = 4 << 20
"""Bytes of the first range; each one after it doubles what is there."""
MOST: Final = 64 << 20
"""Bytes in all. Vocabularies of 260,000 words with their merges make headers of 16 MB."""
_TIMEOUT: Final = 30.0
_WHOLE: Final = 300.0
"""Seconds for all of a header."""


def read_remote_header(ref: HubRef, commit: str, file: HubFile) -> Header:
    """Return the header of one file of a repository, read with Range requests (RFC 9110, 14).

    HF_ENDPOINT and HF_TOKEN are honoured. Raises HubError: refused, no GGUF file, a header longer
    than MOST, or a server that does not serve ranges.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers

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
    """As much of the beginning of a file as was asked for."""

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
        """Fetch on until `length` bytes are there, or the file ends."""
        from huggingface_hub.utils._http import get_session, hf_raise_for_status

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
            # A server that ignores the range would send the whole file: not a byte of it is read.
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
