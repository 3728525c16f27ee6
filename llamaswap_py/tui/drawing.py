"""Turns a picture into styled texts that fit a width. Pure: rich's texts are plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from llamaswap_py.tui.cells import (
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
    from llamaswap_py.tui.picture import BarPart, DeviceRow, ModelRow, Picture

DIM: Final = "bright_black"
_COLOURS: Final = {
    **dict.fromkeys(
        ("loading", "downloading", "waiting", "draining", "stopping", "load"), "yellow"
    ),
    **dict.fromkeys(("failed", "revoked", "restart", "lost", "strangers"), "red"),
    "ready": "green",
    "sleeping": "blue",
    "unloaded": DIM,
    "stop": "magenta",
    "reserved": "cyan",
    "margin": DIM,
}
"""The styles of states, kinds of decisions, and parts of a device."""
_MODEL_COLOURS: Final = ("green", "bright_blue", "yellow", "magenta", "cyan", "bright_green")
_PART_MARKS: Final = {"reserved": "▚", "strangers": "▒", "margin": "╱"}
_BAR: Final = 6
_KIND_WIDTH: Final = 8


class Column(NamedTuple):
    """A column. If space is short, columns with the highest `rank` are left out first; 0: never."""

    name: str
    title: str
    width: int
    rank: int = 0
    right: bool = False


class Cell(NamedTuple):
    """A text of a table, as wide as its column, and its style."""

    text: str
    style: str = ""


class DrawnTable(NamedTuple):
    """Titles of columns, and the cells of each row by the row's key."""

    titles: tuple[str, ...]
    rows: dict[str, tuple[Cell, ...]]


_MODEL_COLUMNS: Final = (
    Column("id", "MODELS", 22),
    Column("state", "STATE", 21),
    Column("use", "REQUESTS", 8, 1, right=True),
    Column("waiting", "QUEUE", 5, 2, right=True),
    Column("rate", "TOK/S", 5, 3, right=True),
    Column("ttl", "TTL", 4, 4, right=True),
    Column("age", "AGE", 4, 6, right=True),
    Column("memory", "MEMORY", 8, 5, right=True),
    Column("why", "WHY", 28, 7),
)
_REQUEST_COLUMNS: Final = (
    Column("model", "REQUESTS", 16),
    Column("state", "STATE", 8),
    Column("age", "AGE", 5, 1, right=True),
    Column("tokens", "TOKENS", 6, 2, right=True),
    Column("client", "CLIENT", 16, 3),
    Column("path", "PATH", 20, 4),
    Column("id", "ID", 18, 5),
)


def title_text(picture: Picture, width: int) -> str:
    """Return the first line: the title of this server, or that it does not answer."""
    if picture.trouble is not None:
        return fit(f" {clean(picture.trouble)}", width)
    words = clean(picture.title)
    while cell_len(words) > width - 2 and " · " in words:
        words = words.rpartition(" · ")[0]
    return fit(f" {words}", width)


# Devices


def device_lines(devices: Sequence[DeviceRow], width: int, *, colour: bool = True) -> Text:
    """Return a line for each device, with names of equal width."""
    name_width = min(12, max((len(each.id) for each in devices), default=6))
    lines = (device_line(each, width, colour=colour, name_width=name_width) for each in devices)
    return Text("\n").join(lines)


