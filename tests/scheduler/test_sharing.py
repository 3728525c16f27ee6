"""A full queue is shared: no client fills it for the others, and none of them is left out."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from llamaswap_py.scheduler import events as ev
from llamaswap_py.scheduler.actions import Reject
from llamaswap_py.scheduler.invariants import unfair_refusal
from llamaswap_py.scheduler.queues import QueuePlaces, Waiter
from llamaswap_py.scheduler.types import ClientId, RequestId
from tests.scheduler.play import A, B, Play, plan


def stuck(limit: int) -> Play:
    """A model that never becomes ready, and a queue of `limit`."""
    return Play(plan("a", 10), load_seconds=1e9, queue_limit=limit, queue_timeout=1e6)


def waiting(play: Play) -> dict[str, int]:
    return dict(Counter(str(one.client) for one in play.audit.waiting.values()))


def test_a_client_that_fills_a_queue_gives_way_to_others() -> None:
    play = stuck(8)
    flood = [play.ask(A, "hog") for _ in range(30)]
    mine = [play.ask(A, "ann") for _ in range(4)]
    assert not any(play.rejected(one) for one in mine)
    assert waiting(play) == {"hog": 4, "ann": 4}
    # Of what was let in the newest went; of those, who had waited are told so.
    lost = [one for one in flood[:8] if play.rejected(one)]
    assert lost == flood[4:8]
    refusal = play.rejected(flood[7])
    assert refusal is not None
    assert refusal.code == "queue_full"
    assert dict(refusal.details)["reason"] == "displaced"
    assert refusal.retry_after
    assert "hog held 8 of 8 places" in refusal.message
    turned_away = play.rejected(flood[8])
    assert turned_away is not None
    assert "reason" not in dict(turned_away.details)
    assert "hog holds 8 of these places" in turned_away.message


def test_nobody_gets_more_than_a_share_by_asking_more() -> None:
    play = stuck(9)
    for _ in range(50):
        for client in ("hog", "hog", "hog", "ann", "bob"):
            play.ask(A, client)
    assert waiting(play) == {"hog": 3, "ann": 3, "bob": 3}
    play.feed(
        ev.RequestLeft(next(one for one, by in play.audit.waiting.items() if by.client == "bob"))
    )
    play.ask(A, "hog")  # what nobody else wants
    assert waiting(play) == {"hog": 4, "ann": 3, "bob": 2}
    play.ask(A, "bob")
    assert waiting(play) == {"hog": 3, "ann": 3, "bob": 3}


def test_a_higher_priority_is_not_refused_for_a_queue_full_of_lower_ones() -> None:
    play = stuck(3)
    for client in ("x", "y", "z"):
        play.ask(A, client)
    assert play.rejected(play.ask(A, "late"))  # everybody has one
    high = play.ask(A, "key", priority=50)
    assert play.rejected(high) is None
    assert waiting(play) == {"x": 1, "y": 1, "key": 1}
    # One's own lower requests go first; but priority gives nobody more places than the others.
    higher = play.ask(A, "key", priority=51)
    assert play.rejected(higher) is None
    assert play.rejected(high)
    assert play.rejected(play.ask(A, "key", priority=51))
    assert waiting(play) == {"x": 1, "y": 1, "key": 1}


def test_of_those_above_their_share_the_lower_priority_goes_first() -> None:
    play = stuck(9)
    for _ in range(6):
        play.ask(A, "urgent", priority=5)
    for _ in range(3):
        play.ask(A, "batch")
    play.ask(A, "new", priority=5)
    assert waiting(play) == {"urgent": 6, "batch": 2, "new": 1}


def test_one_that_has_aged_is_not_displaced_by_a_priority_that_it_has_reached() -> None:
    play = stuck(1)
    old = play.ask(A, "old")
    play.pass_time(130.0)
    assert play.rejected(play.ask(A, "new", priority=2))
    assert play.rejected(old) is None
    play.ask(A, "new", priority=3)
    assert play.rejected(old)


def test_a_flood_of_a_higher_priority_starves_nobody() -> None:
    """It takes no place from who holds no more than a share, and ageing ends its precedence."""
    ageing, priority = 10.0, 3
    play = Play(plan("a", 10), load_seconds=1.0, queue_limit=4, queue_timeout=1e6, max_wait=ageing)
    play.ask(A, "vip", priority=priority)
    mine = play.ask(A, "ann")
    for _ in range(int(priority * ageing) + 10):
        for _ in range(6):
            play.ask(A, "vip", priority=priority)
        play.pass_time(1.0)
        for request in sorted(play.audit.holders):
            play.finish(request)
    assert play.rejected(mine) is None
    assert play.granted(mine) is not None
    assert len([one for one in play.actions(Reject) if one.code == "queue_full"]) > 100


def test_a_weight_gives_as_many_places_and_turns() -> None:
    play = stuck(8)
    play.slots = 1
    for _ in range(20):
        play.ask(A, "three", weight=3)
        play.ask(A, "one")
    assert waiting(play) == {"three": 6, "one": 2}
    order = [one.client for one in play.scheduler.state.presets[A].queue]
    assert order == ["three"] * 3 + ["one"] + ["three"] * 3 + ["one"]


@pytest.mark.parametrize("left", range(3))
def test_turns_go_in_the_order_that_was_told(left: int) -> None:
    """Also from the middle of a client's turns."""
    play = stuck(20)
    for _ in range(5):
        for client, weight in (("three", 3), ("two", 2), ("one", 1)):
            play.ask(A, client, weight=weight)
    queue = play.scheduler.state.presets[A].queue
    for _ in range(left):
        first = queue.peek(play.now)
        assert first is not None
        queue.remove(first)
    expected = list(queue)
    served = []
    while (one := queue.peek(play.now)) is not None:
        queue.remove(one)
        served.append(one)
    assert [one.request for one in served] == [one.request for one in expected]


