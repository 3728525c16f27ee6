"""Rows made into lines that fit a width, with styles. Pure: rich's texts are plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from llamaswap_py.tui.cells import (
    UNICODE,
    Column,
    Glyphs,
    choose_columns,
    clean,
    fit,
    fit_middle,
    progress_bar,
    shares,
    short_count,
    short_size,
    short_time,
    wrap,
)
from llamaswap_py.units import format_size

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llamaswap_py.client.answers import OpenRequest
    from llamaswap_py.tui.history import Happening
    from llamaswap_py.tui.picture import DeviceRow, ModelRow, Part, Picture

_COLOURS: Final = {
    "ready": "green",
    "loading": "yellow",
    "downloading": "yellow",
    "waiting": "yellow",
    "draining": "yellow",
    "stopping": "yellow",
    "sleeping": "blue",
    "failed": "red",
    "load": "yellow",
    "unloaded": "bright_black",
    "stop": "magenta",
    "revoked": "red",
    "restart": "red",
    "lost": "red",
    "reserved": "cyan",
    "strangers": "red",
    "key": "bold cyan",
}
_MODEL_COLOURS: Final = ("green", "bright_blue", "yellow", "magenta", "cyan", "bright_green")
_BAR: Final = 6
_STATE_WIDTH: Final = 21
_WHY_WIDTH: Final = 28
_MODEL_COLUMNS: Final = (
    Column("id", "", 22),
    Column("state", "STATE", _STATE_WIDTH),
    Column("use", "REQUESTS", 8, 1, right=True),
    Column("waiting", "QUEUE", 5, 2, right=True),
    Column("rate", "TOK/S", 5, 3, right=True),
    Column("ttl", "TTL", 4, 4, right=True),
    Column("age", "AGE", 4, 6, right=True),
    Column("memory", "MEMORY", 8, 5, right=True),
)
_REQUEST_COLUMNS: Final = (
    Column("model", "", 16),
    Column("state", "STATE", 8),
    Column("age", "AGE", 5, 1, right=True),
    Column("tokens", "TOKENS", 6, 2, right=True),
    Column("client", "CLIENT", 16, 3),
    Column("path", "PATH", 20, 4),
    Column("id", "ID", 18, 5),
)
_KIND_WIDTH: Final = 8


@dataclass(frozen=True, slots=True)
class Look:
    """How it is drawn on this terminal; `clock` turns Unix time into HH:MM:SS."""

    clock: Callable[[float], str]
    glyphs: Glyphs = UNICODE
    colour: bool = True

    def style(self, name: str) -> str:
        """Return the style of a state, a kind or a colour; without colour there is none."""
        return _COLOURS.get(name, name) if self.colour else ""

    @property
    def dim(self) -> str:
        """What is less important; without colour nothing is faint, which some terminals hide."""
        return "bright_black" if self.colour else ""


def title_line(picture: Picture, width: int, look: Look) -> Text:
    """Return the first line: what this server is, or that it does not answer."""
    if picture.trouble is not None:
        text = fit(f" {clean(picture.trouble)}", width, look.glyphs.more)
        return Text(text, "bold white on red" if look.colour else "bold reverse")
    words = clean(picture.title).replace("·", look.glyphs.dot)
    while cell_len(words) > width - 2 and f" {look.glyphs.dot} " in words:
        words = words.rpartition(f" {look.glyphs.dot} ")[0]
    return Text(fit(f" {words}", width), "bold white on blue" if look.colour else "reverse")


def device_line(device: DeviceRow, width: int, look: Look, *, name_width: int = 6) -> Text:
    """Return `CUDA0 ████▓▓··╱ 13.5G/24G  █ alpha 9.5G  █ beta 4G  ▒ others 1G`."""
    bar = min(40, max(8, width * 3 // 10))
    line = Text(" ")
    line.append(fit(device.id, name_width, look.glyphs.more) + " ", "bold")
    cells = shares([part.size for part in device.parts], device.total, bar)
    marks = _marks(device.parts, look)
    for (mark, style), count in zip(marks, cells, strict=True):
        line.append(mark * count, style)
    line.append(look.glyphs.free * (bar - sum(cells)), look.dim)
    line.append(f" {short_size(device.used)}/{short_size(device.total)}")
    names = _legend(device.parts, width - line.cell_len)
    for (mark, style), said in zip(marks, names, strict=False):
        line.append("  ")
        line.append(mark, style)
        line.append(f" {said}")
    if len(names) < len(marks):
        line.append(f" +{len(marks) - len(names)}")
    return _exactly(line, width)


def _legend(parts: Sequence[Part], width: int) -> list[str]:
    """Return `alpha 9.5G` for as many parts as fit, names as long as they may be."""
    for longest in (40, 24, 16, 12, 9):
        said = [f"{_shortened(clean(one.name), longest)} {short_size(one.size)}" for one in parts]
        if sum(cell_len(text) + 4 for text in said) <= width:
            return said
    room = width - 4  # for what says how many are left out
    kept: list[str] = []
    for text in said if parts else ():
        room -= cell_len(text) + 4
        if room < 0:
            break
        kept.append(text)
    return kept


def _shortened(text: str, longest: int) -> str:
    return text if cell_len(text) <= longest else fit_middle(text, longest)


def _marks(parts: Sequence[Part], look: Look) -> list[tuple[str, str]]:
    """Return a glyph and a style for each part; models take turns."""
    found = []
    turn = 0
    for part in parts:
        if part.kind == "model":
            colour = _MODEL_COLOURS[turn % len(_MODEL_COLOURS)]
            mark = look.glyphs.full if look.colour else look.glyphs.models[turn % 2]
            found.append((mark, look.style(colour)))
            turn += 1
        else:
            glyphs = {"reserved": look.glyphs.reserved, "strangers": look.glyphs.strangers}
            style = look.dim if part.kind == "margin" else look.style(part.kind)
            found.append((glyphs.get(part.kind, look.glyphs.margin), style))
    return found


def model_header(shown: int, total: int, width: int, look: Look, *, focused: bool) -> Text:
    """Return the head of the pane of models."""
    columns, rest = _model_columns(width)
    titles = [fit(_title("MODELS", shown, total), columns[0].width)]
    titles += [fit(one.title, one.width, right=one.right) for one in columns[1:]]
    if rest:
        titles.append("WHY")
    return _header(" " + " ".join(titles), width, look, focused=focused)


def model_line(row: ModelRow, width: int, look: Look, *, cursor: bool) -> Text:
    """Return a model's line."""
    columns, rest = _model_columns(width)
    values = {
        "id": (look.glyphs.pin if row.pinned else "") + clean(row.id),
        "use": f"{row.leases}/{row.slots}" if row.slots else str(row.leases or ""),
        "waiting": str(row.waiting or ""),
        "rate": short_count(row.rate) if row.rate else "",
        "ttl": "" if row.ttl_left is None else short_time(row.ttl_left),
        "age": "" if row.age is None else short_time(row.age),
        "memory": "?" if row.memory is None else format_size(row.memory),
    }
    plain = "" if row.active else look.dim
    line = Text(_cursor(cursor, look))
    for at, column in enumerate(columns):
        line.append(" " if at else "")
        if column.name == "id":
            line.append(fit_middle(values["id"], column.width, look.glyphs.more), plain or "bold")
        elif column.name == "state":
            line.append(fit(state_text(row, look), column.width), look.style(row.state))
        else:
            line.append(fit(values[column.name], column.width, right=column.right), plain)
    if rest:
        line.append(" " + fit(clean(row.reason), rest, look.glyphs.more), look.dim)
    return _row(line, width, cursor=cursor)


