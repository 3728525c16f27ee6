"""`lswap top` without a screen: what is remembered, worked out, and drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from msgspec import structs
from rich.cells import cell_len
from textual.app import App

from llamaswap_py.cli.top import terminal_problem
from llamaswap_py.client.answers import (
    EventLines,
    OpenRequest,
    OpenRequests,
    ServerEvent,
    Tokens,
)
from llamaswap_py.errors import LswapError
from llamaswap_py.snapshot import DeviceView
from llamaswap_py.tui.cells import (
    clean,
    fit,
    fit_middle,
    in_ascii,
    progress_bar,
    shares,
    short_count,
    short_size,
    short_time,
    wrap,
)
from llamaswap_py.tui.drawing import (
    Cell,
    Column,
    DrawnTable,
    choose_columns,
    device_line,
    state_text,
    title_text,
)
from llamaswap_py.tui.history import KEPT, History, Rates
from llamaswap_py.tui.picture import BarPart, DeviceRow, device_row, make_picture
from llamaswap_py.tui.widgets import Rows
from tests.unit.api_fakes import GIB, failure_view, instance_view, make_snapshot, model_view
from tests.unit.top_fakes import Seat, StillServer, seated

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.app import ComposeResult

    from llamaswap_py.snapshot import Snapshot

SIZES = [(80, 24), (60, 15), (140, 40), (200, 60), (40, 10), (20, 5), (10, 2)]


def request(id: str = "r1", **changes: Any) -> OpenRequest:
    fields: dict[str, Any] = {"model": "alpha", "client": "key ci", "state": "running", "age": 3.0}
    return OpenRequest(id=id, **(fields | changes))


def decision(id: int, **changes: Any) -> ServerEvent:
    data = {"at": 5.0, "decided_at": 4.0, "kind": "load", "preset": "alpha", "reason": "it fits"}
    return ServerEvent(id, "decision", data | changes)


def full_state() -> Snapshot:
    models = [
        model_view("spare"),
        model_view("alpha", state="ready", leases=2, waiting=1, reason="loaded in 3 s"),
        model_view("beta", state="loading", eta_seconds=12.0, aliases=("second",)),
        model_view(
            "gamma", state="failed", failure=failure_view(retry_at=1080.0, log=("oh\x1b[1m",))
        ),
    ]
    instances = [
        instance_view("alpha", leases=2, memory={"host": 2 * GIB}, evict_at=1100.0),
        instance_view("beta", epoch=2, state="loading", progress=0.43, memory={"host": GIB}),
    ]
    return make_snapshot(models, instances, requests_open=2)


REQUESTS = OpenRequests((request(), request("r2", state="waiting", client="10.0.0.7")))
DECISIONS = [
    decision(at + 1, at=float(at), reason=f"number {at} · " + "because " * 20) for at in range(30)
]


def full_history() -> History:
    history, state = History(), full_state()
    history.saw(state, REQUESTS)
    history.resume_after(state)
    for one in DECISIONS:
        history.heard(one)
    return history


def full_server() -> StillServer:
    return StillServer(full_state(), REQUESTS, DECISIONS)


# What the server says


def test_lines_become_events() -> None:
    lines = EventLines()
    text = ': lswap\n\nid: 7\nevent: state\ndata: {"model": "a"}\n\ndata: 1\n\n'
    events = [event for line in text.split("\n") if (event := lines.take(line)) is not None]
    assert events == [ServerEvent(7, "state", {"model": "a"})]


def test_decisions_are_kept_and_the_feed_goes_on_where_it_broke_off() -> None:
    history, state = History(), make_snapshot([])
    assert history.resume_after(state) == 0
    history.heard(decision(9))
    history.heard(ServerEvent(10, "progress", {"model": "alpha", "fraction": 0.5}))
    assert history.resume_after(state) == 10
    [line] = history.happenings
    assert (line.at, line.kind, line.model, line.reason) == (4.0, "load", "alpha", "it fits")


def test_a_server_that_was_started_again_is_read_from_its_beginning() -> None:
    history = History()
    history.resume_after(make_snapshot([]))
    history.heard(decision(9))
    assert history.resume_after(make_snapshot([], pid=2)) == 0
    assert [line.kind for line in history.happenings] == ["load", "restart"]


def test_what_was_lost_and_reloads_are_told() -> None:
    history = History()
    history.heard(ServerEvent(None, "lost", {"from": 1, "to": 9}))
    report = {"added": ["x"], "removed": [], "changed": ["y", "z"], "needs_restart": []}
    history.heard(ServerEvent(3, "reload", {"at": 5.0, **report}))
    history.heard(ServerEvent(4, "dropped", {"at": 6.0, "reason": "read too slowly"}))
    assert [line.reason for line in history.happenings] == [
        "events 1 to 9",
        "added x; changed y, z",
        "events, because they came faster than they were read",
    ]


def test_the_memory_of_decisions_is_bounded() -> None:
    history = History()
    for at in range(KEPT + 10):
        history.heard(decision(at))
    assert len(history.happenings) == KEPT


def test_tokens_per_second_join_streams_and_finished_answers() -> None:
    rates = Rates(window=5.0)
    assert rates.of("alpha") == 0.0
    rates.sample(100.0, OpenRequests((request(tokens=50),), {"alpha": Tokens(10, 1000)}))
    assert rates.of("alpha") == 0.0  # what was there before counts nothing
    rates.sample(101.0, OpenRequests((request(tokens=70),), {"alpha": Tokens(10, 1000)}))
    assert rates.of("alpha") == 20.0
    rates.sample(102.0, OpenRequests((), {"alpha": Tokens(10, 1080)}))  # it ended, with 80 in all
    assert rates.of("alpha") == 15.0
    rates.sample(103.0, OpenRequests((), {"alpha": Tokens(10, 0)}))  # another server
    assert rates.of("alpha") == 10.0
    for at in range(104, 112):
        rates.sample(float(at), OpenRequests(()))
    assert rates.of("alpha") == 0.0


def test_a_clock_that_is_set_back_makes_no_negative_rate() -> None:
    rates = Rates()
    rates.sample(100.0, OpenRequests((request(tokens=50),)))
    rates.sample(40.0, OpenRequests((request(tokens=70),)))
    rates.sample(41.0, OpenRequests((request(tokens=80),)))
    assert rates.of("alpha") == 10.0


# What is worked out


def test_a_device_has_models_others_margin_and_what_is_free() -> None:
    device = DeviceView("CUDA0", 24 * GIB, GIB, 10 * GIB, "nvml", strangers=3 * GIB, reserved=GIB)
    instances = [
        instance_view("beta", memory={"CUDA0": 2 * GIB, "host": GIB}),
        instance_view("alpha", memory={"CUDA0": 7 * GIB}),
    ]
    assert device_row(device, instances) == DeviceRow(
        "CUDA0",
        24 * GIB,
        10 * GIB,
        (
            BarPart("model", "alpha", 7 * GIB),
            BarPart("model", "beta", 2 * GIB),
            BarPart("model", "being given back", GIB),
            BarPart("reserved", "reserved", GIB),
            BarPart("strangers", "others", 3 * GIB),
            BarPart("margin", "margin", GIB),
        ),
    )


def test_the_margin_shrinks_before_anything_else_does() -> None:
    device = DeviceView("host", 8 * GIB, 2 * GIB, 4 * GIB, "psutil", strangers=7 * GIB // 2)
    row = device_row(device, [instance_view("alpha", memory={"host": 4 * GIB})])
    assert row.parts[-1] == BarPart("margin", "margin", GIB // 2)


def test_rows_of_models() -> None:
    picture = make_picture(full_history())
    rows = {row.id: row for row in picture.models}
    assert [row.id for row in picture.models] == ["alpha", "beta", "gamma", "spare"]
    alpha, beta, gamma = rows["alpha"], rows["beta"], rows["gamma"]
    assert (alpha.leases, alpha.slots, alpha.waiting, alpha.ttl_left) == (2, 2, 1, 30.0)
    assert (alpha.age, alpha.memory) == (70.0, 2 * GIB)
    assert (beta.progress, beta.eta) == (0.43, 12.0)
    assert gamma.reason == "there is no such file (again in 10 s): oh\x1b[1m"
    assert not rows["spare"].active


def test_a_first_load_is_told_from_how_far_it_came() -> None:
    def eta(progress: float | None, learned: float | None = None) -> float | None:
        model = model_view("alpha", state="loading", eta_seconds=learned)
        one = instance_view("alpha", state="loading", progress=progress, spawned_at=1060.0)
        history = History()
        history.saw(make_snapshot([model], [one]), OpenRequests(()))
        return make_picture(history).models[0].eta

    assert eta(0.25) == pytest.approx(30.0)
    assert (eta(0.99, learned=43.0) or 9) < 1  # the load is nearly done, whatever others took
    assert eta(0.25, learned=20.0) == 20.0
    assert eta(1.0) == 0.0
    assert eta(0.01) is None
    assert eta(None) is None


def test_a_download_and_a_wait_have_what_is_known_of_them() -> None:
    models = [
        model_view("alpha", state="downloading", downloaded=0.5, eta_seconds=90.0),
        model_view("beta", waiting=3, eta_seconds=5.0),
    ]
    history = History()
    history.saw(make_snapshot(models), OpenRequests(()))
    down, waiting = make_picture(history).models
    assert state_text(down) == "down ███░░░  50% 90s"
    assert state_text(waiting) == "waiting ~5s"


@pytest.mark.parametrize(
    ("text", "models", "requests"),
    [
        ("", 4, 2),
        ("ALPH", 1, 2),
        ("second", 1, 0),
        ("loading", 1, 0),
        ("10.0.0", 0, 1),
        ("r2", 0, 1),
        ("nothing has this", 0, 0),
    ],
)
def test_the_filter(text: str, models: int, requests: int) -> None:
    picture = make_picture(full_history(), text)
    assert (len(picture.models), len(picture.requests)) == (models, requests)
    assert (picture.models_total, picture.requests_total) == (4, 2)


def test_without_an_answer_nothing_is_as_fast_as_it_was() -> None:
    history = History()
    state = make_snapshot([model_view("alpha", state="ready")])
    history.saw(state, OpenRequests((request(tokens=1),)))
    later = make_snapshot([model_view("alpha", state="ready")], now=state.now + 1)
    history.saw(later, OpenRequests((request(tokens=41),)))
    assert make_picture(history).models[0].rate == 40.0
    history.failed("not reachable, trying again: nobody there")
    picture = make_picture(history)
    assert picture.models[0].rate == 0.0
    assert "trying again" in title_text(picture, 80)
    history.saw(later, OpenRequests(()))
    assert make_picture(history).trouble is None


# Cells


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [("abc", 5, "abc  "), ("abcdef", 4, "abc…"), ("モデル", 5, "モデ…"), ("x", 0, "")],
)
def test_texts_fit(text: str, width: int, expected: str) -> None:
    assert fit(text, width) == expected
    assert cell_len(fit(text, width)) == width


@pytest.mark.parametrize("text", ["Qwen3-32B-Q4_K_M", "モデルモデルモデルモデル", "x" * 100])
@pytest.mark.parametrize("width", [12, 13, 15])
def test_names_keep_both_ends(text: str, width: int) -> None:
    short = fit_middle(text, width)
    assert cell_len(short) == width
    assert short.rstrip()[-1] == text[-1]
    assert short[0] == text[0]


def test_nobody_s_text_moves_the_cursor() -> None:
    dirty = "a\x1b[31mb\x1b]0;title\x07c\x07\td\r\u202ee\x1b"
    assert clean(dirty) == "abc     d  e"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "0s"),
        (99, "99s"),
        (100, "1m"),
        (5999, "99m"),
        (6000, "1h40"),
        (4e4, "11h"),
        (4e5, "4d"),
    ],
)
def test_short_times(seconds: float, expected: str) -> None:
    assert short_time(seconds) == expected


def test_short_numbers() -> None:
    assert [short_count(n) for n in (0.44, 31.4, 1234, 15_000)] == ["0.4", "31", "1.2k", "15k"]
    sizes = (17, 2048, 512 << 20, 19 * GIB // 2, 141 * GIB, 2 << 40)
    assert [short_size(n) for n in sizes] == ["17B", "2K", "512M", "9.5G", "141G", "2T"]


def test_a_text_is_wrapped_between_words() -> None:
    assert wrap("one two three four", 9, 5) == ["one two", "three", "four"]
    assert wrap("one two three four", 9, 2) == ["one two", "three fo…"]
    assert wrap("incomprehensible", 8, 2) == ["incompr…"]
    assert wrap("", 8, 2) == [""]


@pytest.mark.parametrize(
    ("sizes", "total", "expected"),
    [
        ([50, 50], 100, [5, 5]),
        ([1, 1, 98], 100, [1, 1, 8]),
        ([0, 30], 100, [0, 3]),
        ([150, 50], 100, [8, 2]),
        ([], 100, []),
        ([5], 0, [10]),
    ],
)
def test_bars_are_shared(sizes: list[int], total: int, expected: list[int]) -> None:
    cells = shares(sizes, total, 10)
    assert sum(cells) <= 10
    assert cells == expected


def test_a_progress_bar_is_full_only_at_the_end() -> None:
    assert progress_bar(0.99, 6) == "█████░"
    assert in_ascii(progress_bar(1.7, 6)) == "######"
    assert in_ascii(progress_bar(-1.0, 3)) == "---"


def test_columns_go_the_least_important_first() -> None:
    columns = [Column("a", "", 10), Column("b", "", 5, 1), Column("c", "", 5, 2)]
    assert [one.name for one in choose_columns(columns, 22)] == ["a", "b", "c"]
    assert [one.name for one in choose_columns(columns, 21)] == ["a", "b"]
    assert [one.name for one in choose_columns(columns, 3)] == ["a"]


# The screen


@pytest.mark.anyio
@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
async def test_a_screen_is_exactly_as_large_as_the_terminal(
    width: int, height: int, encoding: str
) -> None:
    server = full_server()
    async with seated(server, (width, height), encoding) as seat:
        for _ in ("models", "requests", "lower"):
            for key in ("z", "z", "enter", "z", "z", "d"):
                server.lines.put_nowait("x" * 500)
                await seat.press(key)
                await seat.pilot.pause()
                assert [cell_len(line) for line in seat.lines] == [width] * height
                assert seat.lines[0].strip().startswith("lswap"[: width - 2])
                assert sum(_heights(seat).values()) <= max(height, 4)
            await seat.press("tab")


def _heights(seat: Seat) -> dict[str, int]:
    shown = [one for one in seat.app.screen_stack[0].children if one.display]
    return {str(one.id): one.size.height for one in shown}


async def comes_to(holds: Callable[[str], bool], width: int, height: int, *keys: str) -> None:
    """Press keys, and wait until something holds of the text on the screen."""
    async with seated(full_server(), (width, height)) as seat:
        for key in keys:
            await seat.press(key)
        await seat.until(lambda: holds(seat.text))


@pytest.mark.anyio
async def test_an_ordinary_terminal_has_everything() -> None:
    parts = ("MODELS 4", "REQUESTS 2", "DECISIONS", "load ██░░░░  43% 12s", "2/2", "30s")
    async with seated(full_server(), (80, 24)) as seat:
        await seat.sees(*parts, "key ci", "number 29", "q quit")


def test_the_title_names_the_file_else_the_address() -> None:
    def title(**changes: object) -> str:
        history = History()
        shown = structs.replace(make_snapshot([]), name="default-3f9c", **changes)
        history.saw(shown, OpenRequests(()))
        return make_picture(history).title

    assert title(config_path="/home/me/lab/lswap.yaml").startswith("lswap lab/lswap.yaml · ")
    assert title(config_path=None).startswith("lswap 127.0.0.1:8080 · ")
    assert "3f9c" not in title(config_path=None) + title(config_path="/etc/c.yaml")


@pytest.mark.anyio
async def test_a_wide_terminal_has_reasons_beside_the_models() -> None:
    await comes_to(lambda text: "MODELS 4" in text and "WHY" not in text, 80, 24)
    await comes_to(lambda text: "MODELS 4" in text and "WHY" in text, 140, 40)


@pytest.mark.anyio
async def test_a_small_terminal_shows_the_pane_with_the_focus() -> None:
    await comes_to(lambda text: "DECISIONS" in text and "REQUESTS 2" not in text, 60, 15)
    await comes_to(lambda text: "REQUESTS" in text and "DECISIONS" not in text, 60, 15, "tab")


@pytest.mark.anyio
async def test_zoom_shows_one_pane_and_reasons_in_full() -> None:
    def holds(text: str) -> bool:
        return "MODELS" not in text and text.count("because") > 40

    await comes_to(holds, 80, 24, "tab", "tab", "z")


@pytest.mark.anyio
async def test_without_colour_nothing_has_one_and_neighbours_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with seated(full_server(), encoding="ascii") as seat:
        await seat.sees("#@", "REQUESTS 2", "number 29")
        styles = [one.style for line in seat.segments for one in line if one.style is not None]
        colours = [colour for one in styles for colour in (one.color, one.bgcolor)]
        assert all(colour is None or colour.is_default for colour in colours)
        assert {True} <= {one.reverse for one in styles}
        assert seat.text.isascii()
        assert "#@" in seat.lines[1]


def test_a_legend_that_is_too_long_says_how_many_are_missing() -> None:
    parts = tuple(BarPart("model", f"a-model-with-a-name-{at}", GIB) for at in range(9))
    row = DeviceRow("CUDA0", 24 * GIB, 9 * GIB, parts)
    narrow, wide = (device_line(row, width).plain for width in (80, 200))
    assert narrow.rstrip().endswith("+7")
    assert "+" not in wide
    assert device_line(DeviceRow("host", 0, 0, ()), 80).cell_len == 80


def test_the_bar_of_a_device_that_is_not_measured_says_so_where_there_is_room() -> None:
    unknown = DeviceView("SYCL0", 8 * GIB, GIB, GIB, "engine", strangers=None)
    row = device_row(unknown, [])
    assert [part.kind for part in row.parts] == ["model", "margin"]
    assert device_line(row, 120).plain.rstrip().endswith("others not measured")
    assert "measured" not in device_line(row, 60).plain
    known = device_row(DeviceView("SYCL0", 8 * GIB, GIB, GIB, "nvml"), [])
    assert "measured" not in device_line(known, 120).plain


@pytest.mark.anyio
@pytest.mark.parametrize("focus", ["models", "requests", "lower"])
async def test_heights_never_exceed_the_screen(focus: str) -> None:
    models = [model_view(f"model-{at}") for at in range(30)]
    devices = [DeviceView(f"CUDA{at}", GIB, 0, 0, "nvml") for at in range(9)]
    state = structs.replace(make_snapshot(models), devices=tuple(devices))
    requests = OpenRequests(tuple(request(f"r{at}") for at in range(30)))
    async with seated(StillServer(state, requests, DECISIONS)) as seat:
        await seat.press(*["tab"] * ["models", "requests", "lower"].index(focus))
        for lines in range(4, 70):

            def fits(lines: int = lines) -> bool:
                heights = _heights(seat)
                seen = {"models", "requests", "lower", "detail"} if lines > 21 else {focus}
                rows = heights.get(focus, 0) > (1 if lines > 10 else 0)
                return sum(heights.values()) <= lines and seen <= set(heights) and rows

            await seat.resize(80, lines)
            await seat.until(fits)


class OneTable(App[None]):
    """A table of eleven lines, ten of them rows."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows(id="models")
        self.rows.styles.height = 11

    def compose(self) -> ComposeResult:
        yield self.rows

    def show(self, keys: list[str]) -> int:
        """Show rows; return the one under the cursor."""
        self.rows.show(DrawnTable(("title",), {key: (Cell(key),) for key in keys}))
        return self.rows.cursor_row


