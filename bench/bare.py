"""What a swap costs without anybody in between: a bare llama-server, spawned, asked, stopped."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.client import chat
from bench.workplace import STOP_LIMIT, BenchError, end
from llamaswap_py.endpoint import Endpoint

_READY = b'cmd_child_to_router:state:{"'
_EXIT = b"cmd_router_to_child:exit\n"


@dataclass(frozen=True, slots=True)
class Bare:
    """Seconds from spawn to the first event of an answer, and from the exit command to the end."""

    first_event: float
    exit: float


def run_bare(binary: Path, args: Sequence[str], model: str, folder: Path) -> Bare:
    """Spawn a llama-server in child mode, ask it as soon as it says it is ready, and stop it."""
    path = folder / "bare.sock"
    path.unlink(missing_ok=True)
    env = {**os.environ, "LLAMA_SERVER_ROUTER_PORT": "1", "XDG_CONFIG_HOME": str(folder / "empty")}
    began = time.perf_counter()
    with (
        (folder / "bare.log").open("wb") as log,
        subprocess.Popen(
            [str(binary), *args, "--host", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
        ) as process,
    ):
        try:
            _await_ready(process)
            answer = chat(Endpoint(path=str(path)), model)
            if not answer.whole:
                raise BenchError(f"a bare llama-server answered {answer.text[-500:]!r}")
            return Bare(answer.first - began, _stop(process))
        finally:
            end(process)


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(_READY) and b'"state":"ready"' in line:
            return
    raise BenchError(f"a bare llama-server ended with status {process.wait()}")


def _stop(process: subprocess.Popen[bytes]) -> float:
    if sys.platform != "linux":
        raise NotImplementedError
    assert process.stdin is not None
    exited = os.pidfd_open(process.pid)  # Popen.wait() with a timeout would look in steps
    try:
        began = time.perf_counter()
        process.stdin.write(_EXIT)
        process.stdin.flush()
        if not select.select([exited], [], [], STOP_LIMIT)[0]:
            raise BenchError("a bare llama-server does not heed the exit command")
        return time.perf_counter() - began
    finally:
        os.close(exited)
