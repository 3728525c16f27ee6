"""Leases whose client left: how long their answers go on."""

from __future__ import annotations

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Revoke, StopReason
from llamaswap_py.scheduler.types import RequestId
from tests.scheduler.play import A, B, Play, plan


def _detached(play: Play) -> RequestId:
    """Return a request whose answer runs on `a`, and whose client has left."""
    request = play.ask(A)
    play.pass_time(3)
    assert play.granted(request)
    play.feed(ev.LeaseDetached(request))
    return request


def _revoked(play: Play, request: RequestId) -> list[tuple[float, StopReason]]:
    return [
        (when, action.reason)
        for when, action in play.log
        if isinstance(action, Revoke) and action.request == request
    ]


def test_ends_after_five_minutes_if_nobody_wants_the_memory() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    request = _detached(play)
    left = play.now
    play.pass_time(299)
    assert not _revoked(play, request)
    play.pass_time(2)
    assert _revoked(play, request) == [(left + 300, StopReason.DETACHED)]


def test_ends_ten_seconds_after_somebody_wants_the_memory() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    request = _detached(play)
    play.pass_time(50)
    wanted = play.now
    other = play.ask(B, "two")
    play.pass_time(9.9)
    assert not _revoked(play, request)
    play.pass_time(5)
    assert _revoked(play, request) == [(wanted + 10, StopReason.DETACHED)]
    assert play.granted(other)


def test_ends_ten_seconds_after_it_left_if_somebody_waits_already() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    request = play.ask(A)
    play.pass_time(3)
    other = play.ask(B, "two")
    play.pass_time(30)
    play.feed(ev.LeaseDetached(request))
    left = play.now
    play.pass_time(20)
    assert _revoked(play, request) == [(left + 10, StopReason.DETACHED)]
    assert play.granted(other)


def test_somebody_who_waits_for_the_slot_counts_too() -> None:
    play = Play(plan("a", 60))
    request = _detached(play)
    other = play.ask(A, "two")
    wanted = play.now
    play.pass_time(12)
    assert _revoked(play, request) == [(wanted + 10, StopReason.DETACHED)]
    assert play.granted(other)


def test_a_reader_who_comes_back_makes_it_an_ordinary_lease() -> None:
    play = Play(plan("a", 60), plan("b", 60), max_wait=5.0)
    request = _detached(play)
    play.ask(B, "two")
    play.pass_time(8)
    play.feed(ev.LeaseAttached(request))
    play.pass_time(60)
    assert not _revoked(play, request)  # the drain's own deadline counts again: two minutes
    play.pass_time(120)
    assert [reason for _, reason in _revoked(play, request)] == [StopReason.DRAIN_DEADLINE]


def test_one_that_finishes_by_itself_is_forgotten() -> None:
    play = Play(plan("a", 60))
    request = _detached(play)
    play.finish(request)
    assert not play.scheduler.state.detached
    play.feed(ev.LeaseDetached(request))  # crossed
    play.feed(ev.LeaseAttached(request))
    play.pass_time(400)
    assert not _revoked(play, request)


def test_the_decisions_say_what_became_of_it() -> None:
    play = Play(plan("a", 60))
    request = _detached(play)
    play.feed(ev.LeaseAttached(request))
    play.feed(ev.LeaseDetached(request))
    play.pass_time(301)
    kinds = [one.kind for one in play.scheduler.decisions]
    assert kinds == ["load", "ready", "detached", "attached", "detached", "revoked"]
    assert "nobody came back for it" in play.scheduler.decisions[-1].reason


def test_nobody_can_come_back_to_one_that_is_stopping() -> None:
    play = Play(plan("a", 60), plan("b", 30))
    request, other = _detached(play), play.ask(B, "two")
    play.pass_time(3)
    assert play.granted(other)
    play.feed(ev.ShutdownAsked(30.0))
    stopped = play.now
    play.pass_time(1)
    play.feed(ev.LeaseDetached(other))
    play.pass_time(1)
    assert _revoked(play, request) == [(stopped, StopReason.DETACHED)]
    assert _revoked(play, other) == [(stopped + 1, StopReason.DETACHED)]
