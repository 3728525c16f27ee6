"""The keeper: a small process between lswap and a child without a cgroup.

It makes sure that no process which the child started stays behind. It is a subreaper (prctl(2),
PR_SET_CHILD_SUBREAPER), so such processes stay below it, in any session, even after their own
parent has ended. It ends them all when the child has ended, when lswap asks for it, and when lswap
itself has ended. Its exit status is the child's.

Over the link, a socket, lswap sends signal numbers, one byte each; SIGKILL is for all processes.
The keeper answers with the child's pid, or with the error number if the child cannot be executed.
This file runs as a script that needs only the standard library: see `command`.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_CHANGED = (*_IGNORED, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)
"""Signals that are reset to their defaults for the child; Python itself changes the last two."""
_FIRST_PAUSE = 0.002
_LONGEST_PAUSE = 0.5


def command(
    link: int, groups: Iterable[str], env: Mapping[str, str], argv: Sequence[str]
) -> list[str]:
    """Return the command of a keeper that joins the cgroups `groups` and runs `argv`.

    `link` is the descriptor of its link.
    """
    known = "1" if "LC_CTYPE" in env else "0"  # in the C locale Python sets LC_CTYPE (PEP 538)
    words = [sys.executable, "-I", "-S", __file__, str(link), known]
    return [*words, *groups, "--", *argv]


def pid_of(said: bytes) -> int:
    """Return the pid that a keeper has sent. Raises OSError if it sent an error number."""
    words = said.split()
    if len(words) != 2:
        raise OSError(0, "its keeper has ended")
    if words[0] == b"error":
        raise OSError(int(words[1]), os.strerror(int(words[1])))
    return int(words[1])


class _Keeper:
    def __init__(self, link: int) -> None:
        import ctypes  # noqa: PLC0415 - lswap itself imports this file

        self._link = link
        self._prctl = ctypes.CDLL(None).prctl
        self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._pid = 0
        self._status: int | None = None

    def run(self, groups: list[str], argv: list[str]) -> int:
        """Start the child, and return its wait status when all of its processes have ended."""
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        os.set_inheritable(self._link, False)
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        error = self._start(groups, argv)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):  # only the child keeps these
            os.dup2(nothing, descriptor)
        said = f"error {error}\n" if error else f"pid {self._pid}\n"
        with contextlib.suppress(OSError):
            os.write(self._link, said.encode())
        while self._status is None:
            ready, _, _ = select.select([self._link, woken], [], [])
            if woken in ready:
                os.read(woken, 4096)
                self._reap()
            if self._link in ready and not self._heed():
                break
        self._kill_all()
        return self._status or 0

    def _start(self, groups: list[str], argv: list[str]) -> int:
        """Fork and execute the child; return the error number, 0 if it runs."""
        heard, told = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            try:
                os.setsid()
                self._prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
                for number in _CHANGED:
                    signal.signal(number, signal.SIG_DFL)
                for folder in groups:
                    with open(os.path.join(folder, "cgroup.procs"), "w") as file:
                        file.write("0")
                os.execvp(argv[0], argv)
            except OSError as error:
                os.write(told, str(error.errno).encode())
            os._exit(127)
        os.close(told)
        return int(os.read(heard, 16) or b"0")

    def _heed(self) -> bool:
        """Pass on the signals from the link; return False if all processes have to end."""
        try:
            numbers = os.read(self._link, 64)
        except OSError:
            numbers = b""
        if not numbers or signal.SIGKILL in numbers:
            return False
        self._reap()  # before that, so that no signal goes to a new process with the child's pid
        for one in numbers if self._status is None else b"":
            os.kill(self._pid, one)
        return True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._pid:
                    self._status = ended[1]

    def _is_dying(self) -> bool:
        """Return whether the child is a zombie that cannot be reaped yet: its threads still end."""
        return self._status is None and _stat(self._pid)[2] in (b"Z", b"X")

    def _kill_all(self) -> None:
        """Kill all processes below this one, again and again until none is left.

        SIGSTOP comes before SIGKILL, because a stopped process cannot start another.
        """
        pause = _FIRST_PAUSE
        while True:
            stopped: dict[int, bytes] = {}
            while new := {k: v for k, v in _descendants().items() if k not in stopped}:
                stopped |= {pid: at for pid, at in new.items() if _send(pid, at, signal.SIGSTOP)}
                if not new.keys() & stopped.keys():
                    break  # the rest belongs to another user
            for pid, at in stopped.items():
                _send(pid, at, signal.SIGKILL)
            self._reap()
            if not stopped and not self._is_dying():
                return
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _descendants() -> dict[int, bytes]:
    """Return the pids of running processes below this one, each with its start time."""
    found = {int(name): _stat(name) for name in os.listdir("/proc") if name.isdigit()}
    below = {os.getpid()}
    grown = 0
    while len(below) != grown:
        grown = len(below)
        below |= {pid for pid, (parent, _, _) in found.items() if parent in below}
    below.remove(os.getpid())
    return {pid: found[pid][1] for pid in below if found[pid][2] not in (b"Z", b"X")}


def _stat(pid: int | str) -> tuple[int, bytes, bytes]:
    """Return parent, start time and state of a process; see proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return int(fields[1]), fields[19], fields[0]
    except (OSError, IndexError, ValueError):
        return -1, b"", b"X"


def _send(pid: int, started: bytes, number: int) -> bool:
    """Signal a process, unless its pid has been reused; return False if that is forbidden."""
    descriptor = -1
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # Linux before 5.3, no more files
            descriptor = os.pidfd_open(pid)
    try:
        if _stat(pid)[1] != started:
            return True
        if sys.platform == "linux" and descriptor >= 0:
            signal.pidfd_send_signal(descriptor, number)
        else:
            os.kill(pid, number)
    except PermissionError:
        return False
    except OSError:
        pass
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return True


def _main() -> None:
    link, known, *rest = sys.argv[1:]
    at = rest.index("--")
    if known == "0":
        os.environ.pop("LC_CTYPE", None)
    status = _Keeper(int(link)).run(rest[:at], rest[at + 1 :])
    if os.WIFSIGNALED(status):
        import resource  # noqa: PLC0415 - seldom

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with contextlib.suppress(OSError):
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    _main()
