"""The Date header of answers (RFC 9110 section 6.6.1), rendered once a second, not per answer."""

from __future__ import annotations

from email.utils import formatdate
from time import time
from typing import Final


class _Dating:
    def __init__(self) -> None:
        self._second = -1
        self._line = b""

    def line(self) -> bytes:
        now = int(time())
        if now != self._second:
            self._second = now
            self._line = f"date: {formatdate(now, usegmt=True)}\r\n".encode()
        return self._line


#: Returns the header line for the present second.
date_line: Final = _Dating().line
