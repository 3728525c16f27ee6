"""RPC servers that presets need: which of them answer, and which are to be tried again. Pure.

A child aborts if one of its RPC servers is gone. So each is tried before anything is unloaded or
loaded for a preset that needs it. One that does not answer pauses by itself, whichever preset asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from llamaswap_py.scheduler.types import Failure, Policy

FRESH: Final = 5.0
"""Seconds for which a server that has answered is believed to be there."""


@dataclass(slots=True)
class RpcServer:
    """One server. `answered_at` None: it has to be tried before it is used."""

    answered_at: float | None = None
    trying: bool = False
    failure: Failure | None = None
    failures: int = 0
    """How many tries in a row have failed."""
    retry_at: float = 0.0


class RpcServers:
    """All servers that were ever needed, by endpoint (HOST:PORT)."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._known: dict[str, RpcServer] = {}

    def unsure(self, endpoints: Iterable[str], now: float) -> list[str]:
        """Return those that have not answered in the last seconds."""
        servers = [(one, self._known.get(one, RpcServer())) for one in endpoints]
        return [
            endpoint
            for endpoint, one in servers
            if one.answered_at is None or now - one.answered_at > FRESH
        ]

    def begin(self, endpoint: str) -> bool:
        """Note that a server is being tried; False if it was already."""
        server = self._known.setdefault(endpoint, RpcServer())
        was, server.trying = server.trying, True
        return not was

    def tried(self, endpoint: str, failure: Failure | None, now: float) -> None:
        """Note how the try ended: each failure in a row doubles the pause before the next try."""
        server = self._known.setdefault(endpoint, RpcServer())
        server.trying, server.failure = False, failure
        if failure is None:
            server.answered_at, server.failures = now, 0
            return
        server.answered_at = None
        first, last = self._policy.backoff_first, self._policy.backoff_last
        server.retry_at = now + min(first * 2 ** min(server.failures, 30), last)
        server.failures += 1

    def doubt(self, endpoints: Iterable[str]) -> None:
        """A child has lost one of these: try each before it is used again."""
        for endpoint in endpoints:
            if (server := self._known.get(endpoint)) is not None:
                server.answered_at = None

    def lost(self, endpoints: Iterable[str]) -> RpcServer | None:
        """Return the server that did not answer and pauses the longest, None if all answered."""
        servers = [one for each in endpoints if (one := self._known.get(each)) is not None]
        gone = [one for one in servers if one.failure is not None]
        return max(gone, key=lambda one: one.retry_at, default=None)
