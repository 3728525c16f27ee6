"""Asks an engine for its devices: runs `llama-server --list-devices`. Blocks.

The run opens a context on every card, so it is made at the start and after changes, not at
intervals. A driver that hangs or an endpoint that is gone makes it fail; the error says which.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from llamaswap_py.errors import EngineError
from llamaswap_py.llamacpp.device_list import OPTION, ListedDevice, parse_device_list
from llamaswap_py.llamacpp.engine_output import read_output
from llamaswap_py.llamacpp.env_variables import clean_environment
from llamaswap_py.llamacpp.rpc_connect import connect
from llamaswap_py.units import showable

_log: Final = logging.getLogger("lswap.devices")
TIMEOUT: Final = 20.0
"""Seconds for one run: a driver that wakes up several cards takes some."""
_REMEDY: Final = "run it by hand; until it works, declare the devices under memory.devices"


def query_devices(
    binary: Path,
    environment: Mapping[str, str],
    rpc: Sequence[str] = (),
    timeout: float = TIMEOUT,
) -> tuple[ListedDevice, ...]:
    """Return the devices that an engine lists in this environment; raises EngineError.

    `rpc` are endpoints of `ggml-rpc-server` whose devices count too. Each is tried first, because
    llama-server aborts if one does not answer.
    """
    for endpoint in rpc:
        connect(endpoint)
    argv = [str(binary), *(("--rpc", ",".join(rpc)) if rpc else ()), OPTION]
    what = " ".join(argv)
    try:
        run = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(environment),
            start_new_session=True,
        )
    except OSError as error:
        raise EngineError(f"{binary} cannot be run ({error.strerror})", remedy=_REMEDY) from error
    with run:
        try:
            out, said = read_output(run, what, time.monotonic() + timeout)
        except TimeoutError as error:
            text = f"{what} did not end within {timeout:g} s"
            raise EngineError(text, remedy=f"a driver may hang: {_REMEDY}") from error
        finally:
            if run.returncode is None:
                with suppress(OSError):
                    os.killpg(run.pid, signal.SIGKILL)
    devices = parse_device_list(out.decode(errors="replace"))
    lines = (said or out).decode(errors="replace").strip().splitlines()
    last = showable(lines[-1][:200]) if lines else "no output"
    if run.returncode != 0 or devices is None:
        raise EngineError(f"{what} failed with status {run.returncode}: {last}", remedy=_REMEDY)
    if not devices and said:
        _log.info("%s lists no devices: %s", binary, last)
    return devices