@pytest.mark.anyio
async def test_the_cursor_stays_with_its_row() -> None:
    app = OneTable()
    async with app.run_test() as pilot:
        app.rows.focus()
        assert app.show(["a", "b"]) == 0
        assert app.show(["b", "a"]) == 0  # nobody chose a row yet
        app.show(["a", "b"])
        await pilot.press("down")
        assert app.show(["b", "c", "a"]) == 0  # b moved up
        assert app.show(["c", "a"]) == 0  # b is gone: the place stays
        await pilot.press("end")
        assert app.rows.pointed == "a"
        assert app.show([]) == 0
        assert app.rows.pointed is None
        app.show([str(at) for at in range(50)])
        for row in (40, 35):
            app.rows.move_cursor(row=row)
            await pilot.pause()
            assert app.rows.scroll_offset.y == 31
        app.show([*map(str, range(1, 50)), "new"])
        await pilot.pause()
        assert (app.rows.pointed, app.rows.scroll_offset.y) == ("35", 31)


@pytest.mark.anyio
async def test_only_cells_that_changed_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    app, changed = OneTable(), []
    async with app.run_test():
        app.show(["a", "b"])
        monkeypatch.setattr(app.rows, "update_cell", lambda *what: changed.append(what[:2]))
        app.show(["a", "b"])
        assert changed == []
        app.rows.show(DrawnTable(("title",), {"a": (Cell("a"),), "b": (Cell("b", "bold"),)}))
        assert changed == [("b", "0")]


