"""A server for `lswap top` that says what a test wants, and somebody who looks at the screen."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

from llamaswap_py.client.answers import OpenRequests, ServerEvent
from llamaswap_py.snapshot import Snapshot
from llamaswap_py.tui.app import Top

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from rich.segment import Segment
    from textual.pilot import Pilot

    from llamaswap_py.client.calls import ApiCall, ApiStream


class StillServer:
    """Answers what was put in, and notes what was asked of it."""

    def __init__(
        self, snapshot: Snapshot, requests: OpenRequests, events: list[ServerEvent]
    ) -> None:
        self.snapshot, self.requests = snapshot, requests
        self.asked: list[str] = []
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.lines: asyncio.Queue[Any] = asyncio.Queue()
        for one in events:
            self.events.put_nowait(one)

    async def ask(self, call: ApiCall[Any]) -> Any:
        """Answer at once."""
        if call.answer is Snapshot:
            return self.snapshot
        if call.answer is OpenRequests:
            return self.requests
        self.asked.append(call.path)
        return None

    @asynccontextmanager
    async def stream(self, call: ApiStream[Any]) -> AsyncIterator[AsyncIterator[Any]]:
        """Say what is in the queue, and wait for more."""
        yield self._items(self.events if call.path.endswith("events") else self.lines)

    async def _items(self, queue: asyncio.Queue[Any]) -> AsyncIterator[Any]:
        while True:
            yield await queue.get()


class Seat:
    """Somebody in front of the dashboard: presses keys, reads the screen."""

    def __init__(self, app: Top, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot
        self.press, self.resize = pilot.press, pilot.resize_terminal

    @property
    def segments(self) -> list[list[Segment]]:
        """What is on the screen, line by line."""
        return [list(line) for line in self.app.screen._compositor.render_strips(self.app.size)]

    @property
    def lines(self) -> list[str]:
        """The same as texts, as wide as the screen."""
        return ["".join(one.text for one in line) for line in self.segments]

    @property
    def text(self) -> str:
        """The same as one text."""
        return "\n".join(line.rstrip() for line in self.lines)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds of the screen."""
        try:
            async with asyncio.timeout(60):
                while not holds():
                    await self.pilot.pause(0.01)
        except TimeoutError:
            raise AssertionError(f"the screen never came to that:\n{self.text}") from None

    async def sees(self, *texts: str) -> str:
        """Wait until all texts are on the screen; return all of it."""
        await self.until(lambda: all(text in self.text for text in texts))
        return self.text


@asynccontextmanager
async def seated(
    server: StillServer, size: tuple[int, int] = (80, 24), encoding: str = "utf-8"
) -> AsyncIterator[Seat]:
    """Sit down in front of a dashboard that has shown its first picture."""
    app = Top(cast("Any", server), encoding=encoding)
    async with app.run_test(size=size) as pilot:
        seat = Seat(app, pilot)
        await seat.until(lambda: app.history.snapshot is not None and server.events.empty())
        await pilot.pause()
        yield seat
