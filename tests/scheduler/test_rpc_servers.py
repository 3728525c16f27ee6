"""Presets on RPC servers: one model at a time on each, and nothing is done for one that is gone."""

from __future__ import annotations

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Note, Stop, TryServer
from llamaswap_py.scheduler.types import (
    RPC_LOST,
    Failure,
    InstanceKey,
    PresetId,
    PresetPlan,
    RequestId,
)
from tests.scheduler.play import A, B, C, Play, plan

BOX, OTHER = "box:50052", "box:50053"
GONE = Failure(RPC_LOST, "the RPC server is gone")


def lent(name: str, *endpoints: str, size: int = 10) -> PresetPlan:
    return plan(name, size, endpoints=endpoints or (BOX,))


def serve(play: Play, preset: PresetId) -> RequestId:
    request = play.ask(preset)
    play.pass_time(3)
    play.finish(request)
    return request


def kinds_told(play: Play, name: str) -> list[str]:
    notes = (note.decision for note in play.actions(Note))
    return [one.kind for one in notes if one.preset == name]


def test_a_server_is_tried_before_the_load() -> None:
    play = Play(lent("a"))
    request = play.ask(A)
    assert play.actions(TryServer) == [TryServer(BOX)]
    assert play.loads() == []
    play.pass_time(3)
    assert play.granted(request) == (A, 1)


def test_one_model_at_a_time_on_a_server_though_there_is_memory_for_both() -> None:
    play = Play(lent("a"), lent("b"), lent("c", OTHER))
    serve(play, A)
    serve(play, C)
    assert play.actions(Stop) == []
    serve(play, B)
    (stop,) = play.actions(Stop)
    assert stop.instance == InstanceKey(A, 1)
    assert play.loads() == ["a", "c", "b"]
    evicted = next(n.decision.reason for n in play.actions(Note) if n.decision.kind == "stop")
    assert f"the RPC server {BOX} serves one at a time" in evicted


def test_a_busy_one_keeps_its_server_until_it_is_done() -> None:
    play = Play(lent("a"), lent("b"))
    first = play.ask(A)
    play.pass_time(3)
    second = play.ask(B)
    play.pass_time(1)
    assert play.loads() == ["a"]
    assert f"RPC server {BOX} (one model at a time): another one uses it" in play.scheduler.waits(B)
    play.finish(first)
    play.pass_time(3)
    assert play.granted(second)


def test_a_server_that_our_child_uses_is_not_tried() -> None:
    play = Play(lent("a"), lent("b"))
    play.ask(A)
    play.pass_time(3)
    tries = len(play.actions(TryServer))
    play.ask(B)
    play.pass_time(30)
    assert len(play.actions(TryServer)) == tries


def test_nothing_is_unloaded_for_a_model_whose_server_is_gone() -> None:
    play = Play(plan("a", 60), lent("b", size=60))
    serve(play, A)
    play.gone.add(BOX)
    request = play.ask(B)
    play.pass_time(1)
    assert play.actions(Stop) == []
    refusal = play.rejected(request)
    assert refusal is not None
    assert refusal.code == "model_failed"
    assert ("failure", RPC_LOST) in refusal.details
    assert BOX in refusal.message
    assert kinds_told(play, "b") == ["failed"]


def test_the_pause_is_the_servers_and_grows() -> None:
    """Two models of one server do not try it more often than one, and a third is not affected."""
    play = Play(lent("a"), lent("b"), lent("c", OTHER))
    play.gone.add(BOX)
    for _ in range(60):
        play.ask(A)
        play.ask(B)
        play.pass_time(1)
    tries = play.actions(TryServer).count(TryServer(BOX))
    assert (
        tries == 6
    )  # after 0, 1, 2, 4, 8, 16 and 32 s, less the last: rounded up to whole seconds
    serve(play, C)
    assert play.loads() == ["c"]


def test_a_server_that_is_back_serves_again_at_the_next_try() -> None:
    play = Play(lent("a"))
    play.gone.add(BOX)
    play.ask(A)
    play.pass_time(0.5)
    play.gone.clear()
    assert play.rejected(play.ask(A))
    play.pass_time(1)
    request = play.ask(A)
    play.pass_time(3)
    assert play.granted(request)
    assert play.scheduler.state.presets[A].failure is None


def test_an_operator_may_try_at_once() -> None:
    play = Play(lent("a"))
    play.gone.add(BOX)
    play.ask(A)
    play.pass_time(0.5)
    play.gone.clear()
    play.feed(ev.LoadAsked(A))
    play.pass_time(3)
    assert play.loads() == ["a"]


def test_a_child_that_lost_its_server_makes_it_be_tried_again() -> None:
    """What answered a moment ago is not believed any more."""
    play = Play(lent("a"), load_seconds=0.5)
    play.ask(A)
    play.pass_time(1)
    play.gone.add(BOX)
    waits = play.ask(A)
    play.feed(ev.InstanceExited(InstanceKey(A, 1), GONE))
    play.pass_time(0.1)
    assert play.rejected(waits)
    assert play.loads() == ["a"]


def test_a_load_that_loses_its_server_pauses_like_any_other() -> None:
    play = Play(lent("a"))
    request = play.ask(A)
    play.pass_time(0.1)
    play.feed(ev.InstanceExited(InstanceKey(A, 1), GONE))
    refusal = play.rejected(request)
    assert refusal is not None
    assert ("failure", RPC_LOST) in refusal.details


def test_both_servers_of_a_model_have_to_answer() -> None:
    play = Play(lent("a", BOX, OTHER))
    play.gone.add(OTHER)
    request = play.ask(A)
    assert play.actions(TryServer) == [TryServer(BOX), TryServer(OTHER)]
    play.pass_time(1)
    refusal = play.rejected(request)
    assert refusal is not None
    assert OTHER in refusal.message
