"""One operating-system process: its own group, its pipes, its end noticed and its status collected.

It is started by `subprocess.Popen` in the event loop's own thread, not by the loop's own subprocess
support, for three reasons. PR_SET_PDEATHSIG follows the spawning *thread*. uvloop and asyncio
differ in what they pass on (`process_group`). Both reap by themselves, after which another process
may have the group id; here the leader stays a zombie until its group is killed, so that a signal
can never hit a stranger.

When lswap dies, the kernel ends only the leader; the processes it started would stay, with their
memory. So it lives in a cgroup of its own (`cgroups.py`), if it can have one: a shell joins the
cgroup and becomes the program. Otherwise it has a keeper (`keeper.py`), a parent that inherits what
it starts.

macOS has neither, nor PR_SET_PDEATHSIG: there, a child in child mode ends when its stdin closes
(once it has loaded), a guard kills the group of a script or another program, and the orphan sweep
does the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Final

from llamaswap_py.children import keeper
from llamaswap_py.children.cgroups import JOIN
from llamaswap_py.children.containers import tops
from llamaswap_py.children.pidfd import open_pidfd
from llamaswap_py.llamacpp.output import EXIT_COMMAND
from llamaswap_py.storage.regular_files import open_regular

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llamaswap_py.children.cgroups import Group
    from llamaswap_py.llamacpp.output import Stream

_PIPE_SIZE: Final = 256 * 1024
_READ_SIZE: Final = 16 * 1024  # some 0.6 ms of work: a flood takes turns with everything else
# How long lswap waits for more output after the group was killed: only a process that left the
# group (its own session) can still hold the pipes then.
_DRAIN_SECONDS: Final = 0.5
_STUCK_SECONDS: Final = 5.0
_GROUP_SECONDS: Final = 2.0
"""How long the end of one child waits for the processes it started: they may hang in the kernel."""


class Process:
    """A spawned process and everything that must be closed after it.

    Owner: `Child.run`, which calls `watch` once and `end` in any case.
    """

    def __init__(
        self,
        popen: subprocess.Popen[bytes],
        guard: subprocess.Popen[bytes] | None = None,
        link: socket.socket | None = None,
        group: Group | None = None,
    ) -> None:
        self._popen = popen
        self._guard = guard
        self._link = link
        self._group = group
        self.pid = popen.pid
        self.sent: set[int] = set()
        """The signals that lswap sent it while it ran."""
        self.exited: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.oom_kills = 0
        """How many processes of its cgroup the kernel has killed because memory ran out."""
        self.killed_at: float | None = None
        self._outputs: list[Output] = []
        self._pidfd = -1
        self._watched = False
        self._ended = False
        self.left = False
        """Whether it was left behind: see `leave_if_stuck`."""

    @classmethod
    def spawn(
        cls,
        argv: Sequence[str],
        env: Mapping[str, str],
        *,
        control: bool,
        cwd: str | None = None,
        group: Group | None = None,
    ) -> Process:
        """Start `argv` in a session of its own; `control` keeps its stdin as a pipe.

        Processes that it starts do not stay behind when lswap is killed: it is in `group`, or has a
        keeper. On macOS a script, or a program with a folder of its own, has a guard. Call `begun`
        next.

        Raises OSError when it cannot be executed (missing, not executable, of another machine).
        """
        group = group if group is not None and _made(group) else None
        ours = theirs = None
        words = list(argv)
        if sys.platform == "linux" and (group is None or not _joins_by_shell(argv[0], env)):
            ours, theirs = socket.socketpair()
            words = keeper.command(theirs.fileno(), group.folders if group else (), env, argv)
        elif group is not None:
            words = ["/bin/sh", "-c", JOIN, "sh", *group.folders, "--", *_death_wrapper(), *argv]
        try:
            popen = subprocess.Popen(
                words,
                stdin=subprocess.PIPE if control else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                close_fds=True,
                pass_fds=() if theirs is None else (theirs.fileno(),),
                start_new_session=True,
                env=dict(env),
                cwd=cwd,
            )
        except BaseException:
            if ours is not None:
                ours.close()
            if group is not None:
                group.remove()
            raise
        finally:
            if theirs is not None:
                theirs.close()
        needs_guard = sys.platform != "linux" and (cwd is not None or _begins_with(argv[0], b"#!"))
        return cls(popen, _guard_of(popen.pid) if needs_guard else None, ours, group)

    async def begun(self) -> None:
        """Wait until the program runs and `pid` is its own. Raises OSError if it cannot."""
        if self._link is not None:
            self._link.setblocking(False)
            said = await asyncio.get_running_loop().sock_recv(self._link, 64)
            self.pid = keeper.pid_of(said)

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; None until `end` has reaped it."""
        return self._popen.returncode

    def roots(self) -> list[int]:
        """Return the processes that have all others of the child below them: its own comes first.

        One that detached itself has another parent: the keeper, or one outside of the cgroup.
        """
        beside: list[int] = []
        if self._link is not None:
            beside = _children_of(self._popen.pid)
        elif self._group is not None:
            beside = tops(self._group.pids())
        return [self.pid, *(pid for pid in beside if pid != self.pid)]

    def watch(self, on_output: Callable[[Stream, bytes], None]) -> None:
        """Begin to read both streams and to wait for the end (`exited`)."""
        loop = asyncio.get_running_loop()
        self._watch_exit(loop)
        assert self._popen.stdout is not None
        assert self._popen.stderr is not None
        self._outputs.append(Output(loop, "stdout", self._popen.stdout, on_output))
        self._outputs.append(Output(loop, "stderr", self._popen.stderr, on_output))

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
        if self._popen.returncode is not None:
            return
        self._record_sent(number)
        if self._link is not None:
            self._tell_keeper(number)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill_group(self) -> None:
        """SIGKILL the process and all of its group, unless all is over."""
        if self._ended:
            return
        self._record_sent(signal.SIGKILL)
        self.killed_at = self.killed_at or asyncio.get_running_loop().time()
        if self._link is not None:
            self._tell_keeper(signal.SIGKILL)
        else:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _record_sent(self, number: int) -> None:
        if not self.exited.done():
            self.sent.add(number)

    def _tell_keeper(self, number: int) -> None:
        assert self._link is not None
        with contextlib.suppress(OSError):  # it is gone
            self._link.send(bytes([number]))

    def leave_if_stuck(self) -> bool:
        """Give up waiting for it if it was killed and the kernel has not ended it for a while.

        A process in uninterruptible sleep (state D: a disk or a driver that hangs) stays. Returns
        whether it gave up now.
        """
        now = asyncio.get_running_loop().time()
        if self.left or self.killed_at is None or now - self.killed_at < _STUCK_SECONDS:
            return False
        self.left = True
        self._set_exited()
        return True

    async def close(self) -> None:
        """Kill what is left of the group, take its last output, reap it, close everything.

        The caller must shield it; a cancellation that comes through only repeats the wait.
        Returns when the process is gone.
        """
        self.kill_group()
        self._watch_exit(asyncio.get_running_loop())
        while not self.exited.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([self.exited])
        self.kill_group()
        await self._remove_group()
        closed = [output.closed for output in self._outputs]
        if closed:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait(closed, timeout=_DRAIN_SECONDS)
        if self._guard is not None:  # before another process may get the group's id
            self._guard.kill()
            self._guard.wait()
            assert self._guard.stdin is not None
            self._guard.stdin.close()
        if self.left:
            if self._pidfd >= 0:
                self._close_pidfd()
            self._popen.returncode = -signal.SIGKILL  # or Popen warns that it still runs
        self._popen.wait()
        self._ended = True
        if self._link is not None:
            self._link.close()
        self.close_stdin()
        for output in self._outputs:
            output.close()
        for pipe in (self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                pipe.close()

    async def _remove_group(self) -> None:
        """End what is left in its cgroup, and remove that."""
        group = self._group
        if group is None:
            return
        self.oom_kills = group.oom_kills()
        if not group.pids() and group.remove():
            return
        ending = asyncio.ensure_future(asyncio.to_thread(group.kill_and_remove, _GROUP_SECONDS))
        while not ending.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([ending])

    def _watch_exit(self, loop: asyncio.AbstractEventLoop) -> None:
        """Resolve `exited` when the process is a zombie, without reaping it.

        Without a pidfd a thread waits, and reaps at once: the group id is then safe only as long
        as the group has a process.
        """
        if self._watched:
            return
        self._watched = True
        if (descriptor := open_pidfd(self.pid)) is None:
            threading.Thread(target=self._wait_in_thread, args=(loop,), daemon=True).start()
        else:
            self._pidfd = descriptor
            loop.add_reader(descriptor, self._on_exit)

    def _on_exit(self) -> None:
        self._close_pidfd()
        self._set_exited()

    def _close_pidfd(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1

    def _wait_in_thread(self, loop: asyncio.AbstractEventLoop) -> None:
        self._popen.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(self._set_exited)

    def _set_exited(self) -> None:
        if not self.exited.done():
            self.exited.set_result(None)


def prepare_to_spawn() -> None:
    """Find out what every spawn needs, before the first request would wait for it. Blocks."""
    _death_wrapper()
    _own_kind()


def _children_of(pid: int) -> list[int]:
    """Return the children of a process with one thread; none where the kernel has no such file."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except (OSError, ValueError):
        return []


def _guard_of(group: int) -> subprocess.Popen[bytes] | None:
    """Start the guard of a process group; None if that fails: the orphan sweep then remains."""
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


def _made(group: Group) -> bool:
    """Make a cgroup; False if that fails: the child then gets a keeper."""
    try:
        group.make()
    except OSError:
        group.remove()
        return False
    return True


def _joins_by_shell(binary: str, env: Mapping[str, str]) -> bool:
    """Tell whether /bin/sh can start it: a shell drops variables whose names it does not allow."""
    return _is_native(binary) and all(name.isidentifier() and name.isascii() for name in env)


def _begins_with(path: str, magic: bytes) -> bool:
    try:
        with open_regular(path) as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


@functools.cache
def _death_wrapper() -> tuple[str, ...]:
    """Return the `setpriv` words that make the kernel kill the child with lswap; () without it.

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


def _is_native(binary: str) -> bool:
    """Tell whether `binary` is a script or a program of this machine's own kind.

    Anything else is executed directly, so that the kernel itself refuses it: setpriv's execvp
    would hand a program of another architecture to /bin/sh.
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


class Output:
    """One stream that a process writes, handed over as it comes; `closed` resolves at its end.

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
            with contextlib.suppress(OSError):  # beyond the user's limit of pipe memory
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
