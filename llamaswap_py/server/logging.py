"""lswap's own log: one line per event on stderr, as text or as JSON.

A thread of its own writes the lines, so that a stopped terminal, a full disk or a journal that
hangs does not delay requests.
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

    from llamaswap_py.config.sections import Log

_LOGGERS: Final = ("lswap", "llamaswap_py")
_WAITING: Final = 10_000
"""Lines that may wait to be written; further ones are dropped and counted."""
_LAST_LINES: Final = 1.0
"""Seconds that the last lines may take to be written."""
_COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}
# sd-daemon(3): the journal reads a line's level from a number before it.
_PRIORITIES: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with members for the request, the model, … that it is about."""

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
    """One line per message. If a message has several lines, all but the first are indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line. Text in it cannot look like another line or control a terminal."""
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
        """From now on hand lines to the event loop, because there are followers."""
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

    `written` are values of environment variables; the log shows their names in the file instead.
    With `verbose` all requests are logged, without it only those that failed with a 5xx.
    """
    handler = logging.StreamHandler(sys.stderr)
    redact = Redactor(os.environ, written)
    handler.setFormatter(_formatter(log.format, os.environ, redact))
    own = OwnLog(_plain_formatter(log.format, redact), redact)
    level = logging.DEBUG if verbose else logging.getLevelNamesMapping()[log.level.upper()]
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [own, handler]  # last, because it may hang
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("lswap.access").setLevel(logging.INFO if verbose else logging.WARNING)
    return own


@contextmanager
def logging_aside() -> Iterator[None]:
    """Have another thread write the lines of the log until the block ends."""
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
    """A stream without a lock, so that a write that hangs does not keep the interpreter running."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "replace"))
        while data:
            data = data[os.write(self._fd, data) :]

    def flush(self) -> None:
        """Do nothing, because nothing is buffered."""


class _Aside(logging.Handler):
    """Hands records to a thread, which gives them to `handlers`; never waits for the thread."""

    def __init__(self, handlers: list[logging.Handler]) -> None:
        super().__init__()
        self._handlers = handlers
        self._records: queue.Queue[logging.LogRecord | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        # Made into text now, because the arguments may change before it is written.
        try:
            record.msg, record.args = record.getMessage(), None
        except Exception as error:  # a call that logs must not fail
            record.msg, record.args = f"{record.msg} (a broken line of the log: {error})", None
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def finish(self) -> None:
        """Wait a moment until the last lines are written."""
        try:
            self._records.put(None, timeout=_LAST_LINES)
        except queue.Full:
            return
        self._thread.join(_LAST_LINES)

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            if self._dropped:
                count, self._dropped = self._dropped, 0
                text = f"{count} lines of this log were dropped, because stderr was too slow"
                self._give(logging.makeLogRecord({**_LATE, "msg": text}))
            self._give(record)

    def _give(self, record: logging.LogRecord) -> None:
        for handler in self._handlers:
            try:
                handler.emit(
                    record
                )  # not handle(): there is no other writer, and its lock would outlive us
            except Exception:  # this cannot be logged
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
    """Return the lines with their time, as `lswap logs` shows them."""
    return JsonFormatter(redact) if name == "json" else PrettyFormatter(redact)


def _is_journal(stream: str) -> bool:
    """Return whether stderr goes to the journal: systemd.exec(5), $JOURNAL_STREAM."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"
