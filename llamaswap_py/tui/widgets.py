"""The parts of the screen: tables whose cursor stays with its row, lines that stand still, keys."""

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
    """A table whose cursor stays with its row when the others move."""

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
        """What is said where there are no rows."""
        self._shown = DrawnTable((), {})
        self._keys: list[str] = []
        self._chosen: str | None = None
        """The row that was gone to. On the first rows ever seen the cursor only rests: what
        becomes active moves up to it."""
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
        """Remember the row, and move the mark to it."""
        super().watch_cursor_coordinate(old, new)
        if not self._filling and self._keys:
            self._chosen = self.pointed
            self.mark(old.row, new.row)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """A click on the row where the cursor rests."""
        self._chosen = event.row_key.value

    def mark(self, *rows: int) -> None:
        """Mark the row under the cursor, if keys mean this table; take the mark from others."""
        for at in rows:
            if at < len(self._keys):
                here = self.screen.has_class(f"-{self.id}") and at == self.cursor_row
                self.update_cell(self._keys[at], _MARK, Text("›" if here else " "))

    def render_line(self, y: int) -> Strip:
        """Return a line of the table, or what is said where there are no rows."""
        if y != 1 or self._keys:
            return super().render_line(y)
        said = [Segment(f" {self.nothing}", self.rich_style)]
        return Strip(said).adjust_cell_length(self.size.width, self.rich_style)


class Lines(RichLog):
    """Texts that follow their end, or stand still where their reader has scrolled up."""

    BINDINGS: ClassVar = [
        Binding("k", "scroll_up", show=False),
        Binding("j", "scroll_down", show=False),
        Binding("g", "scroll_home", show=False),
        Binding("G", "scroll_end", show=False),
        Binding("d", "app.decisions", "decisions"),
    ]

    empty = False
    """Whether it only says that there is nothing."""

    @property
    def below(self) -> int:
        """How many lines are below those that are seen."""
        return max(0, len(self.lines) - self.size.height - int(self.scroll_target_y))

    def clear(self) -> Self:
        """Take all lines away, and follow the end again."""
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
        """Lay out again: the end was found with the size of before."""
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
    """The keys that mean something; first of all the one that ends the filter."""

    filter = ""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, show_command_palette=False, compact=True)

    def compose(self) -> ComposeResult:
        """Make the parts."""
        if self.filter:
            yield Label(f" esc no filter ({self.filter})", markup=False)
        yield from super().compose()


class Help(ModalScreen[None]):
    """A page that any key closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Make the page."""
        yield Static(self._text, markup=False)

    def on_key(self, event: Key) -> None:
        """Close the page; the key does nothing else."""
        event.stop()
        event.prevent_default()
        self.dismiss()


class Ascii(LineFilter):
    """Draws with characters that every terminal has."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return segments of the same length in ASCII."""
        return [Segment(in_ascii(text), style, control) for text, style, control in segments]
