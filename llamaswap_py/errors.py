"""Every error lswap raises on purpose.

    LswapError
    ├── ConfigError      the YAML file (or an option) is wrong: names file, line and key
    ├── EngineError      no usable llama-server, or it cannot do what is asked
    ├── StateError       the runtime folder is taken, a socket cannot be bound, …
    ├── RemoteError      a CLI command could not talk to a running lswap, or it said no
    └── ApiError         becomes an HTTP answer; its code decides status and type

A message says what happened and why; the remedy says what to do next.
"""

from __future__ import annotations

from typing import Any, Final


class LswapError(Exception):
    """Base of all errors; `str()` is one line: message, then the remedy."""

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} - {self.remedy}" if self.remedy else self.message


class ConfigError(LswapError):
    """Raised when the configuration is wrong; `where` is like `config.yaml:12: models.qwen.ttl`.

    `partial` is the configuration that the rest of the file describes, where it could be read.
    """

    def __init__(self, message: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message, remedy=remedy)
        self.where = where
        self.partial: Any = None


class EngineError(LswapError):
    """Raised when no usable llama-server can be found, built or run."""


class StateError(LswapError):
    """Raised when the machine refuses something lswap needs: a lock, a port, a folder."""


class RemoteError(LswapError):
    """Raised when a running lswap cannot be reached or refuses a command."""


# code -> (HTTP status, OpenAI error type). docs/api.md says when each is given.
API_CODES: Final[dict[str, tuple[int, str]]] = {
    "bad_config": (400, "invalid_request_error"),
    "bad_json": (400, "invalid_request_error"),
    "bad_request": (400, "invalid_request_error"),
    "model_missing": (400, "invalid_request_error"),
    "model_not_loaded": (400, "invalid_request_error"),
    "stopped": (400, "invalid_request_error"),
    "model_too_large": (400, "invalid_request_error"),
    "unauthorized": (401, "authentication_error"),
    "forbidden": (403, "permission_error"),
    "model_not_found": (404, "not_found_error"),
    "not_found": (404, "not_found_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "reservation_refused": (409, "invalid_request_error"),
    "would_deadlock": (409, "invalid_request_error"),
    "cancelled": (410, "invalid_request_error"),
    "body_too_large": (413, "invalid_request_error"),
    "unsupported_encoding": (415, "invalid_request_error"),
    "too_many_requests": (429, "rate_limit_error"),
    "queue_full": (429, "rate_limit_error"),
    "internal": (500, "server_error"),
    "not_implemented": (501, "server_error"),
    "upstream_failed": (502, "server_error"),
    "bodies_full": (503, "server_error"),
    "draining": (503, "server_error"),
    "memory_full": (503, "server_error"),
    "model_failed": (503, "server_error"),
    "model_loading": (503, "server_error"),
    "queue_timeout": (503, "server_error"),
    "too_many_connections": (503, "server_error"),
    "unloaded": (503, "server_error"),
}


class ApiError(LswapError):
    """An error a client sees: `code` (a key of API_CODES) decides status and type.

    `retry_after` is in seconds; every 503 and 429 gets one. `details` are extra JSON members of
    the error object (`state`, `position`, `eta_seconds`, `exit_code`, `log`, …).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        remedy: str = "",
        param: str | None = None,
        retry_after: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.code = code
        self.status, self.type = API_CODES[code]
        self.param = param
        self.retry_after = 1.0 if retry_after is None and self.status in (429, 503) else retry_after
        self.details = details or {}


def without_frames(error: BaseException) -> None:
    """Let an error go of the frames that it passed through, and of what they hold.

    One that a request keeps would else keep the request, its body too, until the collector comes.
    """
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen.__context__, seen = None, seen.__context__
