"""One operating-system process: its own group, its pipes, its death noticed and collected.

`subprocess.Popen` in the event loop's own thread, rather than the loop's own subprocess support:
PR_SET_PDEATHSIG follows the spawning *thread*; uvloop and asyncio differ in what they pass on
(`process_group`) and both reap by themselves, after which a group id may be somebody else's. Here
the leader stays a zombie until its group is killed, so that a signal can never hit a stranger.

The kernel ends only the leader with us, and what a script or another program started would stay,
with its memory. So each of those has a guard: a shell that reads a pipe, and at its end - we are
gone, however - kills the group.

macOS has no PR_SET_PDEATHSIG: there, a child in child mode ends when its stdin closes (once it
has loaded), and the orphan sweep does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Final

from llamaswap_py.children.readiness import EXIT_COMMAND
from llamaswap_py.files import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llamaswap_py.children.readiness import Stream

_PR_SET_PDEATHSIG: Final = 1
_PIPE_SIZE: Final = 256 * 1024
_READ_SIZE: Final = 16 * 1024  # some 0.6 ms of work: a flood takes turns with everything else
# How long leftover output may keep us after the group was killed: only a process that left the
# group (its own session) can still hold the pipes then.
_DRAIN_SECONDS: Final = 0.5


class Process:
    """A spawned process and everything that must be closed after it.

    Owner: `Child.run`, which calls `watch` once and `end` in any case.
    """

    def __init__(
        self, popen: subprocess.Popen[bytes], guard: subprocess.Popen[bytes] | None = None
    ) -> None:
        self._popen = popen
        self._guard = guard
        self.pid = popen.pid
        self.sent: set[int] = set()
        """The signals that it got from us while it ran."""
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._outputs: list[_Output] = []
        self._pidfd = -1
        self._watched = False
        self._ended = False

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        control: bool,
        guarded: bool = False,
        cwd: str | None = None,
    ) -> Process:
        """Start `argv` in a session of its own; `control` keeps its stdin as a pipe.

        It is `guarded`, or a script: what it starts in turn is not left behind when we are killed.

        Raises OSError when it cannot be executed (missing, not executable, of another machine).
        """
        wrapper = _death_wrapper() if _is_native(argv[0]) else ()
        direct = not wrapper and sys.platform == "linux"
        popen = subprocess.Popen(
            [*wrapper, *argv],
            stdin=subprocess.PIPE if control else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            close_fds=True,
            start_new_session=True,
            env=dict(env),
            cwd=cwd,
            preexec_fn=_death_hook() if direct else None,  # noqa: PLW1509 (only without setpriv)
        )
        needs_guard = guarded or _begins_with(argv[0], b"#!")
        return cls(popen, _guard_of(popen.pid) if needs_guard else None)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None until `end` has reaped it."""
        return self._popen.returncode

    def watch(self, on_output: Callable[[Stream, bytes], None]) -> None:
        """Begin to read both streams and to wait for the end (`exited`)."""
        loop = asyncio.get_running_loop()
        self._watch_exit(loop)
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._outputs.append(_Output(loop, "stdout", self._popen.stdout, on_output))
        self._outputs.append(_Output(loop, "stderr", self._popen.stderr, on_output))

    def command_exit(self) -> None:
        """Write the exit command of child mode; it is read once the model has loaded."""
        if self._popen.stdin is not None and not self._popen.stdin.closed:
            with contextlib.suppress(OSError):
                os.set_blocking(self._popen.stdin.fileno(), False)
                self._popen.stdin.write(f"{EXIT_COMMAND}\n".encode())

    def close_stdin(self) -> None:
        """End the control channel: a child in child mode exits at that."""
        if self._popen.stdin is not None:
            with contextlib.suppress(OSError):
                self._popen.stdin.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, unless it is reaped."""
        if self._popen.returncode is None:
            self._note_sent(number)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill_group(self) -> None:
        """SIGKILL the process and all of its group, unless all is over."""
        if not self._ended:
            self._note_sent(signal.SIGKILL)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _note_sent(self, number: int) -> None:
        if not self.exited.done():
            self.sent.add(number)

    async def end(self) -> None:
        """Kill what is left of the group, take its last output, reap it, close everything.

        Must be shielded by the caller; a cancellation that comes through all the same only
        repeats the wait. Returns when the process is gone.
        """
        self.kill_group()
        self._watch_exit(asyncio.get_running_loop())
        while not self.exited.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self.exited])
        self.kill_group()
        closed = [output.closed for output in self._outputs]
        if closed:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(closed, timeout=_DRAIN_SECONDS)
        if self._guard is not None:  # before the group's id may be somebody else's
            self._guard.kill()
            self._guard.wait()
            assert self._guard.stdin is not None
            self._guard.stdin.close()
        self._popen.wait()
        self._ended = True
        self.close_stdin()
        for output in self._outputs:
            output.close()
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    def _watch_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Resolve `exited` when the process is a zombie, without reaping it.

        Where there is no pidfd a thread waits, and reaps at once: the group id is then safe only
        as long as somebody is in the group.
        """
        if self._watched:
            return
        self._watched = True
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except (AttributeError, OSError):  # macOS; Linux before 5.3, old sandboxes, no more files
            threading.Thread(target=self._wait_in_thread, args=(loop,), daemon=True).start()
        else:
            loop.add_reader(self._pidfd, self._on_exit)

    def _on_exit(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._set_exited()

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._set_exited)

    def _set_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)


