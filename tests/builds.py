"""What the llama-server that the tests run has, read from its own binary."""

from __future__ import annotations

from pathlib import Path

import pytest


def names(server: str, text: str) -> bool:
    """Tell whether a llama-server, or a library of llama.cpp beside it, contains a text."""
    path = Path(server).resolve()
    files = [path, *path.parent.glob("libllama*"), *path.parent.glob("libserver*")]
    return any(text.encode() in file.read_bytes() for file in files)


def require(server: str, text: str, lacking: str) -> None:
    """Skip a test of what an older build lacks; only `make compat` runs older builds."""
    if not names(server, text):
        pytest.skip(lacking)
