"""httpx without its own command line.

`import httpx` imports that wherever click, rich and pygments happen to be installed, as they are
beside us: 70 ms of the 250 that `lswap ps` may take.
"""

from __future__ import annotations

import sys
from typing import Any

_COMMAND_LINE = "httpx._main"
_modules: dict[str, Any] = sys.modules

if "httpx" in _modules:  # somebody has paid for it
    import httpx
else:
    _modules[_COMMAND_LINE] = None  # "cannot be imported" (the import statement's reference)
    try:
        import httpx
    finally:
        del _modules[_COMMAND_LINE]

__all__ = ["httpx"]
