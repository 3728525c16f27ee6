"""The event log: numbered records of all that happens; any number of readers may follow it.

A record costs one append. A reader that falls behind is dropped, with a last record that says so,
so that it never delays the others.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final

import msgspec

from llamaswap_py.scheduler import Scheduler
from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Action, Download, Grant, Kill, Note, Stop
from llamaswap_py.scheduler.types import Decision
from llamaswap_py.snapshot import DecisionView

_log: Final = logging.getLogger("lswap")
_OF_REQUESTS: Final = frozenset((ev.RequestArrived, ev.RequestFinished))
KEPT: Final = 2_000
_BEHIND: Final = 1_000
"""Records that a reader may lag behind."""
# Kinds of decisions -> the state they bring a model to, in the words of snapshot.ModelView.
_STATES: Final = {
    "download": "downloading",
    "load": "loading",
    "ready": "ready",
    "sleep": "sleeping",
    "wake": "loading",
    "drain": "draining",
    "reopened": "ready",
    "stop": "stopping",
    "gone": "unloaded",
    "failed": "failed",
}


class EventRecord(msgspec.Struct, frozen=True):
    """One thing that happened. `id` grows by one each time; `at` is Unix time.

    `event` is `decision` (a DecisionView), `state` (model, epoch, state, reason), `progress`
    (model, epoch, fraction), `request` (one that has ended: id, model, client, route, status,
    seconds), `reload`, or `dropped` (the reader was too slow: this is the last it gets).
    """

    id: int
    at: float
    event: str
    data: Any


class EventLog:
    """The newest records, and their readers."""

    def __init__(self, kept: int = KEPT) -> None:
        self._records: deque[EventRecord] = deque(maxlen=kept)
        self._readers: set[_Reader] = set()
        self._next = 1
        self.stops: Counter[str] = Counter()
        """How many children were stopped, by reason."""
        self.failures: Counter[str] = Counter()
        """How many loads, children and downloads failed, by class."""

    @property
    def followed(self) -> bool:
        """Whether anybody follows."""
        return bool(self._readers)

    @property
    def first(self) -> int:
        """The id of the oldest record that is kept."""
        return self._records[0].id if self._records else self._next

    @property
    def last(self) -> int:
        """The id of the newest record, 0 before the first."""
        return self._next - 1

    def since(self, after: int) -> list[EventRecord]:
        """Return the records that are kept after id `after`."""
        return [record for record in self._records if record.id > after]

    def publish(self, event: str, data: Any) -> None:
        """Add a record."""
        record = EventRecord(self._next, time.time(), event, data)
        self._next += 1
        self._records.append(record)
        for reader in self._readers:
            reader.take(record)

    def record(self, event: ev.Event, actions: Sequence[Action]) -> None:
        """Add what an event of the scheduler and its actions came to."""
        if type(event) in _OF_REQUESTS and (
            not actions or (len(actions) == 1 and type(actions[0]) is Grant)
        ):
            return  # the path of every request
        if isinstance(event, ev.InstanceProgressed):
            if event.fraction is not None:
                key = event.instance
                data = {"model": key.preset, "epoch": key.epoch, "fraction": event.fraction}
                self.publish("progress", data)
        elif isinstance(event, ev.DownloadProgressed):
            told = {"model": event.preset, "fraction": event.fraction, "total": event.total}
            self.publish("progress", told)
        elif isinstance(event, ev.DownloadFinished | ev.DownloadFailed):
            failed = isinstance(event, ev.DownloadFailed)
            self.publish("download", {"model": event.preset, "ok": not failed})
        elif isinstance(event, ev.InstanceWoke):
            self._state(event.instance.preset, event.instance.epoch, "ready", "it woke")
        if isinstance(event, ev.InstanceExited | ev.DownloadFailed) and event.failure is not None:
            self.failures[event.failure.kind] += 1
        request = None
        if isinstance(event, ev.RequestArrived):
            request = event.request.rpartition("/")[0]  # as its client knows it
        for action in actions:
            if isinstance(action, Stop | Kill):
                self.stops[action.reason.value] += 1
            elif isinstance(action, Note):
                self._decided(action.decision, request)
            elif isinstance(action, Download):
                self._state(action.preset, None, "downloading", "its files are fetched")

    def _decided(self, decision: Decision, request: str | None) -> None:
        log_decision(decision, request)
        self.publish("decision", decision_view(decision))
        if (state := _STATES.get(decision.kind)) is not None:
            self._state(decision.preset, decision.epoch, state, decision.reason)

    def _state(self, model: str, epoch: int | None, state: str, reason: str) -> None:
        data = {"model": model, "epoch": epoch, "state": state, "reason": reason}
        self.publish("state", data)

    async def follow(self, after: int | None = None) -> AsyncGenerator[EventRecord, None]:
        """Yield the records after id `after` (None: only new ones), then each as it comes.

        Ends after a record `dropped`, when the reader was too slow.
        """
        reader = _Reader()
        if after is not None:
            for record in self.since(after):
                reader.take(record)
        self._readers.add(reader)
        try:
            while True:
                record = await reader.next()
                yield record
                if record.event == "dropped":
                    return
        finally:
            self._readers.discard(reader)


class _Reader:
    """What one reader has still to read."""

    def __init__(self) -> None:
        self._waiting: deque[EventRecord] = deque()
        self._come = asyncio.Event()

    def take(self, record: EventRecord) -> None:
        if self._waiting and self._waiting[-1].event == "dropped":
            return
        if len(self._waiting) >= KEPT + _BEHIND:
            record = EventRecord(record.id, record.at, "dropped", {"reason": "read too slowly"})
            self._waiting.clear()
        self._waiting.append(record)
        self._come.set()

    async def next(self) -> EventRecord:
        while not self._waiting:
            self._come.clear()
            await self._come.wait()
        return self._waiting.popleft()


class UnixClock:
    """Turns the scheduler's monotonic seconds into Unix seconds."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def unix(self, monotonic: float) -> float:
        return monotonic + self._offset

    def maybe(self, monotonic: float | None) -> float | None:
        return None if monotonic is None else monotonic + self._offset


def decision_view(decision: Decision) -> DecisionView:
    """Return a decision in Unix time."""
    return DecisionView(
        seq=decision.seq,
        at=UnixClock().unix(decision.at),
        kind=decision.kind,
        preset=decision.preset,
        epoch=decision.epoch,
        reason=decision.reason,
    )


def newest_decisions(scheduler: Scheduler, model: str | None, limit: int) -> list[DecisionView]:
    """Return the newest decisions (of one model), oldest first."""
    found = [one for one in scheduler.decisions if model in (None, one.preset)]
    return [decision_view(one) for one in found[-limit:]] if limit else []


def log_decision(decision: Decision, request: str | None = None) -> None:
    """Write a decision to the log; `request` is the one that brought it about as it came."""
    level = logging.WARNING if decision.kind in ("failed", "revoked") else logging.INFO
    name = decision.preset if decision.epoch is None else f"{decision.preset}#{decision.epoch}"
    about = {"decision": decision.kind, "model": decision.preset, "instance": name}
    tail = ""
    if request is not None:
        about["request"], tail = request, f" (request {request})"
    _log.log(
        level, "%s %s: %s%s", decision.kind, name, decision.reason, tail, extra={"about": about}
    )
