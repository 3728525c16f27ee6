"""The one error of this package."""

from __future__ import annotations

from llamaswap_py.errors import LswapError


class GgufError(LswapError):
    """Raised when a file is not a GGUF, is cut off, or says impossible things of itself."""

    def __init__(self, message: str, *, remedy: str = "download the file again") -> None:
        super().__init__(message, remedy=remedy)
