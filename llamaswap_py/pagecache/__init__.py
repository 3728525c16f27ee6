"""The kernel's page cache: which bytes of a file are in it, and reading files into it. Linux."""

from __future__ import annotations

from llamaswap_py.pagecache.reading import Reading
from llamaswap_py.pagecache.residency import cached_bytes

__all__ = ["Reading", "cached_bytes"]
