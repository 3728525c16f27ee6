"""The whole screen as lines, from a picture and from where its reader is. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from rich.text import Text

from llamaswap_py.tui import drawing
from llamaswap_py.tui.cells import ASCII, in_ascii, spread
from llamaswap_py.tui.layout import divide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llamaswap_py.tui.drawing import Look
    from llamaswap_py.tui.layout import Heights
    from llamaswap_py.tui.picture import Picture

PANES: Final = ("models", "requests", "lower")
_COMMON: Final = (("/", "filter"), ("tab", "next"), ("z", "zoom"), ("?", "help"), ("q", "quit"))
_HINTS: Final = {
    "models": (("l", "load"), ("u", "unload"), ("p", "pin"), ("enter", "log"), *_COMMON),
    "requests": (("c", "cancel"), ("enter", "log"), *_COMMON),
    "lower": (("↑↓", "scroll"), ("enter", "log"), ("d", "decisions"), *_COMMON),
}
_MOST_WRAPPED: Final = 12


@dataclass(slots=True)
class Cursor:
    """A row that is pointed at: it stays with its row when the others move."""

    key: str | None = None
    at: int = 0
    top: int = 0

    def find(self, keys: Sequence[str]) -> int:
        """Return where it is among `keys`; of a row that is gone, the place."""
        if not keys:
            return 0
        if self.key in keys:
            self.at = keys.index(self.key)
        else:
            self.at = min(self.at, len(keys) - 1)
            # On the first rows ever seen it only rests: what becomes active moves up to it.
            self.key = keys[self.at] if self.key is not None else None
        return self.at

    def move(self, keys: Sequence[str], step: int) -> None:
        """Go `step` rows on, as far as there are rows."""
        if keys:
            self.go(keys, self.find(keys) + step)

    def go(self, keys: Sequence[str], at: int) -> None:
        """Go to a row."""
        if keys:
            self.at = min(max(0, at), len(keys) - 1)
            self.key = keys[self.at]

    def window(self, keys: Sequence[str], rows: int) -> range:
        """Return which rows are seen, where there is room for `rows`."""
        self.top = min(spread(self.find(keys), rows, self.top), max(0, len(keys) - rows))
        return range(self.top, min(len(keys), self.top + rows))


@dataclass(slots=True)
class Reader:
    """Where the person at the keyboard is."""

    focus: str = "models"
    log_of: str | None = None
    """Whose log the lower pane shows; None: decisions."""
    zoomed: bool = False
    filter: str = ""
    message: str = ""
    """Shown instead of the keys until the next one."""
    models: Cursor = field(default_factory=Cursor)
    requests: Cursor = field(default_factory=Cursor)
    back: int = 0
    """Lines that the lower pane is scrolled up from its end; 0 follows it."""
    _lower_lines: int = 0

    def model(self, picture: Picture) -> str | None:
        """Return the model that a key means."""
        if self.focus == "requests":
            one = self.request(picture)
            return None if one is None else next(o.model for o in picture.requests if o.id == one)
        return _pointed(self.models, [row.id for row in picture.models])

    def request(self, picture: Picture) -> str | None:
        """Return the id of the request that a key means."""
        return _pointed(self.requests, [one.id for one in picture.requests])

    def move(self, picture: Picture, step: int) -> None:
        """Go up or down in the pane that has the focus."""
        if self.focus == "models":
            self.models.move([row.id for row in picture.models], step)
        elif self.focus == "requests":
            self.requests.move([one.id for one in picture.requests], step)
        else:
            self.back = max(0, self.back - step)

    def show_log(self, model: str | None) -> None:
        """Show the log of a model below, or (None) the decisions."""
        if self.log_of != model:
            self.log_of, self.back, self._lower_lines = model, 0, 0

    def hold(self, lines: int, rows: int) -> int:
        """Return how far up the lower pane is, of so many lines; new ones don't move it."""
        if self.back:
            self.back += max(0, lines - self._lower_lines) if self._lower_lines else 0
            self.back = min(self.back, max(0, lines - rows))
        self._lower_lines = lines
        return self.back


@dataclass(frozen=True, slots=True)
class Screen:
    """Lines from top to bottom, and what each is: a pane and its row (-1: the head)."""

    lines: tuple[Text, ...]
    targets: tuple[tuple[str, int] | None, ...]
    heights: Heights


def draw(
    picture: Picture, reader: Reader, log: Sequence[str], width: int, height: int, look: Look
) -> Screen:
    """Return a screen of exactly `height` lines of `width` cells."""
    heights = divide(
        height,
        devices=len(picture.devices),
        models=max(1, len(picture.models)),
        requests=len(picture.requests),
        focus=reader.focus,
        zoomed=reader.zoomed,
    )
    found: list[tuple[Text, tuple[str, int] | None]] = []
    found.append((drawing.title_line(picture, width, look), None))
    name_width = min(12, max((len(each.id) for each in picture.devices), default=6))
    for device in picture.devices[: heights.devices]:
        line = drawing.device_line(device, width, look, name_width=name_width)
        found += [(line, None)]
    found += _models(picture, reader, heights.models, width, look)
    found += _detail(picture, reader, heights.detail, width, look)
    found += _requests(picture, reader, heights.requests, width, look)
    found += _lower(picture, reader, log, heights.lower, width, look)
    blank: tuple[Text, None] = (Text(" " * width), None)
    found = (found + [blank] * height)[: max(0, height - 1)]
    found.append((_last_line(reader, width, look), None))
    lines, targets = zip(*found, strict=True)
    for line in lines:
        if look.glyphs is ASCII:
            line.plain = in_ascii(line.plain)
        line.truncate(width, pad=True)
    if picture.trouble is not None and look.colour:  # what is below it is old
        for line in lines[1:-1]:
            line.stylize("dim")
    return Screen(tuple(lines), tuple(targets), heights)


