"""The dashboard on the screen: keys, tasks that ask the server, and lines drawn with textual."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, Final

from textual.app import App
from textual.binding import Binding
from textual.events import Key
from textual.widgets import Input

from llamaswap_py.client import calls
from llamaswap_py.client.answers import UnloadReport
from llamaswap_py.errors import RemoteError
from llamaswap_py.tui.canvas import Canvas, make_look, trouble_of
from llamaswap_py.tui.cells import clean
from llamaswap_py.tui.help import Help
from llamaswap_py.tui.history import History
from llamaswap_py.tui.picture import make_picture
from llamaswap_py.tui.screen import PANES, Reader, draw

if TYPE_CHECKING:
    from textual import events
    from textual.app import ComposeResult

    from llamaswap_py.client.calls import ApiCall
    from llamaswap_py.client.remote import AsyncRemote
    from llamaswap_py.tui.drawing import Look
    from llamaswap_py.tui.picture import Picture

INTERVAL: Final = 1.0
"""Seconds between looks at the server; what happens there is looked at sooner."""
_SOON: Final = 0.2
RETRY: Final = 1.0
_LOG_LINES: Final = 2_000
_LOG_TAIL: Final = 500
_PAGE: Final = 10


class Top(App[None]):
    """`lswap top`."""

    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    Input { dock: bottom; height: 1; border: none; padding: 0 1; display: none; }
    Input:focus { border: none; }
    """
    AUTO_FOCUS = None
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar = [
        Binding("tab", "turn(1)", priority=True),
        Binding("shift+tab", "turn(-1)", priority=True),
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup", f"move(-{_PAGE})"),
        Binding("pagedown", f"move({_PAGE})"),
        Binding("home,g", "move(-1000000)"),
        Binding("end,G", "move(1000000)"),
        Binding("l", "load"),
        Binding("u", "unload"),
        Binding("U", "force_unload"),
        Binding("p", "pin"),
        Binding("c", "cancel"),
        Binding("enter,o", "log"),
        Binding("d", "decisions"),
        Binding("z", "zoom"),
        Binding("slash", "filter"),
        Binding("escape", "undo"),
        Binding("question_mark,f1", "help"),
        Binding("q,ctrl+c", "quit", priority=False),
    ]

    def __init__(self, remote: AsyncRemote, *, look: Look | None = None) -> None:
        super().__init__(ansi_color=True)
        self.remote = remote
        self.look = look or make_look()
        self.history = History()
        self.reader = Reader()
        self.picture: Picture = make_picture(self.history)
        self.log_lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._poke = asyncio.Event()
        self._asked: tuple[str, str] | None = None
        """An action that waits for its key to be pressed a second time."""
        self._answered: tuple[str, str] | None = None
        """The one that waited when the last key was pressed."""
        self._key: Key | None = None

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Canvas()
        field = Input(placeholder="part of a model, client, state or decision", id="filter")
        field.can_focus = False
        yield field

    def on_mount(self) -> None:
        """Start what asks the server; textual ends it with the app."""
        self.run_worker(self._look(), name="look")
        self.run_worker(self._listen(), name="listen")
        self.redraw()

    def on_resize(self) -> None:
        """Draw for the new size."""
        self.call_after_refresh(self.redraw)

    def redraw(self) -> None:
        """Draw what is known now."""
        found = self.query(Canvas)
        if not found:
            return
        self.picture = make_picture(self.history, self.reader.filter)
        width, height = self.size
        screen = draw(self.picture, self.reader, self.log_lines, width, height, self.look)
        found.first().show(screen)

    # What asks the server

    async def _look(self) -> None:
        """Look at the server every second, and soon after something happened there."""
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
        """Follow what happens; after a break go on where it broke off."""
        while True:
            try:
                after = self.history.resume_after(await self.remote.ask(calls.state()))
                async with self.remote.stream(calls.events(after)) as events:
                    async for event in events:
                        self.history.heard(event)
                        self._poke.set()
            except RemoteError:
                pass  # the look says so
            self._poke.set()
            await asyncio.sleep(RETRY)

    async def _follow(self, model: str) -> None:
        """Keep the lines of a model's log; begins again when the server was away."""
        while True:
            fresh = True
            try:
                asked = calls.logs(model, tail=_LOG_TAIL, follow=True)
                async with self.remote.stream(asked) as lines:
                    async for line in lines:
                        if fresh:
                            self.log_lines.clear()
                            fresh = False
                        self.log_lines.append(line)
                        self._draw_soon()
            except RemoteError:
                pass
            await asyncio.sleep(RETRY)

    def _draw_soon(self) -> None:
        """Draw once for many lines that come at once."""
        if not self._drawing:
            self._drawing = True
            self.set_timer(_SOON, self._draw_now)

    _drawing = False

    def _draw_now(self) -> None:
        self._drawing = False
        self.redraw()

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """While the filter is written, keys belong to it."""
        writing = self.query_one(Input).has_focus
        return not writing or action in ("quit", "undo", "turn")

    async def on_event(self, event: events.Event) -> None:
        """A key ends a message, and a question that it does not answer."""
        if isinstance(event, Key) and event is not self._key:
            self._key = event
            self._answered, self._asked = self._asked, None
            if self.reader.message:
                self.reader.message = ""
                self.call_after_refresh(self.redraw)
        await super().on_event(event)

    def action_turn(self, step: int) -> None:
        """Go to the next pane."""
        if self.query_one(Input).has_focus:
            self._end_filter()
        at = PANES.index(self.reader.focus)
        self.reader.focus = PANES[(at + step) % len(PANES)]
        self.redraw()

    def action_move(self, step: int) -> None:
        """Go up or down."""
        self.reader.move(self.picture, step)
        self.redraw()

    def action_load(self) -> None:
        """Load the model that is pointed at."""
        if model := self.reader.model(self.picture):
            self._do(calls.load(model, wait=False), f"{model} is asked for")

    def action_unload(self) -> None:
        """Unload it, once its requests have ended."""
        if model := self.reader.model(self.picture):
            self._do(calls.unload(model, wait=False), f"{model} goes once its requests have ended")

    def action_force_unload(self) -> None:
        """Unload it now; asks first."""
        model = self.reader.model(self.picture)
        if model and self._sure("U", model, f"end every request of {model} and unload it"):
            self._do(calls.unload(model, force=True, wait=False), f"{model} is unloaded")

    def action_pin(self) -> None:
        """Pin it, or let it go."""
        model = self.reader.model(self.picture)
        row = next((row for row in self.picture.models if row.id == model), None)
        if row is not None:
            done = f"{row.id} is {'not pinned any more' if row.pinned else 'pinned'}"
            self._do(calls.pin(row.id, pinned=not row.pinned), done)

    def action_cancel(self) -> None:
        """End the request that is pointed at; asks first."""
        if self.reader.focus != "requests":
            self._say("c ends a request: choose one with tab and the arrows")
            return
        id = self.reader.request(self.picture)
        one = next((one for one in self.picture.requests if one.id == id), None)
        if one is None:
            self._say("no request is open")
        elif self._sure("c", one.id, f"end this request to {one.model}"):
            self._do(calls.cancel(one.id), f"request {one.id} is ended")

    def action_log(self) -> None:
        """Show the log of the model that is pointed at; once more: decisions again."""
        model = self.reader.model(self.picture)
        if model is None or model == self.reader.log_of:
            self.action_decisions()
            return
        self.reader.show_log(model)
        if self.reader.zoomed:
            self.reader.focus = "lower"
        self.log_lines.clear()
        self.run_worker(self._follow(model), name="log", group="log", exclusive=True)
        self.redraw()

    def action_decisions(self) -> None:
        """Show decisions below."""
        self.workers.cancel_group(self, "log")
        self.reader.show_log(None)
        self.redraw()

    def action_zoom(self) -> None:
        """Give the pane with the focus the whole screen, or not any more."""
        self.reader.zoomed = not self.reader.zoomed
        self.redraw()

    def action_help(self) -> None:
        """Show the keys."""
        self.push_screen(Help())

    def action_filter(self) -> None:
        """Write a filter; the rows follow while it is written."""
        field = self.query_one(Input)
        field.display = field.can_focus = True
        field.focus()

    def action_undo(self) -> None:
        """Undo one thing: the filter, the zoom, the log."""
        if self.query_one(Input).has_focus or self.reader.filter:
            self.query_one(Input).value = self.reader.filter = ""
            self._end_filter()
        elif self.reader.zoomed:
            self.reader.zoomed = False
        elif self.reader.log_of is not None:
            self.action_decisions()
        self.redraw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter by what is written so far."""
        self.reader.filter = event.value
        self.redraw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Keep the filter, go back to the rows."""
        self._end_filter()
        self.redraw()

    def _end_filter(self) -> None:
        field = self.query_one(Input)
        self.set_focus(None)
        field.display = field.can_focus = False

    def on_click(self, event: events.Click) -> None:
        """Point at the row that is clicked."""
        shown = self.query_one(Canvas).shown
        if shown is None or not event.screen_y < len(shown.targets):
            return
        target = shown.targets[event.screen_y]
        if target is not None:
            self.reader.focus, row = target
            if row >= 0 and self.reader.focus == "models":
                self.reader.models.go([one.id for one in self.picture.models], row)
            elif row >= 0 and self.reader.focus == "requests":
                self.reader.requests.go([one.id for one in self.picture.requests], row)
            self.redraw()

    def on_mouse_scroll_up(self) -> None:
        """The wheel."""
        self.action_move(-1)

    def on_mouse_scroll_down(self) -> None:
        """The wheel."""
        self.action_move(1)

    # Asking the server to do something

    def _do(self, call: ApiCall[Any], done: str) -> None:
        self.run_worker(self._try(call, done), group="actions")

    async def _try(self, call: ApiCall[Any], done: str) -> None:
        try:
            answer = await self.remote.ask(call)
        except RemoteError as error:
            self._say(f"no: {error.message}")
        else:
            absent = isinstance(answer, UnloadReport) and not answer.unloaded
            self._say("it is not loaded" if absent else done)
        self._poke.set()

    def _sure(self, key: str, what: str, question: str) -> bool:
        """Return whether a key was pressed twice for the same; the first time asks."""
        if self._answered == (key, what):
            return True
        self._asked = (key, what)
        self._say(f"{key} again: {question} (any other key: no)")
        return False

    def _say(self, text: str) -> None:
        self.reader.message = clean(text)
        self.redraw()
