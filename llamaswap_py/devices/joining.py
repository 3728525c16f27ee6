"""Joins the lists of several engines: which of their names mean the same memory. Pure.

A name is not a pool. CUDA0 of one engine and Vulkan0 of another may be one card; a software driver
computes in main memory; two RPC servers of this machine lend the same memory. What cannot be told
apart counts as the same memory, so that it is never promised twice.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final, TypeAlias

from llamaswap_py.devices.device import Device, EngineList, SeenAs
from llamaswap_py.devices.matching import (
    alike,
    is_integrated,
    is_software,
    match_cards,
    plain_description,
)
from llamaswap_py.llamacpp.backends import DEVICE_VARIABLES
from llamaswap_py.llamacpp.device_list import ListedDevice
from llamaswap_py.units import HOST, MIB

CardsOf: TypeAlias = Callable[[str, Mapping[str, str]], Sequence[Device]]
"""The cards that devices of a kind can be in an environment, in the backend's order."""

_RPC: Final = "RPC"
_NEAR: Final = 0.95
"""A lender on this machine that offers at least this part of main memory lends main memory."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A device in the list of an engine, and the card that it is if that is certain."""

    listing: EngineList
    place: int
    device: ListedDevice
    card: Device | None

    @property
    def in_software(self) -> bool:
        return is_software(self.device.description)


@dataclass(slots=True)
class _Memory:
    """One piece of memory, and the devices that mean it: by kind, and by their order in a list."""

    identity: str
    entries: dict[tuple[str, int], list[_Entry]] = field(default_factory=dict)
    is_several: bool = False
    """Whether it stands for several equal cards, of which nobody can tell which is meant."""

    def absorb(self, other: _Memory) -> None:
        """Take the devices of another one, which may be the same memory."""
        self.is_several = True
        for them in other.entries.values():
            for entry in them:
                self.add(entry)

    def add(self, entry: _Entry) -> None:
        kind = entry.device.kind
        mine = (one for them in self.entries.values() for one in them)
        before = sum(one.listing is entry.listing and one.device.kind == kind for one in mine)
        self.entries.setdefault((kind, before), []).append(entry)

    @property
    def root(self) -> list[_Entry]:
        """The entries whose name stands for the memory: of a card that is known, else the first."""
        them = self.entries.values()
        return next((one for one in them if one[0].card is not None), next(iter(them)))

    @property
    def first(self) -> _Entry:
        return self.root[0]


def join_lists(
    lists: Sequence[EngineList], cards_of: CardsOf, host_total: int
) -> tuple[Device, ...]:
    """Return the devices of all lists, each under the first engine's name for it.

    `host_total` are the bytes of main memory: a lender of this machine that has as much lends that.
    """
    entries = [entry for listing in lists for entry in _entries(listing, cards_of)]
    memories: dict[str, _Memory] = {}

    def put(entry: _Entry, identity: str) -> None:
        memories.setdefault(identity, _Memory(identity)).add(entry)

    for entry in entries:
        if entry.card is not None:
            put(entry, _card_identity(entry.card))
    for _, mine in groupby(entries, lambda one: id(one.listing)):
        before = _Before(memories, them := list(mine))
        for entry in them:
            if entry.card is None:
                put(entry, identity := _identity(entry, before, memories))
                before.add(entry, identity)
    return _named(entries, memories, host_total)


def _entries(listing: EngineList, cards_of: CardsOf) -> Iterator[_Entry]:
    cards: dict[str, Device | None] = {}
    for kind in dict.fromkeys(one.kind for one in listing.devices):
        mine = [one for one in listing.devices if one.kind == kind and kind != _RPC]
        hardware = [one for one in mine if not is_software(one.description)]
        if hardware:
            found = match_cards(hardware, cards_of(kind, listing.environment))
            cards |= {one.name: card for one, card in zip(hardware, found, strict=True)}
    for place, device in enumerate(listing.devices):
        yield _Entry(listing, place, device, cards.get(device.name))


def _card_identity(card: Device) -> str:
    """Return the PCI address; an instance of a divided GPU has only its UUID."""
    uuid = card.uuid or ""
    return uuid if uuid.startswith("MIG-") or not card.bus_id else card.bus_id


