"""The application `lswap top`: its keys, its tasks that ask the server, and textual's widgets."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from rich.cells import cell_len
from rich.text import Text
from textual.app import App, SystemCommand
from textual.binding import Binding
from textual.events import Key
from textual.widgets import ContentSwitcher, Input

from llamaswap_py.client import calls
from llamaswap_py.client.answers import UnloadReport
from llamaswap_py.client.remote import UnreachableError
from llamaswap_py.errors import RemoteError
from llamaswap_py.tui import drawing
from llamaswap_py.tui.cells import clean, fit
from llamaswap_py.tui.history import History
from llamaswap_py.tui.picture import any_has, make_picture
from llamaswap_py.tui.widgets import Ascii, Help, KeyLine, Lines, Rows, TextLine

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from textual import events
    from textual.app import ComposeResult
    from textual.filter import LineFilter
    from textual.screen import Screen

    from llamaswap_py.client.answers import OpenRequest
    from llamaswap_py.client.calls import ApiCall
    from llamaswap_py.client.remote import AsyncRemote
    from llamaswap_py.tui.history import Happening
    from llamaswap_py.tui.picture import ModelRow, Picture

INTERVAL: Final = 1.0
"""Seconds between requests for the server's state; after an event it is requested sooner."""
_SOON: Final = 0.2
RETRY: Final = 1.0
_LOG_LINES: Final = 2_000
_LOG_TAIL: Final = 500
PANES: Final = ("models", "requests", "lower")
_MOST_WRAPPED: Final = 12
_ONE_PANE: Final = 8
"""On a screen with fewer lines, only one pane is shown."""


def _key(keys: str, shown: str, action: str, word: str, text: str) -> Binding:
    """Return a key; `word` is its name in the last line (empty: it is not shown there)."""
    return Binding(keys, action, word, bool(word), shown, priority=keys == "tab", tooltip=text)


KEYS: Final = (
    _key("l", "l", "load", "load", "load the model"),
    _key("u", "u", "unload", "unload", "unload the model when its requests have ended"),
    _key("U", "U", "force_unload", "", "unload the model now: its requests end with an error"),
    _key(
        "p", "p", "pin", "pin", "pin it, so that it stays loaded when others need room; or unpin it"
    ),
    _key("c", "c", "cancel", "", "end the chosen request (in REQUESTS)"),
    _key("enter,o", "enter", "log", "log", "show the model's log, or decisions again"),
    _key("d", "d", "decisions", "", "show decisions"),
    _key("slash", "/", "filter", "filter", "show only rows that contain a text"),
    _key("tab", "tab", "turn(1)", "next", "go to the next pane; a click does so too"),
    _key("z", "z", "zoom", "zoom", "show only this pane, or all panes"),
    _key("escape", "esc", "undo", "", "go one step back: clear the filter, the zoom, the log"),
    _key("question_mark,f1", "?", "help", "help", "show the keys"),
    _key("q,ctrl+c", "q", "quit", "quit", "quit; the server goes on unchanged"),
)
_BACK: Final = Binding("shift+tab", "turn(-1)", show=False, priority=True)


