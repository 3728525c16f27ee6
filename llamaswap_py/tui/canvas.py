"""Where the lines are drawn, and how they look on this terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from rich.segment import Segment
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from llamaswap_py.client.remote import UnreachableError
from llamaswap_py.tui.cells import ASCII, UNICODE
from llamaswap_py.tui.drawing import Look

if TYPE_CHECKING:
    from llamaswap_py.errors import RemoteError
    from llamaswap_py.tui.screen import Screen


class Canvas(Widget):
    """Lines of text; only those that changed are drawn again."""

    DEFAULT_CSS = "Canvas { width: 1fr; height: 1fr; }"

    def __init__(self) -> None:
        super().__init__(id="canvas")
        self.shown: Screen | None = None

    def show(self, screen: Screen) -> None:
        """Draw a screen."""
        before, self.shown = self.shown, screen
        if before is None or len(before.lines) != len(screen.lines):
            self.refresh()
            return
        changed = [
            Region(0, at, self.size.width, 1)
            for at, (old, new) in enumerate(zip(before.lines, screen.lines, strict=True))
            if old != new or old.spans != new.spans or old.style != new.style
        ]
        if changed:
            self.refresh(*changed)

    def render_line(self, y: int) -> Strip:
        """Return line `y`, as textual draws them."""
        if self.shown is None or y >= len(self.shown.lines):
            return Strip.blank(self.size.width, self.rich_style)
        text = self.shown.lines[y].copy()
        text.end = ""
        base = self.app.console.get_style(text.style)
        segments = Segment.apply_style(text.render(self.app.console), base)
        return Strip(segments).adjust_cell_length(self.size.width).apply_style(self.rich_style)


def trouble_of(error: RemoteError) -> str:
    """Return the first line while a server gives no answer, or one that says no."""
    if isinstance(error, UnreachableError):
        return f"not reachable, trying again: {error.message.partition(' (')[0]}"
    return f"no answer, trying again: {error.message}"


def make_look() -> Look:
    """Return how to draw here: NO_COLOR (no-color.org) counts, and an encoding without bars."""
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    return Look(
        clock=lambda at: time.strftime("%H:%M:%S", time.localtime(at)),
        glyphs=UNICODE if unicode else ASCII,
        colour=not os.environ.get("NO_COLOR"),
    )
