"""The life of one child: spawn, loading, ready, stop, exit - told as events.

`ask_to_exit` says in which order it gets the exit command and the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from llamaswap_py.children.child_events import (
    ChildEnding,
    ChildExited,
    ChildHung,
    ChildLost,
    ChildOutlived,
    ChildSlept,
    ChildSpawned,
    ChildStopFailed,
    ChildWoke,
)
from llamaswap_py.children.environment import child_env
from llamaswap_py.children.holders import port_watch
from llamaswap_py.children.loading import Load
from llamaswap_py.children.logs import LogFile
from llamaswap_py.children.outside import OutsideSearch
from llamaswap_py.children.process import Process
from llamaswap_py.children.program import (
    ProgramLines,
    ProgramLoad,
    accepts,
    choose_endpoint,
    run_stop,
    told,
)
from llamaswap_py.children.watchdog import watch_child
from llamaswap_py.llamacpp.command_line import listen_words
from llamaswap_py.llamacpp.failures import Failure, FailureKind, classify
from llamaswap_py.llamacpp.memory_settings import rpc_endpoints
from llamaswap_py.llamacpp.output import (
    EndingSign,
    LineSplitter,
    ListeningSign,
    LoadingSign,
    OutputLine,
    Readiness,
    ReadySign,
    SleepingSign,
)
from llamaswap_py.redaction import Redactor, hide, redact_args
from llamaswap_py.tasks import guard
from llamaswap_py.units import showable

if TYPE_CHECKING:
    from collections.abc import Callable

    from llamaswap_py.children.child_events import ChildEvent, ChildSpec, Program
    from llamaswap_py.children.liveness import ChildRequests
    from llamaswap_py.children.logs import ChildLog
    from llamaswap_py.endpoint import Endpoint
    from llamaswap_py.llamacpp.output import Sign, Stream


# A SIGTERM that comes between "listening on" and the main loop is lost (b11434: the handler's
# terminate() is undone by start_loop()), and so is an exit command. In child mode the repeat is
# the first SIGTERM and does no harm. Elsewhere the second SIGTERM ends the process at once, and
# must not cut off an exit that has begun without a log line.
_REPEAT_SECONDS: Final = 0.25
_REPEAT_SECONDS_CHILD_MODE: Final = 0.05
_CLOSE_SECONDS: Final = 0.75


async def ask_to_exit(
    process: Process, patience: float, child_mode: bool, ends: Callable[[], bool]
) -> None:
    """Repeat the first step of a stop for up to `patience`; `ends`: its log says that it exits."""
    repeat = _REPEAT_SECONDS_CHILD_MODE if child_mode else _REPEAT_SECONDS
    first, second = min(repeat, patience / 4), min(_CLOSE_SECONDS, patience / 4)
    await asyncio.sleep(first)
    if not ends():
        process.command_exit()
        process.signal(signal.SIGTERM)
    await asyncio.sleep(second)
    process.close_stdin()
    if not ends():
        process.signal(signal.SIGTERM)
    await asyncio.sleep(patience - first - second)


_WAKE_STALLS: Final = 4  # a waking child reports no progress: wait longer
_TAIL_KEPT: Final = 200  # lines for finding the cause
_TAIL_TOLD: Final = 40  # lines in ChildExited
_TAIL_LINE: Final = 2000  # characters of each
_LLAMA_SERVER: Final = "llama-server"


class Child:
    """One llama-server. `run` is its life; `stop` and `kill` may be called at any time.

    Every event goes to `on_event`, in order, from the event loop; `ChildExited` is the last one
    and also what `run` returns. `logs` receives every line, and stays open afterwards. `requests`
    returns the open requests: a child that owes answers and shows no sign of life counts as hung.
    """

    def __init__(
        self,
        spec: ChildSpec,
        on_event: Callable[[ChildEvent], None],
        logs: ChildLog,
        requests: Callable[[], ChildRequests] | None = None,
    ) -> None:
        self.spec = spec
        self._emit = on_event
        self._logs = logs
        self._requests = requests
        self._lines = 0
        self._readiness = (
            Readiness(child_mode=spec.child_mode)
            if spec.program is None
            else ProgramLines(spec.program)
        )
        self._splitters: dict[Stream, LineSplitter] = {
            "stdout": LineSplitter(),
            "stderr": LineSplitter(),
        }
        self._tail: deque[str] = deque(maxlen=_TAIL_KEPT)
        self._file = LogFile(spec.log_path, spec.log_rotate) if spec.log_path else None
        self._redact = Redactor({**os.environ, **spec.env}, spec.written)
        self.process: Process | None = None
        self._load: Load | None = None
        self._stopping = asyncio.Event()
        self._waking = asyncio.Event()
        self._asleep = False
        self._endpoint: Endpoint | None = None
        self._watched = port_watch(spec, lambda: self._living, self._port_taken)
        self._taken: Failure | None = None
        self._stop_command: asyncio.Task[bool] | None = None
        self._stalled = False
        self._ending = False
        self._unasked = False
        self.search: OutsideSearch | None = None
        """Finds what serves for a program outside of its processes, if `served_by` allows that."""
        self._left_alone = asyncio.Event()

    def __repr__(self) -> str:
        state = "stopping" if self._stopping.is_set() else "running"
        return f"<Child {self.spec.name} pid={self.pid} {state}>"

    @property
    def pid(self) -> int | None:
        """The process id, None before it is spawned."""
        return self.process.pid if self.process else None

    async def run(self) -> ChildExited:
        """Spawn the child and follow it to its end.

        Cancelled, it kills the process group, reaps, and raises the cancellation again without
        any further event. A program that cannot be executed is an exit with a failure.
        """
        if self._stopping.is_set():
            return self._finish(None, None)
        try:
            self.process = process = self._spawn()
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in an argument
            return self._finish(self._cannot_run(error), None)
        failure = None
        try:
            failure = await self._begin(process)
            if failure is None:
                await self._live(process)
        finally:
            with anyio.CancelScope(shield=True):
                lives_on = await self._clean_up(process)
        if lives_on:
            await self._wait_for_outlived(lives_on)
        return self._finish(failure, None if failure else process.returncode)

    async def _begin(self, process: Process) -> Failure | None:
        try:
            await process.begun()
        except OSError as error:
            return self._cannot_run(error)
        if self.search is not None:
            self.search.begin(process.pid)
        self._emit(ChildSpawned(process.pid))
        if self._file is not None:  # it may hold several lives of a model
            words = (self.spec.binary, *self.spec.args)
            command = shlex.join(redact_args(words, self.spec.written))
            self._file.write(f"[{self.spec.name} pid {process.pid}: {command}]\n".encode())
        return None

    async def _live(self, process: Process) -> None:
        process.watch(self._read)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._become_ready_and_serve)
            tasks.start_soon(self._stop_when_asked)
            tasks.start_soon(guard.keep_going, "wake", self._wake_when_asked)
            if self._file is not None:
                write = partial(self._file.run, self._logs)
                tasks.start_soon(guard.keep_going, "log file", write)
            await process.exited
            self._emit_unless_stopping(ChildLost())
            tasks.cancel_scope.cancel()

    def stop(self, *, unasked: bool = False) -> None:
        """Begin the stop recipe; a second call changes nothing.

        `unasked`: the child ends by itself, and this only hastens it; its exit counts as a failure.

        In child mode it gets the exit command on stdin, once more together with SIGTERM, then end
        of file. While it loads it does not read stdin, so it gets SIGTERM at once as well. Other
        children get SIGTERM, twice, or their own `stop` command. After `stop_timeout` the whole
        group gets SIGKILL. Open requests delay an exit up to that: drain first.
        """
        if self._stopping.is_set():
            return
        self._unasked = unasked
        self._begin_stop()
        if self.process is not None:
            self._ask_to_stop(self.process)

    def wake(self) -> None:
        """End a sleep: `ChildWoke` follows once the model is back in memory."""
        self._waking.set()

    def leave(self) -> bool:
        """Stop waiting for what outlives the program; return whether it was waiting for that."""
        waits = self.search is not None and self.process is not None and self._living is None
        self._left_alone.set()
        return waits

    def kill(self) -> None:
        """SIGKILL the whole process group now."""
        self._begin_stop()
        if self.process is not None:
            self.process.kill_group()

    def _begin_stop(self) -> None:
        if not self._stopping.is_set():
            self._stalled = self._load is not None and self._load.stalled
            self._stopping.set()

    def _cannot_run(self, error: OSError | ValueError) -> Failure:
        reason = getattr(error, "strerror", None) or str(error)
        binary = hide(self.spec.binary, self.spec.written)
        return Failure(FailureKind.ENGINE, f"cannot run {binary}: {reason}")

    def _spawn(self) -> Process:
        spec = self.spec
        if spec.socket_path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(spec.socket_path)
        if spec.program is not None:
            return self._spawn_program(spec, spec.program)
        self._load = Load(spec, self._emit_unless_stopping, self._watched)
        argv = (spec.binary, *spec.args, *listen_words(spec.socket_path))
        env = child_env(os.environ, spec)
        return Process.spawn(argv, env, control=spec.child_mode, group=spec.group)

    def _spawn_program(self, spec: ChildSpec, program: Program) -> Process:
        self._endpoint = endpoint = choose_endpoint(spec)
        argv = told((spec.binary, *spec.args), endpoint)
        if program.served_by != "cmd":
            self.search = OutsideSearch(spec, argv)
        self._load = ProgramLoad(spec, self._watched(endpoint), self._emit_unless_stopping)
        env = child_env(os.environ, spec)
        return Process.spawn(argv, env, control=False, cwd=program.cwd, group=spec.group)

    @property
    def _living(self) -> int | None:
        """The process id until it is reaped: afterwards another process may have it."""
        process = self.process
        return process.pid if process is not None and process.returncode is None else None

    def _port_taken(self, text: str) -> None:
        """End the child: another process has its port, and must not get any request."""
        process = self.process if self._living is not None else None
        if self._taken is None and not self._stopping.is_set() and process is not None:
            self._taken = Failure(FailureKind.PORT, text)
            self._append(f"[{self.spec.name}: {text}]")
            process.kill_group()

    def _emit_unless_stopping(self, event: ChildEvent) -> None:
        """Pass on the events of the load; after a stop has begun, only the exit matters."""
        if not self._stopping.is_set():
            self._emit(event)

    async def _become_ready_and_serve(self) -> None:
        load, process, patience = self._load, self.process, self.spec.liveness
        assert load is not None
        assert process is not None
        endpoint = await load.run(process.pid)
        if self._requests is None or patience is None:
            return
        lines, foreign = lambda: self._lines, self.spec.program is not None
        asked = (process.pid, endpoint, patience, self._requests, lines)
        self._emit_unless_stopping(ChildHung(await watch_child(*asked, program=foreign)))

    async def _wake_when_asked(self) -> None:
        """Ask for /slots: the only cheap request that wakes a sleeping llama-server (b11434)."""
        while True:
            await self._waking.wait()
            self._waking.clear()
            assert self._load is not None
            try:
                await self._load.ask("/slots", _WAKE_STALLS * self.spec.load_stall)
            except OSError:  # if it has died, `ChildExited` says so
                self._emit_unless_stopping(ChildHung("it was woken and did not serve again"))

    async def _stop_when_asked(self) -> None:
        await self._stopping.wait()
        process, patience = self.process, self.spec.stop_timeout
        assert process is not None
        if self.spec.program is not None:  # a second SIGTERM may make it skip its clean-up
            with anyio.move_on_after(patience):
                if self.spec.program.stop and not await self._run_stop_command(process):
                    process.signal(signal.SIGTERM)
                await anyio.sleep_forever()
            self._give_up(process)
            return
        await ask_to_exit(process, patience, self.spec.child_mode, lambda: self._ending)
        self._give_up(process)

    async def _run_stop_command(self, process: Process) -> bool:
        """Run the command that stops a program, once; tell whether it ended well."""
        if self._stop_command is None:
            self._stop_command = asyncio.create_task(self._stopped_by_command(process.pid))
        return await asyncio.shield(self._stop_command)

    async def _stopped_by_command(self, pid: int) -> bool:
        program, endpoint = self.spec.program, self._endpoint
        assert program is not None
        assert endpoint is not None
        env, patience = child_env(os.environ, self.spec), self.spec.stop_timeout
        failure = await asyncio.to_thread(run_stop, program, endpoint, pid, env, patience)
        if failure:
            self._say_stop_failed(f"stop_cmd failed: {failure}")
        return not failure

    def _give_up(self, process: Process) -> None:
        self._append(f"[{self.spec.name} did not stop within {self.spec.stop_timeout:g} s: killed]")
        process.kill_group()

    def _ask_to_stop(self, process: Process) -> None:
        if self.spec.program is not None and self.spec.program.stop:
            return  # its own command stops it: see _stop_when_asked()
        if self.spec.child_mode:
            process.command_exit()
        if not (self.spec.child_mode and self._load is not None and self._load.said_ready):
            process.signal(signal.SIGTERM)

    def _read(self, stream: Stream, data: bytes) -> None:
        self._take(stream, self._splitters[stream].feed(data))

    def _take(self, stream: Stream, lines: list[str]) -> None:
        for line in lines:
            if self._file is not None:
                self._file.write(f"{self._redact(line)}\n".encode())
            for sign in self._readiness.feed(stream, line):
                self._heed(sign)

    def _heed(self, sign: Sign) -> None:
        load = self._load
        assert load is not None
        match sign:
            case OutputLine(text):
                self._append(text)
                load.heard()
            case LoadingSign(fraction, stage):
                load.reported(fraction, stage)
            case ListeningSign(endpoint):
                load.listening(endpoint)
            case ReadySign(payload) if self._asleep:
                self._asleep = False
                self._emit_unless_stopping(ChildWoke())
            case ReadySign(payload):
                load.ready(payload)
            case SleepingSign():
                self._asleep = True
                self._emit_unless_stopping(ChildSlept())
            case EndingSign():
                self._ending = True
                self._emit_unless_stopping(ChildEnding())

    def _append(self, text: str) -> None:
        self._lines += 1
        text = showable(self._redact(text))
        self._tail.append(text[:_TAIL_LINE])
        self._logs.append(text)

    async def _clean_up(self, process: Process) -> str:
        """End all that is left, and close everything; return in words what still runs, else ""."""
        program = self.spec.program
        asked = self._stopping.is_set() or not process.exited.done() or self._taken is not None
        was_told = process.killed_at is not None
        if self.search is not None:
            with guard.reporting("container"):
                await self.search.look(self._endpoint)
        await process.close()
        # What it started may outlive it: after a stop that was asked for, that is ended, too.
        if program is not None and program.stop and asked:
            was_told = await self._run_stop_command(process) or was_told
        ours = program is not None and asked and self._taken is None
        if ours and self._endpoint and await accepts(self._endpoint):
            outlived = (
                f"cmd has ended, but {self._endpoint} still answers: what cmd started runs on"
            )
            text = f"{outlived} - write a stop_cmd that ends it"
            if self.search is None:
                self._say_stop_failed(text)
            else:  # it is ended next
                self._say(text)
        lives_on = ""
        if self.search is not None and self._taken is None:
            with guard.reporting("container"):
                patience = self.spec.stop_timeout
                lives_on = await self.search.end(patience, told=was_told, say=self._say)
                if not lives_on:
                    await self.search.tidy()
        for stream, splitter in self._splitters.items():
            self._take(stream, splitter.close())
        if self._file is not None:
            with anyio.move_on_after(2):
                await self._file.flush(self._logs)
        if self.spec.socket_path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.spec.socket_path)
        return lives_on

    def _say(self, text: str) -> None:
        self._append(f"[{self.spec.name}: {text}]")

    def _say_stop_failed(self, text: str) -> None:
        self._say(text)
        self._emit(ChildStopFailed(showable(self._redact(text))[:_TAIL_LINE]))

    async def _wait_for_outlived(self, what: str) -> None:
        """Wait until a container that lswap cannot end is gone, or until lswap stops.

        Until then it holds its memory and its name, so the next load would fail.
        """
        assert self.search is not None
        stop = self.spec.program is not None and self.spec.program.stop
        how = "mend its stop_cmd" if stop else "write a stop_cmd that ends it"
        text = f"{what} still runs, and lswap cannot end it - end it by hand, and {how}"
        self._say(text)
        self._emit(ChildOutlived(text))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._until_gone, tasks.cancel_scope)
            await self._left_alone.wait()
            tasks.cancel_scope.cancel()

    async def _until_gone(self, scope: anyio.CancelScope) -> None:
        assert self.search is not None
        await self.search.gone()
        scope.cancel()

    def _finish(self, failure: Failure | None, returncode: int | None) -> ChildExited:
        """Emit and return the exit; without a known failure, find its cause by `returncode`."""
        code = number = None
        if returncode is not None:
            code, number = (returncode, None) if returncode >= 0 else (None, -returncode)
            asked = self._stopping.is_set() and not self._ended_by_itself(number)
            wall = self.process is not None and self.process.oom_kills > 0
            failure = classify(
                *(code, number, self._tail),
                asked=asked,
                stalled=self._stalled,
                oom_killed=wall,
                rpc=rpc_endpoints(self.spec.args),
            )
            if self._taken is not None:  # a stop may have begun after that
                failure = self._taken
            elif failure is not None and self.spec.program is not None:
                named = failure.summary.replace(_LLAMA_SERVER, os.path.basename(self.spec.binary))
                failure = Failure(failure.kind, named)
        event = ChildExited(code, number, failure, tuple(self._tail)[-_TAIL_TOLD:])
        self._emit(event)
        return event

    def _ended_by_itself(self, number: int | None) -> bool:
        """Tell whether signal `number` ended it, although the stop did not send that signal."""
        if number is None:
            return self._unasked
        process, by_command = self.process, self._stop_command is not None
        return process is not None and number not in process.sent and not by_command
