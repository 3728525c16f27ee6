"""The second llama-server of the tests: it has Vulkan and RPC, and `engine: auto` does not find it.

`python -m tests.device_engine` (`make engine-vulkan`) builds it where it is not there already. It
lies beside the folder of the engines, not in it: all other tests keep the engine for the processor.
Beside it are the shaders that the software driver compiled, which takes it two minutes once.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.install import check_build, find_script
from llamaswap_py.llamacpp.paths import engines_folder

GET = "make engine-vulkan"


def folder() -> Path:
    """Return where it is installed: one folder for each release of llama.cpp."""
    release = re.search(r"^DEFAULT_REF=(\w+)$", find_script().read_text(), re.MULTILINE)
    assert release is not None
    return engines_folder().with_name("test-engines") / f"{release[1]}-vulkan-rpc"


def shaders() -> Path:
    """Return the folder in which Mesa keeps what it compiled for the engine in `folder()`."""
    return folder().with_name(f"{folder().name}-shaders")


def _command(*options: str) -> list[str]:
    script = ["bash", str(find_script()), "--backend", "vulkan", "--rpc"]
    return [*script, "--prefix", str(folder()), *options]


@cache
def missing() -> str:
    """Return why it is not there, "" where it is: built from the very flags of the script."""
    plan = subprocess.run(
        _command("--dry-run"), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    if re.search(r"^state +already installed$", plan.stdout, re.MULTILINE):
        return ""
    try:
        check_build("vulkan")
    except EngineError as error:
        return f"{error.message}; {error.remedy}; then {GET}"
    return GET


def program(name: str) -> Path:
    """Return one of its programs; skips the test that asks where it is not built."""
    import pytest

    if said := missing():
        pytest.skip(f"missing: a llama-server with Vulkan and RPC ({said})")
    return folder() / "bin" / name


def main() -> None:
    from tests.real.device_lab import NO_DRIVER, compile_shaders, has_vulkan

    os.environ.setdefault("PYTHON", sys.executable)
    if status := subprocess.run(_command(), check=False).returncode:
        sys.exit(status)
    engine = str(folder() / "bin/llama-server")
    if not has_vulkan(engine):
        print(f"{NO_DRIVER}: tests that need it are skipped")
        return
    compile_shaders(engine)


if __name__ == "__main__":
    main()
