"""Who is hung: nothing moves while something is owed. Seconds are arguments, nobody sleeps."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from llamaswap_py.children.liveness import ChildRequests, Liveness, Work

PATIENCE = 120.0
ONE = ChildRequests(owing=1, changes=1)


@dataclass
class Watch:
    """A child seen every other second, with what it shows just now."""

    liveness: Liveness = field(default_factory=lambda: Liveness(PATIENCE, 0.0))
    now: float = 0.0
    asked: int = 0
    lines: int = 0
    cpu: float = 0.0
    fetched: int = 0
    slots: bytes | None = None
    requests: ChildRequests = ONE

    def look(self, seconds: float = 2.0) -> bool:
        self.now += seconds
        work = Work(self.cpu, self.fetched)
        self.liveness.look(self.now, self.requests, self.lines, work, longest=38.0)
        if self.liveness.asks:
            self.asked += 1
            self.liveness.answered(self.slots)
        return self.liveness.hung

    def until_hung(self, most: int = 1000) -> float | None:
        """Return when it is found, None if it is not within so many looks."""
        return next((self.now for _ in range(most) if self.look()), None)


def test_a_child_that_shows_nothing_is_found_in_time() -> None:
    watch = Watch()
    assert watch.until_hung() == PATIENCE
    assert watch.asked == 6, "a quarter of the time, then every eighth"


def test_an_idle_child_is_never_asked() -> None:
    watch = Watch(requests=ChildRequests())
    assert watch.until_hung() is None
    assert watch.asked == 0


@pytest.mark.parametrize("sign", ["bytes", "line", "cpu", "disk", "slots"])
def test_one_sign_now_and_then_keeps_it_alive(sign: str) -> None:
    watch = Watch(slots=b"0")
    for number in range(200):
        assert not watch.look(), number
        if number % 15:  # a sign every half minute
            continue
        if sign == "bytes":
            watch.requests = ChildRequests(owing=1, changes=1, received=number)
        elif sign == "line":
            watch.lines += 1
        elif sign == "cpu":
            watch.cpu += 7.0
        elif sign == "disk":
            watch.fetched += 4096
        else:
            watch.slots = b"%d" % number
    assert watch.until_hung() is not None


def test_a_prompt_that_is_worked_on_for_almost_an_hour_is_left_alone() -> None:
    """One batch on a slow machine: no byte, no line, and nobody answers /slots between batches."""
    watch = Watch()
    for _ in range(1799):
        watch.cpu += 1.9
        assert not watch.look()


@pytest.mark.parametrize("slots", [b"[]", None])
def test_a_child_that_spins_is_found_after_an_hour(slots: bytes | None) -> None:
    """Processor time is no work for ever; whether its main loop turns does not matter."""
    watch = Watch(slots=slots)
    while not watch.look():
        watch.cpu += 1.9
        assert watch.now < 4_000
    assert watch.liveness.spins
    assert 30 * PATIENCE <= watch.now <= 31 * PATIENCE + 4
    assert watch.asked <= 65, "seldom: it may only be slow"


@pytest.mark.parametrize("sign", ["bytes", "line", "slots"])
def test_a_slow_machine_that_gets_on_does_not_spin(sign: str) -> None:
    watch = Watch(slots=b"0")
    for number in range(5_000):
        watch.cpu += 1.9
        assert not watch.look(), number
        if number % 1_000:
            continue
        watch.slots = b"%d" % number if sign == "slots" else watch.slots
        watch.lines += sign == "line"
        if sign == "bytes":
            watch.requests = ChildRequests(owing=1, changes=1, received=number + 1)


def test_who_owes_nothing_may_compute_as_it_likes() -> None:
    watch = Watch(slots=b"[]", requests=ChildRequests(others=1, changes=1))
    for _ in range(5_000):
        watch.cpu += 1.9
        assert not watch.look()


def test_being_asked_is_no_work() -> None:
    watch = Watch()
    for _ in range(60):
        watch.cpu += 0.01
        if watch.look():
            break
    assert watch.now == PATIENCE


def test_slots_that_never_change_are_no_progress_where_tokens_are_owed() -> None:
    found = Watch(slots=b"[]").until_hung()
    assert found is not None
    assert found <= 1.25 * PATIENCE + 2


@pytest.mark.parametrize("slots", [b"[]", None])
def test_silence_that_is_in_order(slots: bytes | None) -> None:
    """A client that does not read, a feed without news: the main loop must turn, no more."""
    watch = Watch(slots=slots, requests=ChildRequests(others=2, changes=2))
    assert (watch.until_hung() is None) is (slots is not None)


def test_clients_that_give_up_and_come_again_do_not_hide_it() -> None:
    """Their comings and goings are logged by the threads that still run."""
    watch = Watch()
    for turn in range(1000):
        watch.lines += 3
        watch.requests = ChildRequests(owing=turn % 2, changes=turn + 1)
        if watch.look():
            break
    assert PATIENCE <= watch.now <= 2 * PATIENCE + 4, "only time with an open request counts"


def test_a_machine_that_was_suspended_is_not_the_childs_fault() -> None:
    watch = Watch(slots=b"a")
    assert not watch.look(86_400.0)
    assert watch.asked == 1, "it is asked first"