def test_one_that_comes_back_keeps_its_place() -> None:
    play = stuck(2)
    returned = play.ask(A, "hog", since=0.0)
    play.ask(A, "hog", since=0.0)
    again = play.ask(A, "hog", since=0.0)  # more than the limit: it was let in before
    assert play.rejected(again) is None
    assert play.rejected(play.ask(A, "ann"))  # none of them gives way
    assert play.rejected(returned) is None


def test_requests_for_a_substitute_find_its_queue_full_too() -> None:
    play = Play(plan("a", 60), plan("b", 60), queue_limit=2, queue_timeout=1e6, load_seconds=1.0)
    held = play.ask(A, "ann")
    play.pass_time(2.0)
    assert play.granted(held)
    mine = play.ask(A, "ann")
    for _ in range(6):
        play.ask(B, "hog", when_full="substitute:a")
    queues = {name: play.scheduler.state.presets[name].queue for name in (A, B)}
    assert [one.client for one in queues[A]] == ["ann", "hog"]
    assert [one.client for one in queues[B]] == ["hog", "hog"]
    assert play.rejected(mine) is None
    other = play.ask(B, "eve", when_full="substitute:a")  # it displaces where it goes, too
    assert play.rejected(other) is None


@pytest.mark.parametrize("seed", range(20))
def test_random_crowds_are_treated_fairly(seed: int) -> None:
    """The play checks each refusal (invariant 10)."""
    random = Random(seed)
    clients = [f"c{at}" for at in range(random.choice([2, 3, 8, 20]))]
    weights = {one: random.choice([1, 1, 1, 2, 5]) for one in clients}
    play = stuck(random.choice([1, 2, 5, 16]))
    for _ in range(300):
        kind = random.random()
        if kind < 0.8:
            client = random.choice(clients[: random.choice([1, len(clients)])])
            priority = random.choice([0, 0, 0, 1, 3, 50, -5])
            play.ask(A, client, weight=weights[client], priority=priority)
        elif kind < 0.9 and play.audit.waiting:
            play.feed(ev.RequestLeft(random.choice(sorted(play.audit.waiting))))
        else:
            play.pass_time(random.choice([0.1, 30.0, 90.0]))
        queue = play.scheduler.state.presets[A].queue
        assert len(queue) <= play.scheduler.policy.queue_limit
    refused = sum(one.code == "queue_full" for one in play.actions(Reject))
    assert refused > 20, "nothing was tested"


@pytest.mark.parametrize("seed", range(10))
def test_who_holds_the_most_is_known(seed: int) -> None:
    random = Random(seed)
    places = QueuePlaces()
    counts: Counter[ClientId] = Counter()
    weights = {ClientId(f"c{at}"): random.choice([1, 1, 2, 7]) for at in range(8)}
    for _ in range(500):
        client = random.choice(list(weights))
        if counts[client] and random.random() < 0.45:
            counts[client] -= 1
            places.remove(client)
        else:
            counts[client] += 1
            places.add(client, weights[client])
        levels = {one: -(-counts[one] // weights[one]) for one in weights}
        most = places.most()
        if not any(levels.values()):
            assert most is None
        else:
            assert most is not None
            assert levels[most] == max(levels.values())
        assert {one: places.level(one) for one in weights} == levels


def test_the_check_can_fail() -> None:
    def one(request: str, client: str, priority: int = 0) -> Waiter:
        return Waiter(RequestId(request), ClientId(client), True, 0.0, priority)

    hogs = [one(str(at), "hog") for at in range(4)]
    ann = one("a", "ann")
    assert unfair_refusal(ann, ann, hogs, 0.0, 60.0)
    high = one("b", "bob", 50)
    assert unfair_refusal(high, high, hogs[:1], 0.0, 60.0)
    assert unfair_refusal(ann, hogs[3], hogs, 0.0, 60.0)
    assert unfair_refusal(hogs[3], ann, [*hogs[:3], ann], 0.0, 60.0) is None
