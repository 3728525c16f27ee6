"""The scheduler's rules, one by one, under virtual time."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import (
    Download,
    Kill,
    Note,
    Rechoose,
    Reduce,
    Refit,
    Refuse,
    Reject,
    Reserve,
    Revoke,
    Spawn,
    Stop,
    StopReason,
    Wake,
)
from llamaswap_py.scheduler.invariants import check
from llamaswap_py.scheduler.lifecycle import TRANSITIONS, IllegalTransition, State, Trigger, advance
from llamaswap_py.scheduler.types import (
    REDUCED,
    Choice,
    ClientId,
    Failure,
    InstanceKey,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
    RequestId,
)
from tests.scheduler.play import HOST, A, B, C, Play, plan


def test_a_load_is_coalesced_and_grants_in_order() -> None:
    play = Play(plan("a", 10))
    play.slots = 2
    requests = [play.ask(A) for _ in range(3)]
    assert play.loads() == ["a"]
    play.pass_time(2)
    assert [play.granted(one) is not None for one in requests] == [True, True, False]
    play.finish(requests[0])
    assert play.granted(requests[2]) == (A, 1)


def test_a_ready_instance_grants_at_once_and_without_a_pass() -> None:
    play = Play(plan("a", 10))
    first = play.ask(A)
    play.pass_time(2)
    play.finish(first)
    second = play.ask(A)
    assert play.granted(second) == (A, 1)
    assert play.now == 2


def test_two_that_fit_load_side_by_side() -> None:
    play = Play(plan("a", 50), plan("b", 50))
    one, two = play.ask(A), play.ask(B)
    assert play.loads() == ["a", "b"]
    play.pass_time(2)
    assert play.granted(one)
    assert play.granted(two)


def test_the_margin_is_kept() -> None:
    play = Play(plan("a", 50), plan("b", 50), margin=1)
    play.ask(A)
    play.ask(B)
    assert play.loads() == ["a"]


def test_an_idle_instance_gives_way_at_once_and_counts_until_it_is_gone() -> None:
    play = Play(plan("a", 60), plan("b", 60), stop_seconds=1.0)
    first = play.ask(A)
    play.pass_time(2)
    play.finish(first)
    second = play.ask(B)
    assert play.actions(Stop) == [Stop(InstanceKey(A, 1), StopReason.EVICTED)]
    assert play.actions(Stop)[0].may_keep
    assert play.loads() == ["a"]
    play.pass_time(1)
    assert play.loads() == ["a", "b"]
    play.pass_time(2)
    assert play.granted(second)
    assert play.scheduler.evictions == 1


def test_the_least_recently_used_gives_way() -> None:
    play = Play(plan("a", 50), plan("b", 50), plan("c", 50))
    for preset in (A, B):
        play.finish(_ready(play, preset))
    again = play.ask(A)
    play.pass_time(1)
    play.finish(again)
    play.ask(C)
    assert play.actions(Stop) == [Stop(InstanceKey(B, 2), StopReason.EVICTED)]


def test_no_more_victims_than_needed() -> None:
    play = Play(plan("a", 20), plan("b", 60), plan("c", 50))
    for preset in (A, B):
        request = play.ask(preset)
        play.pass_time(3)
        play.finish(request)
    play.ask(C)
    # a is older, but evicting it alone would not suffice and b alone does.
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["b"]


def test_pinned_instances_stay() -> None:
    play = Play(plan("a", 60, pin=True), plan("b", 60))
    first = play.ask(A)
    play.pass_time(2)
    play.finish(first)
    refusal = play.rejected(play.ask(B))
    assert refusal is not None
    assert refusal.code == "model_too_large"
    assert "60 B kept loaded" in refusal.message
    assert "pinned a (60 B)" in refusal.remedy


def test_what_can_never_fit_is_refused_with_the_arithmetic_and_evicts_nobody() -> None:
    play = Play(plan("a", 60), plan("b", 200), host=100, margin=10)
    play.ask(A)
    play.pass_time(2)
    refusal = play.rejected(play.ask(B))
    assert refusal is not None
    assert refusal.code == "model_too_large"
    assert "needs 200 B, but 100 B in all - 10 B margin leave 90 B" in refusal.message
    assert not play.actions(Stop)


def test_an_unknown_device_is_named() -> None:
    play = Play(PresetPlan(preset=A, choices=(Choice({PoolId("CUDA7"): 5}),)))
    refusal = play.rejected(play.ask(A))
    assert refusal is not None
    assert "there is no device CUDA7 here (known: host)" in refusal.message


def test_unknown_footprints_load_one_at_a_time() -> None:
    play = Play(plan("a"), plan("b"))
    first = play.ask(A)
    second = play.ask(B)
    play.pass_time(2)
    assert play.loads() == ["a"]
    play.finish(first)
    play.pass_time(2.7)
    assert play.loads() == ["a", "b"]
    assert play.granted(second)


def test_max_loaded_counts_beside_memory() -> None:
    play = Play(plan("a"), plan("b"), plan("c"), max_loaded=2)
    for preset in (A, B, C):
        play.ask(preset)
    assert play.loads() == ["a", "b"]


def test_a_busy_incumbent_keeps_its_gate_for_its_residency_then_drains() -> None:
    """α x (load + service) = 4 x (2 + 1) = 12 s after it became ready at 2 s."""
    play = Play(plan("a", 60), plan("b", 60))
    play.keep_busy(A, service=1.0)
    play.keep_busy(A, service=1.0, client="two")
    play.pass_time(5)
    waiter = play.ask(B)
    play.pass_time(8.9)
    assert not play.actions(Stop)
    play.pass_time(4)
    assert [stop.reason for stop in play.actions(Stop)][:1] == [StopReason.EVICTED]
    assert play.granted(waiter)


def test_nobody_cuts_in_while_a_big_one_waits_for_a_load() -> None:
    """The big waiter holds what a loading model will give; a younger one does not start a load."""
    play = Play(plan("a", 60), plan("b", 90), plan("c", 30), load_seconds=10.0)
    play.ask(A)
    big = play.ask(B)
    play.pass_time(1)
    play.ask(C)
    assert play.loads() == ["a"]
    assert not play.granted(big)


def test_a_closed_gate_stays_closed_until_its_claimer_is_served() -> None:
    """Two busy victims: the one that drains first is not granted again meanwhile."""
    play = Play(plan("a", 50), plan("b", 50), plan("c", 100))
    first, second = _ready(play, A), _ready(play, B)
    play.pass_time(100)
    play.ask(C)
    play.pass_time(1)
    play.finish(first)
    blocked = play.ask(A, client="two")
    play.pass_time(5)
    assert not play.granted(blocked)
    play.finish(second)
    play.pass_time(0.2)
    assert play.loads()[-1] == "c"


def test_memory_that_a_claim_frees_is_held_for_the_claimer() -> None:
    play = Play(plan("a", 80), plan("b", 90), plan("c", 15), load_seconds=1.0)
    long = play.ask(A)
    play.pass_time(10)
    big = play.ask(B)
    play.pass_time(5)  # patience is over: b has claimed a's memory
    small = play.ask(C)  # 20 are free, and it would fit into them
    play.pass_time(1)
    assert "c" not in play.loads()
    play.finish(long)
    play.pass_time(3)
    assert play.granted(big)
    assert not play.granted(small)
    play.finish(big)
    play.pass_time(3)
    assert play.granted(small)


def test_the_drain_deadline_revokes_and_the_waiter_gets_its_turn() -> None:
    play = Play(plan("a", 60, drain_timeout=5.0), plan("b", 60))
    endless = play.ask(A)
    play.pass_time(60)
    waiter = play.ask(B)
    play.pass_time(30)
    assert play.actions(Revoke) == [Revoke(endless, InstanceKey(A, 1), StopReason.DRAIN_DEADLINE)]
    assert play.granted(waiter)


def test_with_wait_the_drain_has_no_deadline() -> None:
    play = Play(plan("a", 60, drain_timeout=5.0, cancel_at_drain_deadline=False), plan("b", 60))
    endless = play.ask(A)
    play.pass_time(60)
    waiter = play.ask(B)
    play.pass_time(300)
    assert not play.actions(Revoke)
    assert not play.granted(waiter)
    play.finish(endless)
    play.pass_time(3)
    assert play.granted(waiter)


def test_a_gate_reopens_when_its_claimer_leaves() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    first = play.ask(A)
    play.pass_time(60)
    waiter = play.ask(B)
    play.pass_time(1)
    blocked = play.ask(A, client="two")
    assert not play.granted(blocked)
    play.feed(ev.RequestLeft(waiter))
    play.finish(first)
    assert play.granted(blocked) == (A, 1)


def test_one_client_that_alternates_loses_nothing() -> None:
    play = Play(plan("a", 60), plan("b", 60), stop_seconds=0.0)
    for turn in range(20):
        request = play.ask(A if turn % 2 == 0 else B)
        play.pass_time(2)
        assert play.granted(request), "the swap started at once"
        play.finish(request)


def test_an_idle_incumbent_lingers_for_a_client_that_circulates() -> None:
    """A quarter of its load time at first, then as long as it paid off, while a client is away."""
    play = Play(plan("a", 60), plan("b", 60))
    first = _ready(play, A)
    play.ask(B, client="two")
    play.finish(first)
    play.pass_time(0.4)
    assert not play.actions(Stop)
    again = play.ask(A)
    assert play.granted(again), "it was worth the wait"
    play.finish(again)
    play.pass_time(0.6)
    assert not play.actions(Stop)
    play.pass_time(0.1)
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]


def test_nobody_lingers_whose_clients_do_not_come_back_soon() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    for _ in range(4):
        play.finish(_ready(play, A))
        play.pass_time(20)
    last = play.ask(A)
    play.ask(B, client="two")
    play.finish(last)
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]


def test_the_cheapest_set_gives_way_not_the_oldest() -> None:
    play = Play(plan("a", 50), plan("b", 50), plan("c", 50))
    for _ in range(10):
        play.finish(_ready(play, A))
    play.finish(_ready(play, B))
    play.finish(_ready(play, C))
    # a was used longest ago, but is asked for far more often than b.
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["b"]


def test_one_hot_model_does_not_starve_another() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    play.keep_busy(A, service=1.0)
    play.keep_busy(A, service=1.0, client="two")
    play.pass_time(100)
    waiter = play.ask(B)
    play.pass_time(2 + 1 + 0.1 + 2 + 0.01)  # patience, the open request, the stop, the load
    assert play.granted(waiter)


def test_two_hot_models_share_time_without_thrashing() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    for preset in (A, B):
        for client in "123":
            play.keep_busy(preset, service=1.0, client=preset + client)
    play.pass_time(120)
    loading = len(play.loads()) * play.load_seconds
    assert len(play.loads()) >= 4
    assert loading <= 120 / 3


def test_a_failed_load_rejects_backs_off_and_recovers() -> None:
    play = Play(plan("a", 10), load_seconds=99)
    first = play.ask(A)
    died = Failure("file_missing", "a.gguf is not there", 1, ("last line",))
    play.feed(ev.InstanceExited(InstanceKey(A, 1), died))
    refusal = play.rejected(first)
    assert refusal is not None
    assert (refusal.code, refusal.retry_after) == ("model_failed", 1.0)
    assert ("log", ("last line",)) in refusal.details
    assert play.rejected(play.ask(A))
    assert play.loads() == ["a"]
    play.pass_time(1)
    play.ask(A)
    assert play.loads() == ["a", "a"]
    play.feed(ev.InstanceExited(InstanceKey(A, 2), died))
    refusal = play.rejected(play.ask(A))
    assert refusal is not None
    assert refusal.retry_after == 2.0


def test_a_preset_that_cannot_work_evicts_nobody() -> None:
    broken = Failure("file_missing", "b.gguf is not there")
    play = Play(plan("a", 60), plan("b", 60, problem=broken))
    play.finish(_ready(play, A))
    refusal = play.rejected(play.ask(B))
    assert refusal is not None
    assert refusal.code == "model_failed"
    assert not play.actions(Stop)


def test_a_crash_after_readiness_is_forgiven_once() -> None:
    play = Play(plan("a", 10))
    crash = Failure("crashed", "killed by signal 11", None)
    lease = _ready(play, A)
    waiting = play.ask(A)
    play.feed(ev.InstanceExited(InstanceKey(A, 1), crash))
    assert play.loads() == ["a", "a"]
    play.finish(lease, ev.Outcome.UPSTREAM_ERROR)
    play.pass_time(2)
    assert play.granted(waiting) == (A, 2)
    play.feed(ev.InstanceExited(InstanceKey(A, 2), crash))
    assert play.rejected(play.ask(A)), "a second crash without one good answer backs off"


def test_a_child_that_keeps_dying_is_not_loaded_again_before_its_back_off() -> None:
    play = Play(plan("a", 60), load_seconds=1.0)
    crash = Failure("crashed", "killed by signal 11")
    waiting = [play.ask(A) for _ in range(3)]
    play.pass_time(1)
    for epoch in (1, 2):
        key = InstanceKey(A, epoch)
        play.feed(ev.InstanceLost(key))
        assert len(play.loads()) == epoch, "what became of it, its exit says"
        play.feed(ev.InstanceExited(key, crash))
        play.pass_time(1)
    assert play.rejected(waiting[2])
    assert play.loads() == ["a", "a"]


def test_a_substitute_that_cannot_answer_is_not_asked() -> None:
    broken = Failure("file_missing", "c.gguf is not there")
    play = Play(plan("a", 60), plan("b", 60), plan("c", 10, problem=broken))
    _ready(play, A)
    waiting = play.ask(B, when_full="substitute:c")
    play.pass_time(1)
    assert play.loads() == ["a"]
    assert [one.request for one in play.scheduler.state.presets[B].queue] == [waiting]


def test_noise_on_one_device_holds_no_other() -> None:
    gpu = PoolId("CUDA0")
    play = Play(PresetPlan(preset=A, choices=(Choice({gpu: 60, HOST: 20}, (gpu,)),)))
    before = {gpu: Pool(100, watched=True), HOST: Pool(100, watched=True)}
    play.feed(ev.PoolsMeasured(before))
    play.finish(_ready(play, A))
    play.feed(ev.UnloadAsked(A))
    play.pass_time(0.2)
    noise = {gpu: Pool(100, watched=True), HOST: Pool(100, strangers=9, watched=True)}
    play.feed(ev.PoolsMeasured(noise))
    free = play.scheduler.state.ledger.free()
    assert (free[gpu], free[HOST]) == (100, 80)


def test_a_hung_instance_is_killed_and_its_requests_end() -> None:
    play = Play(plan("a", 60))
    lease, waiting = _ready(play, A), play.ask(A)
    play.feed(ev.InstanceHung(InstanceKey(A, 1), Failure("timeout", "no token for 2 m")))
    assert play.actions(Revoke) == [Revoke(lease, InstanceKey(A, 1), StopReason.FOUND_HUNG)]
    assert play.actions(Kill) == [Kill(InstanceKey(A, 1), StopReason.FOUND_HUNG)]
    play.pass_time(3)
    assert play.granted(waiting) == (A, 2)


def test_a_lost_instance_is_granted_to_nobody() -> None:
    play = Play(plan("a", 60))
    lease = _ready(play, A)
    play.feed(ev.InstanceLost(InstanceKey(A, 1)))
    again = play.ask(A)
    assert not play.granted(again)
    play.finish(lease, ev.Outcome.UPSTREAM_ERROR)
    play.feed(ev.InstanceExited(InstanceKey(A, 1), Failure("killed", "killed by signal 9")))
    play.pass_time(2)
    assert play.granted(again) == (A, 2)


@pytest.mark.parametrize("at_once", [False, True])
def test_an_instance_that_refuses_is_granted_to_nobody(at_once: bool) -> None:
    """Its requests end there; the others have the next instance at once. Then it is stopped."""
    play = Play(plan("a", 40, concurrency=4))
    lease = _ready(play, A)
    play.at_once = at_once
    play.feed(ev.InstanceRefused(InstanceKey(A, 1)))
    again = play.ask(A)
    assert not play.granted(again)
    play.pass_time(3)
    assert play.granted(again) == (A, 2)
    assert not play.actions(Revoke), "what it has begun may go on"
    play.finish(lease)
    assert play.actions(Stop) == [Stop(InstanceKey(A, 1), StopReason.REFUSED)]


def test_an_instance_that_refuses_does_not_keep_its_requests_for_ever() -> None:
    play = Play(plan("a", 40, drain_timeout=20.0))
    lease = _ready(play, A)
    play.feed(ev.InstanceRefused(InstanceKey(A, 1)))
    play.pass_time(19)
    assert not play.actions(Revoke)
    play.pass_time(2)
    assert play.actions(Revoke) == [Revoke(lease, InstanceKey(A, 1), StopReason.REFUSED)]
    assert play.actions(Stop) == [Stop(InstanceKey(A, 1), StopReason.REFUSED)]


def test_an_instance_that_ends_unasked_gives_its_requests_back() -> None:
    """A second one in a row is a failure, as with a crash: no loop of loads."""
    play = Play(plan("a", 60), stop_seconds=0.5)
    lease = _ready(play, A)
    play.feed(ev.InstanceRefused(InstanceKey(A, 1), ends=True))
    assert play.actions(Revoke) == [Revoke(lease, InstanceKey(A, 1), StopReason.REFUSED)]
    again = play.ask(A, since=0.0)
    assert play.loads() == ["a"], "its end decides whether to try again"
    play.pass_time(3)
    assert play.granted(again) == (A, 2)
    play.feed(ev.InstanceRefused(InstanceKey(A, 2), ends=True))
    last = play.ask(A)
    play.pass_time(0.6)
    assert play.rejected(last)


LEFT = "container ab12 (process 7, vllm) still runs"


def test_what_outlives_its_stop_keeps_its_memory_and_its_preset_waits_for_it() -> None:
    play = Play(plan("a", 40), plan("b", 70), stop_seconds=1000.0, queue_timeout=50.0)
    play.finish(_ready(play, A))
    one = play.ask(B)
    play.feed(ev.InstanceOutlived(InstanceKey(A, 1), LEFT))
    other = play.ask(A)
    play.pass_time(60)
    assert play.loads() == ["a"], "there is memory for another, but not for its name"
    refused, waited = play.rejected(one), play.rejected(other)
    assert refused is not None
    assert f"a (40 B, ended, but {LEFT})" in refused.remedy
    assert waited is not None
    assert f"which is waiting for its last run to end: {LEFT}" in waited.message
    reasons = [note.decision.reason for note in play.actions(Note)]
    assert LEFT in reasons
    again = play.ask(A)
    play.feed(ev.InstanceExited(InstanceKey(A, 1), None))
    play.pass_time(3)
    assert play.granted(again) == (A, 2)


def test_what_outlives_a_program_that_ended_by_itself() -> None:
    play = Play(plan("a", 40), stop_seconds=1000.0)
    lease = _ready(play, A)
    play.feed(ev.InstanceLost(InstanceKey(A, 1)))
    play.feed(ev.InstanceOutlived(InstanceKey(A, 1), LEFT))
    assert play.actions(Revoke) == [Revoke(lease, InstanceKey(A, 1), StopReason.REFUSED)]
    again = play.ask(A)
    play.pass_time(3)
    assert not play.granted(again)
    play.feed(ev.InstanceExited(InstanceKey(A, 1), Failure("exited", "it crashed")))
    play.pass_time(5)
    assert play.granted(again) == (A, 2)


def test_what_outlives_a_load_that_failed_is_said_with_the_failure() -> None:
    play = Play(plan("a", 40), load_seconds=1000.0, stop_seconds=1000.0)
    asked = play.ask(A)
    play.feed(ev.InstanceOutlived(InstanceKey(A, 1), LEFT))
    refused = play.rejected(asked)
    assert refused is not None
    assert f"it ended while loading; {LEFT}" in refused.message
    play.pass_time(20)
    again = play.ask(A)
    play.pass_time(3)
    assert play.loads() == ["a"]
    play.feed(ev.InstanceExited(InstanceKey(A, 1), None))
    assert play.loads() == ["a", "a"]
    assert not play.rejected(again)


@pytest.mark.parametrize("single", [True, False])
def test_what_can_run_only_once_waits_for_its_own_end(single: bool) -> None:
    play = Play(plan("a", 40, single=single), stop_seconds=5.0)
    play.finish(_ready(play, A))
    play.feed(ev.UnloadAsked(A))
    again = play.ask(A)
    play.pass_time(3)
    assert (play.granted(again) is None) == single
    play.pass_time(5)
    assert play.granted(again) == (A, 2)


def test_an_instance_that_sleeps_or_leaves_may_refuse_too() -> None:
    play = Play(plan("a", 60))
    play.finish(_ready(play, A))
    play.feed(ev.InstanceSlept(InstanceKey(A, 1)))
    play.feed(ev.InstanceRefused(InstanceKey(A, 1)))
    assert play.actions(Stop) == [Stop(InstanceKey(A, 1), StopReason.REFUSED)]
    play = Play(plan("a", 60))
    lease = _ready(play, A)
    play.feed(ev.UnloadAsked(A))
    play.feed(ev.InstanceRefused(InstanceKey(A, 1)))
    assert not play.actions(Revoke)
    play.feed(ev.InstanceRefused(InstanceKey(A, 1), ends=True))
    assert play.actions(Revoke) == [Revoke(lease, InstanceKey(A, 1), StopReason.REFUSED)]


def test_a_read_is_not_answered_by_an_instance_that_refuses() -> None:
    play = Play(plan("a", 60))
    _ready(play, A)
    assert play.scheduler.look(A, play.now, wakes=False) == (A, 1)
    play.feed(ev.InstanceRefused(InstanceKey(A, 1)))
    assert isinstance(play.scheduler.look(A, play.now, wakes=False), Reject)


def test_a_load_nobody_waits_for_is_abandoned_unless_half_done() -> None:
    play = Play(plan("a", 10))
    play.feed(ev.RequestLeft(play.ask(A)))
    assert play.actions(Stop) == [Stop(InstanceKey(A, 1), StopReason.ABANDONED)]
    play.pass_time(1)
    again = play.ask(A)
    play.feed(ev.InstanceProgressed(InstanceKey(A, 2), 0.6))
    play.feed(ev.RequestLeft(again))
    assert len(play.actions(Stop)) == 1


def test_a_stalled_load_is_killed_and_reported() -> None:
    play = Play(plan("a", 10), load_seconds=1e9)
    request = play.ask(A)
    play.feed(ev.InstanceStalled(InstanceKey(A, 1), Failure("timeout", "no progress for 5 m")))
    assert play.actions(Kill) == [Kill(InstanceKey(A, 1), StopReason.LOAD_STALL)]
    refusal = play.rejected(request)
    assert refusal is not None
    assert "no progress for 5 m" in refusal.message


def test_ttl_counts_from_the_last_lease_and_spares_pinned() -> None:
    play = Play(plan("a", 10, ttl=30.0), plan("b", 10, ttl=30.0, pin=True))
    first, other = play.ask(A), play.ask(B)
    play.pass_time(100)
    assert not play.actions(Stop)
    play.finish(first)
    play.finish(other)
    play.pass_time(29)
    assert not play.actions(Stop)
    play.pass_time(2)
    assert play.actions(Stop) == [Stop(InstanceKey(A, 1), StopReason.TTL)]
    assert play.actions(Stop)[0].may_keep


def test_preload_takes_free_memory_only() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    play.feed(ev.LoadAsked(A, evict=False))
    play.feed(ev.LoadAsked(B, evict=False))
    play.pass_time(5)
    assert play.loads() == ["a"]
    assert any(one.kind == "not preloaded" for one in play.scheduler.decisions)


def test_unload_drains_and_force_does_not() -> None:
    play = Play(plan("a", 60))
    lease = _ready(play, A)
    play.feed(ev.UnloadAsked(A))
    play.pass_time(600)
    assert not play.actions(Stop), "nobody waits for the memory: no deadline"
    play.finish(lease)
    assert play.actions(Stop) == [Stop(InstanceKey(A, 1), StopReason.UNLOADED)]
    assert not play.actions(Stop)[0].may_keep
    play.pass_time(1)
    _ready(play, A)
    play.feed(ev.UnloadAsked(A, force=True))
    assert [one.reason for one in play.actions(Revoke)] == [StopReason.FORCE]
    play.pass_time(1)
    assert len(play.actions(Stop)) == 2


def test_the_queue_has_a_limit_and_a_deadline() -> None:
    play = Play(plan("a", 10), load_seconds=1e9, queue_limit=2, queue_timeout=50.0)
    first = play.ask(A)
    play.ask(A)
    full = play.rejected(play.ask(A))
    assert full is not None
    assert full.code == "queue_full"
    play.pass_time(51)
    late = play.rejected(first)
    assert late is not None
    assert late.code == "queue_timeout"
    assert "waited 50 s" in late.message


def test_clients_take_turns() -> None:
    play = Play(plan("a", 10))
    greedy = [play.ask(A, client="greedy") for _ in range(5)]
    modest = play.ask(A, client="modest")
    play.pass_time(2)
    play.finish(greedy[0])
    assert play.granted(modest)


def test_a_request_whose_lease_was_revoked_unused_keeps_its_place() -> None:
    play = Play(plan("a", 10))
    first = _ready(play, A)
    waiting = [play.ask(A) for _ in range(2)]
    play.finish(first, ev.Outcome.CANCELLED)
    back = play.ask(A, since=0.5)
    play.finish(waiting[0])
    assert play.granted(back)
    assert not play.granted(waiting[1])


def test_auxiliary_requests_take_no_slot() -> None:
    play = Play(plan("a", 10))
    _ready(play, A)
    assert play.granted(play.ask(A, slot=False))
    assert not play.granted(play.ask(A))


def test_shutdown_finishes_streams_within_its_deadline() -> None:
    play = Play(plan("a", 40), plan("b", 40))
    quick, endless = _ready(play, A), _ready(play, B)
    waiting = play.ask(A)
    play.feed(ev.ShutdownAsked(30.0))
    refusal = play.rejected(waiting)
    assert refusal is not None
    assert refusal.code == "draining"
    assert play.rejected(play.ask(A))
    play.finish(quick)
    play.pass_time(29)
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]
    play.pass_time(2)
    assert [one.request for one in play.actions(Revoke)] == [endless]
    assert not play.scheduler.state.instances


def test_forced_shutdown_kills() -> None:
    play = Play(plan("a", 40), plan("b", 40))
    _ready(play, A)
    play.ask(B)
    play.feed(ev.ShutdownAsked(30.0, force=True))
    assert {one.instance.preset for one in play.actions(Kill)} == {"a", "b"}


def test_changed_presets_drain_and_unchanged_are_untouched() -> None:
    play = Play(plan("a", 40), plan("b", 40))
    lease, other = _ready(play, A), _ready(play, B)
    changed = plan("b", 40, fingerprint="other arguments")
    play.feed(ev.PresetsChanged((plan("a", 30), changed, plan("c", 1))))
    assert play.scheduler.state.ledger.charges[InstanceKey(A, 1)] == {HOST: 30}
    play.finish(other)
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["b"]
    assert play.granted(play.ask(C)) is None
    play.finish(lease)
    assert play.granted(play.ask(A)) == (A, 1)


def test_a_preset_goes_where_it_fits_best_and_splits_only_if_it_must() -> None:
    one, two = PoolId("CUDA0"), PoolId("CUDA1")
    small, large = Choice({one: 30}, (one,)), Choice({two: 30}, (two,))
    split = Choice({one: 15, two: 15}, (one, two))
    play = Play(PresetPlan(preset=A, choices=(split, large, small)))
    play.feed(ev.PoolsMeasured({one: Pool(40), two: Pool(100)}))
    play.ask(A)
    assert play.actions(Spawn)[0].choice is small, "the tighter of two that fit"
    play = Play(PresetPlan(preset=A, choices=(split, large, small)))
    play.feed(ev.PoolsMeasured({one: Pool(20), two: Pool(20)}))
    play.ask(A)
    assert play.actions(Spawn)[0].choice is split


def test_the_placement_that_costs_least_is_emptied() -> None:
    one, two = PoolId("CUDA0"), PoolId("CUDA1")
    either = (Choice({one: 30}, (one,)), Choice({two: 30}, (two,)))
    plans = [PresetPlan(preset=name, choices=either) for name in (A, B, C)]
    play = Play(*plans)
    play.feed(ev.PoolsMeasured({one: Pool(30), two: Pool(30)}))
    for _ in range(5):
        play.finish(_ready(play, A))
    play.finish(_ready(play, B))
    play.finish(_ready(play, C))
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["b"]


def test_the_first_variant_that_fits_without_evicting_is_taken() -> None:
    full, lean = Choice({HOST: 60}, variant="full"), Choice({HOST: 30}, variant="lean")
    for prefer_fit, chosen in ((True, [lean]), (False, [])):
        both = PresetPlan(preset=B, choices=(full, lean), prefer_fit=prefer_fit)
        play = Play(plan("a", 60), both)
        _ready(play, A)
        play.ask(B)
        spawned = [one.choice for one in play.actions(Spawn) if one.instance.preset == B]
        assert spawned == chosen


def test_groups_are_exclusive_whatever_the_memory_says() -> None:
    play = Play(plan("a", 1, groups=("big",)), plan("b", 1, groups=("big",)), plan("c", 1))
    for preset in (A, B, C):
        play.ask(preset)
    assert play.loads() == ["a", "c"]


def persistent_pair(**more: Any) -> tuple[PresetPlan, PresetPlan]:
    one, other = (plan(name, 60, groups=("g",), persistent=("g",), **more) for name in "ab")
    return one, other


def test_a_persistent_group_takes_turns_and_gives_way_to_nobody_else() -> None:
    play = Play(*persistent_pair(), plan("c", 60))
    play.finish(_ready(play, A))
    refusal = play.rejected(play.ask(C))
    assert refusal is not None
    assert refusal.code == "model_too_large"
    assert "100 B in all - 60 B kept loaded leave 40 B" in refusal.message
    assert "the group g is persistent" in refusal.remedy
    assert "pin" not in f"{refusal.message} {refusal.remedy}"
    play.finish(_ready(play, B))
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]
    play.finish(_ready(play, A))
    assert play.loads() == ["a", "b", "a"]


def test_a_busy_one_of_a_persistent_group_is_claimed_by_its_fellow() -> None:
    play = Play(*persistent_pair(), plan("c", 60), max_wait=10.0)
    lease = _ready(play, A)
    play.ask(B)
    play.pass_time(60)
    assert play.scheduler.state.instances[InstanceKey(A, 1)].gate_for == B
    play.finish(lease)
    play.pass_time(5)
    assert play.loads() == ["a", "b"]


def test_a_persistent_group_stays_when_other_programs_take_memory_but_not_beyond_its_ttl() -> None:
    play = Play(*persistent_pair(ttl=30.0), plan("c", 20))
    play.finish(_ready(play, A))
    play.feed(ev.PoolsMeasured({HOST: Pool(100, 0, strangers=60)}))
    assert not play.actions(Stop)
    play.pass_time(40)
    assert [stop.reason for stop in play.actions(Stop)] == [StopReason.TTL]


def test_when_full_refuse_disturbs_nobody_but_takes_what_is_idle() -> None:
    play = Play(plan("a", 60), plan("b", 60, when_full="refuse"))
    lease = _ready(play, A)
    refusal = play.rejected(play.ask(B))
    assert refusal is not None
    assert refusal.code == "memory_full"
    play.finish(lease)
    play.pass_time(600)
    assert play.rejected(play.ask(B)) is None
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]


def test_when_full_substitute_answers_with_another() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    _ready(play, A)
    play.slots = 2
    named = play.ask(B, when_full="substitute:a")
    loaded = play.ask(B, client="two", when_full="substitute:loaded")
    never = play.ask(B, client="three", when_full="substitute:a", substitutable=False)
    assert play.granted(named) is None, "a has one slot, and it is taken"
    assert [w.request for w in play.scheduler.state.presets[A].queue] == [named, loaded]
    assert [w.request for w in play.scheduler.state.presets[B].queue] == [never]


def test_a_higher_priority_overtakes_and_age_catches_up() -> None:
    play = Play(plan("a", 10), max_wait=10.0)
    lease = _ready(play, A)
    low = play.ask(A, client="low")
    high = play.ask(A, client="high", priority=1)
    play.finish(lease)
    assert play.granted(high)
    play.pass_time(21)
    later = play.ask(A, client="other", priority=1)
    newest = play.ask(A, client="third", priority=2)
    play.finish(high)
    assert play.granted(low), "it has waited for two priorities"
    assert not play.granted(later)
    assert not play.granted(newest)


def test_a_request_may_be_less_patient_than_the_policy() -> None:
    play = Play(plan("a", 10), load_seconds=1e9)
    hasty, patient = play.ask(A, patience=5.0), play.ask(A)
    play.pass_time(6)
    refusal = play.rejected(hasty)
    assert refusal is not None
    assert refusal.code == "queue_timeout"
    assert not play.rejected(patient)


def test_a_request_under_another_is_refused_if_it_would_wait_for_itself() -> None:
    play = Play(plan("a", 60), plan("b", 60), plan("c", 30))
    outer = _ready(play, A)
    refusal = play.rejected(play.ask(B, parent=outer))
    assert refusal is not None
    assert refusal.code == "would_deadlock"
    assert "'a'" in refusal.message
    inner = play.ask(C, parent=outer)
    play.pass_time(2)
    assert play.granted(inner), "c fits beside a"
    refusal = play.rejected(play.ask(B, parent=inner))
    assert refusal is not None
    assert refusal.code == "would_deadlock"


def test_a_nested_request_for_its_parents_own_model_passes_a_closed_gate() -> None:
    play = Play(plan("a", 60), plan("b", 60), max_wait=1.0)
    play.slots = 2
    outer = _ready(play, A)
    play.ask(B, "other")
    play.pass_time(100)
    assert play.scheduler.state.instances[InstanceKey(A, 1)].gate_for == B
    stranger = play.ask(A, "stranger")
    assert not play.granted(stranger)
    inner = play.ask(A, parent=outer)
    assert play.granted(inner) == InstanceKey(A, 1)
    play.finish(inner)
    assert not play.granted(stranger)
    play.finish(outer)
    play.pass_time(5)
    assert play.loads() == ["a", "b"]


def test_nested_requests_that_hold_each_others_slots_are_refused() -> None:
    play = Play(plan("a", 60))
    outer = _ready(play, A)
    refusal = play.rejected(play.ask(A, parent=outer))
    assert refusal is not None
    assert refusal.code == "would_deadlock"
    assert "every slot of model 'a'" in refusal.message
    assert any("every slot" in one.reason for one in play.scheduler.decisions)

    play = Play(plan("a", 60))
    play.slots = 2
    first = _ready(play, A)
    second = play.ask(A, "two")
    waiting = play.ask(A, parent=first)
    assert not play.granted(waiting)
    assert not play.rejected(waiting), "the other slot may come free"
    refusal = play.rejected(play.ask(A, "two", parent=second))
    assert refusal is not None
    assert refusal.code == "would_deadlock"
    play.finish(second)
    assert play.granted(waiting)


def test_a_nested_request_spares_its_parent_where_it_can() -> None:
    play = Play(plan("a", 50), plan("b", 50), plan("c", 50))
    outer, other = _ready(play, A), _ready(play, B)
    play.pass_time(100)
    play.ask(C, parent=outer)
    play.pass_time(5)
    instances = play.scheduler.state.instances
    assert instances[InstanceKey(A, 1)].gate_for is None
    assert instances[InstanceKey(B, 2)].gate_for == C
    play.finish(other)


def test_a_load_that_runs_out_of_memory_is_tried_once_more_alone() -> None:
    play = Play(plan("a", 30), plan("b", 30), load_seconds=1.0, stop_seconds=0.5)
    play.finish(_ready(play, A))
    request = play.ask(B)
    no_memory = Failure("out_of_memory", "cudaMalloc failed", 1)
    play.feed(ev.InstanceExited(InstanceKey(B, 2), no_memory))
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]
    assert not play.actions(Stop)[0].may_keep
    assert play.loads() == ["a", "b"], "not before a is gone"
    play.pass_time(0.6)
    assert play.loads() == ["a", "b", "b"]
    play.feed(ev.InstanceExited(InstanceKey(B, 3), no_memory))
    refusal = play.rejected(request)
    assert refusal is not None
    assert refusal.code == "model_failed"


def test_what_was_chosen_and_runs_out_of_memory_alone_is_chosen_smaller_once() -> None:
    large = Choice({HOST: 30}, words=("--ctx-size", "32768"), leaner=True, chosen="32k")
    small = Choice({HOST: 20}, words=("--ctx-size", "16384"), chosen="16k")
    chosen = PresetPlan(preset=B, choices=(large,))
    play = Play(plan("a", 30), chosen, load_seconds=1.0, stop_seconds=0.5)
    play.finish(_ready(play, A))
    request = play.ask(B)
    no_memory = Failure("out_of_memory", "cudaMalloc failed", 1)
    play.feed(ev.InstanceExited(InstanceKey(B, 2), no_memory))
    play.pass_time(0.6)
    assert play.loads() == ["a", "b", "b"], "first the one retry without a beside it"
    play.feed(ev.InstanceExited(InstanceKey(B, 3), no_memory))
    assert play.rejected(request) is None, "it waits for what is chosen next"
    play.pass_time(5)
    assert play.loads() == ["a", "b", "b"]
    assert play.actions(Reduce) == [Reduce(B, large, no_memory)]
    reasons = [one.decision.reason for one in play.actions(Note) if one.decision.kind == REDUCED]
    assert reasons == ["it ran out of memory with 32k; lswap now chooses less"]
    play.feed(ev.ChoicesEstimated(B, (small,)))
    assert play.loads() == ["a", "b", "b", "b"]
    assert play.actions(Spawn)[-1].choice is small
    play.feed(ev.InstanceExited(InstanceKey(B, 4), no_memory))
    refusal = play.rejected(request)
    assert refusal is not None
    assert refusal.code == "model_failed", "once is enough"


def test_a_pin_shuts_out_what_could_be_loaded_before_and_cannot_beside_it() -> None:
    two = PresetPlan(preset=C, choices=(Choice({HOST: 70}), Choice({HOST: 30}, variant="small")))
    unknown = PresetPlan(preset=PresetId("d"), choices=(Choice(None),), estimating=True)
    huge = plan("huge", 200)
    play = Play(plan("a", 60), plan("b", 50), two, unknown, huge)
    play.feed(ev.PoolsMeasured({HOST: Pool(100)}))
    assert play.scheduler.shut_out_by(A) == [B], "c has a way, and huge fits nowhere"
    assert play.scheduler.shut_out_by(B) == [A]
    assert play.scheduler.shut_out_by(PresetId("huge")) == []
    play.feed(ev.LoadAsked(C))
    play.pass_time(5)
    assert play.scheduler.shut_out_by(C) == [A, B], "as it is loaded, it takes 70"
    play.feed(ev.UnloadAsked(C))
    play.pass_time(1)
    play.feed(ev.LoadAsked(B))
    play.pass_time(5)
    play.feed(ev.PinChanged(B, True))
    assert play.scheduler.shut_out_by(C) == [], "what b shuts out, c does not"


def test_what_other_programs_keep_out_is_fitted_once_to_what_they_leave() -> None:
    large = Choice({HOST: 60}, words=("--ctx-size", "32768"), chosen="32k")
    small = Choice({HOST: 30}, words=("--ctx-size", "8192"), chosen="8k", passing=True)
    play = Play(PresetPlan(preset=A, choices=(large,)), load_seconds=1.0)
    play.feed(ev.PoolsMeasured({HOST: Pool(100, strangers=60, watched=True)}))
    request = play.ask(A)
    play.pass_time(4)
    assert play.actions(Refit) == [], "not before a load could have been done"
    play.pass_time(2)
    assert play.actions(Refit) == [Refit(A, {HOST: 40})]
    play.feed(ev.ChoicesEstimated(A, (large, small)))
    assert play.actions(Spawn)[-1].choice is small
    play.pass_time(2)
    play.finish(request)
    play.feed(ev.UnloadAsked(A))
    play.pass_time(2)
    again = play.ask(A)
    play.pass_time(1)
    assert play.loads() == ["a"], "what is chosen for one load is not taken for the next"
    assert play.rejected(again) is None, "nothing is too large for what other programs hold"


def test_a_load_of_other_files_waits_for_another_choice() -> None:
    play = Play(plan("a", 10))
    request = play.ask(A)
    play.feed(ev.InstanceExited(InstanceKey(A, 1), Failure("files_changed", "other files")))
    assert play.actions(Rechoose) == [Rechoose(A)]
    play.pass_time(5)
    assert play.loads() == ["a"]
    play.feed(ev.ChoicesEstimated(A, (Choice({HOST: 20}),)))
    assert play.loads() == ["a", "a"]
    assert play.rejected(request) is None


def test_figures_of_other_words_do_not_change_what_a_running_model_is_charged() -> None:
    large = Choice({HOST: 30}, words=("--ctx-size", "32768"))
    play = Play(PresetPlan(preset=A, choices=(large,)))
    play.finish(_ready(play, A))
    key = InstanceKey(A, 1)
    play.feed(ev.ChoicesEstimated(A, (Choice({HOST: 20}, words=("--ctx-size", "16384")),)))
    assert play.scheduler.state.ledger.charges[key][HOST] == 30
    play.feed(ev.ChoicesEstimated(A, (replace(large, footprint={HOST: 40}),)))
    assert play.scheduler.state.ledger.charges[key][HOST] == 40


def test_a_stopped_child_counts_until_its_device_shows_the_bytes_back() -> None:
    play = Play(plan("a", 60), plan("b", 60), settle=5.0)
    play.feed(ev.PoolsMeasured({HOST: Pool(100, strangers=10, watched=True)}))
    play.finish(_ready(play, A))
    play.ask(B)
    play.pass_time(1)
    assert play.loads() == ["a"], "reaped, but not yet back"
    play.feed(ev.PoolsMeasured({HOST: Pool(100, strangers=70, watched=True)}))
    assert play.loads() == ["a"]
    play.feed(ev.PoolsMeasured({HOST: Pool(100, strangers=12, watched=True)}))
    assert play.loads() == ["a", "b"]


def test_a_load_does_not_wait_for_an_exit_beside_which_it_fits() -> None:
    play = Play(plan("a", 60), plan("b", 40), stop_seconds=5.0)
    play.finish(_ready(play, A))
    play.feed(ev.UnloadAsked(A, force=False))
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]
    play.ask(B)
    assert play.loads() == ["a", "b"]


def test_a_load_waits_for_an_exit_and_its_memory_and_no_longer() -> None:
    """Unwatched memory is back with the reaping, watched one with the reading that shows it."""
    play = Play(plan("a", 60), plan("b", 60), stop_seconds=5.0)
    play.finish(_ready(play, A))
    play.ask(B)
    stopped, began = play.actions(Stop), play.now
    assert [stop.instance.preset for stop in stopped] == ["a"]
    play.pass_time(20)
    spawned = [at for at, action in play.log if isinstance(action, Spawn)]
    assert spawned[1] == began + play.stop_seconds

    play = Play(plan("a", 60), plan("b", 60), stop_seconds=5.0, settle=50.0)
    play.feed(ev.PoolsMeasured({HOST: Pool(100, watched=True)}))
    play.finish(_ready(play, A))
    play.ask(B)
    play.pass_time(5.5)
    assert play.loads() == ["a"]
    play.feed(ev.PoolsMeasured({HOST: Pool(100, strangers=1, watched=True)}))
    assert play.loads() == ["a", "b"]


def test_settle_time_runs_out_and_is_recorded() -> None:
    play = Play(plan("a", 60), plan("b", 60), settle=5.0)
    play.feed(ev.PoolsMeasured({HOST: Pool(100, watched=True)}))
    play.finish(_ready(play, A))
    play.ask(B)
    play.pass_time(5.2)
    assert play.loads() == ["a", "b"]
    assert any(one.kind == "settled" for one in play.scheduler.decisions)


def test_idle_instances_give_way_to_strangers_the_cheapest_first() -> None:
    play = Play(plan("a", 40), plan("b", 40))
    for _ in range(5):
        play.finish(_ready(play, A))
    play.finish(_ready(play, B))
    play.feed(ev.PoolsMeasured({HOST: Pool(100, strangers=30, watched=True)}))
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["b"]
    assert not play.actions(Stop)[0].may_keep  # it is needed at once: nothing is kept first
    assert "other programs" in play.scheduler.decisions[-1].reason
    busy = play.ask(A)
    play.feed(ev.PoolsMeasured({HOST: Pool(100, strangers=90, watched=True)}))
    assert len(play.actions(Stop)) == 1, "what is busy is left alone"
    play.finish(busy)


def test_a_sleeping_instance_gives_its_memory_back_and_wakes_like_a_load() -> None:
    sleeper = PresetPlan(preset=A, choices=(Choice({HOST: 60}, sleeping={HOST: 5}),))
    play = Play(sleeper, plan("b", 90), load_seconds=1.0)
    key = InstanceKey(A, 1)
    play.finish(_ready(play, A))
    play.feed(ev.InstanceSlept(key))
    other = play.ask(B)
    play.pass_time(2)
    assert play.granted(other), "90 fit beside the 5 that are left of a"
    waiting = play.ask(A)
    play.pass_time(1)
    assert not play.actions(Wake), "waking needs 55 more, and b is busy"
    play.finish(other)
    play.pass_time(2)
    assert play.actions(Wake) == [Wake(key)]
    assert not play.granted(waiting), "only a granted lease may send bytes to it"
    play.feed(ev.InstanceWoke(key))
    assert play.granted(waiting) == key
    assert play.scheduler.state.ledger.charges[key] == {HOST: 60}


def test_a_sleeping_instance_is_evicted_like_an_idle_one() -> None:
    sleeper = PresetPlan(preset=A, choices=(Choice({HOST: 60}, sleeping={HOST: 5}),))
    play = Play(sleeper, plan("b", 99))
    play.finish(_ready(play, A))
    play.feed(ev.InstanceSlept(InstanceKey(A, 1)))
    play.ask(B)
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]


def test_a_reservation_that_evicts_nobody_is_held_at_once_or_refused() -> None:
    play = Play(plan("a", 60))
    play.finish(_ready(play, A))
    play.feed(ev.ReservationAsked("small", {HOST: 40}, evict=False))
    play.feed(ev.ReservationAsked("large", {HOST: 41}, evict=False))
    assert play.actions(Reserve) == [Reserve("small")]
    (refused,) = play.actions(Refuse)
    assert refused.name == "large"
    assert "no free memory" in refused.message
    assert not play.actions(Stop)


def test_reservations_end_with_lswap() -> None:
    play = Play(plan("a", 60))
    _ready(play, A)
    play.feed(ev.ReservationAsked("waits", {HOST: 90}))
    play.feed(ev.ShutdownAsked(10.0))
    play.feed(ev.ReservationAsked("late", {HOST: 1}))
    assert [one.name for one in play.actions(Refuse)] == ["waits", "late"]


def test_files_that_are_not_there_are_downloaded_before_anything_is_evicted() -> None:
    absent = plan("b", 60, absent=True)
    play = Play(plan("a", 60), absent)
    play.finish(_ready(play, A))
    first, second = play.ask(B), play.ask(B, "two")
    play.pass_time(50)
    assert play.actions(Download) == [Download(B)]
    assert not play.actions(Stop), "nothing leaves for a model that is not there"
    play.feed(ev.DownloadProgressed(B, 0.5))
    assert play.scheduler.eta(B) == 50.0
    play.feed(ev.DownloadFinished(B, replace(absent, absent=False)))
    play.pass_time(5)
    assert play.loads() == ["a", "b"]
    assert play.granted(first)
    play.finish(first)
    assert play.granted(second)


def test_a_download_that_fails_backs_off_and_goes_on_with_the_next_request() -> None:
    play = Play(plan("b", 60, absent=True))
    request = play.ask(B)
    play.feed(ev.DownloadFailed(B, Failure("download", "the hub cannot be reached")))
    refusal = play.rejected(request)
    assert refusal is not None
    assert refusal.code == "model_failed"
    assert refusal.retry_after == 1.0
    assert play.rejected(play.ask(B)), "it backs off"
    play.pass_time(1.1)
    again = play.ask(B)
    assert len(play.actions(Download)) == 2
    play.feed(ev.DownloadFailed(B, Failure("download", "the hub cannot be reached")))
    refusal = play.rejected(again)
    assert refusal is not None
    assert refusal.retry_after == 2.0


def test_a_download_goes_on_when_everybody_left() -> None:
    play = Play(plan("b", 60, absent=True))
    play.feed(ev.RequestLeft(play.ask(B)))
    play.ask(B)
    assert len(play.actions(Download)) == 1


def test_only_the_like_stands_in_for_a_model() -> None:
    play = Play(plan("a", 60), plan("b", 60), plan("c", 40, kind="embedding"), max_wait=1e9)
    held, embeds = _ready(play, A), _ready(play, C)
    play.pass_time(1)
    asked = play.ask(B, "two", when_full="substitute:loaded")
    play.finish(held)
    assert play.granted(asked) == InstanceKey(A, 1), "c was used later, but it only embeds"
    play.finish(embeds)


def test_an_operators_load_wakes_a_sleeping_model() -> None:
    play = Play(plan("a", 60))
    play.finish(_ready(play, A))
    play.feed(ev.InstanceSlept(InstanceKey(A, 1)))
    play.feed(ev.LoadAsked(A))
    assert play.actions(Wake) == [Wake(InstanceKey(A, 1))]
    play.feed(ev.InstanceWoke(InstanceKey(A, 1)))
    assert not play.scheduler.state.wanted


def test_what_was_learned_of_requests_survives_a_restart() -> None:
    before = Play(plan("a", 40), plan("b", 40))
    for _ in range(6):
        before.finish(_ready(before, A))
        before.finish(_ready(before, B))
        before.pass_time(5)
    kept = before.scheduler.traffic()
    after = Play(plan("a", 40), plan("b", 40))
    after.feed(ev.TrafficRecalled(kept, age=0.0))
    learned = after.scheduler.state.demand
    assert learned.habits(A).rates.read(0.0)[1] == pytest.approx(kept.rates[A][1])
    assert learned.successors.rows() == {A: kept.followers[A], B: kept.followers[B]}
    assert kept.followers[A][B] > 1
    later = Play(plan("a", 40))
    later.feed(ev.TrafficRecalled(kept, age=3600.0))
    assert later.scheduler.state.demand.habits(A).rates.read(0.0)[1] == pytest.approx(
        kept.rates[A][1] / math.e
    )


def test_a_load_time_worked_out_from_bytes_gives_way_to_the_first_real_one() -> None:
    play = Play(plan("a", 40), load_seconds=2.0)
    play.feed(ev.ChoicesEstimated(A, (Choice({HOST: 40}),), 60.0, seeded=True))
    assert play.scheduler.eta(A) == 60.0
    _ready(play, A)
    assert play.scheduler.state.presets[A].load_seconds == pytest.approx(2.0)


def test_a_reservation_makes_room_holds_it_and_gives_it_back() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    play.finish(_ready(play, A))
    play.feed(ev.ReservationAsked("reservation:1", {HOST: 80}))
    play.pass_time(0.6)
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]
    play.pass_time(1)
    assert play.actions(Reserve) == [Reserve("reservation:1")]
    waiting = play.ask(B)
    play.pass_time(100)
    assert play.loads() == ["a"], "a reservation is not an instance: nothing evicts it"
    play.feed(ev.ReservationReleased("reservation:1"))
    play.pass_time(2)
    assert play.granted(waiting)
    play.feed(ev.ReservationAsked("reservation:2", {HOST: 800}))
    assert [one.name for one in play.actions(Refuse)] == ["reservation:2"]


def test_whose_footprint_is_being_worked_out_waits_for_that() -> None:
    play = Play(plan("a", None, estimating=True), plan("b", 60))
    waiting, other = play.ask(A), play.ask(B)
    play.pass_time(3)
    assert play.granted(other)
    assert play.loads() == ["b"]
    play.feed(ev.ChoicesEstimated(A, (Choice({HOST: 40}, source="dry-run"),)))
    play.pass_time(3)
    assert play.granted(waiting)


def test_a_corrected_footprint_makes_idle_instances_give_way() -> None:
    play = Play(plan("a", 40), plan("b", 40))
    play.finish(_ready(play, A))
    lease = _ready(play, B)
    play.feed(ev.ChoicesEstimated(B, (Choice({HOST: 70}, source="measured"),)))
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]
    play.finish(lease)


def test_late_events_of_an_old_epoch_are_harmless() -> None:
    play = Play(plan("a", 60), plan("b", 60))
    play.finish(_ready(play, A))
    play.ask(B)
    play.pass_time(5)
    for event in (
        ev.InstanceReady(InstanceKey(A, 1), 4),
        ev.InstanceExited(InstanceKey(A, 1), None),
        ev.InstanceProgressed(InstanceKey(A, 1), 0.5),
        ev.InstanceReady(InstanceKey(PresetId("nobody"), 77), 1),
    ):
        assert play.feed(event) == []


def test_unknown_presets_are_refused() -> None:
    play = Play(plan("a", 1))
    refusal = play.rejected(play.ask(PresetId("nobody")))
    assert refusal is not None
    assert refusal.code == "model_not_found"


def test_an_unload_of_an_unwanted_load_and_a_refused_autoload() -> None:
    play = Play(plan("a", 10))
    refusal = play.rejected(play.ask(A, autoload=False))
    assert refusal is not None
    assert refusal.code == "model_not_loaded"
    play.feed(ev.LoadAsked(A))
    play.feed(ev.UnloadAsked(A))
    assert [stop.reason for stop in play.actions(Stop)] == [StopReason.ABANDONED]


def test_pools_can_shrink_and_then_nothing_new_starts() -> None:
    play = Play(plan("a", 60), plan("b", 30))
    play.scheduler.handle(ev.PoolsMeasured({HOST: Pool(20)}), 0.0)
    refusal = play.rejected(play.ask(B))
    assert refusal is not None
    assert "needs 30 B, but 20 B in all" in refusal.message


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("trigger", list(Trigger))
def test_the_table_is_the_only_way(state: State, trigger: Trigger) -> None:
    if (state, trigger) in TRANSITIONS:
        assert advance(state, trigger) is TRANSITIONS[state, trigger]
    else:
        with pytest.raises(IllegalTransition, match=state.value):
            advance(state, trigger)


def _ready(play: Play, preset: PresetId) -> RequestId:
    request = play.ask(preset)
    play.pass_time(play.load_seconds + play.stop_seconds)
    assert play.granted(request)
    return request


# --- granted at once ------------------------------------------------------------------------------


def asked(name: PresetId, request: str = "x", *, slot: bool = True) -> ev.RequestArrived:
    return ev.RequestArrived(
        request=RequestId(request), preset=name, client=ClientId("c"), slot=slot
    )


def test_a_ready_model_with_a_free_slot_is_granted_at_once() -> None:
    play = Play(plan("a", 10), plan("b", 10))
    assert play.scheduler.grant_at_once(asked(A), play.now) is None
    first = play.ask(A)
    play.pass_time(5)
    play.finish(first)
    assert play.scheduler.grant_at_once(asked(B), play.now) is None
    granted = play.scheduler.grant_at_once(asked(A), play.now)
    assert granted is not None
    assert list(granted.leases) == ["x"]
    assert play.scheduler.grant_at_once(asked(A, "y"), play.now) is None  # one slot
    assert play.scheduler.grant_at_once(asked(A, "z", slot=False), play.now) is granted
    check(play.scheduler)


def test_a_lease_ends_at_once_if_nothing_follows_from_that() -> None:
    play = Play(plan("a", 10, ttl=60.0), plan("b", 10))
    end = ev.RequestFinished(_ready(play, A))
    assert not play.scheduler.finish_at_once(end, play.now)  # it has to be woken for the ttl
    assert end.request in play.scheduler.state.leases
    play.feed(end)
    due = play.scheduler.deadline()
    assert due is not None
    play.now += 1
    play.scheduler.grant_at_once(asked(A), play.now)
    assert play.scheduler.finish_at_once(ev.RequestFinished(RequestId("x")), play.now)
    assert play.scheduler.deadline() == due  # it looks then, and finds the ttl moved
    assert not play.scheduler.state.leases
    check(play.scheduler)
    assert not play.scheduler.finish_at_once(ev.RequestFinished(RequestId("x")), play.now)


def test_a_lease_does_not_end_at_once_while_anybody_waits() -> None:
    play = Play(plan("a", 80), plan("b", 80))
    end = ev.RequestFinished(_ready(play, A))
    play.ask(B)
    assert not play.scheduler.finish_at_once(end, play.now)
    assert end.request in play.scheduler.state.leases


def test_an_idle_model_is_not_taken_at_once_while_anybody_waits() -> None:
    """Somebody may count on its idleness: a pass has to follow."""
    play = Play(plan("a", 10, concurrency=2), plan("b", 80), plan("c", 80))
    first = play.ask(A)
    play.pass_time(5)
    play.ask(C)
    play.pass_time(5)
    play.ask(B)
    granted = play.scheduler.grant_at_once(asked(A), play.now)
    assert granted is not None  # it is busy already
    play.feed(ev.RequestFinished(RequestId("x")))
    play.finish(first)
    assert play.scheduler.state.presets[A].serving is granted
    assert granted.admits(slot=True)
    assert play.scheduler.grant_at_once(asked(A, "y"), play.now) is None


def test_nothing_is_granted_at_once_while_lswap_stops() -> None:
    play = Play(plan("a", 10))
    first = play.ask(A)
    play.pass_time(5)
    play.finish(first)
    play.feed(ev.ShutdownAsked(5.0))
    assert play.scheduler.grant_at_once(asked(A), play.now) is None
