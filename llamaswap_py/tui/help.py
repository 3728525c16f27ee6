"""The page of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual.binding import Binding
from textual.screen import ModalScreen
from textual.widgets import Static

if TYPE_CHECKING:
    from textual.app import ComposeResult

KEYS: Final = (
    ("↑ ↓ k j", "choose a row; in the lower pane: scroll"),
    ("tab", "the next pane; a click works too"),
    ("l", "load the model"),
    ("u", "unload it, once its requests have ended"),
    ("U", "unload it now; its requests end with an error"),
    ("p", "pin it against eviction, or let it go"),
    ("c", "end the chosen request (in REQUESTS)"),
    ("enter", "the model's log, or decisions again"),
    ("/", "show only what has this text in it"),
    ("z", "the pane alone, or all of them"),
    ("esc", "one step back"),
    ("q", "quit; nothing of the server changes"),
)


class Help(ModalScreen[None]):
    """All keys; any key closes it."""

    DEFAULT_CSS = """
    Help { align: center middle; background: ansi_default; }
    Help > Static { width: 56; height: auto; border: solid ansi_default; padding: 0 1; }
    """
    BINDINGS: ClassVar = [Binding("escape,q,question_mark,enter,space", "dismiss", "Close")]

    def compose(self) -> ComposeResult:
        """Make the page."""
        lines = "\n".join(f"{keys:<9}{text}" for keys, text in KEYS)
        yield Static(f"{lines}\n\nColumns: docs/top.md", markup=False)

    def on_key(self) -> None:
        """Any key closes it."""
        self.dismiss()
