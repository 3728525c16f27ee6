"""Whether a preset can fit, and what is said to help: only what is enough, with its numbers."""

from __future__ import annotations

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.feasibility import judge, remedies
from llamaswap_py.scheduler.ledger import Ledger
from llamaswap_py.scheduler.types import (
    Choice,
    InstanceKey,
    Policy,
    Pool,
    PoolId,
    PresetId,
    PresetPlan,
    Remedy,
)
from llamaswap_py.units import GIB, MIB
from tests.scheduler.play import HOST, A, B, Play

GPU = PoolId("CUDA0")
ALPHA = InstanceKey(A, 1)


def ledger(*, host: int = 24 * GIB, margin: int = GIB, gpu: int = 0, most: int = 0) -> Ledger:
    pools = {HOST: Pool(host, margin)} | ({GPU: Pool(gpu, margin)} if gpu else {})
    return Ledger(pools, Policy(max_loaded=most))


def plan(size: int, *tried: tuple[str, int], **knobs: object) -> PresetPlan:
    found = tuple(Remedy(words, {HOST: takes}) for words, takes in tried)
    source = str(knobs.pop("source", "dry-run"))
    choice = Choice({HOST: size}, source=source, remedies=found)
    return PresetPlan(preset=B, choices=(choice,), **knobs)  # type: ignore[arg-type]


def test_only_settings_that_are_enough_are_named_in_their_order() -> None:
    tried = (
        ("`load-mode: none`", 20 * GIB),
        ("`memory.cache_ram: 0`", 39 * GIB),
        ("`ctx-size: 16384`", 22 * GIB),
    )
    said = remedies(ledger(), plan(40 * GIB, *tried))
    assert said == (
        "with `load-mode: none` it needs 20 GiB and fits; "
        "with `ctx-size: 16384` it needs 22 GiB and fits"
    )


def test_the_device_that_lacks_the_most_is_named() -> None:
    charge = {GPU: 6 * GIB, HOST: 40 * GIB}
    several = PresetPlan(preset=B, choices=(Choice(charge, source="dry-run"),))
    _, said = judge(ledger(gpu=6 * GIB), several)
    assert said == "host: needs 40 GiB, but 24 GiB in all - 1 GiB margin leave 23 GiB"
    _, said = judge(ledger(host=40 * GIB, gpu=4 * GIB), several)
    assert said == "CUDA0: needs 6 GiB, but 4 GiB in all - 1 GiB margin leave 3 GiB"


def test_if_nothing_is_enough_that_is_said() -> None:
    said = remedies(ledger(), plan(90 * GIB, ("`ctx-size: 4096`", 60 * GIB)))
    assert said.startswith("no change of its settings makes it fit here: with `ctx-size: 4096`")
    assert "still needs 60 GiB" in said
    assert remedies(ledger(), plan(90 * GIB)).startswith("no change of its settings")


def test_a_margin_is_named_only_if_something_of_it_is_left() -> None:
    need = 24 * GIB - 600 * MIB
    assert remedies(ledger(), plan(need)) == "`memory.margin: 600MiB` would be enough"
    two = ledger(gpu=8 * GIB)
    assert remedies(two, plan(need)) == "`memory.margin: {host: 600MiB}` would be enough"
    assert "margin" not in remedies(ledger(), plan(24 * GIB - MIB))
    lower = Ledger({HOST: Pool(24 * GIB, 600 * MIB)}, Policy())
    assert judge(lower, plan(need))[0]


def test_what_is_declared_may_be_declared_lower() -> None:
    said = remedies(ledger(), plan(40 * GIB, source="declared"))
    assert said == "declare no more than `memory: {host: 23552MiB}`"


def test_the_smallest_pinned_model_that_is_enough_is_named() -> None:
    books, small = ledger(), InstanceKey(PresetId("small"), 2)
    books.charges = {ALPHA: {HOST: 10 * GIB}, small: {HOST: 4 * GIB}}
    kept = [ALPHA, small]
    said = remedies(books, plan(12 * GIB), kept)
    assert said == "pinned small (4 GiB) is in the way: `lswap unpin small`"
    said = remedies(books, plan(22 * GIB), kept)
    assert said == "pinned models are in the way, unpin some: a (10 GiB), small (4 GiB)"
    assert "pinned" not in remedies(books, plan(30 * GIB), kept)


