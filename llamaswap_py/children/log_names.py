"""The name of the file that holds what the children of a preset log."""

from __future__ import annotations

import hashlib
from typing import Final

_LONGEST_FILE_NAME: Final = 240
"""Bytes; file systems take 255, and `.log.1` follows."""


def log_name(preset: str) -> str:
    """Model ids may hold slashes and colons, and be longer than the name of a file."""
    name = "".join(char if char.isalnum() or char in "-_." else "_" for char in preset)
    if len(name.encode()) <= _LONGEST_FILE_NAME:
        return name
    digest = hashlib.sha256(preset.encode()).hexdigest()[:16]
    return name.encode()[: _LONGEST_FILE_NAME - 17].decode(errors="ignore") + f"-{digest}"