class _Output:
    """Hand over what one stream carries; `closed` resolves at its end.

    A plain reader callback: it begins and ends at once, where a transport would have to be
    awaited, and could be cancelled in between.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        stream: Stream,
        pipe: IO[bytes],
        on_output: Callable[[Stream, bytes], None],
    ) -> None:
        self._loop = loop
        self._stream = stream
        self._pipe = pipe
        self._on_output = on_output
        self.closed: asyncio.Future[None] = loop.create_future()
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # over the user's limit of pipe memory
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        os.set_blocking(pipe.fileno(), False)
        loop.add_reader(pipe.fileno(), self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._pipe.fileno(), _READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._on_output(self._stream, data)
        else:
            self.close()

    def close(self) -> None:
        """Read no more."""
        if not self.closed.done():
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()
            self.closed.set_result(None)


def prepare_to_spawn() -> None:
    """Find out what every spawn has to know: the first request must not wait for it. Blocks."""
    _death_wrapper()
    _own_kind()


def _guard_of(group: int) -> subprocess.Popen[bytes] | None:
    """Start the guard of a process group; None where it cannot be started: the sweep remains."""
    script = 'trap "" HUP INT TERM; read -r _; kill -s KILL -- "-$0"'
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", script, str(group)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
            cwd="/",
        )
    except OSError:
        return None


def _begins_with(path: str, magic: bytes) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


@functools.cache
def _death_wrapper() -> tuple[str, ...]:
    """Return the `setpriv` words that make the kernel kill the child with us, () if not there.

    It needs no preexec_fn, so Python can spawn with vfork. busybox has a setpriv that cannot.
    """
    setpriv = shutil.which("setpriv") if sys.platform == "linux" else None
    if setpriv is None:
        return ()
    words = (setpriv, "--pdeathsig", "KILL", "--")
    try:
        tried = subprocess.run(
            [*words, setpriv, "--version"], capture_output=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return words if tried.returncode == 0 else ()


def _death_hook() -> Callable[[], None]:
    """Return the preexec_fn that does the same; everything it needs is loaded before the fork."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return die_with_parent


def _is_native(binary: str) -> bool:
    """Tell whether `binary` is a script or a program of this machine's own kind.

    Anything else is executed directly, for the kernel's own verdict: setpriv's execvp would hand
    a program of another architecture to /bin/sh.
    """
    try:
        with open_regular(binary) as file:
            head = file.read(20)
    except OSError:
        return False
    if not os.access(binary, os.X_OK):
        return False
    return head.startswith(b"#!") or (head[:4] == b"\x7fELF" and _elf_kind(head) == _own_kind())


def _elf_kind(head: bytes) -> tuple[bytes, bytes]:
    """Return class and byte order, and the machine (elf(5): e_ident[4:6], e_machine)."""
    return head[4:6], head[18:20]


@functools.cache
def _own_kind() -> tuple[bytes, bytes]:
    with open(sys.executable, "rb") as file:
        return _elf_kind(file.read(20))
