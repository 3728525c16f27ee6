"""Where engines, their sources and what was learned about them are kept.

The same folders as scripts/build_llama_cpp.sh uses, on every system.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["current_file", "demo_folder", "engines_folder", "probes_folder"]


def _base(variable: str, default: str) -> Path:
    # The XDG specification: a relative path is to be ignored.
    value = os.environ.get(variable, "")
    return Path(value) if value.startswith("/") else Path.home() / default


def engines_folder() -> Path:
    """Return the folder of our installations, one folder each (`<build>-<backend>`)."""
    return _base("XDG_DATA_HOME", ".local/share") / "lswap" / "engines"


def current_file() -> Path:
    """Return the file that holds the choice of `lswap engine use`."""
    return engines_folder() / "current"


def probes_folder() -> Path:
    """Return the folder of cached probes; safe to delete."""
    return _base("XDG_CACHE_HOME", ".cache") / "lswap" / "probes"


def demo_folder() -> Path:
    """Return the folder of what `lswap demo` writes; safe to delete."""
    return probes_folder().with_name("demo")
