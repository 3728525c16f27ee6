"""How lswap's own log looks: one line per event on stderr, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from llamaswap_py.config.records import Log

_LOGGERS: Final = ("lswap", "llamaswap_py")
_TEXT: Final = "%(asctime)s %(levelname)-7s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def set_up_logging(log: Log, *, verbose: bool) -> None:
    """Send lswap's log to stderr. Requests are logged with `verbose`; without it those that
    failed with a 5xx are."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if log.format == "json" else logging.Formatter(_TEXT, "%H:%M:%S")
    )
    level = logging.DEBUG if verbose else logging.getLevelNamesMapping()[log.level.upper()]
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    logging.getLogger("lswap.access").setLevel(logging.INFO if verbose else logging.WARNING)
