"""How lswap's own log looks: one line per event on stderr, to be read or as JSON.

Lines are written by a thread of their own, so that a terminal that was stopped, a full disk or a
journal that hangs holds up nobody.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from llamaswap_py.children import ChildLog
from llamaswap_py.redaction import Redactor
from llamaswap_py.tasks.guard import failures
from llamaswap_py.units import showable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping

    from llamaswap_py.config.records import Log

_LOGGERS: Final = ("lswap", "llamaswap_py")
_WAITING: Final = 10_000
"""Lines that may wait to be written; what comes then is dropped, and counted."""
_LAST_LINES: Final = 1.0
"""Seconds that the last lines may take to be written."""
_COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}
# sd-daemon(3): the journal reads a line's level from a number before it.
_PRIORITIES: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class JsonFormatter(logging.Formatter):
    """One JSON object per line; what a line is about (request, model, …) has members of its own."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._redact(record.getMessage()),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            entry["traceback"] = self._redact(self.formatException(record.exc_info))
        return json.dumps(entry, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """One line per message: what follows in one of several lines is indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line; nobody's text can pass for another line, or command a terminal."""
        record.message = showable(record.message).replace("\n", "\n    ")
        return super().formatMessage(record)


class PrettyFormatter(TextFormatter):
    """Time, level, message; with colours on a terminal."""

    def __init__(self, redact: Redactor, *, colours: bool = False) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._redact = redact
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        text = self._redact(super().format(record))
        colour = _COLOURS.get(record.levelname) if self._colours else None
        return text if colour is None else f"\x1b[{colour}m{text}\x1b[0m"


class JournalFormatter(TextFormatter):
    """Level and message for systemd's journal, which has the time itself."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        level = f"<{_PRIORITIES.get(record.levelname, 6)}>"
        return level + self._redact(super().format(record)).replace("\n", f"\n{level}")


class OwnLog(logging.Handler):
    """Keeps the last lines of lswap's own log for `lswap logs`; `lines` belongs to the loop."""

    def __init__(self, formatter: logging.Formatter, redact: Redactor | None = None) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.redact = redact or Redactor()
        """What takes secrets out of the lines, here and on stderr."""
        self.lines = ChildLog()
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hand lines to the loop from now on: there are followers."""
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        lines = self.format(record).splitlines()
        if self._loop is None:
            self.lines.extend(lines)
            return
        with suppress(RuntimeError):  # the loop is closed: lswap has ended
            self._loop.call_soon_threadsafe(self.lines.extend, lines)


def set_up_logging(log: Log, *, verbose: bool, written: Mapping[str, str] | None = None) -> OwnLog:
    """Send lswap's log to stderr, and return the handler that keeps its last lines.

    `written` are values of the environment, which are shown as the configuration names them.
    Requests are logged with `verbose`; without it those that failed with a 5xx are.
    """
    handler = logging.StreamHandler(sys.stderr)
    redact = Redactor(os.environ, written)
    handler.setFormatter(_formatter(log.format, os.environ, redact))
    own = OwnLog(_plain_formatter(log.format, redact), redact)
    level = logging.DEBUG if verbose else logging.getLevelNamesMapping()[log.level.upper()]
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [own, handler]  # one that is stuck is last
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("lswap.access").setLevel(logging.INFO if verbose else logging.WARNING)
    return own


@contextmanager
def logging_aside() -> Iterator[None]:
    """Let the lines of the log be written by another thread, until the block ends."""
    before = {name: logging.getLogger(name).handlers for name in _LOGGERS}
    handlers = before[_LOGGERS[0]]
    for handler in handlers:
        if isinstance(handler, logging.StreamHandler):
            with suppress(OSError, ValueError):  # no file, as in tests
                handler.setStream(_Unbuffered(handler.stream.fileno()))
    aside = _Aside(handlers)
    for name in _LOGGERS:
        logging.getLogger(name).handlers = [aside]
    try:
        yield
    finally:
        aside.finish()
        for name, handlers in before.items():
            logging.getLogger(name).handlers = handlers


class _Unbuffered:
    """A stream without a lock: one that is stuck would not let the interpreter end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            data = data[os.write(self._fd, data) :]

    def flush(self) -> None:
        """Do nothing: nothing is held back."""


class _Aside(logging.Handler):
    """Hands records to a thread that gives them to `handlers`; never waits for it."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        super().__init__()
        self._handlers = handlers
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        # Made into text now: what the arguments say may be otherwise when it is written.
        try:
            record.msg, record.args = record.getMessage(), None
        except Exception as error:  # whoever writes a line must not fail of it
            record.msg, record.args = f"{record.msg} (a broken line of the log: {error})", None
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def finish(self) -> None:
        """Wait a moment for the last lines."""
        try:
            self._records.put(None, timeout=_LAST_LINES)
        except queue.Full:
            return
        self._thread.join(_LAST_LINES)

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            if self._dropped:
                count, self._dropped = self._dropped, 0
                text = f"{count} lines of this log were dropped: it is written too slowly"
                self._give(logging.makeLogRecord({**_LATE, "msg": text}))
            self._give(record)

    def _give(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            try:
                handler.emit(record)  # not handle(): nobody else writes, and its lock outlives us
            except Exception:  # it cannot be logged
                failures["log"] += 1


_LATE: Final = {"name": "lswap", "levelno": logging.WARNING, "levelname": "WARNING"}


def _formatter(
    name: str, env: Mapping[str, str], redact: Redactor | None = None
) -> logging.Formatter:
    redact = redact or Redactor(env)
    if name == "json":
        return JsonFormatter(redact)
    if name == "auto" and _is_journal(env.get("JOURNAL_STREAM", "")):
        return JournalFormatter(redact)
    return PrettyFormatter(redact, colours=sys.stderr.isatty() and not env.get("NO_COLOR"))


def _plain_formatter(name: str, redact: Redactor) -> logging.Formatter:
    """Return what `lswap logs` shows: lines with their time, for a reader anywhere."""
    return JsonFormatter(redact) if name == "json" else PrettyFormatter(redact)


def _is_journal(stream: str) -> bool:
    """Return whether stderr is the journal's: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