def state_text(row: ModelRow, look: Look) -> str:
    """Return `ready`, or `load ███░░░  43% 12s`: a bar, how far it is, and how long still."""
    if row.progress is None:
        ready_in = "" if row.eta is None else f" ~{short_time(row.eta)}"
        return f"{row.state}{ready_in}"
    word = {"loading": "load", "downloading": "down"}.get(row.state, row.state)
    eta = "" if row.eta is None else f" {short_time(row.eta)}"
    return f"{word} {progress_bar(row.progress, _BAR, look.glyphs)} {row.progress:4.0%}{eta}"


def detail_lines(row: ModelRow | None, width: int, count: int, look: Look) -> list[Text]:
    """Return the reason of the model under the cursor, in full as far as `count` lines reach."""
    if row is None or not row.reason:
        return [Text("")] * count
    lines = wrap(f"{row.id}: {clean(row.reason)}", width - 2, count)
    return [Text(f" {line}", look.dim or "") for line in lines] + [Text("")] * (count - len(lines))


def request_header(shown: int, total: int, width: int, look: Look, *, focused: bool) -> Text:
    """Return the head of the pane of open requests."""
    columns = _widen(choose_columns(_REQUEST_COLUMNS, width - 1), width - 1)
    titles = [fit(_title("REQUESTS", shown, total), columns[0].width)]
    titles += [fit(one.title, one.width, right=one.right) for one in columns[1:]]
    return _header(" " + " ".join(titles), width, look, focused=focused)


