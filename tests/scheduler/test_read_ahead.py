"""Who is loaded next, as far as one can tell: said once, whenever it changes."""

from __future__ import annotations

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import ReadAhead, Spawn
from llamaswap_py.scheduler.types import Choice, PresetId, PresetPlan
from tests.scheduler.play import HOST, A, B, C, Play, plan


def _said(play: Play) -> list[tuple[str, ...]]:
    return [tuple(name for name, _ in one.presets) for one in play.actions(ReadAhead)]


def test_it_is_who_waits_for_a_busy_model_until_its_own_load() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    first = play.ask(A)
    play.pass_time(2)
    play.ask(B)
    assert _said(play) == [("b",)]
    play.pass_time(30)
    assert _said(play) == [("b",)]
    play.finish(first)
    play.pass_time(1)
    assert play.loads() == ["a", "b"]
    assert _said(play) == [("b",), ()]
    kinds = [type(one) for _, one in play.log if isinstance(one, ReadAhead | Spawn)]
    assert kinds[-2:] == [ReadAhead, Spawn]


def test_it_is_nobody_once_its_client_has_left() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    play.ask(A)
    play.pass_time(2)
    asked = play.ask(B)
    play.feed(ev.RequestLeft(asked))
    assert _said(play) == [("b",), ()]


def test_it_is_all_who_wait_in_the_order_of_their_turns() -> None:
    play = Play(plan("a", 60), plan("b", 60), plan("c", 60, priority=1))
    play.ask(A)
    play.pass_time(2)
    play.ask(B)
    play.pass_time(0.01)
    play.ask(C)
    assert _said(play) == [("b",), ("c", "b")]


def test_it_is_not_who_loads_at_once_or_never() -> None:
    play = Play(plan("a", 60), plan("b", 40), plan("c", 101))
    play.ask(A)
    play.ask(B)
    play.ask(C)
    assert play.loads() == ["a", "b"]
    assert _said(play) == []


def test_it_is_nobody_who_would_rather_be_refused() -> None:
    play = Play(plan("a", 60), plan("b", 60, when_full="refuse"))
    play.ask(A)
    play.pass_time(2)
    play.ask(B)
    assert _said(play) == []


def test_a_reservation_reads_nothing() -> None:
    play = Play(plan("a", 60))
    play.ask(A)
    play.pass_time(2)
    play.feed(ev.ReservationAsked(PresetId("reservation:x"), {HOST: 60}))
    assert _said(play) == []


def test_a_variant_is_named() -> None:
    choices = (Choice({HOST: 70}, variant="full"), Choice({HOST: 60}, variant="lean"))
    play = Play(plan("a", 60), PresetPlan(preset=B, choices=choices))
    play.ask(A)
    play.pass_time(2)
    play.ask(B)
    assert [one.presets for one in play.actions(ReadAhead)] == [((B, "full"),)]


def test_what_was_read_is_a_decision_but_no_reason_for_a_state() -> None:
    play = Play(plan("a", 60))
    play.ask(A)
    before = play.scheduler.state.presets[A].reason
    play.feed(ev.FilesRead(A, 3 << 30, 4 << 30, 2 << 30, 1.25))
    last = play.scheduler.decisions[-1]
    assert (last.kind, last.preset) == ("read ahead", A)
    assert last.reason == "3 GiB of 4 GiB are in the page cache, 2 GiB were read in 1.2 s"
    assert play.scheduler.state.presets[A].reason == before
    play.feed(ev.FilesRead(PresetId("gone"), 1, 1, 1, 1.0))
    assert play.scheduler.decisions[-1] is last
