"""What llama-server says, line by line: real lines of b11434 and of older builds."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamaswap_py.endpoint import Endpoint
from llamaswap_py.llamacpp.output import (
    LINE_LIMIT,
    EndingSign,
    LineSplitter,
    ListeningSign,
    LoadingSign,
    OutputLine,
    Readiness,
    ReadySign,
    Sign,
    SleepingSign,
    Stream,
)

TCP = Endpoint(host="127.0.0.1", port=46813)
UNIX = Endpoint(path="/run/lswap/3.sock")


def signs(line: str, *, child_mode: bool = True, stream: Stream = "stderr") -> list[Sign]:
    """Return what one line means, log lines left out."""
    found = Readiness(child_mode=child_mode).feed(stream, line)
    return [sign for sign in found if not isinstance(sign, OutputLine)]


def state(name: str, **payload: object) -> str:
    return "cmd_child_to_router:state:" + json.dumps({"state": name, "payload": payload})


def jsonl(message: str) -> str:
    return json.dumps({"type": "log", "time": 331795, "level": "info", "msg": message})


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        (jsonl("srv  llama_server: listening on http://127.0.0.1:46813\n"), TCP),
        (jsonl("srv  llama_server: listening on unix:///run/lswap/3.sock\n"), UNIX),
        ("0.00.013.109 I srv  llama_server: listening on http://127.0.0.1:46813", TCP),
        (
            (
                "\x1b[34m0.00.013.109\x1b[0m \x1b[32mI \x1b[0msrv  llama_server: "
                "listening on unix:///run/lswap/3.sock"
            ),
            UNIX,
        ),
        ("main: server is listening on http://127.0.0.1:46813 - starting the main loop", TCP),
        ("main: server is listening on unix:///run/lswap/3.sock - starting the main loop", UNIX),
        ("srv  llama_server: listening on http://[::1]:80", Endpoint(host="::1", port=80)),
        ("srv  llama_server: listening on unix:///a b.sock", Endpoint(path="/a b.sock")),
        ("srv  llama_server: listening on http://127.0.0.1:99999", None),
    ],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_the_listening_line_of_every_dialect(
    line: str, endpoint: Endpoint | None, stream: Stream
) -> None:
    assert signs(line, child_mode=False, stream=stream) == [ListeningSign(endpoint)]


@pytest.mark.parametrize(
    "line",
    [
        "main: HTTP server is listening, hostname: 127.0.0.1, port: 8080, http threads: 7",
        "I am listening on http://127.0.0.1:1",
        "user: srv  llama_server: listening on http://127.0.0.1:1",
        "srv  llama_server: listening on http://127.0.0.1:1 and more words",
        jsonl("prompt: 'srv  llama_server: listening on http://127.0.0.1:1'\n"),
        jsonl("template:\nsrv  llama_server: listening on http://127.0.0.1:1\n"),
        'say "cmd_child_to_router:state:{}"',
        "srv  listener on http://127.0.0.1:1 stopped unexpectedly",
        json.dumps({"type": "fit_memory_breakdown", "data": {"rows": []}}),
        '{"type":"log","msg":5}',
        "",
    ],
)
def test_text_that_only_contains_the_words_means_nothing(line: str) -> None:
    assert signs(line) == []


def test_child_mode_states_count_only_on_stdout_in_child_mode() -> None:
    line = state("ready", id="a", meta={"n_ctx": 4096})
    assert signs(line, stream="stdout") == [ReadySign({"id": "a", "meta": {"n_ctx": 4096}})]
    assert signs(line, stream="stderr") == []
    assert signs(line, stream="stdout", child_mode=False) == []
    assert signs(" " + line, stream="stdout") == []


def test_ready_with_an_empty_payload_and_sleeping() -> None:
    assert signs(state("sleeping"), stream="stdout") == [SleepingSign()]
    assert signs(state("ready"), stream="stdout") == [ReadySign({})]
    null = 'cmd_child_to_router:state:{"state":"ready","payload":null}'
    assert signs(null, stream="stdout") == [ReadySign({})]


def test_the_lines_of_a_build_without_state_lines() -> None:
    """As b9093 writes them: `ready` and what it loaded, then sleep, then `ready` alone."""
    readiness = Readiness(child_mode=True)
    prefix = "cmd_child_to_router:"

    def fed(line: str, stream: Stream = "stdout") -> list[Sign]:
        found = readiness.feed(stream, prefix + line)
        return [one for one in found if not isinstance(one, OutputLine)]

    assert fed("ready") == []
    assert fed('info:{"id":"a"}', "stderr") == []
    assert fed('info:{"id":"a"}') == [ReadySign({"id": "a"})]
    assert fed("sleep") == [SleepingSign()]
    assert fed("ready") == [ReadySign({})]
    assert fed("sleeping") == []
    assert fed("info:{") == [ReadySign({})]
    assert fed("info:[]") == [ReadySign({})]
    assert signs(f"{prefix}sleep", stream="stdout", child_mode=False) == []


def test_a_broken_or_unknown_state_is_a_log_line() -> None:
    for line in ("cmd_child_to_router:state:{", state("dreaming"), "cmd_child_to_router:state:[]"):
        assert signs(line, stream="stdout") == []


def test_stages_make_one_fraction_that_never_falls() -> None:
    readiness = Readiness(child_mode=True)
    stages = ["text_model", "mmproj_model"]
    seen = []
    for current, value in (
        ("text_model", 0.5),
        ("text_model", 1.0),
        ("mmproj_model", 0.5),
        ("text_model", 0.2),
    ):
        line = state("loading", stages=stages, current=current, value=value)
        seen += readiness.feed("stdout", line)
    assert seen == [
        LoadingSign(0.25, "text_model"),
        LoadingSign(0.5, "text_model"),
        LoadingSign(0.75, "mmproj_model"),
        LoadingSign(0.75, "text_model"),
    ]
    assert readiness.feed("stdout", state("loading", stage="mmproj_model")) == [
        LoadingSign(None, "mmproj_model")
    ]
    odd = state("loading", stages=["x"], current=["x"], value="1")
    assert readiness.feed("stdout", odd) == [LoadingSign(None, None)]


def test_the_beginning_of_the_end_is_noticed() -> None:
    line = jsonl("srv    operator(): operator(): cleaning up before exit...\n")
    assert signs(line) == [EndingSign()]
    assert signs("0.00.995.664 I srv    operator(): operator(): cleaning up before exit...") == [
        EndingSign()
    ]


def test_log_lines_are_readable_and_keep_their_level() -> None:
    readiness = Readiness(child_mode=False)
    assert readiness.feed("stderr", jsonl("one\ntwo\n")) == [
        OutputLine("one", "info"),
        OutputLine("two", "info"),
    ]
    assert readiness.feed("stderr", jsonl("....\n")) == []
    assert readiness.feed("stderr", "0.00.001.000 W careful") == [
        OutputLine("0.00.001.000 W careful", "warn")
    ]


def test_lines_are_cut_bounded_and_repaired() -> None:
    splitter = LineSplitter(limit=8)
    assert splitter.feed(b"ab") == []
    assert splitter.feed(b"c\r\n\xff\xfe\n0123456789") == ["abc", "\ufffd\ufffd"]
    assert splitter.feed(b"more" * 1000 + b"\nnext\n") == ["01234567", "next"]
    assert splitter.feed(b"end") == []
    assert splitter.close() == ["end"]
    assert splitter.close() == []
    assert len(LineSplitter().feed(b"x" * (LINE_LIMIT + 5) + b"\n")[0]) == LINE_LIMIT


@given(st.binary(), st.lists(st.integers(0, 200)))
def test_how_bytes_arrive_makes_no_difference(data: bytes, cuts: list[int]) -> None:
    whole = LineSplitter(limit=16)
    expected = whole.feed(data) + whole.close()
    pieces = LineSplitter(limit=16)
    got: list[str] = []
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        got += pieces.feed(data[start:end])
    assert got + pieces.close() == expected


@given(st.text(), st.sampled_from(["stdout", "stderr"]), st.booleans(), st.booleans())
def test_no_text_breaks_the_reader(
    text: str, stream: Stream, child_mode: bool, as_state: bool
) -> None:
    line = ("cmd_child_to_router:state:" if as_state else "") + text
    Readiness(child_mode=child_mode).feed(stream, line)


@given(st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=4))
def test_no_payload_breaks_the_reader(value: object) -> None:
    line = state("loading", stages=[value], current=value, value=value)
    for sign in Readiness(child_mode=True).feed("stdout", line):
        assert isinstance(sign, LoadingSign | OutputLine)
