"""Run llama-fit-params: what would a model take, without loading it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import anyio

from llamaswap_py.engine.features import parse_options
from llamaswap_py.estimate.records import EstimateError
from llamaswap_py.units import MIB

TIMEOUT: Final = 60.0
"""Seconds for one run; it takes 0.3 s, and a few seconds where a GPU driver wakes up."""
DEVICE_CHARGE: Final = 512 * MIB
"""What a run takes of each GPU it sees while it lasts: a driver context, nothing else."""
_SCRUBBED: Final = ("LLAMA_ARG_", "LLAMA_API_KEY", "LLAMA_SERVER_")
_SHOWN: Final = 3


class DryRuns:
    """Runs llama-fit-params, one at a time: each opens a context on every GPU it sees."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._turn = anyio.Lock()
        self._options: dict[Path, dict[str, int]] = {}
        self._stuck: dict[Path, EstimateError] = {}

    async def options(self, binary: Path) -> Mapping[str, int]:
        """Return the option names of this llama-fit-params, and how many words follow each."""
        if binary not in self._options:
            text = await self._run(binary, ["--help"], {})
            table = parse_options(text)
            self._options[binary] = {
                name: 0 if name in option.negated else option.values
                for name, option in table.items()
            }
        return self._options[binary]

    async def answer(self, binary: Path, args: Sequence[str], env: Mapping[str, str]) -> str:
        """Return all that a run prints.

        Raises EstimateError when it cannot be run, fails, or takes longer than the time limit.
        """
        return await self._run(binary, args, env)

    async def _run(self, binary: Path, args: Sequence[str], env: Mapping[str, str]) -> str:
        async with self._turn:
            if (known := self._stuck.get(binary)) is not None:
                raise known  # once is enough: everybody behind it would wait as long again
            try:
                with anyio.fail_after(self._timeout):
                    status, output = await _run_to_end([str(binary), *args], _environment(env))
            except TimeoutError as error:
                self._stuck[binary] = stuck = EstimateError(
                    f"{binary.name} did not end within {self._timeout:.0f} s"
                )
                raise stuck from error
            except OSError as error:
                raise EstimateError(f"{binary} cannot be run ({error.strerror})") from error
        printed = output.decode(errors="replace")
        if status != 0:
            lines = [line.strip() for line in printed.splitlines() if line.strip()]
            tail = " / ".join(line[:200] for line in lines[-_SHOWN:]) or "it said nothing"
            raise EstimateError(f"{binary.name} failed with status {status}: {tail}")
        return printed


async def _run_to_end(argv: Sequence[str], env: Mapping[str, str]) -> tuple[int, bytes]:
    """Return exit status and output. However it is left, nothing of the process is.

    `anyio.run_process` would wait for the end of a process when its task is cancelled just once.
    """
    process = await anyio.open_process(
        argv,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env=env,
        start_new_session=True,
    )
    async with process:
        try:
            assert process.stdout is not None
            output = b"".join([chunk async for chunk in process.stdout])
            return await process.wait(), output
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _environment(env: Mapping[str, str]) -> dict[str, str]:
    """As a child gets it: without what llama.cpp would read from our own environment or files."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(_SCRUBBED)}
    return {**inherited, **env, "XDG_CONFIG_HOME": "/nonexistent"}
