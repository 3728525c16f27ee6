"""What a child writes: one stream of it, read as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sys
from typing import IO, TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.llamacpp.output import Stream

_PIPE_SIZE: Final = 256 * 1024
_READ_SIZE: Final = 16 * 1024  # some 0.6 ms of work: a flood takes turns with everything else


class Output:
    """Hand over what one stream carries; `closed` resolves at its end.

    A plain reader callback: it begins and ends at once, where a transport would have to be
    awaited, and could be cancelled in between.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stream: Stream,
        pipe: IO[bytes],
        on_output: Callable[[Stream, bytes], None],
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._pipe = pipe
        self._on_output = on_output
        self.closed: asyncio.Future[None] = loop.create_future()
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # over the user's limit of pipe memory
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        os.set_blocking(pipe.fileno(), False)
        loop.add_reader(pipe.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._pipe.fileno(), _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_output(self._stream, data)
        else:
            self.close()

    def close(self) -> None:
        """Read no more."""
        if not self.closed.done():
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            self.closed.set_result(None)
