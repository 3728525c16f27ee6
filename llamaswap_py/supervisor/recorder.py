"""Records the scheduler's events and actions in a file (`lswap up --record FILE`).

A recorder stands before the scheduler and passes everything on, so a run without a record has no
cost. Lines are made at once, to keep their order. A thread writes them, so a disk that hangs does
not delay requests. If a record cannot be written, it ends, and lswap goes on.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from llamaswap_py import __version__
from llamaswap_py.errors import StateError
from llamaswap_py.proxy.principals import is_key
from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Grant
from llamaswap_py.scheduler.recording import (
    BEGINNING,
    Hiding,
    RecordHead,
    encode_end,
    encode_head,
    encode_step,
)
from llamaswap_py.scheduler.state import Instance
from llamaswap_py.scheduler.types import Pool, PoolId, PresetPlan
from llamaswap_py.storage.regular_files import read_regular
from llamaswap_py.tasks import guard
from llamaswap_py.units import MIB, format_size, is_utf8

MOST: Final = 256 * MIB
"""A record that has grown to this ends: half a million requests, or some days of none."""
_WAITING: Final = 16 * MIB
"""Bytes that may wait for the disk."""
_LAST_LINES: Final = 1.0
"""Seconds that the last lines may take to be written."""
_log: Final = logging.getLogger("lswap")


class Decider(Protocol):
    """An object that takes events and decides: the scheduler, or a recorder before it."""

    def handle(self, event: ev.Event, now: float) -> list[Action]: ...
    def begun(self) -> list[Action]: ...
    def grant_at_once(self, event: ev.RequestArrived, now: float) -> Instance | None: ...
    def finish_at_once(self, event: ev.RequestFinished, now: float) -> bool: ...


class RunRecord:
    """A new file of mode 0600 for one record; a thread writes it. Use as a context manager.

    Raises StateError if the file cannot be made. A record that is there becomes FILE.1; any other
    file is left alone. `redact` takes secrets out of texts; `commit` is this lswap's.
    """

    def __init__(
        self,
        path: Path,
        redact: Callable[[str], str] = str,
        *,
        commit: str | None = None,
        most: int = MOST,
    ) -> None:
        self.path = path
        self.commit = commit
        self.hiding = Hiding(_Replacements().name, lambda text: _as_utf8(redact(text)))
        self.ended = False
        self.number = 1
        """Of the next line."""
        self._most = most
        self._taken = self._written = 0
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._fd = _open_new(path)
        self._thread = threading.Thread(target=self._work, name="lswap-record", daemon=True)
        self._thread.start()

    def __enter__(self) -> RunRecord:
        return self

    def __exit__(self, *_: object) -> None:
        """Write the end, and wait a moment for the last lines."""
        if not self.ended:
            self._take(encode_end(self.number, "lswap ended"))
        self.ended = True
        self._lines.put(None)
        self._thread.join(_LAST_LINES)

    def write(self, line: bytes) -> None:
        """Take a line, which is written soon; a record that is too long ends with it."""
        if self.ended:
            return
        if self._taken - self._written > _WAITING:
            self.stop("the disk is too slow")
            return
        self._take(line)
        if self._taken >= self._most:
            self.stop(f"it has grown to {format_size(self._most)}")

    def stop(self, why: str) -> None:
        """Write why the record ends before lswap does, and take no more lines."""
        self._take(encode_end(self.number, why))
        self.ended = True
        _log.warning("the record %s ends here, and lswap goes on: %s", self.path, why)

    def _take(self, line: bytes) -> None:
        self.number += 1
        self._taken += len(line)
        self._lines.put(line)

    def _work(self) -> None:
        try:
            while lines := self._next():
                data = memoryview(b"".join(lines))
                while data:
                    size = os.write(self._fd, data)
                    data = data[size:]
                    self._written += size
        except OSError as error:
            self.ended = True
            text = "the record %s ends here, and lswap goes on: %s"
            _log.warning(text, self.path, error.strerror)
        finally:
            os.close(self._fd)

    def _next(self) -> list[bytes]:
        """Wait for lines, and return all that there are; none at the end."""
        if (first := self._lines.get()) is None:
            return []
        lines = [first]
        with suppress(queue.Empty):
            while (line := self._lines.get_nowait()) is not None:
                lines.append(line)
            self._lines.put(None)
        return lines


class Recorder:
    """Passes events on to a scheduler, and writes down what it answers.

    The scheduler was just made of `plans` and `pools`.
    """

    def __init__(
        self,
        record: RunRecord,
        scheduler: Scheduler,
        plans: Iterable[PresetPlan],
        pools: Mapping[PoolId, Pool],
    ) -> None:
        self._record = record
        self._scheduler = scheduler
        head = RecordHead(
            lswap=__version__,
            commit=record.commit,
            at=time.time(),
            began=time.monotonic(),
            plans=tuple(plans),
            pools=dict(pools),
            policy=scheduler.policy,
        )
        record.write(encode_head(head, record.hiding))
        _log.info("what the scheduler is told and decides is recorded in %s", record.path)

    def handle(self, event: ev.Event, now: float) -> list[Action]:
        """Have the scheduler handle an event, and write both down."""
        try:
            actions = self._scheduler.handle(event, now)
        except Exception as error:
            self._write_step(event, now, self._scheduler.begun(), raised=type(error).__name__)
            raise
        self._write_step(event, now, actions)
        return actions

    def begun(self) -> list[Action]:
        """Return the actions that the last event had come to, where `handle` raised."""
        return self._scheduler.begun()

    def grant_at_once(self, event: ev.RequestArrived, now: float) -> Instance | None:
        """Have the scheduler grant a request at once, and write it down if it does."""
        try:
            instance = self._scheduler.grant_at_once(event, now)
        except Exception as error:
            self._write_step(event, now, (), at_once=True, raised=type(error).__name__)
            raise
        if instance is not None:
            self._write_step(event, now, (Grant(event.request, instance.key),), at_once=True)
        return instance

    def finish_at_once(self, event: ev.RequestFinished, now: float) -> bool:
        """Have the scheduler end a lease at once, and write it down if it does."""
        done = self._scheduler.finish_at_once(event, now)
        if done:
            self._write_step(event, now, ())  # as if `handle` had returned no action
        return done

    def _write_step(
        self,
        event: ev.Event,
        now: float,
        actions: Sequence[Action],
        *,
        at_once: bool = False,
        raised: str = "",
    ) -> None:
        record = self._record
        if record.ended:
            return
        try:
            line = encode_step(
                *(record.number, event, now, actions, record.hiding),
                at_once=at_once,
                raised=raised,
            )
        except Exception as error:  # the event itself must not be lost for it
            guard.report("record", error)
            record.stop("an event could not be written down")
        else:
            record.write(line)


class _Replacements:
    """What names of requests and clients, and fingerprints, are replaced by.

    The key exists only in this process, so that an address cannot be found out by trying later.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(16)

    def name(self, kind: str, value: str) -> str:
        """Return the replacement; its first letter says what it is: key, address, request, …"""
        letter = "k" if is_key(value) else "a" if kind == "client" else kind[0]
        digest = hashlib.blake2b(value.encode(errors="replace"), key=self._key, digest_size=6)
        return f"{letter}-{digest.hexdigest()}"


def _as_utf8(text: str) -> str:
    """Return a text without what JSON cannot hold: bytes of a file's name that are not UTF-8."""
    return text if is_utf8(text) else text.encode(errors="replace").decode()


def _open_new(path: Path) -> int:
    """Return a new file, open for writing; a record in its place is kept as FILE.1."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
    try:
        if os.path.lexists(path):
            _set_aside(path)
        return os.open(path, flags, 0o600)
    except OSError as error:
        message = f"the record {path} cannot be written: {error.strerror}"
        raise StateError(message, remedy="name another file after --record") from None


def _set_aside(path: Path) -> None:
    first = read_regular(path, len(BEGINNING))
    if first not in (b"", BEGINNING):
        raise StateError(
            f"{path} is there, and is not a record that lswap has written",
            remedy="name another file after --record",
        )
    os.replace(path, path.with_name(f"{path.name}.1"))
