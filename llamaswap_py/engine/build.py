"""Run scripts/build_llama_cpp.sh, which does the work; its progress goes to our own output."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llamaswap_py.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["build_engine", "find_script"]

SCRIPT: Final = "build_llama_cpp.sh"


def find_script() -> Path:
    """Return the build script: beside this module in a wheel, in scripts/ in a checkout.

    Raises EngineError when neither is there.
    """
    here = Path(__file__).resolve()
    for path in (here.with_name(SCRIPT), here.parents[2] / "scripts" / SCRIPT):
        if path.is_file():
            return path
    raise EngineError(f"{SCRIPT} is missing from this installation", remedy="install lswap again")


def build_engine(options: Sequence[str]) -> None:
    """Build and install an engine with the script's own options (`--backend cpu …`).

    Raises EngineError when it fails; the script has said why by then.
    """
    command = ["bash", str(find_script()), *options]
    try:
        status = subprocess.run(
            command, env=os.environ | {"PYTHON": sys.executable}, check=False
        ).returncode
    except FileNotFoundError as error:
        raise EngineError("building needs bash", remedy="apt-get install bash") from error
    if status != 0:
        raise EngineError(
            f"the engine was not built (status {status})", remedy="see the messages above"
        )
