"""`lswap top` without a screen: what is remembered, worked out, and drawn."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs
from rich.cells import cell_len

from llamaswap_py.cli.top import terminal_problem
from llamaswap_py.client.answers import (
    EventLines,
    OpenRequest,
    OpenRequests,
    ServerEvent,
    Tokens,
)
from llamaswap_py.errors import LswapError
from llamaswap_py.snapshot import DeviceView, Snapshot
from llamaswap_py.tui.cells import (
    ASCII,
    UNICODE,
    Column,
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
from llamaswap_py.tui.drawing import Look, device_line, state_text
from llamaswap_py.tui.history import KEPT, History, Rates
from llamaswap_py.tui.layout import divide
from llamaswap_py.tui.picture import DeviceRow, Part, device_row, make_picture
from llamaswap_py.tui.screen import Cursor, Reader, draw
from tests.unit.api_fakes import GIB, failure_view, instance_view, make_snapshot, model_view

LOOK = Look(clock=lambda at: f"00:00:{at % 60:02.0f}")
PLAIN = Look(clock=LOOK.clock, glyphs=ASCII, colour=False)
SIZES = [(80, 24), (60, 15), (140, 40), (200, 60), (40, 10), (20, 5), (10, 2)]


def request(id: str = "r1", **changes: Any) -> OpenRequest:
    fields: dict[str, Any] = {"model": "alpha", "client": "key ci", "state": "running", "age": 3.0}
    return OpenRequest(id=id, **(fields | changes))


def decision(id: int, **changes: Any) -> ServerEvent:
    data = {"at": 5.0, "decided_at": 4.0, "kind": "load", "preset": "alpha", "reason": "it fits"}
    return ServerEvent(id, "decision", data | changes)


def full_history() -> History:
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
    history = History()
    state = make_snapshot(models, instances, requests_open=2)
    history.saw(state, OpenRequests((request(), request("r2", state="waiting", client="10.0.0.7"))))
    history.resume_after(state)
    for at in range(30):
        history.heard(decision(at + 1, at=float(at), reason=f"number {at} · " + "because " * 20))
    return history


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
        "events: they came faster than they were read",
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
            Part("model", "alpha", 7 * GIB),
            Part("model", "beta", 2 * GIB),
            Part("model", "being given back", GIB),
            Part("reserved", "reserved", GIB),
            Part("strangers", "others", 3 * GIB),
            Part("margin", "margin", GIB),
        ),
    )


def test_the_margin_shrinks_before_anything_else_does() -> None:
    device = DeviceView("host", 8 * GIB, 2 * GIB, 4 * GIB, "psutil", strangers=7 * GIB // 2)
    row = device_row(device, [instance_view("alpha", memory={"host": 4 * GIB})])
    assert row.parts[-1] == Part("margin", "margin", GIB // 2)


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
    assert state_text(down, LOOK) == "down ███░░░  50% 90s"
    assert state_text(waiting, LOOK) == "waiting ~5s"


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
    assert "trying again" in draw(picture, Reader(), [], 80, 24, LOOK).lines[0].plain
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
    assert progress_bar(0.99, 6, UNICODE) == "█████░"
    assert progress_bar(1.7, 6, ASCII) == "######"
    assert progress_bar(-1.0, 3, ASCII) == "---"


def test_columns_go_the_least_important_first() -> None:
    columns = [Column("a", "", 10), Column("b", "", 5, 1), Column("c", "", 5, 2)]
    assert [one.name for one in choose_columns(columns, 22)] == ["a", "b", "c"]
    assert [one.name for one in choose_columns(columns, 21)] == ["a", "b"]
    assert [one.name for one in choose_columns(columns, 3)] == ["a"]


# The screen


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("focus", ["models", "requests", "lower"])
@pytest.mark.parametrize("look", [LOOK, PLAIN], ids=["colour", "plain"])
def test_a_screen_is_exactly_as_large_as_the_terminal(
    width: int, height: int, focus: str, look: Look
) -> None:
    history = full_history()
    for zoomed in (False, True):
        for log_of in (None, "alpha"):
            reader = Reader(focus=focus, zoomed=zoomed, log_of=log_of)
            screen = draw(make_picture(history), reader, ["x" * 500] * 50, width, height, look)
            assert len(screen.lines) == len(screen.targets) == height
            assert {line.cell_len for line in screen.lines if line.plain.strip()} == {width}


def text_at(width: int, height: int, reader: Reader | None = None, look: Look = LOOK) -> str:
    picture = make_picture(full_history())
    lines = draw(picture, reader or Reader(), ["first", "last"], width, height, look).lines
    return "\n".join(line.plain.rstrip() for line in lines)


def test_an_ordinary_terminal_has_everything() -> None:
    text = text_at(80, 24)
    for part in ("MODELS 4", "REQUESTS 2", "DECISIONS", "load ██░░░░  43% 12s", "2/2", "30s"):
        assert part in text
    assert "key ci" in text
    assert "number 29" in text
    assert "q quit" in text


def test_the_title_names_the_file_else_the_address() -> None:
    def title(**changes: object) -> str:
        history = History()
        shown = structs.replace(make_snapshot([]), name="default-3f9c", **changes)
        history.saw(shown, OpenRequests(()))
        return make_picture(history).title

    assert title(config_path="/home/me/lab/lswap.yaml").startswith("lswap lab/lswap.yaml · ")
    assert title(config_path=None).startswith("lswap 127.0.0.1:8080 · ")
    assert "3f9c" not in title(config_path=None) + title(config_path="/etc/c.yaml")


def test_a_wide_terminal_has_reasons_beside_the_models() -> None:
    assert "WHY" not in text_at(80, 24)
    assert "WHY" in text_at(140, 40)


def test_a_small_terminal_shows_the_pane_with_the_focus() -> None:
    assert "DECISIONS" in text_at(60, 15)
    assert "REQUESTS 2" not in text_at(60, 15)
    text = text_at(60, 15, Reader(focus="requests"))
    assert "REQUESTS" in text
    assert "DECISIONS" not in text


def test_zoom_shows_one_pane_and_reasons_in_full() -> None:
    text = text_at(80, 24, Reader(focus="lower", zoomed=True))
    assert "MODELS" not in text
    assert text.count("because") > 40


def test_without_colour_nothing_has_one_and_neighbours_differ() -> None:
    screen = draw(make_picture(full_history()), Reader(), [], 80, 24, PLAIN)
    allowed = {"", "bold", "reverse", "bold reverse", "bold underline", "underline"}
    styles = {str(span.style) for line in screen.lines for span in line.spans}
    assert styles | {str(line.style) for line in screen.lines} <= allowed
    assert all(line.plain.isascii() for line in screen.lines)
    assert "#@" in screen.lines[1].plain


def test_a_legend_that_is_too_long_says_how_many_are_missing() -> None:
    parts = tuple(Part("model", f"a-model-with-a-name-{at}", GIB) for at in range(9))
    row = DeviceRow("CUDA0", 24 * GIB, 9 * GIB, parts)
    narrow, wide = (device_line(row, width, LOOK).plain for width in (80, 200))
    assert narrow.rstrip().endswith("+7")
    assert "+" not in wide
    assert device_line(DeviceRow("host", 0, 0, ()), 80, LOOK).cell_len == 80


@pytest.mark.parametrize("lines", range(2, 70))
def test_heights_never_exceed_the_screen(lines: int) -> None:
    for focus in ("models", "requests", "lower"):
        got = divide(lines, devices=9, models=30, requests=30, focus=focus)
        total = got.devices + got.models + got.detail + got.requests + got.lower
        assert total <= max(lines - 2, got.devices)
        assert min(got.devices, got.models, got.detail, got.requests, got.lower) >= 0


def test_the_cursor_stays_with_its_row() -> None:
    cursor = Cursor()
    assert cursor.find(["a", "b"]) == 0
    cursor.move(["a", "b"], 1)
    assert cursor.find(["b", "c", "a"]) == 0  # b moved up
    assert cursor.find(["c", "a"]) == 0  # b is gone: the place stays
    cursor.move(["c", "a"], 99)
    assert cursor.key == "a"
    assert cursor.find([]) == 0
    rows = [str(at) for at in range(50)]
    cursor.go(rows, 40)
    assert 40 in cursor.window(rows, 10)
    cursor.go(rows, 35)
    assert cursor.window(rows, 10) == range(31, 41)


def test_a_log_that_is_read_further_up_stands_still() -> None:
    reader = Reader(focus="lower", log_of="alpha")
    picture = make_picture(full_history())
    log = [f"line {at:03}" for at in range(100)]

    def top_line() -> str:
        lines = draw(picture, reader, log, 80, 24, LOOK).lines
        head = next(at for at, line in enumerate(lines) if "LOG alpha" in line.plain)
        return lines[head + 1].plain.strip()

    top_line()
    reader.move(picture, -20)
    before = top_line()
    log += ["new"] * 7
    assert top_line() == before
    reader.move(picture, 1000)
    log.append("newest")
    assert "newest" in "".join(
        line.plain for line in draw(picture, reader, log, 80, 24, LOOK).lines
    )


def test_keys_mean_the_model_of_the_request_that_is_pointed_at() -> None:
    history = full_history()
    history.saw(_state(history), OpenRequests((request("x", model="beta"),)))
    picture = make_picture(history)
    assert Reader(focus="requests").model(picture) == "beta"
    assert Reader(focus="models").model(picture) == "alpha"
    assert Reader(focus="requests").request(make_picture(full_history(), "nothing")) is None


def _state(history: History) -> Snapshot:
    assert history.snapshot is not None
    return history.snapshot


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