def _models(
    picture: Picture, reader: Reader, rows: int, width: int, look: Look
) -> list[tuple[Text, tuple[str, int] | None]]:
    if rows < 1:
        return []
    focused = reader.focus == "models"
    total = picture.models_total
    head = drawing.model_header(len(picture.models), total, width, look, focused=focused)
    found: list[tuple[Text, tuple[str, int] | None]] = [(head, ("models", -1))]
    keys = [row.id for row in picture.models]
    here = reader.models.find(keys)
    for at in reader.models.window(keys, rows - 1):
        cursor = focused and at == here
        line = drawing.model_line(picture.models[at], width, look, cursor=cursor)
        found.append((line, ("models", at)))
    if not keys and rows > 1:
        say = "no model matches the filter (esc clears it)" if total else "no models"
        found.append((Text(f" {say}".ljust(width)[:width]), None))
    return _filled(found, rows, width)


def _detail(
    picture: Picture, reader: Reader, rows: int, width: int, look: Look
) -> list[tuple[Text, tuple[str, int] | None]]:
    name = reader.model(picture)
    row = next((row for row in picture.models if row.id == name), None)
    return [(line, None) for line in drawing.detail_lines(row, width, rows, look)]


def _requests(
    picture: Picture, reader: Reader, rows: int, width: int, look: Look
) -> list[tuple[Text, tuple[str, int] | None]]:
    if rows < 1:
        return []
    focused = reader.focus == "requests"
    shown, total = len(picture.requests), picture.requests_total
    head = drawing.request_header(shown, total, width, look, focused=focused)
    found: list[tuple[Text, tuple[str, int] | None]] = [(head, ("requests", -1))]
    keys = [one.id for one in picture.requests]
    here = reader.requests.find(keys)
    for at in reader.requests.window(keys, rows - 1):
        cursor = focused and at == here
        line = drawing.request_line(picture.requests[at], width, look, cursor=cursor)
        found.append((line, ("requests", at)))
    if not keys and rows > 1:
        say = "none matches the filter" if total else "none is open"
        found.append((Text(f" {say}".ljust(width)[:width], look.dim), None))
    return _filled(found, rows, width)


def _lower(
    picture: Picture, reader: Reader, log: Sequence[str], rows: int, width: int, look: Look
) -> list[tuple[Text, tuple[str, int] | None]]:
    if rows < 1:
        return []
    room = rows - 1
    if reader.log_of is None:
        most = _MOST_WRAPPED if reader.zoomed else 3 if rows > 8 else 1
        recent = list(picture.happenings)[-(reader.back + room + 200) :]
        lines = [
            line for one in recent for line in drawing.happening_lines(one, width, look, most=most)
        ]
        title, nothing = "DECISIONS", "nothing was decided yet"
    else:
        most = _MOST_WRAPPED if reader.zoomed else 1
        lines = [line for text in log for line in drawing.log_lines(text, width, look, most=most)]
        title, nothing = f"LOG {reader.log_of}", "nothing was written yet: it was not loaded"
    back = reader.hold(len(lines), room)
    note = f"{back} lines below" if back else ""
    head = drawing.plain_header(title, note, width, look, focused=reader.focus == "lower")
    found: list[tuple[Text, tuple[str, int] | None]] = [(head, ("lower", -1))]
    end = len(lines) - back
    found += [(line, ("lower", 0)) for line in lines[max(0, end - room) : end]]
    if not lines and room:
        found.append((Text(f" {nothing}".ljust(width)[:width], look.dim), None))
    return _filled(found, rows, width)


def _last_line(reader: Reader, width: int, look: Look) -> Text:
    if reader.message:
        line = Text(f" {reader.message}", "bold")
        line.truncate(width, overflow="ellipsis", pad=True)
        return line
    hints = list(_HINTS[reader.focus])
    if reader.filter:
        hints.insert(0, ("esc", f"no filter ({reader.filter})"))
    return drawing.keys_line(hints, width, look)


def _filled(
    found: list[tuple[Text, tuple[str, int] | None]], rows: int, width: int
) -> list[tuple[Text, tuple[str, int] | None]]:
    blank: tuple[Text, None] = (Text(" " * width), None)
    return (found + [blank] * rows)[:rows]


def _pointed(cursor: Cursor, keys: Sequence[str]) -> str | None:
    return keys[cursor.find(keys)] if keys else None
