"""Devices that a machine without a card has: Mesa's software driver, and ggml-rpc-server.

Fixtures of conftest.py hand them out. The software driver (lavapipe) is `Vulkan0` to an engine that
runs with ON_SOFTWARE. It calculates on the processor and is slow: models up to 256 MiB. It compiles
a shader when it is first used, which takes seconds or minutes; then it finds it in our folder.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from llamaswap_py.demo.tiny_gguf import write_tiny_model
from tests import device_engine
from tests.real.answers import PATIENCE
from tests.real.bare import serve

if TYPE_CHECKING:
    from collections.abc import Iterator

ON_SOFTWARE: Final = {
    "GGML_VK_VISIBLE_DEVICES": "0",
    "MESA_SHADER_CACHE_DIR": str(device_engine.shaders()),
}
"""Environment in which the Vulkan backend takes the first device, whatever its kind is.

Without it, llama.cpp leaves software drivers out.
"""
PADDING: Final = 64 << 20
"""Bytes of a padded model: enough to be counted. Another number may need other shaders."""
NO_DRIVER: Final = "missing: a Vulkan driver (apt-get install mesa-vulkan-drivers)"


def has_vulkan(engine: str) -> bool:
    """Tell whether there is a driver for an engine that runs with ON_SOFTWARE."""
    return any(line.startswith("Vulkan0: ") for line in list_devices(engine, env=ON_SOFTWARE))


def compile_shaders(engine: str) -> None:
    """Let the driver compile, once, what the tests need of it: no test should wait for that.

    That is what tiny models need, plain or of PADDING, for prompts of 9 tokens or more. A batch
    of 3 to 8 tokens has a shader of its own for each number, which takes minutes.
    """
    done = device_engine.shaders() / "done"
    if done.exists():
        return
    print("compiling the shaders of the software driver: about two minutes, once", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for pad in (0, PADDING):
            model = Path(folder) / f"tiny-{pad}.gguf"
            write_tiny_model(model, "done", layers=8, pad_bytes=pad)
            args = ("-ngl", "99", "--device", "Vulkan0")
            with serve(engine, model, *args, env=ON_SOFTWARE) as client:
                for prompt in ("Who are you?", "one " * 40):
                    answer = client.post("/completion", json={"prompt": prompt}, timeout=600)
                    assert answer.json()["content"] == "done"
    done.touch()


def list_devices(engine: str, *args: str, env: dict[str, str] | None = None) -> list[str]:
    """Return the lines that `--list-devices` prints, one for each device."""
    done = subprocess.run(
        [engine, *args, "--list-devices"],
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.partition("Available devices:\n")[2].splitlines()
    return [line.strip() for line in lines if line.strip() != "(none)"]


@dataclass(frozen=True, slots=True)
class RpcServer:
    """A ggml-rpc-server which lends this host's memory and processor."""

    endpoint: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """End it as a crash would: what uses it loses its device."""
        self.process.kill()
        self.process.wait()


def unused_port() -> int:
    """Return a port of this machine that no program listens at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@contextmanager
def rpc_server(program: Path, folder: Path, port: int = 0) -> Iterator[RpcServer]:
    """Run one on that port, or one of its own, until the end of the block."""
    port = port or unused_port()
    log = folder / f"rpc-{port}.log"
    command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    with (
        log.open("wb") as out,
        subprocess.Popen(
            [*command, "--device", "CPU"], stdin=subprocess.DEVNULL, stdout=out, stderr=out
        ) as process,
    ):
        try:
            _until_it_listens(process, port, log)
            yield RpcServer(f"127.0.0.1:{port}", process)
        finally:
            process.kill()


def _until_it_listens(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait for its socket. It is not connected to: each connection is a client to it."""
    end = time.monotonic() + PATIENCE
    listener = psutil.Process(process.pid)
    while not any(
        connection.status == psutil.CONN_LISTEN and connection.laddr.port == port
        for connection in listener.net_connections("tcp")
    ):
        assert process.poll() is None, f"ggml-rpc-server ended: {log.read_text()}"
        assert time.monotonic() < end, f"ggml-rpc-server does not listen: {log.read_text()}"
        time.sleep(0.01)
