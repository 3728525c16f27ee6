"""What an administrator changed inside a child, done again to the children that follow it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

from llamaswap_py.children.probe import ask
from llamaswap_py.endpoint import Endpoint

_log: Final = logging.getLogger("lswap")
_PATIENCE: Final = 5.0


class Replays:
    """The last accepted body of each such request (`POST /lora-adapters`, `/props`), by preset."""

    def __init__(self) -> None:
        self._bodies: dict[str, dict[str, bytes]] = {}

    def __contains__(self, preset: str) -> bool:
        return preset in self._bodies

    def note(self, preset: str, path: str, body: bytes) -> None:
        """Keep what a child of the preset accepted."""
        self._bodies.setdefault(preset, {})[path] = body

    def forget(self, presets: Iterable[str]) -> None:
        """These have changed: what was set in their children may mean nothing any more."""
        for preset in presets:
            self._bodies.pop(preset, None)

    async def replay(self, preset: str, endpoint: Endpoint) -> None:
        """Send it to a fresh child; one that refuses is used as it is, and the log says so."""
        for path, body in self._bodies.get(preset, {}).items():
            try:
                answer = await ask(endpoint, "POST", path, timeout=_PATIENCE, body=body)
            except OSError as error:
                _log.warning("%s: POST %s could not be done again: %s", preset, path, error)
                continue
            if answer.status != HTTPStatus.OK:
                _log.warning("%s: POST %s was refused this time: %s", preset, path, answer.status)
