"""The widgets of the screen: tables, scrolling lines, the line of keys, and the help page."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from rich.segment import Segment
from rich.text import Text
from textual.binding import Binding
from textual.filter import LineFilter
from textual.screen import ModalScreen
from textual.strip import Strip
from textual.widgets import DataTable, Footer, Label, RichLog, Static

from llamaswap_py.tui.cells import in_ascii
from llamaswap_py.tui.drawing import DrawnTable

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.color import Color
    from textual.coordinate import Coordinate
    from textual.events import Key, Resize

_MARK = "mark"


class Rows(DataTable[Text], inherit_bindings=False):
    """A table whose cursor stays on its row when other rows move."""

    BINDINGS: ClassVar = [
        Binding("up,k", "cursor_up"),
        Binding("down,j", "cursor_down"),
        Binding("pageup", "page_up"),
        Binding("pagedown", "page_down"),
        Binding("home,g", "scroll_top"),
        Binding("end,G", "scroll_bottom"),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", cell_padding=0)
        self.nothing = ""
        """The text that is shown if there are no rows."""
        self._shown = DrawnTable((), {})
        self._keys: list[str] = []
        self._chosen: str | None = None
        """The key of the row that the user selected, None until then. Until then the cursor stays
        on the first line, to which rows move up when they become active."""
        self._filling = False

    @property
    def pointed(self) -> str | None:
        """The key of the row under the cursor."""
        return self._keys[self.cursor_row] if self._keys else None

    def show(self, table: DrawnTable) -> None:
        """Show a table; only cells that changed are drawn again."""
        before, self._shown = self._shown, table
        if table.titles != before.titles or list(table.rows) != self._keys:
            self._fill(table)
            return
        for key, cells in table.rows.items():
            for at, (old, new) in enumerate(zip(before.rows[key], cells, strict=True)):
                if old != new:
                    self.update_cell(key, str(at), Text(*new))

    def _fill(self, table: DrawnTable) -> None:
        at, scrolled = self.cursor_row, self.scroll_y
        self._filling = True
        self.clear(columns=True)
        self.add_column("", width=1, key=_MARK)
        for number, title in enumerate(table.titles):
            self.add_column(Text(title), width=len(title), key=str(number))
        for key, cells in table.rows.items():
            self.add_row(Text(" "), *(Text(*cell) for cell in cells), key=key)
        self._keys = list(table.rows)
        if self._chosen in self._keys:
            at = self._keys.index(self._chosen)
        elif self._keys and self._chosen is not None:
            self._chosen = self._keys[min(at, len(self._keys) - 1)]
        self.scroll_to(y=scrolled, animate=False, immediate=True)
        self.move_cursor(row=min(at, max(0, len(self._keys) - 1)))
        self._filling = False
        self.mark(self.cursor_row)

    def watch_cursor_coordinate(self, old: Coordinate, new: Coordinate) -> None:
        """Store the row, and move the mark to it."""
        super().watch_cursor_coordinate(old, new)
        if not self._filling and self._keys:
            self._chosen = self.pointed
            self.mark(old.row, new.row)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Store the row that was clicked."""
        self._chosen = event.row_key.value

    def mark(self, *rows: int) -> None:
        """Mark the row under the cursor, if keys apply to this table, and unmark the others."""
        for at in rows:
            if at < len(self._keys):
                here = self.screen.has_class(f"-{self.id}") and at == self.cursor_row
                self.update_cell(self._keys[at], _MARK, Text("›" if here else " "))

    def render_line(self, y: int) -> Strip:
        """Return a line of the table, or the text that is shown if there are no rows."""
        if y != 1 or self._keys:
            return super().render_line(y)
        said = [Segment(f" {self.nothing}", self.rich_style)]
        return Strip(said).adjust_cell_length(self.size.width, self.rich_style)


class Lines(RichLog):
    """Lines that scroll to their end, unless the user has scrolled up."""

    BINDINGS: ClassVar = [
        Binding("k", "scroll_up", show=False),
        Binding("j", "scroll_down", show=False),
        Binding("g", "scroll_home", show=False),
        Binding("G", "scroll_end", show=False),
        Binding("d", "app.decisions", "decisions"),
    ]

    empty = False
    """Whether it only has the text that there are no lines."""

    @property
    def below(self) -> int:
        """How many lines are below the visible ones."""
        return max(0, len(self.lines) - self.size.height - int(self.scroll_target_y))

    def clear(self) -> Self:
        """Remove all lines, and follow the end again."""
        super().clear()
        self.anchor()
        return self

    def add(self, text: Text) -> None:
        """Write one more text."""
        if self.empty:
            self.clear()
        self.empty = False
        self.write(text, width=self.size.width, scroll_end=False)

    def on_resize(self, event: Resize) -> None:
        """Scroll to the end again, which was computed with the old size."""
        self.refresh(layout=True)


class TextLine(Static):
    """Lines of text that are drawn again when they change."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, markup=False)
        self._said: object = None
        self._lines = 0

    def say(self, text: str | Text) -> None:
        """Show a text."""
        said = (text, text.spans) if isinstance(text, Text) else text
        if said != self._said:
            lines = str(text).count("\n")
            self.update(text, layout=lines != self._lines)
            self._said, self._lines = said, lines


class KeyLine(Footer):
    """The line of keys; the key that clears the filter comes first."""

    filter = ""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, show_command_palette=False, compact=True)

    def compose(self) -> ComposeResult:
        """Yield the widgets."""
        if self.filter:
            yield Label(f" esc no filter ({self.filter})", markup=False)
        yield from super().compose()


class Help(ModalScreen[None]):
    """The help page, which any key closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Yield the widgets."""
        yield Static(self._text, markup=False)

    def on_key(self, event: Key) -> None:
        """Close the page; the key does nothing else."""
        event.stop()
        event.prevent_default()
        self.dismiss()


class Ascii(LineFilter):
    """Replaces characters with ASCII, for terminals without others."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return segments of the same length in ASCII."""
        return [Segment(in_ascii(text), style, control) for text, style, control in segments]