class Top(App[None]):
    """The application `lswap top`."""

    CSS_PATH = "top.tcss"
    AUTO_FOCUS = None
    BINDINGS: ClassVar = [*KEYS, _BACK]

    def __init__(self, remote: AsyncRemote, *, encoding: str = "") -> None:
        encoding = encoding or sys.stdout.encoding or ""
        self._ascii = () if "utf" in encoding.lower() else (Ascii(),)
        super().__init__(ansi_color=True)
        self.animation_level = "none"
        self.remote = remote
        self.history = History()
        self.picture: Picture = make_picture(self.history)
        self.pane = "models"
        self.log_of: str | None = None
        """The model whose log the lower pane shows; None: it shows decisions."""
        self.zoomed = False
        self.filter = ""
        self.log_lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._poke = asyncio.Event()
        self._asked: tuple[str, str] | None = None
        """The action that is done if its key is pressed a second time."""
        self._answered: tuple[str, str] | None = None
        """The action that waited for a second key press when the last key was pressed."""
        self._last_key: Key | None = None

        self.lines = {name: TextLine(id=name) for name in ("title", "devices", "detail", "head")}
        self.models, self.requests = Rows(id="models"), Rows(id="requests")
        self.lower = Lines(id="lower", max_lines=_LOG_LINES, min_width=0)
        self.message, self.keys = TextLine(id="message"), KeyLine(id="keys")
        self.field = Input(placeholder="part of a model, client, state or decision", id="filter")
        self.last = ContentSwitcher(id="last", initial="keys")

    def compose(self) -> ComposeResult:
        """Yield the widgets, in their order."""
        yield from (self.lines["title"], self.lines["devices"], self.models, self.lines["detail"])
        yield from (self.requests, self.lines["head"], self.lower)
        with self.last:
            yield from (self.keys, self.message, self.field)

    def on_mount(self) -> None:
        """Start the tasks that ask the server; textual ends them with the app."""
        self.watch(self.lower, "scroll_y", self._show_head, init=False)
        self._go_to(self.pane)
        self.run_worker(self._look(), name="look")
        self.run_worker(self._listen(), name="listen")

    def on_resize(self) -> None:
        """Draw for the new size."""
        self.redraw()
        self.call_after_refresh(self.write_lower)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return the filters of each line: one to ASCII if the encoding has no other characters."""
        return [*super().get_line_filters(), *self._ascii]

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Return the commands of the palette (ctrl+p): those that have a key."""
        for one in KEYS:
            run = partial(self.run_action, one.action)
            yield SystemCommand(one.tooltip, f"key: {one.key_display}", run)

    # Drawing

    def redraw(self) -> None:
        """Draw all panes from the history."""
        picture = self.picture = make_picture(self.history, self.filter)
        width, height = self.size
        screen = self.screen_stack[0]
        screen.set_class(picture.trouble is not None, "-stale")
        screen.set_class(height < 11, "-tiny")
        screen.set_class(11 <= height < 22, "-low")
        screen.set_class(self.zoomed or height < _ONE_PANE, "-zoomed")
        self.lines["devices"].display = height > 4
        self.lines["title"].say(drawing.title_text(picture, width))
        devices = drawing.device_lines(picture.devices, width, colour=not self.no_color)
        self.lines["devices"].say(devices)
        missing = "no model matches the filter (esc clears the filter)"
        self.models.nothing = missing if picture.models_total else "no models"
        self.models.show(drawing.model_table(picture, width))
        missing = "no request matches the filter"
        self.requests.nothing = missing if picture.requests_total else "no open requests"
        self.requests.show(drawing.request_table(picture, width))
        room = self.lines["detail"].size.height
        self.lines["detail"].say(drawing.detail_lines(self._row(), width, room))
        self._show_head()

    def _show_head(self) -> None:
        """Show the title of the lower pane, with the number of lines below its end."""
        title = " DECISIONS" if self.log_of is None else f" LOG {clean(self.log_of)}"
        note = f"{self.lower.below} lines below " if self.lower.below else ""
        room = self.size.width - cell_len(title)
        self.lines["head"].say(title + fit(note, room, right=True))

    def write_lower(self) -> None:
        """Write the lower pane again, after a change of its width, filter or contents."""
        self.lower.clear()
        self._write(*(self.history.happenings if self.log_of is None else self.log_lines))
        if not self.lower.lines and self.lower.size.width:
            log = "no output yet: the model was not loaded"
            said = "no decisions yet" if self.log_of is None else log
            self.lower.write(Text(f" {said}", drawing.DIM))
            self.lower.empty = True

    def _write(self, *items: Happening | str) -> None:
        """Add lines to the lower pane; long lines are folded."""
        if not self.lower.size.width:
            return  # the pane is hidden; it is written when it is shown
        few = 3 if self.log_of is None and self.lower.size.height > 7 else 1
        most = _MOST_WRAPPED if self.zoomed else few
        width, wanted = self.lower.size.width, self.filter.strip().lower()
        for one in items:
            if isinstance(one, str):
                self.lower.add(drawing.log_line(one, width, most))
            elif any_has(wanted, one.model, one.kind):
                self.lower.add(drawing.happening_lines(one, width, clock, most))
        self._show_head()

    # What asks the server

    async def _look(self) -> None:
        """Request the server's state every second, and soon after each event."""
        while True:
            try:
                state = await self.remote.ask(calls.state())
                self.history.saw(state, await self.remote.ask(calls.requests()))
            except RemoteError as error:
                self.history.failed(trouble_of(error))
            self.redraw()
            self._poke.clear()
            try:
                await asyncio.wait_for(self._poke.wait(), INTERVAL)
            except TimeoutError:
                continue
            await asyncio.sleep(_SOON)

    async def _listen(self) -> None:
        """Follow the server's events; after a break continue from the last one."""
        while True:
            try:
                after = self.history.resume_after(await self.remote.ask(calls.state()))
                self.write_lower()
                async with self.remote.stream(calls.events(after)) as events:
                    async for event in events:
                        if (happening := self.history.heard(event)) and self.log_of is None:
                            self._write(happening)
                        self._poke.set()
            except RemoteError:
                pass  # _look() shows the error
            self._poke.set()
            await asyncio.sleep(RETRY)

    async def _follow(self, model: str) -> None:
        """Follow a model's log; start again after the server could not be reached."""
        while True:
            fresh = True
            try:
                asked = calls.logs(model, tail=_LOG_TAIL, follow=True)
                async with self.remote.stream(asked) as lines:
                    async for line in lines:
                        if fresh:
                            self.log_lines.clear()
                            self.lower.clear()
                            fresh = False
                        self.log_lines.append(line)
                        self._write(line)
            except RemoteError:
                pass
            await asyncio.sleep(RETRY)

    # Keys

    async def on_event(self, event: events.Event) -> None:
        """Handle a key: it ends a message, and a question unless it answers it."""
        if isinstance(event, Key) and event is not self._last_key:
            self._last_key = event
            self._answered, self._asked = self._asked, None
            if self.last.current == "message":
                self.last.current = "keys"
        await super().on_event(event)

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        """Go to the pane that was clicked."""
        if event.widget.id in PANES and event.widget.id != self.pane:
            self._go_to(event.widget.id)

    def on_data_table_row_highlighted(self) -> None:
        """Show the reason for the state of the model under the cursor."""
        self.redraw()

    def _go_to(self, pane: str) -> None:
        self.pane = pane
        for one in PANES:
            self.screen_stack[0].set_class(one == pane, f"-{one}")
        self.redraw()
        {"models": self.models, "requests": self.requests, "lower": self.lower}[pane].focus()
        for rows in (self.models, self.requests):
            rows.mark(rows.cursor_row)
        if not self.lower.lines:
            self.call_after_refresh(self.write_lower)

    def action_turn(self, step: int) -> None:
        """Go to the next pane."""
        self._end_filter()
        self._go_to(PANES[(PANES.index(self.pane) + step) % len(PANES)])

    def action_load(self) -> None:
        """Load the selected model."""
        if model := self._model():
            self._do(calls.load(model, wait=False), f"{model}: load requested")

    def action_unload(self) -> None:
        """Unload the selected model when its requests have ended."""
        if model := self._model():
            self._do(calls.unload(model, wait=False), f"{model}: unload when its requests end")

    def action_force_unload(self) -> None:
        """Unload the selected model now; asks first."""
        model = self._model()
        if model and self._sure("U", model, f"end every request of {model} and unload it"):
            self._do(calls.unload(model, force=True, wait=False), f"{model}: unload requested")

    def action_pin(self) -> None:
        """Pin or unpin the selected model."""
        if row := self._row():
            done = f"{row.id} is {'unpinned' if row.pinned else 'pinned'}"
            self._do(calls.pin(row.id, pinned=not row.pinned), done)

    def action_cancel(self) -> None:
        """End the selected request; asks first."""
        one = self._request()
        if self.pane != "requests":
            self._say("c ends a request: choose one with tab and the arrows")
        elif one is None:
            self._say("no request is open")
        elif self._sure("c", one.id, f"end this request to {one.model}"):
            self._do(calls.cancel(one.id), f"request {one.id}: end requested")

    def action_log(self) -> None:
        """Show the log of the selected model, or decisions if the log is shown already."""
        model = self._model()
        if model is None or model == self.log_of:
            self.action_decisions()
            return
        self.log_of = model
        self.log_lines.clear()
        self.run_worker(self._follow(model), name="log", group="log", exclusive=True)
        if self.zoomed:
            self._go_to("lower")
        self.write_lower()

    def action_decisions(self) -> None:
        """Show decisions in the lower pane."""
        self.workers.cancel_group(self, "log")
        self.log_of = None
        self.write_lower()

    def action_zoom(self) -> None:
        """Show only the pane with the focus, or all panes again."""
        self.zoomed = not self.zoomed
        self.redraw()
        self.call_after_refresh(self.write_lower)

    def action_help(self) -> None:
        """Show the keys."""
        keys = [("↑ ↓ k j", "choose a row; in the lower pane: scroll")]
        keys += [(one.key_display or one.key, one.tooltip) for one in KEYS]
        self.push_screen(Help("\n".join(f" {key:<8} {text}" for key, text in keys)))

    def action_filter(self) -> None:
        """Open the filter's input field; the rows follow while it is typed."""
        self.last.current = "filter"
        self.set_focus(self.field)  # at once, because the next key may have been pressed already

    def action_undo(self) -> None:
        """Undo one step: the filter, else the zoom, else the log."""
        if self.field.has_focus or self.filter:
            self.field.value = ""
            self._end_filter()
        elif self.zoomed:
            self.action_zoom()
        elif self.log_of is not None:
            self.action_decisions()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter by the text typed so far."""
        self.filter = self.keys.filter = event.value
        self.redraw()
        self.write_lower()

    def on_input_submitted(self) -> None:
        """Keep the filter, and return to the rows."""
        self._end_filter()

    def _end_filter(self) -> None:
        if self.field.has_focus:
            self.last.current = "keys"
            self._go_to(self.pane)
        self.refresh_bindings()

    # Asking the server to do something

    def _model(self) -> str | None:
        """Return the model to which a key applies."""
        if self.pane == "requests":
            one = self._request()
            return None if one is None else one.model
        return self.models.pointed

    def _row(self) -> ModelRow | None:
        name = self._model()
        return next((row for row in self.picture.models if row.id == name), None)

    def _request(self) -> OpenRequest | None:
        key = self.requests.pointed
        return next((one for one in self.picture.requests if one.id == key), None)

    def _do(self, call: ApiCall[Any], done: str) -> None:
        self.run_worker(self._try(call, done), group="actions")

    async def _try(self, call: ApiCall[Any], done: str) -> None:
        try:
            answer = await self.remote.ask(call)
        except RemoteError as error:
            self._say(f"no: {error.message}")
        else:
            absent = isinstance(answer, UnloadReport) and not answer.unloaded
            self._say("the model is not loaded" if absent else done)
        self._poke.set()

    def _sure(self, key: str, what: str, question: str) -> bool:
        """Return whether a key was pressed twice for the same thing; the first press asks."""
        if self._answered == (key, what):
            return True
        self._asked = (key, what)
        self._say(f"{key} again: {question} (any other key: no)")
        return False

    def _say(self, text: str) -> None:
        """Show a message instead of the keys until the next one."""
        self.message.say(f" {clean(text)}")
        self.last.current = "message"


def trouble_of(error: RemoteError) -> str:
    """Return the first line of the screen while a server does not answer, or refuses."""
    if isinstance(error, UnreachableError):
        return f"not reachable, trying again: {error.message.partition(' (')[0]}"
    return f"no answer, trying again: {error.message}"


def clock(at: float) -> str:
    """Return the local time as HH:MM:SS."""
    return time.strftime("%H:%M:%S", time.localtime(at))
