"""Downloads an archive from an address that the user names.

The limits of client/outgoing.py hold, and the disk is not filled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llamaswap_py.client.lean_httpx import httpx
from llamaswap_py.client.outgoing import Guard, OutgoingError
from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.archives import room_for
from llamaswap_py.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["download"]

_CHUNK: Final = 1 << 20
_TIMEOUT: Final = 20.0  # seconds without a byte, and to connect


def download(url: str, target: Path, on_progress: Callable[[int, int | None], None]) -> None:
    """Write what `url` answers to `target`; `on_progress` gets bytes done and in all.

    Raises EngineError when it cannot be had or does not fit on the disk.
    """
    most = room_for(target.parent)
    try:
        with httpx.Client(follow_redirects=True, timeout=_TIMEOUT) as client:
            Guard(url).watch(client)
            with client.stream("GET", url) as answer, target.open("wb") as file:
                answer.raise_for_status()
                length = answer.headers.get("content-length", "")
                total = int(length) if length.isdigit() and len(length) < 20 else None
                for chunk in answer.iter_raw(_CHUNK):
                    if max(file.tell() + len(chunk), total or 0) > most:
                        raise EngineError(
                            f"{url} does not fit on the disk: {target.parent} has room for "
                            f"{format_size(most)}",
                            remedy="make room, or name another address",
                        )
                    file.write(chunk)
                    on_progress(file.tell(), total)
    except OutgoingError as error:
        raise EngineError(error.message, remedy=error.remedy) from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise EngineError(
            f"{url} cannot be downloaded ({error})",
            remedy="check the address, or download it yourself and name the file",
        ) from error
