"""Who holds connections, and which give way: on guests that say themselves since when they wait."""

from __future__ import annotations

import asyncio
import gc

import pytest

from llamaswap_py.proxy import WireLimits
from llamaswap_py.proxy.client import ClientConnection
from llamaswap_py.proxy.places import Places
from tests.proxy.harness import connected, serving


class Guest:
    """A connection; `since` is None while it is answered."""

    def __init__(self, owner: str, since: float | None = None, *, reads: bool = False) -> None:
        self.owner = owner
        self.since = since
        self.reads = reads
        self.gone = False

    def awaited_since(self) -> float | None:
        return self.since

    def has_input(self) -> bool:
        return self.reads

    def give_way(self) -> None:
        self.gone = True


def full(places: Places, owner: str, since: float | None = 0.0) -> list[Guest]:
    """Take as many places as one owner gets without making anybody leave."""
    guests: list[Guest] = []
    while not places.gave_way and not places.refused:
        guests.append(Guest(owner, since))
        places.enter(guests[-1])
    return guests[:-1]


def test_the_oldest_of_an_owner_gives_way_to_its_newest() -> None:
    places = Places(8)
    guests = [Guest("a", float(9 - number)) for number in range(7)]
    assert all(map(places.enter, guests))
    assert places.enter(Guest("a", 10.0))
    assert [one.gone for one in guests] == [False] * 6 + [True]
    assert places.count == 7


def test_what_was_sent_and_is_not_read_yet_counts() -> None:
    places = Places(8)
    guests = [Guest("a", float(number), reads=number < 2) for number in range(7)]
    assert all(map(places.enter, guests))
    assert places.enter(Guest("a", 10.0))
    assert [one.gone for one in guests] == [False, False, True, False, False, False, False]


@pytest.mark.parametrize(("keyed", "share"), [(True, 4), (False, 14)])
def test_an_address_leaves_places_to_others(keyed: bool, share: int) -> None:
    places = Places(16, keyed=keyed)
    assert len(full(places, "a")) == share
    assert places.enter(Guest("b", 1.0))


def test_strangers_together_leave_half_of_the_places_to_keys() -> None:
    places = Places(16, keyed=True)
    guests = [Guest(f"192.0.2.{number}", 0.0) for number in range(40)]
    assert all(map(places.enter, guests))
    assert places.count == 8
    known = [Guest("192.0.2.99", None) for _ in range(8)]
    for one in known:
        assert places.enter(one)
        assert places.claim(one, "key ann")
    assert not any(one.gone for one in known)


def test_a_key_with_an_answer_on_each_of_its_connections_gets_no_more() -> None:
    places = Places(16, keyed=True)
    held = []
    for _ in range(8):
        held.append(Guest("a", None))
        assert places.enter(held[-1])
        assert places.claim(held[-1], "key ann")
    late = Guest("a", None)
    assert places.enter(late)
    assert not places.claim(late, "key ann")
    assert places.claim(late, "key bob")
    places.leave(held[0])
    other = Guest("a", None)
    assert places.enter(other)
    assert places.claim(other, "key ann")


def test_where_everybody_is_answered_a_newcomer_is_refused() -> None:
    places = Places(8)
    assert len(full(places, "a", None)) == 7
    assert not places.enter(Guest("a", 1.0))
    assert places.refused == 2


def test_whoever_holds_most_gives_way() -> None:
    places = Places(16)
    many, few = full(places, "a"), [Guest("b", -1.0) for _ in range(2)]
    assert all(map(places.enter, few))
    assert places.enter(Guest("c", 1.0))
    assert not any(one.gone for one in few)
    assert sum(one.gone for one in many) == 2


def test_leaving_twice_counts_once() -> None:
    places = Places(8)
    guest = Guest("a", 0.0)
    places.enter(guest)
    places.leave(guest)
    places.leave(guest)
    assert places.count == 0
    assert places.claim(guest, "key ann"), "it has left: there is nothing to claim"


@pytest.mark.anyio
async def test_nothing_is_left_of_a_connection_that_was_refused() -> None:
    async def never(_: object) -> None:
        raise AssertionError("nobody asked")

    gc.collect()
    gc.disable()
    before = sum(isinstance(one, ClientConnection) for one in gc.get_objects())
    try:
        async with serving(never, limits=WireLimits(idle=60)) as served:
            served.server.places.most = 2
            for _ in range(20):
                async with connected(served.endpoint) as client:
                    await asyncio.sleep(0.01)
                    del client
            served.server.places.most = 0
            async with connected(served.endpoint) as client:
                assert (await client.answer()).status == 503
                del client
        async with asyncio.timeout(60):
            while True:
                alive = [one for one in gc.get_objects() if isinstance(one, ClientConnection)]
                if len(alive) <= before:
                    break
                del alive
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
