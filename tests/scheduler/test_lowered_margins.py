"""A margin that is lowered for one model: that model gets it, and nothing else ever does."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Stop
from llamaswap_py.scheduler.feasibility import judge
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.types import Choice, Policy, Pool, PresetPlan
from tests.scheduler.play import HOST, A, B, C, Play, plan


def lowered(size: int, by: int, **knobs: object) -> PresetPlan:
    """Model a, which needs `size` bytes and may take `by` of the margin."""
    choice = Choice({HOST: size}, lowered={HOST: by})
    return PresetPlan(preset=A, choices=(choice,), **knobs)  # type: ignore[arg-type]


def measured(strangers: int) -> ev.PoolsMeasured:
    return ev.PoolsMeasured({HOST: Pool(100, 20, strangers=strangers)})


def served(play: Play, name: str) -> bool:
    asked = play.ask({"a": A, "b": B, "c": C}[name])
    play.pass_time(60)
    if play.granted(asked) is None:
        return False
    play.finish(asked)
    return True


def test_the_model_loads_into_the_margin_when_all_else_is_gone() -> None:
    play = Play(lowered(92, 15), plan("b", 30), margin=20)
    assert served(play, "b")
    assert served(play, "a")
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["b"]
    assert play.scheduler.state.ledger.free()[HOST] == -12
    play.pass_time(600)
    assert len(play.actions(Stop)) == 1, "it is not in the way of the margin: it has it"


def test_what_it_takes_of_the_margin_is_offered_to_nothing_else() -> None:
    """Neither beside it, nor when other programs have given memory back."""
    play = Play(lowered(70, 15), plan("b", 10), plan("c", 9), margin=20)
    play.feed(measured(22))
    assert served(play, "a")
    assert play.scheduler.state.ledger.free()[HOST] == -12
    play.feed(measured(0))
    assert play.scheduler.state.ledger.free()[HOST] == 10
    assert served(play, "b")
    assert not play.actions(Stop), "there are 10 bytes besides the whole margin"
    assert served(play, "c")
    assert play.actions(Stop), "there is nothing left besides the margin"


def test_it_gives_way_when_other_programs_take_more_than_it_was_given() -> None:
    play = Play(lowered(92, 15), margin=20)
    play.feed(measured(0))
    assert served(play, "a")
    play.feed(measured(3))
    assert not play.actions(Stop), "5 bytes of the margin are left for the others"
    play.feed(measured(4))
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["a"]
    assert "other programs" in play.scheduler.decisions[-1].reason


def test_a_pinned_one_leaves_nothing_to_others() -> None:
    play = Play(lowered(92, 15, pin=True), plan("b", 1), margin=20)
    assert served(play, "a")
    asked = play.ask(B)
    refused = play.rejected(asked)
    assert refused is not None
    assert refused.code == "model_too_large"


def test_a_sleeping_one_wakes_into_the_margin() -> None:
    choice = Choice({HOST: 92}, lowered={HOST: 15}, sleeping={HOST: 5})
    play = Play(PresetPlan(preset=A, choices=(choice,)), plan("b", 60), margin=20)
    play.wakes = True
    assert served(play, "a")
    (key,) = play.scheduler.state.instances
    play.feed(ev.InstanceSlept(key))
    assert play.scheduler.state.lowered() == {}
    assert served(play, "b")
    assert served(play, "a")
    assert [stop.instance.preset for stop in play.actions(Stop)] == ["b"]


def test_a_margin_is_lowered_only_where_no_variant_fits_with_all_of_it() -> None:
    full, small = Choice({HOST: 92}, lowered={HOST: 15}), Choice({HOST: 40}, variant="small")
    ledger = Ledger({HOST: Pool(100, 20)}, Policy())
    both = PresetPlan(preset=A, choices=(full, small))
    options, _ = judge(ledger, both)
    assert [one.choice for one in options] == [small]
    options, _ = judge(ledger, replace(both, prefer_fit=False))
    assert [one.choice for one in options] == [small]
    options, _ = judge(ledger, replace(both, choices=(full,)))
    assert [one.choice for one in options] == [full]


@pytest.mark.parametrize(("size", "fits"), [(95, True), (96, False)])
def test_no_more_than_that_is_taken(size: int, fits: bool) -> None:
    options, said = judge(Ledger({HOST: Pool(100, 20)}, Policy()), lowered(size, 15))
    assert bool(options) is fits
    assert bool(said) is not fits


def test_messages_count_with_the_margin_that_is_left() -> None:
    play = Play(lowered(92, 15), plan("b", 30), margin=20)
    busy = play.ask(B)
    play.pass_time(10)
    play.ask(A)
    loads = play.scheduler.state.ledger
    said = loads.explain({HOST: 92}, loads.free(), {HOST: 15})
    assert said == "host: needs 92 B · free 65 B · margin 5 B"
    assert loads.lacks({HOST: 92}, loads.free(), {HOST: 15}) == "needs 92 B, 65 B were free"
    play.finish(busy)


@pytest.mark.parametrize("seed", range(5))
def test_in_a_random_day_nothing_else_gets_into_the_margin(seed: int) -> None:
    draw = random.Random(seed)
    play = Play(lowered(92, 15), plan("b", 30), plan("c", 45), margin=20)
    for _ in range(300):
        play.feed(measured(draw.choice((0, 0, 5, 20))))
        asked = play.ask(draw.choice((A, B, C)))
        play.pass_time(draw.choice((0.5, 3, 30)))
        if play.granted(asked) is not None:
            play.finish(asked)
        else:
            play.feed(ev.RequestLeft(asked))
        charges = play.scheduler.state.ledger.charges
        held = {key.preset: charge[HOST] for key, charge in charges.items()}
        if A in held:
            assert set(held) == {A}
        assert sum(held.values()) <= (95 if A in held else 80)
    assert {"a", "b", "c"} <= set(play.loads())
