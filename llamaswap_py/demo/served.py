"""Runs `lswap up` as a child process of the demo."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psutil

from llamaswap_py.client import calls
from llamaswap_py.client.remote import Remote, UnreachableError
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.errors import LswapError

if TYPE_CHECKING:
    from types import TracebackType

    from llamaswap_py.snapshot import Snapshot

_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 45.0  # more than policy.shutdown_timeout and a child's stop_timeout
_LOG_LINES: Final = 25


class DemoError(LswapError):
    """Raised if the demonstration fails."""


class ServedLswap:
    """`with ServedLswap(config, endpoint, log) as served:` runs `lswap up` until the block ends.

    The block begins when it answers. Raises DemoError if it does not answer or stop cleanly.
    """

    def __init__(self, config: Path, endpoint: Endpoint, log: Path) -> None:
        self.config = config
        self.endpoint = endpoint
        self.log = log
        self.command = ["up", str(config), "--listen", str(endpoint)]
        # A name of its own, so that another `lswap up` of the file can run beside it.
        self.command += ["--name", f"demo-{endpoint.port}"]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServedLswap:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "llamaswap_py", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Out of reach of the terminal's Ctrl-C: two signals mean "at once".
                start_new_session=True,
            )
        try:
            self._wait_until_it_answers(self._process)
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kill()

    def last_lines(self) -> list[str]:
        """Return the end of its output."""
        with suppress(OSError):
            return self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return []

    def wait(self) -> None:
        """Wait until it ends by itself, which raises DemoError."""
        assert self._process is not None
        code = self._process.wait()
        raise DemoError(f"lswap up ended with exit code {code}")

    def stop(self) -> float:
        """Stop it with SIGTERM; return how many seconds that took.

        Raises DemoError unless it exits with 0 in time and leaves no process behind.
        """
        assert self._process is not None
        family = self._family(self._process.pid)
        began = time.perf_counter()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(f"lswap up did not stop within {_STOP_SECONDS:.0f} s") from None
        seconds = time.perf_counter() - began
        _, left = psutil.wait_procs(family, timeout=1.0)
        if left:
            raise DemoError(f"lswap up left {len(left)} processes behind: {left}")
        if code != 0:
            raise DemoError(f"lswap up ended with exit code {code}")
        return seconds

    def _wait_until_it_answers(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        with Remote(self.endpoint.url) as remote:
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise DemoError(f"lswap up did not answer within {_START_SECONDS:.0f} s")
                if self._is_ours(remote, process.pid):
                    return
                time.sleep(0.02)
        raise DemoError(f"lswap up did not start (exit code {process.returncode})")

    def _is_ours(self, remote: Remote, pid: int) -> bool:
        """Another program may have taken the port just now."""
        try:
            return remote.ask(calls.state()).pid == pid
        except UnreachableError:
            return False

    def _family(self, pid: int) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).children(recursive=True)
        return []

    def _kill(self) -> None:
        """Kill it if it still runs after a failure; its children die with it."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def free_endpoint(wanted: Endpoint) -> Endpoint:
    """Return `wanted` if it is free, else a free port of the same host."""
    for port in (wanted.port, 0):
        with socket.socket(socket.AF_INET6 if ":" in wanted.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((wanted.host, port))
                probe.listen()
            except OSError:
                continue
            return Endpoint(host=wanted.host, port=int(probe.getsockname()[1]))
    raise DemoError(f"no port of {wanted.host} is free")


def relative(path: Path) -> str:
    """Return `path` relative to the current folder, if that is shorter."""
    text = os.path.relpath(path)
    return text if len(text) < len(str(path)) else str(path)


def loaded(snapshot: Snapshot) -> str:
    """Return the names of the loaded models."""
    return ", ".join(one.preset for one in snapshot.instances) or "nothing"
