"""The page of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from textual.screen import ModalScreen
from textual.widgets import Static

if TYPE_CHECKING:
    from textual.app import ComposeResult
    from textual.events import Key

KEYS: Final = (
    ("↑ ↓ k j", "choose a row; in the lower pane: scroll"),
    ("tab", "the next pane; a click works too"),
    ("l", "load the model"),
    ("u", "unload it, once its requests have ended"),
    ("U", "unload it now: its requests get an error"),
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
    Help > Static { width: 58; height: auto; max-height: 100%; border: solid ansi_default; }
    """

    def compose(self) -> ComposeResult:
        """Make the page."""
        yield Static("\n".join(f" {keys:<8} {text}" for keys, text in KEYS), markup=False)

    def on_key(self, event: Key) -> None:
        """Any key closes it, and does nothing else."""
        event.stop()
        event.prevent_default()
        self.dismiss()
