"""Reads what an engine's program prints, up to a limit: a broken one may print without end."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from typing import IO, Final

from llamaswap_py.errors import EngineError
from llamaswap_py.units import MIB, format_size

__all__ = ["MOST_OUTPUT", "read_output", "too_long"]

MOST_OUTPUT: Final = 8 * MIB
"""Bytes of one stream of one run. The longest that llama.cpp prints, `--help`, has 100 KiB."""
_CHUNK: Final = 64 * 1024


def read_output(
    run: subprocess.Popen[bytes], what: str, end: float, most: int = MOST_OUTPUT
) -> tuple[bytes, bytes]:
    """Return the stdout and stderr of a run that has ended; b"" for one that is not a pipe.

    Raises TimeoutError at the time `end` (of `time.monotonic`), and EngineError for a stream with
    more than `most` bytes. The caller then ends the run.
    """
    streams = [(run.stdout, bytearray()), (run.stderr, bytearray())]
    with selectors.DefaultSelector() as selector:
        for stream, read in streams:
            if stream is not None:
                selector.register(stream, selectors.EVENT_READ, read)
        while selector.get_map():
            ready = selector.select(_left(end))
            if not ready:
                raise TimeoutError
            for key, _ in ready:
                _take(selector, key, what, most)
    try:
        run.wait(_left(end))
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
    return bytes(streams[0][1]), bytes(streams[1][1])


def too_long(what: str, most: int = MOST_OUTPUT) -> EngineError:
    """Return the error of a run that prints too much."""
    return EngineError(
        f"{what} prints more than {format_size(most)}",
        remedy="it is not a program of llama.cpp, or it is broken: run it by hand",
    )


def _take(
    selector: selectors.BaseSelector, key: selectors.SelectorKey, what: str, most: int
) -> None:
    stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
    data = os.read(stream.fileno(), _CHUNK)
    if not data:
        selector.unregister(stream)
    key.data.extend(data)
    if len(key.data) > most:
        raise too_long(what, most)


def _left(end: float) -> float:
    return max(end - time.monotonic(), 0.0)
