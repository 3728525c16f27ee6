"""The arithmetic of `make bench`: ratios, spreads, verdicts, and what the summary says of them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from bench.measure import Column, Rendered, Rounds, in_turns, render, rendering
from bench.peer_option import PeerOption, read_peer_option, router_presets, swap_config
from bench.registry import PARTS
from bench.rows import GO, LSWAP, NGINX, ROUTER, Row, Target, Told, shortfalls, summarise
from bench.run import row
from bench.swap_savings import shares_of
from llamaswap_py.importing.llama_cpp import read_ini
from llamaswap_py.importing.llama_swap import read_llama_swap


def made(mine: list[float], theirs: list[float] | None = None, *targets: Target) -> Row:
    values = {LSWAP: mine} if theirs is None else {LSWAP: mine, GO: theirs}
    return Row("speed", values, targets)


def test_the_ratio_is_the_median_of_the_rounds_own() -> None:
    """A neighbour slowed both sides down in the second round: no ratio of sums sees that."""
    found = made([30, 3, 20], [10, 1, 10], Target(2, GO, least=True)).judge()
    assert (found.ratio, found.low, found.high) == (3.0, 2.0, 3.0)
    assert (found.met, found.held, found.rounds) == (True, 3, 3)


@pytest.mark.parametrize(
    ("target", "value", "met"),
    [
        (Target(5), 5.0, True),
        (Target(5), 5.1, False),
        (Target(5, least=True), 5.0, True),
        (Target(5, least=True), 4.9, False),
    ],
)
def test_a_limit_may_be_reached_and_not_passed(target: Target, value: float, met: bool) -> None:
    assert made([value], None, target).judge().met is met


def test_the_median_decides_and_the_rounds_are_counted() -> None:
    found = made([1, 9, 2, 9, 3], None, Target(5)).judge()
    assert (found.met, found.held, found.rounds) == (True, 3, 5)
    assert (found.low, found.high) == (1, 9)
    assert found.ratio is None
    assert "yes (3 of 5 rounds)" in summarise([made([1, 9, 2, 9, 3], None, Target(5))])
    assert "**NO** (2 of 5 rounds)" in summarise([made([1, 9, 2, 9, 9], None, Target(5))])
    assert "| **NO** |" in summarise([made([9, 9, 9], None, Target(5))])


def test_every_target_of_a_row_has_to_be_met() -> None:
    both = (Target(1, GO), Target(0.25))
    assert made([0.2] * 3, [0.3] * 3, *both).judge().met
    assert not made([0.2] * 3, [0.1] * 3, *both).judge().met
    assert not made([0.3] * 3, [0.4] * 3, *both).judge().met


def test_where_a_peer_scored_nothing_the_medians_are_compared() -> None:
    """An added latency can be zero, or less: no divisor."""
    at_most = Target(1, GO)
    assert made([-0.01, 0.0, 0.01], [0.0, 0.0, 0.02], at_most).judge().met
    assert not made([0.01, 0.02, 0.01], [0.0, -0.01, 0.0], at_most).judge().met


def test_without_the_peer_nothing_is_judged_and_the_reason_is_told() -> None:
    why = "not on this machine (apt-get install golang-go)"
    one = Row("speed", {LSWAP: [4.0]}, (Target(2, GO, least=True),), missing={GO: why})
    assert one.judge().met is None
    told = summarise([one])
    assert "not judged" in told
    assert f"* speed: {GO}: {why}" in told
    assert f"Not compared everywhere: {GO}: {why}." in told
    assert "0 of 1 targets are met." in told


def test_what_failed_is_in_the_summary_with_its_reason() -> None:
    told = summarise([Row("swaps", {}, failed="no llama-server", alone="swap")])
    assert "not measured" in told
    assert "* swaps: no llama-server" in told


def test_figures_without_a_target_are_shown_and_not_judged() -> None:
    one = made([30.0], [10.0])
    assert one.judge().met is None
    assert one.judge().ratio == 3.0
    assert "targets are met" not in summarise([one])


def test_figures_in_words_keep_their_verdict() -> None:
    kept = Row("connections", {}, told=Told("5,000 held", "none dropped", met=True))
    lost = Row("streams", {}, told=Told("999 complete", "none cut", met=False))
    free = Row("memory", {}, told=Told("84 MiB", "", met=None))
    told = summarise([kept, lost, free])
    assert "1 of 2 targets are met." in told
    assert "* streams: 999 complete, wanted none cut" in told


def test_the_summary_says_what_falls_short_and_by_how_much() -> None:
    rows = [
        made([12.0, 13.0, 14.0], [10.0, 10.0, 10.0], Target(1, GO)),
        Row("time", {LSWAP: [12.0]}, (Target(10),), unit="ms"),
        made([5.0], [10.0], Target(1, GO)),
    ]
    said = shortfalls(rows)
    assert said.startswith("1 of 3 targets are met.")
    assert f"* speed: 13.0 (1.30 × {GO}), wanted ≤ {GO}" in said
    assert "* time: 12.0 ms, wanted ≤ 10 ms" in said


def test_the_columns_of_the_three_peers_are_always_there() -> None:
    head = summarise([Row("a", {LSWAP: [1.0], "mine": [2.0]})]).splitlines()[0]
    names = [cell.strip() for cell in head.split("|")]
    assert names[3:8] == [LSWAP, GO, NGINX, ROUTER, "mine"]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Target(2, GO, least=True), f"≥ 2 × {GO}"),
        (Target(1, GO), f"≤ {GO}"),
        (Target(0.25), "≤ 0.25 ms"),
        (Target(5000), "≤ 5,000 ms"),
    ],
)
def test_how_a_target_reads(target: Target, text: str) -> None:
    assert target.text("ms") == text


def test_a_row_is_made_of_those_who_have_the_figure() -> None:
    scores = Rounds()
    for name, value in ((LSWAP, 1.0), (GO, 2.0), ("no proxy", 3.0)):
        scores.add("cpu", name, value)
    one = row(scores, "cpu", "CPU", peers=[GO, NGINX])
    assert one.values == {LSWAP: [1.0], GO: [2.0]}


def test_each_peer_is_first_as_often_as_any_other() -> None:
    firsts = [in_turns(["a", "b", "c"], number)[0] for number in range(6)]
    assert sorted(firsts) == ["a", "a", "b", "b", "c", "c"]


def test_further_peers_by_command_and_by_url() -> None:
    mine = read_peer_option("mine=./router --port {port} --ini '{ini}' --other {braces}")
    assert mine.name == "mine"
    filled = mine.argv({"port": "1", "ini": "/a b"})
    assert filled == ["./router", "--port", "1", "--ini", "/a b", "--other", "{braces}"]
    assert read_peer_option("theirs=http://127.0.0.1:9292/") == PeerOption("theirs", port=9292)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("mine", "is not NAME=URL"),
        ("=x {port}", "is not NAME=URL"),
        ("mine=./router", "no {port}"),
        ("mine=http://example.org:80", "only http://127.0.0.1:PORT"),
        ("mine=https://127.0.0.1:80", "only http://127.0.0.1:PORT"),
        ("mine=http://127.0.0.1:80/v1", "without a path"),
    ],
)
def test_further_peers_that_cannot_be(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        read_peer_option(text)


def test_the_files_for_further_peers_are_what_other_programs_read() -> None:
    """Our importers know those forms."""
    models = {"alpha": Path("/m/a b.gguf"), "beta": Path("/m/b.gguf")}
    args = {"ctx-size": 512, "threads": 1}
    engine = Path("/bin/llama-server")
    for draft in (
        read_llama_swap(json.loads(swap_config(engine, models, args)), {}),
        read_ini(router_presets(models, args), "presets.ini"),
    ):
        found = draft.models
        assert {name: Path(one["model"]) for name, one in found.items()} == models
        assert all(one["args"]["threads"] == 1 for one in found.values())
        assert not [note for note in draft.notes if "PORT" in note.text]


def test_what_is_rendered_inside_is_collected() -> None:
    scores = Rounds()
    scores.add("swap", "with", 1.0)
    with rendering() as seen:
        text = render("a title", scores, [Column("swap", "swap, s", 2)], ["with"], "with")
    render("another", scores, [], ["with"], "with")
    assert [(one.title, one.rounds) for one in seen] == [("a title", scores)]
    assert "1.00" in text


def test_shares_of_one_way_against_another_by_round() -> None:
    without, with_ = "without read-ahead", "with read-ahead"
    cold = Rounds()
    for slow, fast in ((4.0, 1.0), (2.0, 1.0)):
        cold.add("swap", without, slow)
        cold.add("swap", with_, fast)
    tables = [Rendered("of something else", Rounds()), Rendered("cold", cold)]
    assert shares_of(tables, "swap", with_, without) == [0.25, 0.5]
    assert shares_of(tables, "read", with_, without) == []


def test_the_parts_have_names_of_their_own_and_are_there() -> None:
    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        module, _, function = part.where.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