class _Before:
    """What comes before a device in its list, and the memory of other lists that it may be."""

    def __init__(self, memories: dict[str, _Memory], entries: Sequence[_Entry]) -> None:
        self._memories = memories
        listing = entries[0].listing if entries else None
        self.others = {
            memory.identity: memory.first.device
            for memory in memories.values()
            if memory.first.device.kind != _RPC
            and not memory.first.in_software
            and not any(one.listing is listing for them in memory.entries.values() for one in them)
        }
        """Those that no device of the list means so far, by the device that stands for each."""
        self._same, self._plain = Counter[str](), Counter[str]()

    def add(self, entry: _Entry, identity: str) -> None:
        """Count a device without a card, which means the memory of that identity."""
        if not self._memories[identity].is_several:
            self.others.pop(identity, None)
        description = entry.device.description
        self._same[description] += 1
        self._plain[plain_description(description)] += 1

    def may_be(self, entry: _Entry) -> str:
        """Return the identity of memory that a device without a card may be, "" if none.

        Equal cards that an environment hides or renumbers become one memory.
        """
        device = entry.device
        alikes = (one for one, other in self.others.items() if alike(device, other))
        first = next(alikes, "")
        if first and _is_hidden(entry, self._memories[first].first):
            for other in [one for one in alikes if _is_hidden(entry, self._memories[one].first)]:
                self._memories[first].absorb(self._memories.pop(other))
                del self.others[other]
        return first

    def same(self, description: str) -> int:
        """Return how many devices have exactly this description."""
        return self._same[description]

    def plain(self, plain: str) -> int:
        """Return how many devices have this description in its plain form."""
        return self._plain[plain]


def _identity(entry: _Entry, before: _Before, memories: Mapping[str, _Memory]) -> str:
    """Return what tells a device without a card apart from others, as far as that is possible."""
    device = entry.device
    if device.kind == _RPC:
        if _is_here(device.description):
            lent = [one for one in memories.values() if _may_lend(one.first, device)]
            return lent[0].identity if lent else f"rpc-here-{device.total // MIB}"
        return f"rpc-{device.description}-{before.same(device.description)}"
    if not entry.in_software and (identity := before.may_be(entry)):
        return identity
    plain = plain_description(device.description)
    return f"{plain}-{before.plain(plain)}"


def _is_hidden(entry: _Entry, other: _Entry) -> bool:
    """Return whether two lists of one backend may count equal cards differently."""
    if entry.device.kind != other.device.kind or other.card is not None:
        return False
    mine, theirs = entry.listing.environment, other.listing.environment
    return any(mine.get(name) != theirs.get(name) for name in DEVICE_VARIABLES)


def _may_lend(entry: _Entry, lent: ListedDevice) -> bool:
    """Return whether a lender of this machine may lend that card."""
    if entry.device.kind == _RPC or entry.in_software or not lent.total:
        return False
    return _NEAR <= entry.device.total / lent.total <= 1 / _NEAR


def _is_here(endpoint: str) -> bool:
    host = endpoint.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _named(
    entries: Sequence[_Entry], memories: Mapping[str, _Memory], host_total: int
) -> tuple[Device, ...]:
    """Give each device its name, and say within which other device its memory lies."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    of_entry = {
        id(entry): them
        for memory in memories.values()
        for them in memory.entries.values()
        for entry in them
    }
    identities = {
        id(them): memory.identity
        for memory in memories.values()
        for them in memory.entries.values()
    }
    for entry in entries:
        them = of_entry[id(entry)]
        if id(them) not in names:
            name = entry.device.name
            if name in taken:  # an engine that sees fewer cards counts them anew
                name = f"{name}-{identities[id(them)]}"
            taken.add(name)
            names[id(them)] = name
    found = []
    for memory in memories.values():
        root = memory.root
        for them in memory.entries.values():
            inside = _inside(root, host_total) if them is root else names[id(root)]
            found.append(_found(names[id(them)], them, inside))
    order = {name: at for at, name in enumerate(names.values())}
    return tuple(sorted(found, key=lambda one: order[one.id]))


def _inside(root: Sequence[_Entry], host_total: int) -> str | None:
    """Return the host if it is main memory, else None."""
    one = root[0]
    if one.card is not None:
        unknown = not one.card.total and one.device.total >= host_total / 2
        return HOST if unknown or one.card.within == HOST else None
    if one.device.kind == _RPC:
        mine = _is_here(one.device.description) and one.device.total >= _NEAR * host_total
        return HOST if mine else None
    return HOST if one.in_software or is_integrated(one.device.description) else None


def _found(name: str, them: Sequence[_Entry], inside: str | None) -> Device:
    """Return one device with what is known of it."""
    one = them[0]
    seen = tuple(SeenAs(each.listing.view, each.device.name, each.place) for each in them)
    known = Device(name, one.device.total, 0, "engine", description=one.device.description)
    if one.card is not None:
        card = one.card
        known = replace(card, id=name, description=one.device.description)
        if not card.total:  # its memory cannot be measured
            known = replace(known, total=one.device.total, source="engine", meter=None)
    in_process = one.card is None and one.in_software
    return replace(known, within=inside, seen=seen, in_process=in_process)
