"""Where a benchmark happens: a folder that goes away, programs built on the fly, processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llamaswap_py.errors import LswapError

HERE = Path(__file__).parent
START_LIMIT = 15.0
STOP_LIMIT = 10.0


class BenchError(LswapError):
    """Raised when a benchmark cannot run as asked."""


@dataclass(frozen=True, slots=True)
class Workplace:
    """A folder with the two C programs in it; `cores` are (proxy, load and upstream) or None."""

    folder: Path
    cores: tuple[int, int] | None

    @property
    def stub(self) -> Path:
        return self.folder / "stub_upstream"

    @property
    def load(self) -> Path:
        return self.folder / "load"


@contextmanager
def open_workplace() -> Iterator[Workplace]:
    """Make a folder (its path short enough for unix sockets), and build what the rounds need."""
    if sys.platform != "linux":
        raise NotImplementedError
    folder = Path(tempfile.mkdtemp(prefix="lswap-bench-"))
    try:
        for name in ("stub_upstream", "load"):
            compile_c(HERE / f"{name}.c", folder / name)
        cores = sorted(os.sched_getaffinity(0))
        yield Workplace(folder, (cores[0], cores[1]) if len(cores) > 1 else None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compile_c(source: Path, program: Path) -> None:
    """Compile one C file. Raises BenchError."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError("the benchmarks need a C compiler", remedy="install gcc or clang")
    run_tool([compiler, "-O2", "-o", str(program), str(source)])


def run_tool(argv: Sequence[str], *, cwd: Path | None = None) -> None:
    """Run a tool to its end. Raises BenchError with what it said."""
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        raise BenchError(f"{argv[0]} failed: {(done.stderr or done.stdout).strip()[-2000:]}")


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that nobody uses right now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def running(
    argv: Sequence[str],
    *,
    port: int,
    log: Path,
    env: Mapping[str, str] | None = None,
    core: int | None = None,
) -> Iterator[int]:
    """Run a server and yield its pid once it accepts on `port`; ends it afterwards."""
    with log.open("wb") as output:
        with pinned(core):
            process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )
        with process:
            try:
                _wait_for(process, port, log)
                yield process.pid
            finally:
                end(process)


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """What is started inside runs on one core; None: anywhere."""
    if sys.platform != "linux":
        raise NotImplementedError
    allowed = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, kill it when it takes too long."""
    process.terminate()
    try:
        process.wait(STOP_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT
    while True:
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            tail = log.read_text(errors="replace")[-2000:]
            raise BenchError(f"{process.args!r} does not listen; it said:\n{tail}")
        time.sleep(0.02)
