"""What a command that asks a running lswap need not import."""

from __future__ import annotations

import subprocess
import sys

_ASK = """
import sys
import llamaswap_py.client.remote
print(*({"click", "rich", "pygments", "httpx._main"} & sys.modules.keys()))
import httpx
print(httpx.Client.__name__, "httpx._main" in sys.modules)
"""


def test_httpx_comes_without_its_command_line() -> None:
    done = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True)
    assert done.stdout == "\nClient False\n"