@pytest.mark.anyio
async def test_a_log_that_is_read_further_up_stands_still() -> None:
    server = full_server()
    for at in range(100):
        server.lines.put_nowait(f"line {at:03}")
    async with seated(server) as seat:
        await seat.press("enter")
        await seat.sees("LOG alpha", "line 099")

        def top_line() -> str:
            head = next(at for at, line in enumerate(seat.lines) if "LOG alpha" in line)
            return seat.lines[head + 1].strip()

        await seat.press("tab", "tab", *["up"] * 20)
        before = await seat.sees("20 lines below")
        before = top_line()
        for _ in range(7):
            server.lines.put_nowait("new")
        await seat.sees("27 lines below")
        assert top_line() == before
        await seat.press("end")
        server.lines.put_nowait("newest")
        await seat.until(lambda: "newest" in seat.text and "lines below" not in seat.text)


@pytest.mark.anyio
async def test_keys_mean_the_model_of_the_request_that_is_pointed_at() -> None:
    server = full_server()
    server.requests = OpenRequests((request("x", model="beta"),))
    async with seated(server) as seat:
        await seat.press("l", "tab", "l")
        await seat.until(lambda: len(server.asked) == 2)
        assert server.asked == [f"/lswap/v1/models/{name}/load" for name in ("alpha", "beta")]
        await seat.press("slash", *"nothing", "enter", "c")
        await seat.sees("no request is open")


@pytest.mark.anyio
async def test_what_has_a_key_is_in_the_command_palette_too() -> None:
    server = full_server()
    async with seated(server) as seat:
        await seat.press("ctrl+p", *"pin it")
        await seat.sees("pin it, so that")
        await seat.press("enter", "enter")
        await seat.until(lambda: server.asked == ["/lswap/v1/models/alpha/pin"])


# The command


@pytest.mark.parametrize(
    ("term", "tty", "expected"),
    [
        ("xterm-256color", True, None),
        ("dumb", True, "TERM is 'dumb'"),
        ("", True, "TERM is 'not set'"),
        ("xterm", False, "needs a terminal"),
    ],
)
def test_terminals_that_will_not_do(term: str, tty: bool, expected: str | None) -> None:
    problem = terminal_problem(term, tty=tty)
    assert problem is None if expected is None else expected in (problem or "")


def test_without_a_terminal_it_says_what_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from llamaswap_py.cli.top import top

    with pytest.raises(LswapError, match="lswap ps"):
        top()