def device_line(device: DeviceRow, width: int, *, colour: bool = True, name_width: int = 6) -> Text:
    """Return `CUDA0 ████▓▓··╱ 13.5G/24G  █ alpha 9.5G  █ beta 4G  ▒ others 1G`."""
    bar = min(40, max(8, width * 3 // 10))
    line = Text(" ")
    line.append(fit(device.id, name_width) + " ", "bold")
    cells = shares([part.size for part in device.parts], device.total, bar)
    marks = _marks(device.parts, colour)
    for (mark, style), count in zip(marks, cells, strict=True):
        line.append(mark * count, style)
    line.append("·" * (bar - sum(cells)), DIM)
    line.append(f" {short_size(device.used)}/{short_size(device.total)}")
    names = _legend(device.parts, width - line.cell_len)
    for (mark, style), said in zip(marks, names, strict=False):
        line.append("  ")
        line.append(mark, style)
        line.append(f" {said}")
    if len(names) < len(marks):
        line.append(f" +{len(marks) - len(names)}")
    if device.note and line.cell_len + 2 + cell_len(device.note) <= width:
        line.append(f"  {device.note}", DIM)
    line.truncate(width, pad=True)
    return line


def _legend(parts: Sequence[BarPart], width: int) -> list[str]:
    """Return `alpha 9.5G` for as many parts as fit, with names as long as possible."""
    for longest in (40, 24, 16, 12, 9):
        said = [f"{_shortened(clean(one.name), longest)} {short_size(one.size)}" for one in parts]
        if sum(cell_len(text) + 4 for text in said) <= width:
            return said
    room = width - 4  # without the cells for the number of parts that are left out
    kept: list[str] = []
    for text in said if parts else ():
        room -= cell_len(text) + 4
        if room < 0:
            break
        kept.append(text)
    return kept


def _shortened(text: str, longest: int) -> str:
    return text if cell_len(text) <= longest else fit_middle(text, longest)


def _marks(parts: Sequence[BarPart], colour: bool) -> list[tuple[str, str]]:
    """Return a character and a style for each part; those of models alternate."""
    found = []
    turn = 0
    for part in parts:
        if part.kind == "model":
            mark = "█" if colour else "█▓"[turn % 2]
            found.append((mark, _MODEL_COLOURS[turn % len(_MODEL_COLOURS)]))
            turn += 1
        else:
            found.append((_PART_MARKS[part.kind], _COLOURS[part.kind]))
    return found


# Tables


def model_table(picture: Picture, width: int) -> DrawnTable:
    """Return the table of models; if there is room, its last column has their reasons."""
    columns = fit_columns(_MODEL_COLUMNS, width - 1)
    rows = {row.id: _cells(columns, *_of_model(row)) for row in picture.models}
    return DrawnTable(_titles(columns, len(rows), picture.models_total), rows)


def _of_model(row: ModelRow) -> tuple[dict[str, str], dict[str, str], str]:
    """Return the texts of a model's columns, the styles of some, and that of the others."""
    texts = {
        "id": ("*" if row.pinned else "") + row.id,
        "state": state_text(row),
        "use": f"{row.leases}/{row.slots}" if row.slots else str(row.leases or ""),
        "waiting": str(row.waiting or ""),
        "rate": short_count(row.rate) if row.rate else "",
        "ttl": "" if row.ttl_left is None else short_time(row.ttl_left),
        "age": "" if row.age is None else short_time(row.age),
        "memory": "?" if row.memory is None else format_size(row.memory),
        "why": row.reason,
    }
    plain = "" if row.active else DIM
    styles = {"id": plain or "bold", "state": _COLOURS.get(row.state, ""), "why": DIM}
    return texts, styles, plain


def state_text(row: ModelRow) -> str:
    """Return `ready`, or `load ███░░░  43% 12s`: bar, progress, and remaining time of a load."""
    if row.progress is None:
        ready_in = "" if row.eta is None else f" ~{short_time(row.eta)}"
        return f"{row.state}{ready_in}"
    word = {"loading": "load", "downloading": "down"}.get(row.state, row.state)
    eta = "" if row.eta is None else f" {short_time(row.eta)}"
    return f"{word} {progress_bar(row.progress, _BAR)} {row.progress:4.0%}{eta}"


def request_table(picture: Picture, width: int) -> DrawnTable:
    """Return the table of open requests."""
    columns = fit_columns(_REQUEST_COLUMNS, width - 1)
    rows = {one.id: _cells(columns, *_of_request(one)) for one in picture.requests}
    return DrawnTable(_titles(columns, len(rows), picture.requests_total), rows)


def _of_request(one: OpenRequest) -> tuple[dict[str, str], dict[str, str], str]:
    texts = {
        "model": one.model,
        "state": one.state,
        "age": short_time(one.age),
        "tokens": str(one.tokens or ""),
        "client": one.client,
        "path": one.path,
        "id": one.id,
    }
    return texts, {"state": "yellow" if one.state == "waiting" else "green"}, ""


def _cells(
    columns: Sequence[Column], texts: dict[str, str], styles: dict[str, str], plain: str
) -> tuple[Cell, ...]:
    found = []
    for at, one in enumerate(columns):
        text = clean(texts[one.name])
        text = " " + fit(text, one.width, right=one.right) if at else fit_middle(text, one.width)
        found.append(Cell(text, styles.get(one.name, plain)))
    return tuple(found)


def _titles(columns: Sequence[Column], shown: int, total: int) -> tuple[str, ...]:
    first, *others = columns
    count = f"{total}" if shown == total else f"{shown}/{total}"
    named = fit(f"{first.title} {count}", first.width)
    return (named, *(" " + fit(one.title, one.width, right=one.right) for one in others))


def choose_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that fit `width`, with one cell between them."""
    kept = list(columns)
    while kept and _left(kept, width) < 0:
        last = max(kept, key=lambda column: column.rank)
        if last.rank == 0:
            break
        kept.remove(last)
    return kept


def fit_columns(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that fit; remaining cells go to the first, and to a left-aligned last."""
    kept = choose_columns(columns, width)
    for at, most in ((0, width if kept[-1].right else 14), (-1, width)):
        more = min(max(0, _left(kept, width)), most)
        kept[at] = kept[at]._replace(width=kept[at].width + more)
    return kept


def _left(columns: Sequence[Column], width: int) -> int:
    return width - sum(column.width + 1 for column in columns) + 1


# The lower part


def detail_lines(row: ModelRow | None, width: int, count: int) -> str:
    """Return the reason of the model under the cursor, and what was chosen for it.

    It has at most `count` lines.
    """
    said = "" if row is None else "; ".join(filter(None, (row.reason, row.chosen)))
    if row is None or not said:
        return ""
    lines = wrap(f"{row.id}: {clean(said)}", width - 2, count)
    return "\n".join(f" {line}" for line in lines)


def happening_lines(one: Happening, width: int, clock: Callable[[float], str], most: int) -> Text:
    """Return a decision in at most `most` lines; `clock` turns Unix time into HH:MM:SS."""
    names = 16 if width >= 100 else 12
    at = clock(one.at) if one.at else "--:--:--"
    room = max(10, width - len(at) - _KIND_WIDTH - names - 4)
    first, *more = wrap(clean(one.reason), room, most)
    lines = Text.assemble(
        (f" {at} ", DIM),
        (fit(one.kind, _KIND_WIDTH) + " ", _COLOURS.get(one.kind, "")),
        (fit_middle(clean(one.model), names) + " ", "bold"),
        first,
    )
    indent = " " * (width - room)
    for line in more:
        lines.append(f"\n{indent}{line}")
    return lines


def log_line(text: str, width: int, most: int) -> Text:
    """Return a line of a model's log, folded into at most `most` lines."""
    said = f" {clean(text)}"
    lines = [said]
    while len(lines) < most and cell_len(lines[-1]) > width:
        here = Text(lines[-1])
        here.truncate(width)
        lines[-1:] = [here.plain, " " + lines[-1][len(here.plain) :]]
    lines[-1] = fit(lines[-1], width).rstrip()
    return Text("\n".join(lines))
