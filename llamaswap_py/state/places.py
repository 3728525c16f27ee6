"""Where learned facts and cached estimates are kept (XDG Base Directory Specification)."""

from __future__ import annotations

import os
from pathlib import Path


def learned_folder() -> Path:
    """Return the folder of what was measured: `$XDG_STATE_HOME/lswap/learned`."""
    return _base("XDG_STATE_HOME", ".local/state") / "lswap" / "learned"


def traffic_folder() -> Path:
    """Return the folder of what was learned of requests: `$XDG_STATE_HOME/lswap/traffic`."""
    return _base("XDG_STATE_HOME", ".local/state") / "lswap" / "traffic"


def captures_folder() -> Path:
    """Return the folder of what `capture: on` stores: `$XDG_STATE_HOME/lswap/captures`."""
    return _base("XDG_STATE_HOME", ".local/state") / "lswap" / "captures"


def estimates_folder() -> Path:
    """Return the folder of estimates worked out before: `$XDG_CACHE_HOME/lswap/estimates`."""
    return _base("XDG_CACHE_HOME", ".cache") / "lswap" / "estimates"


def kept_folder() -> Path:
    """Return the folder of conversations, where memory has no room: `$XDG_CACHE_HOME/lswap/kv`."""
    return _base("XDG_CACHE_HOME", ".cache") / "lswap" / "kv"


def _base(variable: str, default: str) -> Path:
    # A relative path is to be ignored, the specification says.
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default