def test_a_pin_that_nobody_made_is_not_named() -> None:
    """One of a persistent group stays, too, and `unpin` would change nothing."""
    books, small = ledger(), InstanceKey(PresetId("small"), 2)
    books.charges = {ALPHA: {HOST: 10 * GIB}, small: {HOST: 4 * GIB}}
    said = remedies(books, plan(12 * GIB), [ALPHA, small], {small: "main"})
    assert said == (
        "small (4 GiB) stays, because the group main is persistent: `persistent: false` in "
        "`groups.main` lets it leave"
    )
    said = remedies(books, plan(22 * GIB), [ALPHA, small], {small: "main"})
    assert said == (
        "models that stay are in the way: pinned a (10 GiB), small (4 GiB) of the persistent "
        "group main"
    )


def test_pinned_models_that_take_every_place() -> None:
    books = ledger(most=1)
    books.charges = {ALPHA: {HOST: GIB, PoolId("max_loaded"): 1}}
    said = remedies(books, plan(GIB), [ALPHA])
    assert "pinned a (1 GiB) is in the way" in said
    assert "`policy.max_loaded: 2` leaves a place beside them" in said


def play_plan(name: str, size: int, **knobs: object) -> PresetPlan:
    return PresetPlan(preset=PresetId(name), choices=(Choice({HOST: size}),), **knobs)  # type: ignore[arg-type]


def test_a_request_that_waited_too_long_is_told_what_holds_the_memory() -> None:
    busy = play_plan("a", 60)
    play = Play(busy, play_plan("b", 60), queue_timeout=5, max_wait=100)
    play.ask(A)
    play.pass_time(3)
    waits = play.ask(B)
    play.pass_time(6)
    refusal = play.rejected(waits)
    assert refusal is not None
    assert refusal.code == "queue_timeout"
    assert "(host: needs 60 B · free 40 B" in refusal.message
    assert "raise `policy.queue.timeout`, which is 5 s" in refusal.remedy
    assert "the memory is held by a (60 B, 1 request)" in refusal.remedy
    (decision,) = [one for one in play.scheduler.decisions if one.preset == B]
    assert decision.kind == "refused"
    assert (
        "(at most 5 s) for it: waiting for memory (host: needs 60 B · free 40 B" in decision.reason
    )
    assert decision.reason.endswith("the memory is held by a (60 B, 1 request)")


def test_why_a_model_waits_is_known_while_it_waits() -> None:
    play = Play(play_plan("a", 60), play_plan("b", 60), queue_timeout=50, max_wait=100)
    pools = {HOST: Pool(100, strangers=30)}
    assert play.scheduler.waits(B) == ""
    lease = play.ask(A)
    play.pass_time(3)
    play.feed(ev.PoolsMeasured(pools))
    play.ask(B)
    assert play.scheduler.waits(B) == (
        "waiting for memory (host: needs 60 B · free 10 B · other programs 30 B); "
        "the memory is held by a (60 B, 1 request)"
    )
    assert play.scheduler.waits(A) == ""
    play.finish(lease)
    play.pass_time(3)
    assert play.scheduler.waits(B) == ""


def test_a_full_queue_names_its_limit() -> None:
    play = Play(play_plan("a", 60), queue_limit=1)
    play.ask(A)
    refusal = play.rejected(play.ask(A))
    assert refusal is not None
    assert refusal.code == "queue_full"
    assert "`policy.queue.limit`, which is 1" in refusal.remedy
    play.ask(A, client="another")
    (decision,) = [one for one in play.scheduler.decisions if one.kind == "refused"]
    assert decision.reason == "its queue is full: 1 waiting, as `policy.queue.limit` allows"


def test_what_can_never_fit_is_said_before_anybody_asks() -> None:
    play = Play(play_plan("a", 60))
    tried = (Remedy("`load-mode: none`", {HOST: 80}),)
    play.feed(ev.ChoicesEstimated(A, (Choice({HOST: 400}, source="dry-run", remedies=tried),)))
    (decision,) = play.scheduler.decisions
    assert decision.reason.endswith("with `load-mode: none` it needs 80 B and fits")
    play.feed(ev.ChoicesEstimated(A, (Choice({HOST: 400}, source="dry-run", remedies=tried),)))
    assert len(play.scheduler.decisions) == 1