def request_line(one: OpenRequest, width: int, look: Look, *, cursor: bool) -> Text:
    """Return an open request's line."""
    columns = _widen(choose_columns(_REQUEST_COLUMNS, width - 1), width - 1)
    values = {
        "model": clean(one.model),
        "state": one.state,
        "age": short_time(one.age),
        "tokens": str(one.tokens or ""),
        "client": clean(one.client),
        "path": clean(one.path),
        "id": clean(one.id),
    }
    line = Text(_cursor(cursor, look))
    for at, column in enumerate(columns):
        style = look.style("waiting" if one.state == "waiting" else "ready")
        line.append(" " if at else "")
        text = fit(values[column.name], column.width, look.glyphs.more, right=column.right)
        if column.name == "model":
            text = fit_middle(values["model"], column.width, look.glyphs.more)
        line.append(text, style if column.name == "state" else "")
    return _row(line, width, cursor=cursor)


def plain_header(title: str, note: str, width: int, look: Look, *, focused: bool) -> Text:
    """Return the head of a pane without columns, with a note at its right."""
    note = fit(f"{note} ", width - cell_len(title) - 2, right=True) if note else ""
    return _header(f" {title} {note}", width, look, focused=focused)


def happening_lines(one: Happening, width: int, look: Look, *, most: int) -> list[Text]:
    """Return a decision in at most `most` lines."""
    names = 16 if width >= 100 else 12
    at = look.clock(one.at) if one.at else "--:--:--"
    room = width - 1 - len(at) - 1 - _KIND_WIDTH - 1 - names - 1
    lines = wrap(clean(one.reason), max(10, room), most)
    first = Text()
    first.append(f" {at} ", look.dim)
    first.append(fit(one.kind, _KIND_WIDTH) + " ", look.style(one.kind) if _told(one) else "")
    first.append(fit_middle(clean(one.model), names, look.glyphs.more) + " ", "bold")
    first.append(lines[0])
    indent = " " * (width - max(10, room))
    return [_exactly(first, width), *(_exactly(Text(indent + line), width) for line in lines[1:])]


def _told(one: Happening) -> bool:
    return one.kind in _COLOURS


def log_lines(text: str, width: int, look: Look, *, most: int) -> list[Text]:
    """Return a line of a model's log, folded into at most `most` lines."""
    said = clean(text)
    found: list[Text] = []
    while len(found) < most - 1 and cell_len(said) >= width:
        piece = set_cell_size(said, width - 1)
        found.append(Text(f" {piece}"))
        said = said[len(piece) :]
    return [*found, Text(fit(f" {said}", width, look.glyphs.more))]


def keys_line(hints: Sequence[tuple[str, str]], width: int, look: Look) -> Text:
    """Return as many of the keys as fit, the first ones first."""
    line = Text()
    for key, word in hints:
        if line.cell_len + cell_len(key) + cell_len(word) + 3 > width:
            break
        line.append(f" {key}", look.style("key") or "bold")
        line.append(f" {word}")
    return _exactly(line, width)


def _model_columns(width: int) -> tuple[list[Column], int]:
    """Return the columns and what is left for the reason (0: nothing)."""
    columns = choose_columns(_MODEL_COLUMNS, width - 1)
    left = width - 1 - sum(column.width + 1 for column in columns) + 1
    longer = min(max(0, left - 1 - _WHY_WIDTH), 14) if left > _WHY_WIDTH else max(0, left)
    first = columns[0]
    columns[0] = Column(first.name, first.title, first.width + longer)
    rest = left - longer - 1
    return columns, rest if rest >= _WHY_WIDTH else 0


def _widen(columns: list[Column], width: int) -> list[Column]:
    """Give what is left to the first column and the path."""
    left = width - sum(column.width + 1 for column in columns) + 1
    grown = []
    for column in columns:
        more = {"model": min(left // 2, 14), "path": 0}.get(column.name, 0)
        grown.append(Column(column.name, column.title, column.width + more, 0, column.right))
    left = width - sum(column.width + 1 for column in grown) + 1
    last = grown[-1]
    if not last.right:
        grown[-1] = Column(last.name, last.title, last.width + left, 0)
    return grown


def _title(word: str, shown: int, total: int) -> str:
    return f"{word} {total}" if shown == total else f"{word} {shown}/{total}"


def _header(text: str, width: int, look: Look, *, focused: bool) -> Text:
    style = "bold reverse" if focused else "bold underline"
    return Text(fit(text, width), style)


def _cursor(cursor: bool, look: Look) -> str:
    return look.glyphs.cursor if cursor else " "


def _row(line: Text, width: int, *, cursor: bool) -> Text:
    if cursor:  # of one colour: a bar of many is hard to read
        line = Text(line.plain, "bold reverse")
    return _exactly(line, width)


def _exactly(line: Text, width: int) -> Text:
    line.truncate(width, pad=True)
    line.no_wrap = True
    return line
