"""What differs for a child that is not a llama-server: its command, its output, its readiness."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import subprocess
from typing import TYPE_CHECKING, Final

from llamaswap_py.children.ask import HttpAnswer, get
from llamaswap_py.children.loading import Load
from llamaswap_py.endpoint import Endpoint
from llamaswap_py.llamacpp.output import ListeningSign, OutputLine
from llamaswap_py.proxy.dial import open_tcp

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llamaswap_py.children.child_events import ChildEvent, ChildSpec, Program
    from llamaswap_py.llamacpp.output import Sign, Stream

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 1.0
_ANSWER_SECONDS: Final = 5.0
_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_NOTHING: Final = HttpAnswer(0, b"")


def choose_endpoint(spec: ChildSpec) -> Endpoint:
    """Return the endpoint at which a program has to listen: its socket, or a free port."""
    if spec.socket_path is not None:
        return Endpoint(path=spec.socket_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(host="127.0.0.1", port=probe.getsockname()[1])


def told(words: tuple[str, ...], endpoint: Endpoint) -> tuple[str, ...]:
    """Return a command with its `{port}` or `{socket}` filled in.

    Raises ValueError for a socket that has no path: the runtime folder's is too long.
    """
    if endpoint.path is not None:
        return tuple(word.replace("{socket}", endpoint.path) for word in words)
    if any("{socket}" in word for word in words):
        raise ValueError("the path of its socket would be too long; use {port}")
    return tuple(word.replace("{port}", str(endpoint.port)) for word in words)


def run_stop(
    program: Program, endpoint: Endpoint, pid: int, env: Mapping[str, str], patience: float
) -> str:
    """Run the command that stops a program to its end; blocks. Return what went wrong, or ""."""
    known = {"{pid}": str(pid), "{port}": str(endpoint.port), "{socket}": endpoint.path or ""}
    words = list(program.stop)
    for name, value in known.items():
        words = [word.replace(name, value) for word in words]
    try:
        done = subprocess.run(
            words,
            env=env,
            cwd=program.cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=patience,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it took longer than {patience:g} s"
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in a word
        return getattr(error, "strerror", None) or str(error)
    if not done.returncode:
        return ""
    last = done.stdout.decode(errors="replace").strip().rpartition("\n")[2]
    return f"exit code {done.returncode}" + (f": {last}" if last else "")


class ProgramLines:
    """Turns lines into signs, as `Readiness` does, and finds the line that means ready."""

    def __init__(self, program: Program) -> None:
        self._text = program.line
        self._pattern: re.Pattern[str] | None = None
        if program.line is not None:
            with contextlib.suppress(
                re.error
            ):  # if it is not a valid expression, it is looked for as plain text
                self._pattern = re.compile(program.line)

    def feed(self, stream: Stream, line: str) -> list[Sign]:
        """Return what one line means."""
        del stream
        plain = _COLOUR.sub("", line) if "\x1b" in line else line
        said = OutputLine(plain)
        return [ListeningSign(None), said] if self._says_ready(plain) else [said]

    def _says_ready(self, line: str) -> bool:
        if self._text is None:
            return False
        matches = self._pattern is not None and self._pattern.search(line) is not None
        return matches or self._text in line


class ProgramLoad(Load):
    """One load of a program: ready if a GET succeeds, or its output says so and its port accepts.

    Slots and context come from `/props`, if the program has it as a llama-server does.
    """

    def __init__(
        self, spec: ChildSpec, endpoint: Endpoint, emit: Callable[[ChildEvent], None]
    ) -> None:
        super().__init__(spec, emit)
        assert spec.program is not None
        self._http = spec.program.http
        self._endpoint = endpoint

    def listening(self, endpoint: Endpoint | None) -> None:
        """Note the line that means readiness."""
        del endpoint
        self._listens = True
        self._check()

    async def _ask_health(self, pid: int) -> None:
        """Ask for the path that means readiness until it is there.

        The first attempt shows whether another program already has the port.
        """
        del pid
        assert self._endpoint is not None
        if self._http is None:
            await accepts(self._endpoint)
            return
        pause = _FIRST_PAUSE
        while not self._go.is_set():
            with contextlib.suppress(OSError):
                answer = await get(self._endpoint, self._http, _ANSWER_SECONDS)
                if 200 <= answer.status < 300:
                    self.listening(None)
                    return
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)

    async def _confirm(self) -> HttpAnswer:
        """Wait until it accepts a connection; return its slots, if it says them."""
        assert self._endpoint is not None
        pause = _FIRST_PAUSE
        while self._http is None and not await accepts(self._endpoint):
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        try:
            return await get(self._endpoint, "/props", _ANSWER_SECONDS)
        except OSError:
            return _NOTHING


async def accepts(endpoint: Endpoint) -> bool:
    """Tell whether something takes a connection there."""
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            if endpoint.path is None:
                (await open_tcp(endpoint)).close()
                return True
            _, writer = await asyncio.open_unix_connection(endpoint.path)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
